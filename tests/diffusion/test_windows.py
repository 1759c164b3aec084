"""Fused windows against whole volumes: Gaussian data whose denoiser is known in closed form, and the seams."""

from __future__ import annotations

import pytest
import torch
from helpers import times
from hypothesis import given, settings
from hypothesis import strategies as st

from medaug.diffusion.process import build_process
from medaug.diffusion.samplers import SAMPLERS, sample
from medaug.diffusion.windows import Windows, place, scaled

PROCESS = build_process("rectified_flow", "flow")
GRID, SIZE = (9, 6, 5), (4, 3, 5)


def normal(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", SAMPLERS)
def test_windows_of_independent_gaussian_voxels_give_the_whole_volumes_sample(name):
    """Voxel v is N(m_v, s_v^2), so E[x_0 | x_t] = m + alpha s^2 (x_t - alpha m) / (alpha^2 s^2 + sigma^2)."""
    draw = normal((1, 2, *GRID))
    mean, variance = draw(), draw().square() + 0.1

    def exact(x, t, box=(slice(None),) * 3):
        alpha, sigma = PROCESS.alpha(t[:1]), PROCESS.sigma(t[:1])
        m, v = mean[(..., *box)], variance[(..., *box)]
        return m + alpha * v * (x - alpha * m) / (alpha**2 * v + sigma**2)

    windows = Windows(GRID, SIZE, 0.4)

    def fused(x, t):
        return windows.fuse(lambda box: exact(x[(..., *box)], t, box))

    results = []
    for denoise in (exact, fused):
        noise = normal((3, 2, *GRID), seed=1)
        results.append(sample(name, denoise, noise(), PROCESS, times(4), noise))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def test_no_seam_shows_in_the_gradients_of_a_correlated_field():
    """A stationary field along x, correlation 0.9 per voxel: its gradients have the same variance everywhere.

    Each window's denoiser is the exact one of the field in that window alone. Abutting windows leave a seam.
    """
    side, size, num = 32, 16, 1500
    index = torch.arange(side, dtype=torch.float64)
    covariance = (0.9 ** (index[:, None] - index).abs())[:size, :size]

    def field(overlap):
        windows = Windows((side, 1, 1), (size, 1, 1), overlap)

        def denoise(x, t):
            alpha, sigma = PROCESS.alpha(t[:1]), PROCESS.sigma(t[:1])
            gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(size).double())
            return windows.fuse(lambda box: torch.einsum("ij,bcjyz->bciyz", gain, x[(..., *box)]))

        noise = normal((num, 1, side, 1, 1))
        result = sample("ddpm", denoise, noise(), PROCESS, times(24), noise)
        return result.flatten(1).diff(dim=1).square().mean(0)

    smooth, seamed = field(0.5), field(0.0)
    border = size - 1  # between voxels 15 and 16
    assert seamed[border] > 3 * seamed[:border].mean()
    elsewhere = torch.cat([smooth[: border - 4], smooth[border + 5 :]])
    assert smooth[border - 4 : border + 5].mean() / elsewhere.mean() == pytest.approx(1, abs=0.1)
    assert smooth.max() < 1.25 * smooth.mean()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_windows_cover_every_voxel_with_a_total_weight_of_1_and_overlap_enough(data):
    grid = tuple(data.draw(st.integers(1, 12)) for _ in range(3))
    size = tuple(data.draw(st.integers(1, side)) for side in grid)
    overlap = data.draw(st.floats(0, 0.95))
    windows = Windows(grid, size, overlap)
    scale = data.draw(st.sampled_from([(1, 1, 1), (2, 1, 2)]))
    ones = windows.fuse(lambda box: torch.ones(1, 1, *(n * s for n, s in zip(size, scale, strict=True))), scale)
    torch.testing.assert_close(ones, torch.ones(1, 1, *(n * s for n, s in zip(grid, scale, strict=True))))
    assert len(list(windows.boxes())) == len(windows)
    for starts, side, length in zip(windows.starts, grid, size, strict=True):
        assert starts[0] == 0 and starts[-1] == side - length
        assert all(0 < b - a <= max(1, length * (1 - overlap)) for a, b in zip(starts, starts[1:], strict=False))


def test_place_is_the_position_of_the_first_and_the_last_voxel():
    whole, part = (slice(0, 5), slice(0, 1), slice(0, 9)), (slice(1, 4), slice(0, 1), slice(8, 9))
    assert place(whole, (5, 1, 9)).tolist() == [-1, 1, -1, -1, -1, 1]
    assert place(part, (5, 1, 9)).tolist() == [-0.5, 0.5, -1, -1, 1, 1]
    assert scaled(part, (2, 1, 3)) == (slice(2, 8), slice(0, 1), slice(24, 27))


@pytest.mark.parametrize(
    "size,overlap,message", [((4, 7, 5), 0.5, "do not fit"), (SIZE, -0.1, "gaps"), (SIZE, 1, "below 1")]
)
def test_windows_that_leave_gaps_or_exceed_the_grid_are_refused(size, overlap, message):
    with pytest.raises(ValueError, match=message):
        Windows(GRID, size, overlap)
