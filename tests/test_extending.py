"""The examples of docs/extending.md, installed as a package and used by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import model_options

from medaug.auditing.measures import MEASURES
from medaug.auditing.measures import Material as audit_material
from medaug.cohort.manifest import Case
from medaug.cohort.schema import LabelSchema
from medaug.comparison.arms import ARMS, pairs_to_compare
from medaug.comparison.material import Material
from medaug.config import load_options, part
from medaug.data.augmentations import AUGMENTATIONS
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement, Preprocessing
from medaug.errors import UserError
from medaug.evaluation.scores import segmentation_scores
from medaug.exporting.formats import WRITERS
from medaug.exporting.request import Export
from medaug.imaging.nifti import write_volume
from medaug.imaging.reading import read_volumes
from medaug.layouts import read_layout
from medaug.options import AuditOptions, ProcessOptions
from medaug.screening.rules import Reference, passed
from medaug.screening.screen import Screen
from medaug.segmentation.backends import trained_judge
from medaug.segmentation.protocol import Problem, TrainingSet
from medaug.synthesis.sources import load_masks
from medaug.training.checks import check_training
from medaug.training.loggers import make_logger
from medaug.training.model import DiffusionModel
from medaug.training.sampling import check_sampling

GUIDE = Path(__file__).parents[1] / "docs" / "extending.md"
ENTRIES = {
    "samplers": {"halving": "HALVING"},
    "spacings": {"quadratic": "quadratic"},
    "schedules": {"power_flow": "PowerFlow"},
    "codecs": {"coarse": "COARSE"},
    "networks": {"scaled": "Scaled"},
    "loggers": {"quiet_csv": "quiet_csv"},
    "screening_rules": {"dark": "DARK"},
    "arms": {"darker": "DARKER"},
    "augmentations": {"negative": "negative"},
    "backends": {"threshold": "THRESHOLD"},
    "metrics": {"volume_difference": "VOLUME_DIFFERENCE"},
    "measures": {"brightness": "BRIGHTNESS"},
    "mask_sources": {"mirrored": "MIRRORED"},
    "layouts": {"twin_folders": "TWIN_FOLDERS"},
    "export_formats": {"images": "write_images"},
}
LABEL = torch.zeros(1, 8, 8, 8, dtype=torch.long)
SCHEMA = LabelSchema(((0, "background"), (1, "lesion")))


def toy_case(level: float) -> ModelCase:
    """A scan of four voxels along each axis: a lesion of that brightness, 0 elsewhere."""
    label = np.zeros((4, 4, 4), np.uint8)
    label[:2] = 1
    placement = Placement((4, 4, 4), ((0, 1), (1, 1), (2, 1)), (4, 4, 4), (0.0,), (1.0,))
    image = np.where(label == 1, level, 0.0).astype(np.float32)[None]
    return ModelCase(Case("c", ("a.nii.gz",), "b.nii.gz", "s"), image, label, np.eye(4), np.dtype("f4"), placement)


@pytest.fixture
def installed(install: Callable[..., None]) -> None:
    """The package of the guide."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL))
    install("my_package", code, **ENTRIES)


def sampled(*words: str) -> torch.Tensor:
    """A sample of a small model by the words of a command line of `generate`."""
    torch.manual_seed(0)
    model = DiffusionModel(model_options(), 1, 2, "fp32").eval()
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sampler = load_options("generate", ["experiment=demo", "sampler.num_inference_steps=3", *words]).sampler
    return model.sample(LABEL, [1], check_sampling(model.process, sampler))


@pytest.mark.slow
def test_an_installed_sampler_is_used_by_the_command_line(installed: None) -> None:
    ddim = sampled("sampler=ddim")
    torch.testing.assert_close(sampled("sampler.name=halving"), ddim, atol=1e-4, rtol=1e-4)  # at strength 1 the same
    weak = sampled("sampler.name=halving", "sampler.parameters=[strength:0.5]")
    assert weak.isfinite().all() and (weak - ddim).abs().max() > 1e-3


