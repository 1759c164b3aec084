"""The first stage learns, resumes to the same bits, is frozen afterwards, and can be reused if nothing leaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import model_options, samples

from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement, Preprocessing
from medaug.errors import UserError
from medaug.networks.autoencoder import Autoencoder
from medaug.options import CodecOptions, TrainerOptions
from medaug.training.autoencoder import prepare_codec
from medaug.training.checkpoint import Card, load_model
from medaug.training.data import TrainingData
from medaug.training.fit import fit
from medaug.training.loggers import make_logger

SHAPE = (8, 12, 8)
CODEC = CodecOptions("kl", channels=[8, 8], latent_channels=2, max_steps=8, learning_rate=3e-3)
ADVERSARIAL = replace(CODEC, adversarial_weight=0.1)
BUDGET = TrainerOptions(
    max_steps=2,
    batch_size=2,
    checkpoint_every=2,
    validate_every=3,
    accelerator="cpu",
    precision="fp32",
    num_workers=0,
)


def make_card(codec=CODEC, train=5, **changes) -> Card:
    card = Card(
        experiment="toy",
        options=model_options() | {"codec": asdict(codec)},
        preprocessing=Preprocessing(SHAPE, None, (0.0, 100.0)),
        schema=LabelSchema(((0, "background"), (1, "lesion"))),
        modalities=("T1",),
        subjects={"train": [str(i) for i in range(train)], "val": ["v"]},
        phantom=True,
    )
    return replace(card, **changes)


def make_cases(num, seed, labelled=True):
    """Smooth blobs at random places."""
    rng = np.random.default_rng(seed)
    placement = Placement(SHAPE, ((0, 1), (1, 1), (2, 1)), SHAPE, (0.0,), (1.0,))
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    found = []
    for i in range(num):
        centre = rng.uniform(2, 5, 3)[:, None, None, None]
        image = 2 * np.exp(-np.square(grid - centre).sum(0) / rng.uniform(4, 12)) - 1
        found.append(
            ModelCase(
                case=Case(str(i), ("x.nii.gz",), None, str(i), "train"),
                image=image[None].astype(np.float32),
                label=(image > 0).astype(np.uint8) if labelled else None,
                affine=np.eye(4),
                dtype=np.dtype(np.int16),
                placement=placement,
            )
        )
    return found


def train(folder, codec=CODEC, picture=None, budget=BUDGET, card=None, cases=None):
    """The codec that the first stage leaves."""
    card = card or make_card(codec)
    with torch.random.fork_rng():
        made, logger = card.build().codec, make_logger("csv", folder)
    cases = make_cases(5, 0) if cases is None else cases
    prepare_codec(
        made, TrainingData(card, cases, make_cases(2, 1)), lambda b: b["image"], folder, budget, logger, picture
    )
    return made


def contents(folder):
    return torch.load(folder / "codec.ckpt", weights_only=True)


def assert_same(one, two):
    one, two = one.state_dict(), two.state_dict()
    assert one.keys() == two.keys()
    assert [key for key, value in one.items() if not torch.equal(value, two[key])] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, ADVERSARIAL)


class Crash(Exception):
    """The machine went down."""


@pytest.mark.slow
def test_reconstruction_is_learned(tmp_path):
    train(tmp_path, replace(CODEC, max_steps=50), budget=replace(BUDGET, validate_every=1000, augment=False))
    images = np.stack([case.image for case in make_cases(2, 1)])
    flat = images.mean((1, 2, 3, 4), keepdims=True)
    of_the_mean = np.mean(10 * np.log10(4 / np.square(images - flat).mean((1, 2, 3, 4))))
    assert contents(tmp_path)["validation"]["psnr"] > of_the_mean + 4


@pytest.mark.slow
def test_reported_validation_is_that_of_the_final_codec(whole):
    folder, codec = whole
    images = torch.from_numpy(np.stack([case.image for case in make_cases(2, 1)]))
    errors = codec.decode(codec.encode(images), SHAPE).clamp(-1, 1) - images
    found = contents(folder)["validation"]
    assert found["absolute_error"] == pytest.approx(errors.abs().mean().item(), rel=1e-4)
    assert found["psnr"] == pytest.approx(np.mean([-10 * np.log10(e.square().mean() / 4) for e in errors]), rel=1e-4)
    written = "".join(path.read_text() for path in folder.rglob("metrics.csv"))
    for name in ("absolute_error", "kl", "adversarial", "critic", "validation_psnr", "validation_absolute_error"):
        assert f"codec/{name}" in written


def test_latents_of_the_training_scans_are_standard(whole):
    codec = whole[1]
    code = codec.encode(torch.from_numpy(np.stack([case.image for case in make_cases(5, 0)])))
    torch.testing.assert_close(code.mean((0, 2, 3, 4)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(code.std((0, 2, 3, 4), correction=0), torch.ones(2), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("at", [pytest.param(3, marks=pytest.mark.slow), 6])
def test_a_crash_loses_only_the_steps_since_the_checkpoint(whole, tmp_path, at):
    def crash(step, *_):
        if step == at:
            raise Crash

    with pytest.raises(Crash):
        train(tmp_path, ADVERSARIAL, crash)
    assert contents(tmp_path)["step"] == at // 2 * 2 and contents(tmp_path)["codec"] is None
    assert_same(train(tmp_path, ADVERSARIAL), whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_stops_and_the_run_can_resume(whole, tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, ADVERSARIAL, lambda *_: os.kill(os.getpid(), number))
    assert stopped.value.code == 128 + number and signal.getsignal(number) == before
    assert contents(tmp_path)["step"] == 4, "the step in hand"
    assert_same(train(tmp_path, ADVERSARIAL), whole[1])


@pytest.mark.slow
def test_global_random_state_is_neither_used_nor_changed(whole, tmp_path):
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    assert_same(train(tmp_path, ADVERSARIAL), whole[1])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_unlabelled_scans_train_the_codec_too(whole, tmp_path):
    assert_same(train(tmp_path, ADVERSARIAL, cases=make_cases(5, 0, labelled=False)), whole[1])


@pytest.mark.slow
def test_the_discriminator_is_used_in_the_second_half_of_the_steps(tmp_path):
    seen = {}

    def look(step, *_):
        if contents(tmp_path)["codec"] is None:
            seen[contents(tmp_path)["step"]] = contents(tmp_path)["training"]

    train(tmp_path, ADVERSARIAL, look)
    plain = {}

    def look_plain(step, *_):
        plain[contents(tmp_path / "plain")["step"]] = contents(tmp_path / "plain")["training"]

    train(tmp_path / "plain", CODEC, look_plain)
    assert plain[2].keys() == {"autoencoder"}
    for step, same in ((2, True), (6, False)):
        one, two = seen[step]["autoencoder"][0], plain[step]["autoencoder"][0]
        assert all(torch.equal(value, two[key]) for key, value in one.items()) is same
    assert seen[2]["critic"][1]["state"] == {} and len(seen[6]["critic"][1]["state"]) > 0


@pytest.mark.parametrize("stride", [(4, 4, 4), (4, 4, 1)])
def test_bf16_gradients_agree_with_float32(stride):
    torch.manual_seed(0)
    net, image = Autoencoder(stride, 1, [8, 8, 16], 2), torch.rand(2, 1, 16, 16, 16)

    def gradient(bf16):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = net.decode(net.posterior(image)[0])
        return torch.cat([g.flatten() for g in torch.autograd.grad((output.float() - image).square().mean(), used)])

    used = [p for name, p in net.named_parameters() if "log_sigma" not in name]
    exact, rounded = gradient(False), gradient(True)
    assert (exact - rounded).norm() < 0.05 * exact.norm()


@pytest.mark.slow
def test_diffusion_training_stores_the_codec_without_changing_it(tmp_path):
    card = make_card()
    fit(TrainingData(card, make_cases(5, 0), make_cases(2, 1)), tmp_path, BUDGET, "csv")
    trained = contents(tmp_path)["codec"]
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for part in ("state_dict", "current_model_state"):
        prefix = next(key for key in last[part] if "codec." in key).split("codec.")[0] + "codec."
        carried = {key.removeprefix(prefix): value for key, value in last[part].items() if key.startswith(prefix)}
        assert carried.keys() == trained.keys()
        assert all(torch.equal(value, trained[key]) for key, value in carried.items())
    optimised = sum(len(group["params"]) for group in last["optimizer_states"][0]["param_groups"])
    assert optimised == len(list(card.build().network.parameters()))

    (tmp_path / "codec.ckpt").unlink()
    model = load_model(tmp_path / "last.ckpt", torch.device("cpu"))[1]
    label = torch.from_numpy(np.stack([case.label for case in make_cases(2, 1)])).long()
    images = samples(model, label, [1, 2], guidance_scale=1.0, sampler="dpmpp_2m", num_inference_steps=2)
    assert images.shape == (2, 1, *SHAPE) and torch.isfinite(images).all()
    fit(TrainingData(card, make_cases(5, 0), make_cases(2, 1)), tmp_path, replace(BUDGET, max_steps=4), "csv")
    assert not (tmp_path / "codec.ckpt").exists(), "going on needs the last checkpoint alone"


def reusing(path, **changes):
    return make_card(CodecOptions("kl", channels=[8, 8], latent_channels=2, checkpoint=str(path)), **changes)


def test_a_trained_codec_is_reused_on_the_same_or_more_subjects(whole, tmp_path):
    folder, codec = whole
    card = reusing(folder / "codec.ckpt", train=7, experiment="other")
    assert_same(train(tmp_path, card=card, cases=make_cases(7, 0)), codec)
    assert not (tmp_path / "codec.ckpt").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train": 4}, "saw 4 \\(1 in all\\), which is not a training subject here"),
        ({"modalities": ("T2",)}, "modalities \\['T1'\\], not \\['T2'\\]"),
        ({"preprocessing": Preprocessing(SHAPE, None, (1.0, 99.0))}, "percentiles"),
    ],
)
def test_a_codec_of_another_cohort_is_refused(whole, tmp_path, changes, named):
    with pytest.raises(UserError, match=named) as refused:
        train(tmp_path, card=reusing(whole[0] / "codec.ckpt", **changes))
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_other_architectures_unfinished_codecs_and_other_files_are_refused(whole, tmp_path):
    def refused(path, card=None):
        with pytest.raises(UserError) as caught:
            train(tmp_path / "run", card=card or reusing(path))
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        return str(caught.value)

    path = whole[0] / "codec.ckpt"
    other = make_card(CodecOptions("kl", channels=[8, 8], latent_channels=3, checkpoint=str(path)))
    assert "codec.latent_channels 2, not 3" in refused(path, other)
    assert "no such checkpoint" in refused(tmp_path / "absent.ckpt")
    fit(
        TrainingData(make_card(replace(CODEC, max_steps=1)), make_cases(5, 0), make_cases(2, 1)),
        tmp_path,
        BUDGET,
        "csv",
    )
    assert "not a codec's checkpoint" in refused(tmp_path / "last.ckpt")
    torch.save(contents(whole[0]) | {"codec": None}, tmp_path / "part.ckpt")
    assert "unfinished" in refused(tmp_path / "part.ckpt")


def start(folder: Path) -> subprocess.Popen[str]:
    """The first stage as a process of its own, on one thread, so that sums are taken in one order."""
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace; import test_autoencoder as t; "
        "codec, budget = replace(t.ADVERSARIAL, max_steps=24), replace(t.BUDGET, checkpoint_every=6); "
        "t.train(Path(sys.argv[1]), codec, budget=budget)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent), *sys.path])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_killed_first_stage_ends_with_the_same_bits(tmp_path):
    uninterrupted, killed = start(tmp_path / "whole"), start(tmp_path / "killed")
    while not (tmp_path / "killed" / "codec.ckpt").exists():
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.002)
    killed.kill()
    killed.communicate()
    found = contents(tmp_path / "killed")
    assert 6 <= found["step"] < 24 and found["codec"] is None
    again = start(tmp_path / "killed")
    for process in (uninterrupted, again):
        assert process.wait(timeout=300) == 0, process.communicate()[1]
    one, two = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert one["validation"] == two["validation"]
    assert all(torch.equal(value, two["codec"][key]) for key, value in one["codec"].items())


@pytest.mark.parametrize("name", ["kl", "haar"])
def test_a_codec_of_slices_is_not_fitted_to_padding(tmp_path, name):
    def padded(filling):
        cases = make_cases(4, 0)
        for case in cases:
            case.image[..., 6:] = case.image[..., :2] = filling
        placement = replace(cases[0].placement, resampled=(*SHAPE[:2], 4))
        return [replace(case, placement=placement) for case in cases]

    codec = replace(CODEC, max_steps=3) if name == "kl" else CodecOptions(name="haar")
    card = make_card(codec)
    card = replace(card, options=card.options | {"network": card.options["network"] | {"spatial_dims": 2}})
    made = []
    for place, filling in enumerate((-1, 0.6)):
        (tmp_path / str(place)).mkdir()
        made.append(train(tmp_path / str(place), codec, card=card, cases=padded(filling)))
    assert_same(*made)
