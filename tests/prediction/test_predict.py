"""The predict stage on a toy cohort: which files it writes, on which grid, from which inputs, without the truth."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import model_options, samples
from nibabel.affines import apply_affine

from medaug import predict
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.data.preprocessing import Preprocessing
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.imaging.nifti import write_volume
from medaug.options import Options, PredictOptions, SamplerOptions
from medaug.prediction.predictor import Predictor, inpainting_region
from medaug.prediction.scans import read_scan
from medaug.training.checkpoint import Card
from medaug.training.model import Context
from medaug.withdrawal import withdraw

SCHEMA = LabelSchema(((0, "background"), (2, "shell"), (4, "core")))
VOXELWISE = ("dice", "hd95", "nsd", "volume_error", "ece", "brier")
MODALITIES = ("T1", "T2")
SCALE = ((10.0, 90.0), (-5.0, 35.0))
TRANSLATION = {"mask": False, "modalities": ["T2"], "given": ["all"]}
SEGMENTATION = {"target": "label", "mask": False, "given": ["all"]}
DENOISE = {"mask": False, "degradation": "noise", "noise_std": 0.3}
COARSE = {"mask": False, "degradation": "low_resolution", "factor": 2}
SPACE = Preprocessing((16, 16, 16), None)


def affine(spacing, flip=1):
    matrix = np.diag([flip * spacing[0], *spacing[1:], 1.0])
    matrix[:3, 3] = (-12.5, 30, 7)
    return matrix


# As a scanner writes them: the model's own grid; other axes, smaller along one and larger along another.
HOSTS = {"plain": ((16, 16, 16), affine((1, 1, 1))), "axes": ((12, 16, 18), affine((1, 1.2, 0.9), -1)[:, [1, 0, 2, 3]])}


@pytest.fixture
def cohort(tmp_path) -> Manifest:
    root = tmp_path / "scans"
    rng = np.random.default_rng(0)
    for name, (shape, matrix) in HOSTS.items():
        places = (np.indices(shape).T - (np.array(shape) - 1) / 2).T / np.array(shape)[:, None, None, None]
        distance = np.sqrt((places**2).sum(0))
        label = np.select([distance < 0.15, distance < 0.3], [4, 2], 0).astype(np.uint8)
        write_volume(root / f"{name}_seg.nii.gz", label, matrix)
        for m in range(2):
            image = 100 + 30 * label * (m + 1) + rng.normal(0, 8, shape)
            write_volume(root / f"{name}_{m}.nii.gz", image.astype(np.int16), matrix)
    cases = [
        Case(name, tuple(f"{name}_{m}.nii.gz" for m in range(2)), f"{name}_seg.nii.gz", f"subject_{name}", "val")
        for name in HOSTS
    ]
    return Manifest("toy", "", MODALITIES, SCHEMA, tuple(cases), str(root))


def card_of(task, space=SPACE):
    options = model_options() | {"task": task}
    return Card("toy", options, space, SCHEMA, MODALITIES, {"train": ["other"], "val": []}, False, scale=SCALE)


def model_of(card):
    """Random weights everywhere: a fresh network ends in zeros and would ignore its input."""
    model = card.build().eval()
    for i, parameter in enumerate(model.parameters()):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
    return model


@pytest.fixture
def run(tmp_path, cohort):
    """Write the files of a training without training, then run the stage and return its folder."""

    def run_stage(task, space=SPACE, **options) -> Path:
        runs = tmp_path / f"runs_{len(list(tmp_path.glob('runs_*')))}" if "runs" not in options else options.pop("runs")
        train = runs / "toy" / "train"
        card = card_of(task, space)
        weights = {f"model.{key}": value for key, value in model_of(card).state_dict().items()}
        train.mkdir(parents=True, exist_ok=True)
        if not (train / "last.ckpt").exists():
            torch.save({"medaug": card.to_dict(), "state_dict": weights}, train / "last.ckpt")
            (train / "finished.json").write_text("{}")
            cohort.save(train / "manifest.json")
        settings = PredictOptions(**options)
        sampler = SamplerOptions(num_inference_steps=2)
        predict.main(Options(experiment="toy", runs=str(runs), predict=settings, sampler=sampler))
        return runs / "toy" / "predictions" / (settings.name or (Path(settings.manifest or "val").stem))

    return run_stage


def volumes(folder):
    return {path.name: nib.load(path) for path in sorted(folder.glob("*.nii.gz"))}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def metrics(folder):
    with (folder / "metrics.csv").open() as file:
        return {(r["case"], r["structure"], r["metric"]): float(r["value"]) for r in csv.DictReader(file)}


def on_the_grid_of(image, name):
    shape, matrix = HOSTS[name]
    return image.shape == shape and np.allclose(image.affine, matrix)


@pytest.mark.slow
def test_translation_writes_the_missing_modality_on_each_scans_grid_in_usual_units(run):
    folder = run(TRANSLATION)
    written = volumes(folder)
    assert list(written) == ["axes_T2.nii.gz", "plain_T2.nii.gz"]
    for name in HOSTS:
        image = written[f"{name}_T2.nii.gz"]
        assert on_the_grid_of(image, name) and image.get_data_dtype() == np.float32
        values = image.get_fdata()
        assert values.min() >= SCALE[1][0] - 1e-4 and values.max() <= SCALE[1][1] + 1e-4 and values.std() > 1
    assert (written["axes_T2.nii.gz"].get_fdata()[:, :, [0, -1]] == SCALE[1][0]).all(), "beyond the model's grid"
    scores = metrics(folder)
    assert set(scores) == {(name, "T2", metric) for name in HOSTS for metric in ("psnr", "ssim")}
    summary = json.loads((folder / "metrics.json").read_text())
    assert summary[0]["mean"] == pytest.approx(np.mean([scores[name, "T2", "psnr"] for name in HOSTS]))
    assert (folder / "contact_sheet.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.parametrize("task", [TRANSLATION, SEGMENTATION], ids=["translation", "segmentation"])
def test_predictions_do_not_depend_on_the_truth(run, cohort, tmp_path, task):
    """Another truth, or none, gives the same bytes."""
    before = content(run(task))
    for file in Path(cohort.root).glob("*_seg.nii.gz" if task is SEGMENTATION else "*_1.nii.gz"):
        volume = nib.load(file)
        write_volume(file, np.asarray(volume.dataobj)[::-1, ::-1].copy(), volume.affine)
    assert content(run(task)) == before
    cases = [dataclasses.replace(case, label=None) for case in cohort.cases]
    if task is TRANSLATION:
        cases = [dataclasses.replace(case, images=case.images[:1]) for case in cases]
    modalities = MODALITIES[:1] if task is TRANSLATION else MODALITIES
    unseen = dataclasses.replace(cohort, modalities=modalities, cases=tuple(cases))
    unseen.save(tmp_path / "unseen.json")
    other = run(task, manifest=str(tmp_path / "unseen.json"))
    assert content(other) == before
    assert not (other / "metrics.csv").exists()


@pytest.mark.slow
def test_segmentation_writes_majority_label_and_uncertainty(run, cohort):
    folder = run(SEGMENTATION, num_samples=5, probabilities=True)
    written = volumes(folder)
    for name in HOSTS:
        label, unsure = (written[f"{name}_{kind}.nii.gz"] for kind in ("label", "uncertainty"))
        assert on_the_grid_of(label, name) and on_the_grid_of(unsure, name)
        assert label.get_data_dtype() == np.uint8 and unsure.get_data_dtype() == np.float32
        assert set(np.unique(label.get_fdata())) <= {0, 2, 4}
        planes = np.stack([written[f"{name}_probability_{c}.nii.gz"].get_fdata() for c in SCHEMA.names])
        np.testing.assert_allclose(planes.sum(0), 1, atol=1e-5)
        np.testing.assert_array_equal(np.array(SCHEMA.values)[planes.argmax(0)], label.get_fdata())
        expected = -np.where(planes > 0, planes * np.log(np.maximum(planes, 1e-30)), 0).sum(0)
        np.testing.assert_allclose(unsure.get_fdata(), expected, atol=1e-5)
        assert unsure.get_fdata().max() > 0.1
    # By hand on the host that is the model's own grid: sample k has a seed of its own, whatever the batch.
    card = card_of(SEGMENTATION)
    model, case = model_of(card), cohort.cases[0]
    scan = read_scan(cohort, case, card, (0, 1))
    votes = np.zeros((3, 16, 16, 16))
    for k in range(5):
        planes = samples(
            model,
            torch.zeros(1, 16, 16, 16).long(),
            [named_seed(0, "predict", "plain", k)],
            guidance_scale=1.0,
            sampler="dpmpp_2m",
            num_inference_steps=2,
            context=Context(images=torch.from_numpy(scan.image)[None]),
        )
        votes += SCHEMA.one_hot(model.task.label_of(planes)[0].numpy()) / 5
    found = np.stack([written[f"plain_probability_{c}.nii.gz"].get_fdata() for c in SCHEMA.names])
    assert (np.abs(found - votes) < 1e-4).mean() > 0.999  # a vote may tip by rounding
    scores = metrics(folder)
    assert {key[1:] for key in scores} == {
        *((structure, metric) for structure in ("shell", "core") for metric in VOXELWISE),
        ("all voxels", "auroc_of_uncertainty"),
    }


@pytest.mark.slow
def test_enhancement_measures_against_the_scan_that_it_degraded(run):
    folder = run(DENOISE, degrade=True, num_samples=2)
    scores = metrics(folder)
    assert {key[2] for key in scores} == {"psnr", "ssim", "psnr_degraded", "ssim_degraded"}
    # Noise of 0.3 in a range of 2; the scans' own extremes, at which nothing is clipped, weigh little.
    assert scores["plain", "T1", "psnr_degraded"] == pytest.approx(20 * np.log10(2 / 0.3), abs=0.3)
    written = volumes(folder)
    kinds = {f"{m}{end}" for m in MODALITIES for end in ("", "_degraded", "_uncertainty")}
    assert set(written) == {f"{name}_{kind}.nii.gz" for name in HOSTS for kind in kinds}
    spread = written["plain_T1_uncertainty.nii.gz"].get_fdata()
    assert spread.min() >= -1e-6 and spread.max() > 0.1
    assert content(run(DENOISE, degrade=True, num_samples=2)) == content(folder)


@pytest.mark.slow
def test_without_degrade_scans_are_enhanced_as_they_are(run):
    folder = run(DENOISE)
    assert set(volumes(folder)) == {f"{name}_{m}.nii.gz" for name in HOSTS for m in MODALITIES}
    assert not (folder / "metrics.csv").exists()


@pytest.mark.slow
def test_a_coarse_scan_comes_back_on_a_finer_grid_of_the_same_field_of_view(run):
    finer = Preprocessing((32, 32, 40), None)
    written = volumes(run(COARSE, space=finer))
    assert {name.split("_")[0] for name in written} == set(HOSTS)
    for name, image in written.items():
        shape, matrix = HOSTS[name.split("_")[0]]
        assert image.shape == tuple(2 * side for side in shape)
        for corner in ((0, 0, 0), (1, 1, 1)):
            ours = apply_affine(image.affine, np.array(corner) * image.shape - 0.5)
            np.testing.assert_allclose(ours, apply_affine(matrix, np.array(corner) * shape - 0.5), atol=1e-5)


def test_a_refined_scan_is_what_super_resolution_was_trained_to_see(cohort):
    """Averaging a fine scan to coarse voxels and reading that with refine gives the degraded scan of the training."""
    card = card_of(COARSE, Preprocessing((16, 16, 16), None, intensity="window", window=(0.0, 400.0)))
    fine = read_scan(cohort, cohort.cases[0], card, (0, 1))
    degraded = model_of(card).task.degrade(torch.from_numpy(fine.image)[None], [0])[0].numpy()
    root = Path(cohort.root)
    for file in cohort.cases[0].images:
        blocks = np.asarray(nib.load(root / file).dataobj, np.float32).reshape(8, 2, 8, 2, 8, 2).mean((1, 3, 5))
        write_volume(root / file, blocks, np.diag([2.0, 2.0, 2.0, 1.0]))
    coarse = read_scan(cohort, cohort.cases[0], card, (0, 1), refine=2)
    np.testing.assert_allclose(coarse.image, degraded, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [True, False], ids=["from_masks", "unconditional"])
def test_inpainting_leaves_every_other_voxel_as_it_is(run, cohort, mask):
    folder = run({"mask": mask}, inpaint=["core"], margin=1, resample=2)
    written = volumes(folder)
    for name in HOSTS:
        region = written[f"{name}_region.nii.gz"].get_fdata() > 0
        core = nib.load(Path(cohort.root) / f"{name}_seg.nii.gz").get_fdata() == 4
        assert (region | ~core).all() and core.sum() < region.sum() < region.size / 4
        for m, modality in enumerate(MODALITIES):
            volume = written[f"{name}_{modality}.nii.gz"].get_fdata()
            real = nib.load(Path(cohort.root) / f"{name}_{m}.nii.gz").get_fdata()
            assert on_the_grid_of(written[f"{name}_{modality}.nii.gz"], name)
            assert (volume[~region] == real[~region]).all()
            assert (volume[region] != real[region]).mean() > 0.9
    if mask:
        removed = volumes(run({"mask": True}, inpaint=["core"], margin=1, resample=2, remove=True))
        there, gone = (v["plain_T1.nii.gz"].get_fdata() for v in (written, removed))
        region = written["plain_region.nii.gz"].get_fdata() > 0
        assert (there[region] != gone[region]).mean() > 0.5


@pytest.mark.slow
def test_inpainting_uncertainty_is_zero_outside_the_region(run):
    written = volumes(run({"mask": True}, inpaint=["core"], num_samples=3))
    region = written["plain_region.nii.gz"].get_fdata() > 0
    spread = written["plain_T2_uncertainty.nii.gz"].get_fdata()
    assert spread[region].min() > 0 and not spread[~region].any()


def test_a_region_is_the_classes_and_their_surroundings_and_removing_leaves_the_others():
    label = np.zeros((9, 9, 9), np.uint8)
    label[4, 4, 4], label[4, 4, 6] = 2, 1
    without, region = inpainting_region(label, (2,), 1)
    assert region.sum() == 7 and region[4, 4, 4] and region[3, 4, 4]
    assert without.sum() == 1 and without[4, 4, 6] == 1
    assert inpainting_region(label, (2,), 0)[1].sum() == 1


@pytest.mark.slow
def test_an_interrupted_run_resumes_where_it_stopped(run, tmp_path, monkeypatch):
    whole = content(run(SEGMENTATION, num_samples=2))
    predict, predicted, runs = Predictor.predict, [], tmp_path / "runs_again"

    def stop_at_the_second(self, scan):
        if predicted:
            raise KeyboardInterrupt
        predicted.append(scan.case.name)
        return predict(self, scan)

    monkeypatch.setattr(Predictor, "predict", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(SEGMENTATION, num_samples=2, runs=runs)
    recorded = lambda self, scan: predicted.append(scan.case.name) or predict(self, scan)  # noqa: E731
    monkeypatch.setattr(Predictor, "predict", recorded)
    folder = run(SEGMENTATION, num_samples=2, runs=runs)
    assert predicted == ["plain", "axes"]
    assert content(folder) == whole
    run(SEGMENTATION, num_samples=2, runs=runs)
    assert predicted == ["plain", "axes"], "finished: nothing to do"
    with pytest.raises(UserError, match="num_samples: 2 -> 3"):
        run(SEGMENTATION, num_samples=3, runs=runs)


@pytest.mark.parametrize(
    ("task", "options", "complaint"),
    [
        ({}, {}, r"takes no scans as input, so there is nothing to predict; inpaint=\[CLASS\]"),
        ({"target": "label", "mask": False}, {}, "nothing to predict; use medaug.generate"),
        ({}, {"inpaint": ["lesion"]}, "inpaint: lesion is not a class of the masks; choose from shell, core"),
        ({"mask": False}, {"inpaint": ["core"], "remove": True}, "remove=true: the model has no mask as its condition"),
        (SEGMENTATION, {"inpaint": ["core"]}, "inpaint: needs a model that generates images from masks"),
        (SEGMENTATION, {"degrade": True}, "degrade=true: the model does not enhance scans"),
        (TRANSLATION, {"probabilities": True}, "probabilities=true: the model generates images"),
        ({"mask": False}, {"inpaint": ["core"], "guidance_scale": 2.0}, "guidance_scale=2: the model has no condition"),
        (SEGMENTATION, {"split": "test"}, "split=test: has no scans"),
    ],
)
def test_invalid_request_is_refused_with_one_line_before_anything_is_written(run, tmp_path, task, options, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        run(task, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("runs_*/toy/predictions"))


@pytest.mark.slow
def test_scans_that_lack_what_the_model_needs_are_refused(run, cohort, tmp_path):
    for number, (task, changes, complaint) in enumerate(
        [
            (SEGMENTATION, {"modalities": ("T1",)}, "the model also needs T2"),
            (SEGMENTATION, {"modalities": ("T1", "PD")}, "the modalities T1, PD, but the model also needs T2"),
            (SEGMENTATION, {"schema": LabelSchema(((0, "background"), (2, "shell"), (3, "core")))}, "its labels"),
            (
                {"mask": True, "modalities": ["T2"], "given": ["T1"]},
                {"label": None},
                "plain: the model needs a label map",
            ),
        ]
    ):
        cases = [dataclasses.replace(c, label=changes.get("label", c.label)) for c in cohort.cases]
        if changes.get("modalities") == ("T1",):
            cases = [dataclasses.replace(c, images=c.images[:1]) for c in cases]
        fields = {key: value for key, value in changes.items() if key != "label"}
        path = tmp_path / f"other_{number}.json"
        dataclasses.replace(cohort, cases=tuple(cases), **fields).save(path)
        with pytest.raises(UserError, match=complaint):
            run(task, manifest=str(path))


@pytest.mark.slow
def test_withdrawal_lists_predictions_of_a_subject(run):
    folder = run(SEGMENTATION, num_samples=2)
    found = {artefact.path.name for artefact in withdraw("subject_axes", folder.parents[2])}
    assert {"axes_label.nii.gz", "axes_uncertainty.nii.gz", "metrics.csv", "contact_sheet.png"} <= found
    assert "plain_label.nii.gz" not in found