@pytest.mark.slow
def test_choosing_an_installed_entry_by_its_group_sets_its_defaults(installed: None) -> None:
    words = ["experiment=demo", "preset=cpu"]
    sampler = load_options("generate", [*words, "sampler=halving"]).sampler
    assert (sampler.name, sampler.num_inference_steps) == ("halving", 6)
    assert load_options("generate", [*words, "sampler=halving", "sampler.num_inference_steps=2"]).sampler != sampler
    smoke = load_options("generate", ["experiment=demo", "preset=smoke", "sampler=halving"])
    assert smoke.sampler.num_inference_steps == 4  # a preset comes after the groups
    options = load_options("train", [*words, "codec=coarse", "network=scaled", "logger=quiet_csv"])
    assert (options.codec.name, options.network.name, options.logger.name) == ("coarse", "scaled", "quiet_csv")
    with pytest.raises(UserError, match=r"^sampler=halvin: no such sampler; did you mean halving\? \(all: ddim, ddpm"):
        load_options("generate", [*words, "sampler=halvin"])


def test_defaults_that_no_key_of_the_group_has_are_refused(install: Callable[..., None]) -> None:
    code = "from types import SimpleNamespace\nSLOW = SimpleNamespace(defaults={'num_steps': 9})"
    install("slow_package", code, samplers={"slow": "SLOW"})
    with pytest.raises(UserError, match="slow_package.*default for num_steps, no key of its group; did you mean"):
        load_options("generate", ["experiment=demo", "sampler=slow"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("codec=coarse codec.parameters=[level:2]", "codec.parameters: level is 2, .*; did you mean levels"),
        ("codec.parameters=[levels:2]", "codec.parameters: levels is 2, but the codec haar does not read it; leave"),
        (
            "network=scaled network.parameters=[factor:11]",
            r"network.parameters: factor is 11, but must lie in \[0, 10\]",
        ),
        ("network=scaled network.parameters=[factor:big]", "network.parameters: factor must be a number"),
        ("network=scaled network.parameters=[factor]", r"network.parameters: .*write each option once"),
    ],
)
def test_options_of_codecs_and_networks_are_checked_before_the_cohort_is_read(
    installed: None, words: str, complaint: str
) -> None:
    options = load_options("train", ["experiment=demo", *words.split()])
    with pytest.raises(UserError, match=complaint):
        check_training(options)


