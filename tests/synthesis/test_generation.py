"""Generated files: geometry, intensities, restart, and what a full disk leaves behind."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from generated_pairs import NUM, SCHEMA, files, read, write

from medaug.cohort import provenance
from medaug.cohort.manifest import Manifest
from medaug.data.attributes import fit_attributes
from medaug.data.cases import load_cases
from medaug.errors import UserError
from medaug.imaging import nifti
from medaug.options import GenerateOptions, MasksOptions, SamplerOptions
from medaug.synthesis import generation
from medaug.synthesis.generation import (
    generate_pairs,
    sample_images,
)
from medaug.synthesis.pairs import Pairs


@pytest.mark.slow
def test_every_pair_lies_on_its_hosts_grid_for_nibabel_and_simpleitk(made, cohort):
    hosts = {case.name: case for case in cohort.cases}
    records = {r["name"]: r for r in provenance.read(Path(made.root) / "provenance.jsonl").values()}
    assert {r["host"] for r in records.values()} == set(hosts)
    for case in made.cases:
        host = hosts[records[case.name]["host"]]
        for file, original in zip(
            [*made.image_paths(case), made.label_path(case)],
            [*cohort.image_paths(host), cohort.label_path(host)],
            strict=True,
        ):
            one, other = nib.load(file), nib.load(original)
            assert one.shape == other.shape
            np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)
            np.testing.assert_allclose(one.header.get_zooms(), other.header.get_zooms(), atol=1e-6)
            a, b = SimpleITK.ReadImage(str(file)), SimpleITK.ReadImage(str(original))
            assert a.GetSize() == b.GetSize()
            for get in ("GetSpacing", "GetOrigin", "GetDirection"):
                np.testing.assert_allclose(getattr(a, get)(), getattr(b, get)(), atol=1e-5)
            if host.name != "mixed":
                assert one.get_data_dtype() == other.get_data_dtype()


def test_modalities_of_different_types_keep_the_one_that_holds_both(made, cohort):
    records = {r["name"]: r for r in provenance.read(Path(made.root) / "provenance.jsonl").values()}
    case = next(c for c in made.cases if records[c.name]["host"] == "mixed")
    t1, t2 = (read(path) for path in made.image_paths(case))
    assert t1.dtype == t2.dtype == np.float32
    assert len(np.unique(t2)) > 50  # rounded to integers, values near 1 would be two or three


def test_labels_hold_the_schemas_values_and_both_tissues(made):
    assert len(made.cases) == NUM
    for case in made.cases:
        label = nib.load(made.label_path(case))
        assert label.get_data_dtype() == np.uint8
        assert set(np.unique(read(made.label_path(case)))) == {0, 2, 4}


def test_intensities_stay_between_the_hosts_percentiles(made, cohort, card):
    hosts = {case.name: case for case in cohort.cases}
    records = {r["name"]: r for r in provenance.read(Path(made.root) / "provenance.jsonl").values()}
    for case in made.cases:
        host = hosts[records[case.name]["host"]]
        for file, original in zip(made.image_paths(case), cohort.image_paths(host), strict=True):
            image, truth = read(file).astype(float), read(original).astype(float)
            assert truth.min() - 0.5 <= image.min() < image.max() <= truth.max() + 0.5
            assert image.std() > 0


def test_the_mask_on_disk_is_the_requested_one(make, made, card):
    cases = load_cases(made, made.cases, card.preprocessing, Path(made.root) / "cache")
    records = {r["name"]: r for r in provenance.read(Path(made.root) / "provenance.jsonl").values()}
    plain = [case for case in cases if records[case.case.name]["host"] == "plain"]
    assert plain  # its grid is the model's: no resampling between
    for case in plain:
        assert case.label is not None and set(np.unique(case.label)) == {0, 1, 2}


@pytest.mark.slow
def test_a_restart_makes_what_is_missing_and_touches_nothing_else(make, made, tmp_path, monkeypatch):
    append, count = provenance.append, []

    def killed(path, record):
        if len(count) == 3:
            raise KeyboardInterrupt  # both files of the fourth pair are there, its record is not
        count.append(append(path, record))

    monkeypatch.setattr(provenance, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    monkeypatch.undo()
    finished = {r["name"] for r in provenance.read(tmp_path / "provenance.jsonl").values()}
    assert len(finished) == 3
    before = {k: p.stat().st_mtime_ns for k, p in files(tmp_path).items()}
    again = make(tmp_path)
    after = {k: p.stat().st_mtime_ns for k, p in files(tmp_path).items()}
    kept = {k for k in before if any(name in k for name in finished)}
    assert len(kept) == 9 and all(before[k] == after[k] for k in kept)
    assert again.to_mapping() == made.to_mapping()
    assert_same_pairs(tmp_path, Path(made.root))
    make(tmp_path)
    assert {k: p.stat().st_mtime_ns for k, p in files(tmp_path).items()} == after


def test_the_same_batches_give_the_same_bytes(make, made, tmp_path):
    make(tmp_path)
    one, other = files(tmp_path), files(Path(made.root))
    assert one and one.keys() <= other.keys()
    for key in one:
        assert one[key].read_bytes() == other[key].read_bytes(), key


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_changes_nothing_beyond_rounding(make, made, tmp_path, batch_size):
    make(tmp_path, batch_size=batch_size)
    assert_same_pairs(tmp_path, Path(made.root))


def test_pairs_do_not_depend_on_the_number_of_processes(make, made, tmp_path):
    few = make(tmp_path, rank=1, ranks=3)  # makes 1 and 4; the others of the three died
    assert [case.name[-1] for case in few.cases] == ["1", "4"]
    before = {k: p.stat().st_mtime_ns for k, p in files(tmp_path).items() if k.endswith(".gz")}
    make(tmp_path, rank=0, ranks=2)
    assert {i for i, _ in provenance.read(tmp_path / "provenance.jsonl")} == {0, 2}
    assert make(tmp_path, rank=1, ranks=2).to_mapping() == made.to_mapping()
    assert_same_pairs(tmp_path, Path(made.root))
    after = {k: p.stat().st_mtime_ns for k, p in files(tmp_path).items()}
    assert all(after[k] == time for k, time in before.items())


def said(folder: Path) -> dict[tuple[int, int], dict[str, object]]:
    """The records without digests of files, which differ with the last digit of a voxel."""
    return {k: {**record, "contents": sorted(record["contents"])} for k, record in provenance.read_all(folder).items()}


def assert_same_pairs(one: Path, other: Path) -> None:
    assert said(one) == said(other)
    images, labels = sorted(one.glob("imagesTr/*")), sorted(one.glob("labelsTr/*"))
    assert len(images) == 2 * NUM and len(labels) == NUM
    for path in labels:
        assert path.read_bytes() == (other / "labelsTr" / path.name).read_bytes()
    for path in images:
        a, b = read(path), read(other / "imagesTr" / path.name)
        # An integer at half a step may be rounded either way.
        np.testing.assert_allclose(a, b, atol=1 if a.dtype.kind in "iu" else 1e-4)
        assert a.dtype == b.dtype and np.mean(a != b) < 0.02 or a.dtype.kind == "f"


def test_more_pairs_leave_the_first_ones_as_they_are(make, tmp_path):
    few = make(tmp_path, num=2)
    before = {k: p.stat().st_mtime_ns for k, p in files(tmp_path).items() if k.endswith(".gz")}
    more = make(tmp_path, num=3)
    assert len(few.cases) == 2 and more.cases[:2] == few.cases
    after = {k: p.stat().st_mtime_ns for k, p in files(tmp_path).items()}
    assert all(after[k] == time for k, time in before.items())
    assert make(tmp_path, num=2).cases == few.cases  # asked for fewer, it lists fewer


def test_every_pair_belongs_to_its_hosts_subject_and_to_training(made, cohort):
    subjects = {case.name: case.subject for case in cohort.cases}
    records = {r["name"]: r for r in provenance.read(Path(made.root) / "provenance.jsonl").values()}
    for case in made.cases:
        record = records[case.name]
        assert case.split == "train"
        assert case.subject == record["host_subject"] == subjects[record["host"]]
        assert record["subjects"] == [case.subject] and record["checkpoint"] == "sum"


@pytest.mark.slow
@pytest.mark.parametrize("stopped_after", range(NUM))
def test_a_run_stopped_within_a_batch_and_resumed_gives_the_same_bytes(make, tmp_path, monkeypatch, stopped_after):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    make(whole, batch_size=3)

    def append(path, record):
        if record["index"] == stopped_after:
            raise KeyboardInterrupt
        provenance_append(path, record)

    provenance_append = provenance.append
    monkeypatch.setattr(provenance, "append", append)
    with pytest.raises(KeyboardInterrupt):
        make(resumed, batch_size=3)
    monkeypatch.undo()
    make(resumed, batch_size=3)
    one, other = ({k: p.read_bytes() for k, p in files(folder).items()} for folder in (whole, resumed))
    assert one == other


@pytest.mark.slow
def test_what_is_sampled_together_depends_on_the_indices_alone(make, tmp_path, monkeypatch):
    together = []

    def sampled(model, schema, recipes, *rest):
        together.append([recipe.index for recipe in recipes])
        return sample_images(model, schema, recipes, *rest)

    monkeypatch.setattr(generation, "sample_images", sampled)
    make(tmp_path, num=NUM, batch_size=2)
    record = tmp_path / "provenance.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[0:1] + lines[4:5]))  # pairs 1, 2 and 3 are to be made again
    make(tmp_path, num=NUM, batch_size=2)
    assert together == [[0, 1], [2, 3], [4], [0, 1], [2, 3]]


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 7])
def test_a_full_disk_gives_one_line_and_leaves_only_whole_pairs(make, tmp_path, monkeypatch, nth):
    save, calls = nib.save, []

    def full(image, path):
        calls.append(path)
        if len(calls) == nth:
            Path(path).write_bytes(b"part of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(image, path)

    monkeypatch.setattr(nifti.nib, "save", full)
    with pytest.raises(UserError, match="the disk is full") as error:
        make(tmp_path)
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    records = provenance.read(tmp_path / "provenance.jsonl").values()
    assert len(records) == (nth - 1) // 3
    for record in records:
        for file in (*record["images"], record["label"]):
            assert read(tmp_path / file).ndim == 3
    assert not [p for p in tmp_path.rglob(".tmp*")]
    for path in files(tmp_path).values():
        assert path.suffix != ".gz" or read(path).ndim == 3  # what is there is whole, on record or not


@pytest.mark.slow
def test_a_file_size_limit_is_reported_as_a_full_disk(tmp_path):
    program = (
        "import numpy as np; from medaug.imaging.nifti import write_volume; from medaug.errors import UserError\n"
        "noise = np.random.default_rng(0).normal(size=(32, 32, 32)).astype('f4')\n"
        "try: write_volume('a.nii.gz', noise, np.eye(4))\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(generation.__file__).parents[2])},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.stdout == "a.nii.gz: the disk is full; free some space and run the same command again\n"
    assert done.stderr == "" and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_guidance_and_spacing_of_the_recipe_reach_the_sampler(model, card, cohort, tmp_path):
    hosts = load_cases(cohort, cohort.cases[:1], card.preprocessing, tmp_path)

    def images(sampler=None, scale=2.0, **guidance):
        options = GenerateOptions(**guidance), MasksOptions(source="real"), sampler or SamplerOptions("ddim", 4)
        recipe, _, mask = write(0, hosts, *options, "")
        return sample_images(model, SCHEMA, [recipe], [mask], scale)

    plain = images()
    for other in (
        images(guidance_interval=[0.3, 0.6]),
        images(guidance_rescale=1.0),
        images(negative_classes=["core"]),
        images(SamplerOptions("ddim", 4, spacing="uniform")),
    ):
        assert np.isfinite(other).all() and np.abs(other - plain).max() > 1e-3
    np.testing.assert_array_equal(images(guidance_interval=[0.3, 0.6], scale=1.0), images(scale=1.0))
    np.testing.assert_allclose(
        images(negative_classes=["shell", "core"], scale=0.0), images(negative_classes=["core", "shell"], scale=0.0)
    )


@pytest.mark.slow
def test_attributes_reach_the_model_and_stay_with_the_pair(cohort, card, tmp_path):
    values = [{"site": "A"}, {"site": "B"}, {"site": "A"}, {}, {"site": "B"}]
    cases = [replace(case, attributes=known) for case, known in zip(cohort.cases, values, strict=True)]
    hosts = load_cases(cohort, cases, card.preprocessing, tmp_path / "cache")
    encoder = fit_attributes(["site", "spacing"], [(h.case, h.affine) for h in hosts])
    card = replace(card, attributes=encoder)
    torch.manual_seed(0)
    model = card.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)

    def plan(index, first_attempt=0):
        options = GenerateOptions(attributes=["site:B"] if index >= 5 else [])
        sampler = SamplerOptions("ddim", 2)
        return write(index, hosts, options, MasksOptions(source="real"), sampler, "", encoder)

    generate_pairs(model, card, plan, 10, 4, tmp_path / "pairs")
    pairs = Pairs.collect(card, tmp_path / "pairs", 10).manifest
    host_of = {r["index"]: r["host"] for r in provenance.read(tmp_path / "pairs/provenance.jsonl").values()}
    of_host = {case.name: case.attributes for case in cases}
    assert [case.attributes for case in pairs.cases[:5]] == [of_host[host_of[i]] for i in range(5)]
    assert all(case.attributes == {"site": "B"} for case in pairs.cases[5:])
    pairs.save(tmp_path / "pairs/manifest.json")
    assert Manifest.load(tmp_path / "pairs/manifest.json") == pairs

    def image(**changes):
        recipe, _, mask = plan(0)
        recipe = replace(recipe, attributes={name: v for name, v in (recipe.attributes | changes).items() if v})
        return sample_images(model, SCHEMA, [recipe], [mask], 2.0)

    versions = [image(), image(site="A"), image(site="B"), image(site=None), image(spacing=[1.0, 1.0, 9.0])]
    differ = [np.abs(one - other).max() > 1e-4 for i, one in enumerate(versions) for other in versions[:i]]
    same = dict(zip(["A", "B", None], versions[1:4], strict=True))[of_host[host_of[0]].get("site")]
    np.testing.assert_array_equal(versions[0], same)
    assert differ.count(False) == 1


def test_an_unknown_sampler_is_the_users_mistake(model, card, cohort, tmp_path):
    hosts = load_cases(cohort, cohort.cases[:1], card.preprocessing, tmp_path)

    def plan(index, first_attempt=0):
        return write(index, hosts, GenerateOptions(), MasksOptions(source="real"), SamplerOptions("euler"), "")

    with pytest.raises(UserError, match="sampler.name=euler: no such sampler"):
        generate_pairs(model, card, plan, 1, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
