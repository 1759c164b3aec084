"""Pairs on disk: unfinished, edited, replaced or from earlier versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medaug.cohort import provenance
from medaug.data.cache import content_digests
from medaug.errors import UserError
from medaug.synthesis.pairs import Pairs, pairs_digest


@pytest.mark.slow
def test_finished_pairs_are_refused_until_the_generation_is_finished(make, tmp_path):
    manifest = make(tmp_path, num=2)
    manifest.save(tmp_path / "manifest.json")
    with pytest.raises(UserError, match="no finished synthetic pairs; run medaug.generate first"):
        Pairs.load(tmp_path)
    (tmp_path / "finished.json").write_text("{}")
    pairs = Pairs.load(tmp_path)
    assert pairs.manifest == manifest and [r["name"] for r in pairs.records] == [c.name for c in manifest.cases]
    assert Pairs.load(tmp_path).digest == pairs.digest
    with pytest.raises(UserError, match="changed after the pairs were finished"):
        summary = {"digest": pairs_digest(manifest, pairs.records[:1])}
        (tmp_path / "finished.json").write_text(json.dumps(summary))
        Pairs.load(tmp_path)


@pytest.fixture
def whole(make, tmp_path):
    """Finished pairs, as `generate` leaves them."""
    manifest = make(tmp_path / "synthetic", num=2)
    folder = Path(manifest.root)
    manifest.save(folder / "manifest.json")
    digest = pairs_digest(manifest, list(provenance.read_all(folder).values()))
    (folder / "finished.json").write_text(json.dumps({"digest": digest}))
    assert Pairs.load(folder).digest == digest
    return folder


def edit_record(folder, change, keep_digest=True):
    path = folder / "provenance.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines[1])
    if not keep_digest:
        del lines[1]["digest"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


RECORDS = [
    lambda record: record.update(host_subject="subject_turned", subjects=["subject_turned"]),
    lambda record: record.update(seed=record["seed"] + 1),
    lambda record: record.update(checkpoint="other"),
    lambda record: record.pop("region"),
    lambda record: record["contents"].update(x="y"),
    lambda record: record.update(mask_validation_subjects=[]),
]


@pytest.mark.parametrize("change", RECORDS)
def test_an_edited_record_is_refused_by_the_name_of_its_pair(whole, change):
    edit_record(whole, change)
    with pytest.raises(UserError, match=r"provenance.jsonl: line 2 \(toy_synthetic_00001\) was changed after it was"):
        Pairs.load(whole)


@pytest.mark.parametrize("change", RECORDS)
def test_a_record_without_its_digest_does_not_pass_for_an_old_one(whole, change):
    edit_record(whole, change, keep_digest=False)
    with pytest.raises(UserError, match=r"changed after the pairs were finished|subject of toy_synthetic_00001 is not"):
        Pairs.load(whole)


@pytest.mark.parametrize(
    ("key", "value"),
    [("image", ["imagesTr/x_0.nii.gz"] * 2), ("label", "x.nii.gz"), ("subject", "test_1"), ("split", "val")],
)
def test_a_manifest_that_contradicts_the_records_is_refused(whole, key, value):
    content = json.loads((whole / "manifest.json").read_text())
    content["training"][1][key] = value
    (whole / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=rf"manifest.json: {key} of toy_synthetic_00001 is not what its provenance says"
    ):
        Pairs.load(whole)


def check_contents(folder):
    pairs = Pairs.load(folder)
    files = [path for case in pairs.manifest.cases for path in pairs.manifest.files(case)]
    pairs.refuse_changed(content_digests(files, folder.parent / "cache"))


def test_files_of_pairs_that_were_replaced_or_swapped_are_refused_by_name(whole, cohort):
    check_contents(whole)
    labels, images = sorted(whole.glob("labelsTr/*")), sorted(whole.glob("imagesTr/*"))
    contents = [path.read_bytes() for path in labels]
    for path, content in zip(labels, contents[::-1], strict=True):
        path.write_bytes(content)
    with pytest.raises(UserError, match="labelsTr.*: is not the file of toy_synthetic_00000 that was generated"):
        check_contents(whole)
    for path, content in zip(labels, contents, strict=True):
        path.write_bytes(content)
    check_contents(whole)
    images[3].write_bytes(cohort.image_paths(cohort.cases[0])[0].read_bytes())
    with pytest.raises(UserError, match="imagesTr.*: is not the file of toy_synthetic_00001"):
        check_contents(whole)


def test_pairs_from_before_digests_are_read_and_it_is_said_that_they_are_not_checked(whole, caplog):
    path = whole / "provenance.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["digest"], line["contents"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (whole / "finished.json").write_text('{"pairs": 2}')
    check_contents(whole)
    assert "2 pairs were made before digests were recorded" in caplog.text
