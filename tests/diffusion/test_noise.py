"""A sample's noise depends on its seed and on nothing else."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medaug.diffusion.noise import generators, named_seed, standard_normal

SHAPE = (2, 3, 4, 5)


@settings(max_examples=30)
@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8), draws=st.integers(1, 3))
def test_a_seed_gives_the_same_noise_alone_and_in_a_batch(seeds: list[int], draws: int) -> None:
    together = generators(seeds)
    batches = [standard_normal(together, SHAPE) for _ in range(draws)]
    for i, seed in enumerate(seeds):
        alone = generators([seed])
        for batch in batches:
            assert torch.equal(batch[i], standard_normal(alone, SHAPE)[0])


def test_noise_is_standard_normal_float32_and_differs_by_draw_and_seed() -> None:
    streams = generators([1, 2])
    first, second = standard_normal(streams, (20_000,)), standard_normal(streams, (20_000,))
    assert first.dtype == torch.float32 and first.shape == (2, 20_000)
    assert all(stats.kstest(row.numpy(), "norm").pvalue > 1e-3 for row in (*first, *second))
    correlation = torch.corrcoef(torch.cat([first, second])) - torch.eye(4)
    assert correlation.abs().max() < 0.03


def test_the_global_generator_is_not_used() -> None:
    state = torch.get_rng_state()
    standard_normal(generators([3]), SHAPE)
    assert torch.equal(torch.get_rng_state(), state)


def test_named_seeds_are_stable_and_distinct() -> None:
    assert named_seed(7, "generate", 12) == 1950304603817042379
    names = [(), ("a",), ("a", "b"), ("ab",), ("b", "a"), (1,), ("1",), (1, 2), (12,), ("a,b",)]
    seeds = {named_seed(root, *name) for root in range(100) for name in names}
    assert len(seeds) == 100 * len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sum(seed >= 2**62 for seed in seeds) > 400  # the high bit is used too
