"""The loss and the samples are functions of their seeds, and the mask matters."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from helpers import model_options, samples

from medaug.cohort.schema import IGNORE
from medaug.diffusion.inpainting import Inpainting
from medaug.diffusion.noise import named_seed
from medaug.diffusion.predictions import PREDICTIONS
from medaug.diffusion.process import build_process
from medaug.diffusion.schedules import SCHEDULES as NOISE_SCHEDULES
from medaug.errors import UserError
from medaug.networks.condition import Condition
from medaug.training.model import Context, DiffusionModel, Dropout

SHAPE = (8, 8, 8)
PROCESSES = [
    {"noise_schedule": "rectified_flow", "prediction_type": "flow", "num_train_timesteps": 1000},
    {"noise_schedule": "linear", "prediction_type": "epsilon", "num_train_timesteps": 1000},
    {"noise_schedule": "cosine", "prediction_type": "v_prediction", "num_train_timesteps": 1000},
    {"noise_schedule": "edm", "prediction_type": "edm", "num_train_timesteps": None},
]
MIN_SNR = {
    "noise_schedule": "linear",
    "prediction_type": "v_prediction",
    "zero_terminal_snr": True,
    "loss_weight": "min_snr",
}


def make_options(process=PROCESSES[0], codec="haar", **network):
    return model_options(process, codec, **{"channels": [8, 16], "attention": [False, True]} | network)


def make_model(options=None, randomised=True, **more) -> DiffusionModel:
    torch.manual_seed(0)
    model = DiffusionModel(options or make_options(**more), num_modalities=1, num_classes=3, precision="fp32")
    if randomised:  # the output convolution starts at zero
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def make_batch(num=3, labelled=True):
    draw = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(num, 1, *SHAPE, generator=draw) * 2 - 1,
        "label": torch.randint(0, 3, (num, *SHAPE), generator=draw),
        "labelled": torch.full((num,), labelled),
        "seed": torch.arange(num) + 2**40,
    }


def one(batch, i):
    return {key: value[i : i + 1] for key, value in batch.items()}


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p['noise_schedule']}-{p['prediction_type']}")
@torch.no_grad()
def test_loss_is_a_function_of_the_samples_own_seed(process):
    model, batch = make_model(process=process), make_batch()
    together = model.loss(batch, Dropout(0.5))
    assert together.shape == (3,) and torch.isfinite(together).all()
    assert torch.equal(together, model.loss(batch, Dropout(0.5)))
    alone = torch.cat([model.loss(one(batch, i), Dropout(0.5)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    other = model.loss(batch | {"seed": batch["seed"] + 10}, Dropout(0.5))
    assert ((together - other).abs() > 1e-3).all()


@torch.no_grad()
def test_dropped_and_missing_masks_are_the_null_condition():
    model, batch = make_model(), make_batch()
    other = batch | {"label": (batch["label"] + 1) % 3}
    assert ((model.loss(batch) - model.loss(other)).abs() > 1e-6).all()
    null = model.loss(batch, Dropout(1.0))
    assert torch.equal(null, model.loss(other, Dropout(1.0)))
    unlabelled = batch | {"labelled": torch.zeros(3).bool()}
    assert torch.equal(null, model.loss(unlabelled)), "the same times and noise, the same null condition"


@torch.no_grad()
def test_condition_dropout_hides_the_given_share():
    model, batch = make_model(), make_batch(1)
    many = {key: value.expand(200, *value.shape[1:]) for key, value in batch.items()} | {"seed": torch.arange(200)}
    same = torch.isclose(model.loss(many, Dropout(0.3)), model.loss(many, Dropout(1.0)), rtol=1e-6)
    assert 40 < int(same.sum()) < 80  # 60 on average, 3 standard deviations


@torch.no_grad()
def test_an_untrained_flow_loss_is_the_variance_of_its_target():
    """MONAI's network starts at zero, so the loss is the mean of (epsilon - x_0)^2 = 1 + 1."""
    model = make_model(randomised=False)
    image = torch.randn(64, 1, *SHAPE, generator=torch.Generator().manual_seed(3))
    batch = {key: value.expand(64, *value.shape[1:]) for key, value in make_batch(1).items()}
    loss = model.loss(batch | {"image": image, "seed": torch.arange(64)}, Dropout(0.1)).mean()
    assert float(loss) == pytest.approx(2.0, rel=0.02)