def test_an_installed_spacing_is_used_by_the_command_line(installed: None) -> None:
    assert not torch.equal(sampled("sampler.spacing=quadratic"), sampled("sampler.spacing=trailing"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["sampler.name=halvin"], r"halvin.*not one of .*halving.*did you mean halving"),
        (["sampler.name=halving", "sampler.parameters=[strength:2]"], r"strength is 2, but must lie in \[0, 1\]"),
        (["sampler.name=halving", "sampler.parameters=[power:2]"], "power is 2, but the sampler halving does not read"),
        (["sampler.parameters=[strength:0.5]"], "strength is 0.5, but the sampler dpmpp_2m does not read it"),
        (["sampler.name=halving", "sampler.parameters=[strength:much]"], "strength must be a number"),
    ],
)
def test_errors_of_an_installed_sampler_are_one_line(installed: None, words: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        sampled(*words)


def test_a_model_is_built_of_installed_parts(installed: None) -> None:
    words = ["experiment=hippocampus", "process.noise_schedule=power_flow", "process.parameters=[power:2]"]
    options = load_options("train", [*words, "codec.name=coarse", "network.name=scaled", "logger.name=quiet_csv"])
    process = part(options, "process")["process"]
    small = model_options(process, codec=options.codec.name, name=options.network.name)
    small["network"]["parameters"], small["codec"]["parameters"] = ["factor:2"], ["levels:2"]
    model = DiffusionModel(small, 1, 2, "fp32").eval()
    assert model.network.factor == 2
    assert model.process.schedule.alpha(torch.tensor(0.5)) == 0.75  # 1 - t^2
    assert model.codec.stride == (4, 4, 4) and type(model.network).__name__ == "Scaled"
    made = model.sample(LABEL, [1], check_sampling(model.process, options.sampler))
    assert made.shape == (1, 1, 8, 8, 8) and made.isfinite().all()


def test_an_installed_screening_rule_judges(installed: None) -> None:
    options = load_options("generate", ["experiment=demo", "screen.rules=[dark]"]).screen
    scans = [SimpleNamespace(image=np.full((1, 4, 4, 4), value)) for value in (0.2, -0.4)]
    screen = Screen.fit(Reference(LabelSchema(((0, "background"),)), scans, []), options)
    verdicts = [screen.judge(SimpleNamespace(image=np.full((1, 4, 4, 4), value))) for value in (-0.3, -0.5)]
    assert [passed(one) for one in verdicts] == [True, False]
    with pytest.raises(UserError, match="darkk is not one of integrity.*did you mean dark"):
        load_options("generate", ["experiment=demo", "screen.rules=[darkk]"])


def test_an_installed_logger_writes_where_it_says(installed: None, tmp_path: Path) -> None:
    assert make_logger("quiet_csv", tmp_path).name == "quiet_csv"


def test_an_installed_arm_makes_its_pairs_and_is_compared_with_its_baseline(installed: None) -> None:
    arms = load_options("benchmark", ["experiment=demo", "arms.names=[darker,real+classical]"]).arms
    assert pairs_to_compare(arms.names) == [("darker", "real+classical")]  # the baseline of its baseline
    case = toy_case(1.0)
    chosen = ARMS["darker"].training_set(Material([case], (), 0.5, SCHEMA))
    assert chosen.num_synthetic(3) == 1 and set(np.unique(chosen.synthetic[0].image)) == {-0.5, 0.0}
    flipped, _ = AUGMENTATIONS["negative"](SCHEMA)(torch.ones(1, 4, 4, 4), torch.zeros(4, 4, 4), 0)
    assert (flipped == -1).all()


def test_an_installed_backend_segments_for_the_benchmark_and_as_a_judge(installed: None, tmp_path: Path) -> None:
    options = load_options("audit", ["experiment=demo", "audit.backend=threshold"])
    problem = Problem(("T1",), SCHEMA, Preprocessing((4, 4, 4), None, (0.0, 100.0)))
    path = tmp_path / "judge.txt"
    training_set = TrainingSet([toy_case(0.5), toy_case(0.7)])
    judge = trained_judge(options.audit.backend, problem, options.segmenter, training_set, 1, 0, "judge", path)
    assert float(path.read_text()) == pytest.approx(0.3)
    case = toy_case(0.4)
    assert np.array_equal(judge.segment(case.image), case.label) and np.array_equal(judge.predict(case), case.label)


def test_an_installed_metric_and_measure_are_measured(installed: None) -> None:
    truth = toy_case(1.0).label
    scores = segmentation_scores(np.zeros_like(truth), truth, (10, 10, 10), SCHEMA)
    assert ("lesion", "volume_difference", -32.0) in scores  # 32 voxels of 1 ml are missing
    material = audit_material(SCHEMA, AuditOptions(), [toy_case(1.0)], [toy_case(0.5)])
    means = {group.images: group.interval.mean for group in MEASURES["brightness"].function(material)}
    assert means == {"real_validation": 0.5, "synthetic": 0.25}


@pytest.mark.slow
def test_an_installed_mask_source_makes_masks(installed: None) -> None:
    options = load_options("generate", ["experiment=demo", "masks=mirrored"]).masks
    label = toy_case(1.0).label
    assert np.array_equal(load_masks(options).make(label, 0), label[::-1])


def test_an_installed_layout_is_detected_and_an_installed_format_written(installed: None, tmp_path: Path) -> None:
    case, root = toy_case(1.0), tmp_path / "cohort"
    for folder, array in (("scans", case.image[0]), ("masks", case.label)):
        (root / folder).mkdir(parents=True)
        write_volume(root / folder / "one.nii.gz", array, case.affine, "")
    layout = read_layout(root)
    assert layout.name == "twin_folders" and layout.problems == ()
    name = load_options("export", ["format=images", f"out={tmp_path}/out"]).export.format
    WRITERS[name](Export(layout.valid_manifest(), tmp_path / "out"))
    assert (tmp_path / "out" / "cases.txt").read_text() == "one"
    assert np.array_equal(read_volumes(tmp_path / "out" / "one.nii.gz")[0].array, case.image[0])


def test_runs_without_parameters_have_the_identity_of_earlier_versions() -> None:
    assert "parameters" not in part(load_options("train", ["experiment=demo"]), "process")["process"]
    assert ProcessOptions().parameters == []
