"""Shapes drawn from a population of ellipsoids whose axes, volumes and poses are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from sklearn.decomposition import PCA

from medaug.cohort.manifest import Case
from medaug.cohort.schema import IGNORE, LabelSchema
from medaug.data.cases import ModelCase
from medaug.data.preprocessing import Placement
from medaug.errors import UserError
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions
from medaug.synthesis import shapes
from medaug.synthesis.masks import TrainingMasks, check_mirror
from medaug.synthesis.plausible import Limits
from medaug.synthesis.population import PopulationMasks
from medaug.synthesis.recipes import Recipes
from medaug.synthesis.shapes import ShapeModel

SIDE, NUMBER = 26, 24


def ellipsoid(seed: int) -> tuple[np.ndarray, float, np.ndarray]:
    """A long ellipsoid, its front half class 1 and its back half class 3; with its elongation and its long axis."""
    rng = np.random.default_rng(seed)
    radius, elongation = rng.uniform(4.5, 6), rng.uniform(1.4, 2.2)
    rotation = Rotation.from_euler("xyz", rng.normal(0, [6, 6, 12]), degrees=True).as_matrix()
    sides = radius * np.array([elongation ** (-1 / 3), elongation ** (2 / 3), elongation ** (-1 / 3)])
    centre = (SIDE - 1) / 2 + rng.uniform(-1, 1, 3)
    away = np.einsum("ji,j...->i...", rotation, np.indices((SIDE,) * 3) - centre[:, None, None, None])
    inside = ((away / sides[:, None, None, None]) ** 2).sum(0) < 1
    return np.where(inside, np.where(away[1] > 0, 1, 3), 0).astype(np.uint8), elongation, rotation[:, 1]


POPULATION = [ellipsoid(seed) for seed in range(NUMBER)]
LABELS = [label for label, _, _ in POPULATION]


@pytest.fixture(scope="module")
def model() -> ShapeModel:
    return ShapeModel.fit(LABELS)


def moments(mask: np.ndarray) -> tuple[float, np.ndarray]:
    """Elongation and long axis of the foreground, from its second moments."""
    where = np.argwhere(mask > 0)
    values, axes = np.linalg.eigh(np.cov(where.T))
    return float(np.sqrt(values[2] / np.sqrt(values[0] * values[1]))), axes[:, 2] * np.sign(axes[1, 2])


@pytest.mark.slow
def test_registration_finds_the_pose_of_each_mask(model):
    order = [shapes.digest(label) for label in LABELS]
    axes = np.array([model.rotations[list(model.hosts).index(digest)][:, 1] for digest in order])
    truth = np.array([axis for _, _, axis in POPULATION])
    # The mean shape has a pose of its own, so poses are compared with each other.
    found, expected = (np.arccos(np.clip(one @ one.T, -1, 1)) for one in (axes, truth))
    assert np.degrees(np.abs(found - expected)).max() < 4 < np.degrees(expected).max()


@pytest.mark.slow
def test_drawn_masks_have_the_volumes_shapes_and_pose_of_the_population(model):
    made = [model.draw(LABELS[i % NUMBER], np.random.default_rng(i), 2.5, (0, 1)) for i in range(60)]
    volumes = np.array([(mask > 0).sum() for mask in made])
    assert volumes.min() >= model.volumes[0] and volumes.max() <= model.volumes[-1]
    assert volumes.std() == pytest.approx(model.volumes.std(), rel=0.3)
    elongations = np.array([moments(mask)[0] for mask in made])
    truth = np.array([elongation for _, elongation, _ in POPULATION])
    assert elongations.mean() == pytest.approx(truth.mean(), rel=0.05)
    assert 0.6 < elongations.std() / truth.std() < 1.4
    for i, mask in enumerate(made):
        _, axis = moments(LABELS[i % NUMBER])
        assert abs(moments(mask)[1] @ axis) > np.cos(np.radians(6)), "the pose is the host's"
        np.testing.assert_allclose(np.argwhere(mask > 0).mean(0), np.argwhere(LABELS[i % NUMBER] > 0).mean(0), atol=0.7)
        assert set(np.unique(mask)) == {0, 1, 3}
    assert len({mask.tobytes() for mask in made}) == 60


def test_the_volume_can_be_chosen_and_a_mirrored_mask_is_the_mirror_image(model):
    host = LABELS[0]
    for low, high in ((0.0, 0.1), (0.9, 1.0)):
        ends = np.quantile(model.volumes, [low, high])
        sizes = [(model.draw(host, np.random.default_rng(i), 2.5, (low, high)) > 0).sum() for i in range(5)]
        assert ends[0] - 1 <= min(sizes) <= max(sizes) <= ends[1] + 1
    ends, sizes = np.quantile(model.volumes, [0.0, 0.1]) * [0.6, 0.8], []
    for i in range(5):
        small = model.draw(host, np.random.default_rng(i), 2.5, (0, 0.1), factors=(0.6, 0.8))
        sizes.append((small > 0).sum())
        assert set(np.unique(small)) == {0, 1, 3}
    assert ends[0] - 1 <= min(sizes) <= max(sizes) <= ends[1] + 1 < model.volumes[0]
    still = dataclasses.replace(model, rotations=np.stack([np.eye(3)] * NUMBER))
    centred = np.zeros((SIDE + 1,) * 3, np.uint8)
    centred[4:-4, 4:-4, 4:-4] = 1  # its centre is a voxel, so that the mirror image lies on the grid
    still = dataclasses.replace(still, hosts=np.array([shapes.digest(centred)] * NUMBER))
    plain, mirrored = (still.draw(centred, np.random.default_rng(3), 2.5, (0, 1), flip) for flip in (False, True))
    assert (plain != plain[::-1]).any() and (plain[::-1] == mirrored).mean() > 0.999


def test_the_components_are_scikit_learns():
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((20, 4)) * [9, 4, 2, 0.1]) @ rng.standard_normal((4, 50))
    logs = rng.normal(0, 0.2, 20)
    mean, components, slope, rest = shapes._principal_components(vectors.astype(np.float32), logs)
    oracle = PCA(n_components=len(components)).fit(vectors)
    np.testing.assert_allclose(mean, oracle.mean_, atol=1e-4)
    np.testing.assert_allclose((components**2).sum(1), oracle.explained_variance_, rtol=1e-3)
    scores = oracle.transform(vectors) / np.sqrt(oracle.explained_variance_)
    fitted = np.array([np.polyfit(logs, column, 1) for column in scores.T])
    np.testing.assert_allclose(np.abs(slope), np.abs(fitted[:, 0]), rtol=1e-3)
    assert oracle.explained_variance_ratio_.sum() >= 0.95 and (rest <= 1 + 1e-6).all()


def test_topology_and_volume_of_a_mask_must_be_those_of_training_masks():
    limits = Limits.fit(LABELS)
    assert all(limits.rejection(label) is None for label in LABELS)
    torn, hollow, grown = (LABELS[0].copy() for _ in range(3))
    torn[1, 1, 1] = 1
    hollow[tuple(np.argwhere(LABELS[0] == 3).mean(0).round().astype(int))] = 0
    grown[LABELS[0] == 3] = 1
    found = [limits.rejection(mask) for mask in (torn, hollow, grown)]
    assert [reason.kind for reason in found] == ["topology", "topology", "volume"]
    assert "the foreground has 2 pieces and Euler number 2" in found[0] and "1 pieces and Euler number 2" in found[1]
    number = min(int((label == 3).sum()) for label in LABELS)
    few = next(label for label in LABELS if (label == 3).sum() == number).copy()
    few[tuple(np.argwhere(few == 3)[0])] = 0  # one voxel less than any training mask, at the surface
    assert limits.rejection(few).kind == "volume"
    assert limits.scaled((0.5, 0.9)).rejection(few) is None
    assert limits.scaled((0.5, 0.9)).volumes["3"] == [round(number / 2), limits.volumes["3"][1]]
    rare = [LABELS[0]] * 30 + [torn]
    assert Limits.fit(rare).topologies["0"] == [[1, 1]], "one stray voxel in 31 masks makes strays no rule"
    assert Limits(**limits.to_dict()) == limits


def case(index: int, label: np.ndarray, resampled: int = SIDE) -> ModelCase:
    placement = Placement((SIDE,) * 3, ((0, 1), (1, 1), (2, 1)), (SIDE, SIDE, resampled), (0.0,), (1.0,))
    about = Case(f"case_{index}", (f"{index}.nii",), f"{index}_seg.nii", f"subject_{index}")
    return ModelCase(about, np.zeros((1, *label.shape), np.float32), label, np.eye(4), np.dtype("i2"), placement)


def test_what_was_learned_is_kept_beside_the_run_and_made_again_if_damaged(tmp_path, monkeypatch, model):
    training = TrainingMasks.of([case(i, label) for i, label in enumerate(LABELS)], tmp_path)
    calls = []
    monkeypatch.setattr(ShapeModel, "fit", lambda labels: calls.append(len(labels)) or model)
    first, second = (PopulationMasks(MasksOptions()).fitted(training) for _ in range(2))
    np.testing.assert_array_equal(first.make(LABELS[2], 5), second.make(LABELS[2], 5))
    assert calls == [NUMBER] and first.subjects == {f"subject_{i}" for i in range(NUMBER)}
    [path] = tmp_path.glob("shapes-*.npz")
    path.write_bytes(path.read_bytes()[:-100])
    PopulationMasks(MasksOptions()).fitted(training)
    assert calls == [NUMBER] * 2
    PopulationMasks(MasksOptions()).fitted(TrainingMasks(LABELS[1:], cache=tmp_path))
    assert calls == [NUMBER] * 2 + [NUMBER - 1], "other masks have an entry of their own"


@pytest.mark.slow
def test_recipes_keep_masks_inside_the_scan_and_record_whom_they_are_made_from(monkeypatch, model):
    monkeypatch.setattr(ShapeModel, "fit", lambda labels: model)
    low = min(np.argwhere(label > 0)[:, 2].min() for label in LABELS)
    high = max(np.argwhere(label > 0)[:, 2].max() for label in LABELS)
    narrow = 2 * max(SIDE // 2 - low, high + 1 - SIDE // 2) - 2  # cuts some of the population
    hosts = [case(i, label, narrow) for i, label in enumerate(LABELS)]
    source = PopulationMasks(MasksOptions()).fitted(TrainingMasks.of(hosts))
    recipes = Recipes(hosts, source, GenerateOptions(), SamplerOptions(), "population", "sum")
    records = []
    for index in range(40):
        recipe, host, mask = recipes(index)
        assert not mask[..., : host.slices.start].any() and not mask[..., host.slices.stop :].any()
        records.append(recipes.record(recipe))
        assert sum(records[-1].get("mask_rejections", {}).values()) == recipe.attempt
    assert {"beyond the scan"} <= {kind for record in records for kind in record.get("mask_rejections", {})}
    assert all(record["subjects"] == sorted(f"subject_{i}" for i in range(NUMBER)) for record in records)


def test_ignored_voxels_stay_and_an_empty_mask_stays_empty(monkeypatch, model):
    source = PopulationMasks(MasksOptions(), (model, Limits.fit(LABELS)))
    empty = np.zeros((SIDE,) * 3, np.uint8)
    empty[:2] = IGNORE
    np.testing.assert_array_equal(source.make(empty, 0), empty)
    assert source.rejection(empty, empty) is None


def test_what_the_source_refuses():
    with pytest.raises(UserError, match="masks=population: 9 training masks are too few .* 10 are needed.; use"):
        PopulationMasks(MasksOptions()).fitted(TrainingMasks(LABELS[:9]))

    class Model:
        class card:
            experiment, schema = "toy", LabelSchema(((0, "background"), (1, "left_kidney")))

    with pytest.raises(UserError, match="masks.mirror=true: a label of toy names a side"):
        check_mirror(MasksOptions(mirror=True), Model)
    check_mirror(MasksOptions(mirror=False), Model)