SAMPLERS = [("dpmpp_2m", 0.0), ("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)]


def draw_samples(model, label, seeds, sampler=SAMPLERS[0], scale=2.0):
    return samples(model, label, seeds, guidance_scale=scale, sampler=sampler[0], num_inference_steps=4, eta=sampler[1])


@torch.no_grad()
def test_an_untrained_edm_loss_is_the_unit_variance_of_its_target():
    model = make_model(process=PROCESSES[3], randomised=False)
    image = torch.randn(64, 1, *SHAPE, generator=torch.Generator().manual_seed(3))
    batch = {key: value.expand(64, *value.shape[1:]) for key, value in make_batch(1).items()}
    loss = model.loss(batch | {"image": image, "seed": torch.arange(64)}, Dropout(0.1)).mean()
    assert float(loss) == pytest.approx(1.0, rel=0.02)


@torch.no_grad()
def test_the_network_sees_scaled_inputs_and_the_time_of_its_schedule():
    model, seen = make_model(process=PROCESSES[3]), []
    model.network.forward = lambda x, t, condition: seen.append((x, t)) or x
    x, t = torch.randn(2, 8, 4, 4, 4) * 80, torch.ones(2)
    model.predict(x, t, Condition(torch.zeros(2, 1), torch.zeros(2, 0)))
    torch.testing.assert_close(seen[0][0], x / (80**2 + 1) ** 0.5)
    torch.testing.assert_close(seen[0][1], torch.full((2,), 80.0).log() / 4)


@pytest.mark.parametrize("codec", ["identity", "haar"])
@torch.no_grad()
def test_region_weight_multiplies_blocks_with_foreground(codec):
    options = make_options(codec=codec)
    plain, weighted = (make_model(options | {"trainer": {"region_weight": w}}) for w in (1.0, 5.0))
    batch = make_batch(2)
    label = torch.zeros(2, *SHAPE, dtype=torch.long)
    label[:, 0, 0, 0] = 2  # one voxel, in the first block
    label[:, 7, 7, 7] = IGNORE
    batch["label"] = label

    for model in (plain, weighted):
        model.network.forward = lambda x, t, condition: torch.zeros_like(x)
    # the network's output is zero, so the error is the target, epsilon - x_0, which is the same for both
    x0 = plain.codec.encode(batch["image"])
    draws = [torch.Generator().manual_seed(named_seed(int(seed), "diffusion")) for seed in batch["seed"]]
    for draw in draws:
        torch.rand((), generator=draw)
    for draw in draws:
        torch.randn(1, generator=draw)
    noise = torch.stack([torch.randn(x0.shape[1:], generator=draw) for draw in draws])
    squares = (noise - x0).square().mean(1)  # over channels
    torch.testing.assert_close(plain.loss(batch), squares.flatten(1).mean(1))
    weight = torch.ones_like(squares)
    weight[:, 0, 0, 0] = 5
    expected = (squares * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
    torch.testing.assert_close(weighted.loss(batch), expected)
    unlabelled = batch | {"labelled": torch.zeros(2).bool()}
    torch.testing.assert_close(weighted.loss(unlabelled), squares.flatten(1).mean(1))


def every_process():
    """All pairs of noise schedule and prediction that are not refused."""
    for noise_schedule in NOISE_SCHEDULES:
        for prediction_type in PREDICTIONS:
            process = {"noise_schedule": noise_schedule, "prediction_type": prediction_type}
            with suppress(ValueError):
                build_process(**process)
                yield pytest.param(process, id=f"{noise_schedule}-{prediction_type}")


@pytest.mark.parametrize("process", [*every_process(), pytest.param(MIN_SNR, id="min_snr")])
@pytest.mark.parametrize("codec", ["identity", "haar"])  # with haar, the deeper level has sides of 2: see `predict`
def test_gradients_in_bf16_are_finite_at_the_ends_of_time(codec, process, monkeypatch):
    model = DiffusionModel(make_options(process=process, codec=codec), 1, 3, "bf16")
    for ends in ([0.0, 1.0, 1.0], [1e-6, 0.5, 1 - 1e-6]):
        times = iter(ends)
        monkeypatch.setattr(
            type(model.process.schedule),
            "training_times",
            lambda self, n, draw, times=times: torch.tensor([next(times)]),
        )
        model.zero_grad()
        model.loss(make_batch(), Dropout(0.1)).mean().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients and all(g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


def test_fp16_is_refused_without_cuda():
    batch, models = make_batch(), [DiffusionModel(make_options(), 1, 3, precision) for precision in ("fp16", "fp32")]
    models[0].load_state_dict(models[1].state_dict())
    losses = [model.loss(batch) for model in models]
    assert torch.equal(*losses) and losses[0].dtype == torch.float32


@pytest.mark.parametrize("codec", ["identity", "haar"])
def test_bf16_gradients_agree_with_float32(codec):
    gradients = []
    for precision in ("bf16", "fp32"):
        model = DiffusionModel(make_options(codec=codec, channels=[16, 16]), 1, 3, precision)
        for i, parameter in enumerate(model.parameters()):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
        model.loss(make_batch(), Dropout(0.1)).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[1].norm()


@pytest.mark.parametrize("process", [PROCESSES[2], PROCESSES[3]], ids=lambda p: p["noise_schedule"])
@pytest.mark.parametrize(("sampler", "spacing"), [("dpmpp_2m_sde", "uniform"), ("heun", "karras")])
def test_a_sample_does_not_depend_on_its_batch(process, sampler, spacing):
    model = make_model(process=process)
    label = make_batch(8)["label"]

    def draw(label, seeds):
        return samples(
            model,
            label,
            seeds,
            guidance_scale=2.0,
            sampler=sampler,
            num_inference_steps=4,
            spacing=spacing,
            guidance_interval=(0.2, 0.8),
            guidance_rescale=0.5,
            negative_classes=(2,),
        )

    together = draw(label, range(8))
    assert together.isfinite().all() and together.std() > 0
    for i in (0, 5):
        torch.testing.assert_close(draw(label[i : i + 1], [i]), together[i : i + 1], atol=1e-3, rtol=1e-3)


def test_negative_classes_guide_away_from_the_mask_without_them():
    model, label, conditions = make_model(), make_batch(1)["label"], []
    denoise = model.denoise

    def record(x, t, condition):
        conditions.append(condition)
        return denoise(x, t, condition)

    model.denoise = record
    options = {"guidance_scale": 2.0, "sampler": "ddim", "num_inference_steps": 1}
    samples(model, label, [0], **options, negative_classes=(2,))
    known = torch.ones(1, 2)
    without, whole = model.condition(label.where(label != 2, 0), known), model.condition(label, known)
    assert torch.equal(conditions[0].planes, torch.cat([without.planes, whole.planes]))
    samples(model, label, [0], **options)
    null = model.condition(label, torch.zeros(1, 2))
    assert torch.equal(conditions[1].planes, torch.cat([null.planes, whole.planes]))


def test_unlabelled_sample_uses_the_null_condition():
    model, label = make_model(), make_batch(2)["label"]
    options = {"sampler": "ddim", "num_inference_steps": 3}
    result = samples(
        model, label, [0, 1], guidance_scale=1.0, **options, context=Context(labelled=torch.tensor([True, False]))
    )
    both = [samples(model, label, [0, 1], guidance_scale=scale, **options) for scale in (1.0, 0.0)]
    torch.testing.assert_close(result, torch.stack([both[0][0], both[1][1]]))
    assert (both[0] - both[1]).abs().max() > 0.01


def test_watch_is_called_at_every_evaluation_and_changes_nothing():
    model, label = make_model(process=PROCESSES[3]), make_batch(2)["label"]
    options = {"guidance_scale": 1.0, "sampler": "heun", "num_inference_steps": 3, "spacing": "karras"}
    seen = []
    result = samples(model, label, [1, 2], **options, watch=lambda t, image: seen.append((t, image)))
    assert torch.equal(result, samples(model, label, [1, 2], **options))
    assert len(seen) == 5 and seen[0][0] == 1 and all(image.shape == result.shape for _, image in seen)
    # the last step, Euler's to t = 0, ends in what was expected there
    torch.testing.assert_close(seen[-1][1], result)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_sample_is_a_function_of_its_own_seed_and_mask(sampler):
    model, label = make_model(process=PROCESSES[2]), make_batch()["label"]
    together = draw_samples(model, label, [5, 6, 7], sampler)
    assert together.shape == (3, 1, *SHAPE) and together.min() >= -1 and together.max() <= 1
    for i, seed in enumerate([5, 6, 7]):
        torch.testing.assert_close(
            draw_samples(model, label[i : i + 1], [seed], sampler), together[i : i + 1], atol=1e-3, rtol=1e-3
        )
    other = draw_samples(model, label, [5, 8, 7], sampler)
    torch.testing.assert_close(other[[0, 2]], together[[0, 2]], atol=1e-3, rtol=1e-3)
    assert (other[1] - together[1]).abs().max() > 0.1


@pytest.mark.slow
def test_guidance_zero_ignores_the_mask_and_any_other_scale_does_not():
    model, label = make_model(), make_batch()["label"]
    changed = (label + 1) % 3

    def difference(scale):
        return (
            draw_samples(model, label, [1, 2, 3], scale=scale) - draw_samples(model, changed, [1, 2, 3], scale=scale)
        ).abs()

    assert not difference(0.0).any()
    assert difference(1.0).max() > 1e-4
    assert difference(3.0).max() > difference(1.0).max()


def test_sampling_does_not_use_the_global_random_state():
    model, label = make_model(), make_batch(1)["label"]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model.loss(make_batch(), Dropout(0.1))
    draw_samples(model, label, [1], ("ddpm", 0.0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "options",
    [
        make_options(codec="wavelet"),
        make_options(process=PROCESSES[0] | {"prediction_type": "epsilon"}),
        make_options(norm_num_groups=3),
        make_options(process=PROCESSES[0] | {"loss_weight": "snr"}),
    ],
)
def test_incompatible_options_are_refused_with_one_line(options):
    with pytest.raises(UserError) as caught:
        DiffusionModel(options, 1, 3, "fp32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codec", ["identity", "haar"])
@torch.no_grad()
def test_inpainting_changes_only_the_region_and_depends_on_the_rest(codec):
    model, batch = make_model(codec=codec), make_batch(2)
    region = torch.zeros(2, 1, *SHAPE, dtype=torch.bool)
    region[:, :, 2:5, 3:6, 1:4] = True
    options = {"guidance_scale": 1.0, "sampler": "ddpm", "num_inference_steps": 3}
    known = batch["image"]
    result = samples(model, batch["label"], [1, 2], **options, inpainting=Inpainting(known, region, 2))
    assert torch.equal(result[~region], known[~region])
    assert not torch.isclose(result[region], known[region]).any()
    other = known + 0.2 * ~region
    moved = samples(model, batch["label"], [1, 2], **options, inpainting=Inpainting(other, region, 2))
    assert not torch.equal(moved[region], result[region]), "the region depends on its surroundings"
    within = known.masked_fill(region, float("nan"))
    blind = samples(model, batch["label"], [1, 2], **options, inpainting=Inpainting(within, region, 2))
    assert torch.equal(blind, result), "the content of the region has no effect"
    one = samples(model, batch["label"][1:], [2], **options, inpainting=Inpainting(known[1:], region[1:], 2))
    torch.testing.assert_close(one, result[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("region_weight", [1.0, 4.0])
def test_in_2d_slices_outside_the_scan_count_in_no_loss(region_weight):
    options = make_options(spatial_dims=2) | {"trainer": {"region_weight": region_weight}}
    model, batch = make_model(options), make_batch()
    whole = model.loss(batch | {"inside": torch.ones(3, 8, dtype=torch.bool)})
    assert torch.equal(whole, model.loss(batch))  # where nothing is padding, to the bit
    inside = torch.arange(8).ge(torch.tensor([2, 0, 5])[:, None])
    losses = model.loss(batch | {"inside": inside})
    other = {key: value.clone() for key, value in batch.items()}
    other["image"].masked_fill_(~inside[:, None, None, None], -0.3)
    other["label"].masked_fill_(~inside[:, None, None], 2)
    assert torch.equal(model.loss(other | {"inside": inside}), losses)
    assert losses[1] == whole[1] and losses[0] != whole[0] and losses[2] != whole[2]


def test_in_3d_voxels_outside_the_scan_count_in_the_loss():
    model, batch = make_model(), make_batch()
    inside = torch.zeros(3, 8, dtype=torch.bool)
    assert torch.equal(model.loss(batch | {"inside": inside}), model.loss(batch))


def test_a_model_with_a_field_of_view_reads_it_and_others_do_not():
    model, batch = make_model(field_of_view=True), make_batch()
    inside = torch.ones(3, *SHAPE, dtype=torch.bool)
    half = inside.clone()
    half[:, :4] = False
    assert torch.equal(model.loss(batch), model.loss(batch | {"field_of_view": inside})), "unknown: the whole grid"
    for dropout in (Dropout(), Dropout(1.0)):  # the null condition keeps it
        changed = model.loss(batch | {"field_of_view": half}, dropout)
        assert ((changed - model.loss(batch, dropout)).abs() > 1e-6).all()
    planes = model.condition(batch["label"], torch.ones(3, 2), field_of_view=half).planes
    assert torch.equal(planes[:, -8:, :2], -torch.ones(3, 8, 2, 4, 4)) and (planes[:, -8:, 2:] == 1).all()
    options = {"sampler": "ddim", "num_inference_steps": 2, "guidance_scale": 2.0}
    one, other = (
        samples(model, batch["label"], [0, 1, 2], context=Context(field_of_view=view), **options)
        for view in (None, half)
    )
    assert (one - other).abs().max() > 0.01
    plain = make_model()
    assert torch.equal(plain.loss(batch), plain.loss(batch | {"field_of_view": half}))
    assert plain.network.parts[1] + 8 == model.network.parts[1]
