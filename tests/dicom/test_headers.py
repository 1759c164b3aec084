"""Headers of a tree do not depend on the names and folders of its files."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace

import pydicom
import pytest
from dicom_files import oblique, ramp, uid, write_enhanced, write_series

from medaug.dicom import headers
from medaug.dicom.headers import scan_in_process, scan_tree
from medaug.errors import UserError


def without_paths(tree):
    """The content of a tree, for comparison."""
    return tuple(
        replace(series, instances=tuple(replace(one, path=None) for one in series.instances)) for series in tree.series
    )


def test_series_are_grouped_by_uid_whatever_the_folders(tmp_path):
    # Two series mixed in one folder, one of them spread over two more, without extension.
    write_series(tmp_path, ramp(), number=2, names=lambda i: f"{'abba'[i]}/deep/IM{i}")
    write_series(tmp_path, ramp(), number=1, names=lambda i: f"a/deep/{i}.dcm", SeriesDescription="T1 post")
    write_series(tmp_path, ramp(), PatientID="B", number=1, names=lambda i: f"a/{i}.dcm", modality="CT")
    tree = scan_tree(tmp_path, workers=1)
    found = [(s.patient_id, s.number, s.modality, s.uid, len(s.instances)) for s in tree.series]
    assert found == [
        ("B", 1, "CT", uid("series", "B", 1), 4),
        ("MADE-UP-1", 1, "MR", uid("series", "MADE-UP-1", 1), 4),
        ("MADE-UP-1", 2, "MR", uid("series", "MADE-UP-1", 2), 4),
    ]
    assert not tree.unreadable and not tree.ignored
    series = tree.series[1]
    assert series.attributes["SeriesDescription"] == "T1 post"
    assert series.attributes["ImageType"] == "ORIGINAL\\PRIMARY\\OTHER"
    assert series.attributes["EchoTime"] == "10"
    assert (series.study_uid, series.frame_of_reference) == (uid("study", "MADE-UP-1"), uid("frame", "MADE-UP-1"))


def test_attributes_do_not_contain_names(tmp_path):
    write_series(tmp_path, ramp(), PatientID="PLANTED", PatientName="PLANTED^P", AccessionNumber="PLANTED")
    series = scan_in_process(tmp_path).series[0]
    assert "PLANTED" not in repr(series.attributes) and "1950" not in repr(series.attributes)


def test_one_series_uid_of_two_patients_is_two_series(tmp_path):
    shared = uid("shared")
    write_series(tmp_path / "a", ramp(), PatientID="A", SeriesInstanceUID=shared, StudyInstanceUID=shared)
    write_series(tmp_path / "b", ramp(), PatientID="B", SeriesInstanceUID=shared, StudyInstanceUID=shared)
    assert [len(series.instances) for series in scan_in_process(tmp_path).series] == [4, 4]


def test_renaming_and_moving_changes_nothing(tmp_path):
    write_series(tmp_path / "a", ramp((6, 5, 9)), oblique(), number=1)
    write_series(tmp_path / "a", ramp((6, 5, 9)), oblique(), number=2, names="x{}".format)
    write_enhanced(tmp_path / "a" / "multi", ramp(), number=3)
    files = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file())
    random.Random(1).shuffle(files)
    for index, path in enumerate(files):
        target = tmp_path / "b" / str(index % 4) / f"{index}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    a, b = scan_in_process(tmp_path / "a"), scan_in_process(tmp_path / "b")
    assert len(a.series) == 3
    assert without_paths(a) == without_paths(b)


@pytest.mark.slow
def test_many_files_in_workers_equal_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "_FILES_PER_ITEM", 5)
    write_series(tmp_path, ramp((3, 3, 12)))
    (tmp_path / "broken.dcm").write_bytes(b"nonsense")
    assert scan_tree(tmp_path, workers=2) == scan_in_process(tmp_path)


def test_skipped_ignored_and_unreadable_files(tmp_path):
    paths = write_series(tmp_path, ramp())
    for name in (".hidden", "._0001.dcm", "__MACOSX/0001.dcm", ".git/0001.dcm", "DICOMDIR"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(paths[0], tmp_path / name)
    (tmp_path / "notes.txt").write_text("notes" * 100)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "z-empty.dcm").write_bytes(b"")
    (tmp_path / "z-text.dcm").write_text("notes" * 100)
    (tmp_path / "z-short.dcm").write_bytes(paths[0].read_bytes()[:400])
    dataset = pydicom.dcmread(paths[0])
    del dataset.SeriesInstanceUID
    dataset.save_as(tmp_path / "z-without")
    os.symlink(tmp_path / "gone", tmp_path / "z-dangling")
    tree = scan_in_process(tmp_path)
    assert [len(series.instances) for series in tree.series] == [4]
    assert tree.ignored == 2
    reasons = {path.name: reason for path, reason in tree.unreadable}
    assert reasons.keys() == {"z-empty.dcm", "z-text.dcm", "z-short.dcm", "z-without", "z-dangling"}
    assert reasons["z-empty.dcm"] == "is empty (zero bytes)"
    assert reasons["z-text.dcm"] == "is not a DICOM file"
    assert reasons["z-without"] == "has no SeriesInstanceUID"
    assert reasons["z-dangling"] == "cannot be read (No such file or directory)"


def test_file_without_preamble(tmp_path):
    paths = write_series(tmp_path, ramp())
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.preamble = None
        pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True, force_encoding=True)
        assert path.read_bytes()[128:132] != b"DICM"
    assert len(scan_in_process(tmp_path).series[0].instances) == 4


def test_links_in_a_circle_end(tmp_path):
    write_series(tmp_path / "a" / "b", ramp())
    os.symlink(tmp_path, tmp_path / "a" / "up")
    os.symlink(tmp_path / "a" / "b", tmp_path / "again")
    assert [len(series.instances) for series in scan_in_process(tmp_path).series] == [4]


def test_root_must_be_a_folder(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        scan_tree(tmp_path / "nowhere")


def test_files_cut_short_are_known_from_their_headers(tmp_path):
    paths = write_series(tmp_path, ramp((40, 40, 3)))
    paths[1].write_bytes(paths[1].read_bytes()[:-1000])
    complete = {one.path: one.complete for one in scan_in_process(tmp_path).series[0].instances}
    assert complete == {paths[0]: True, paths[1]: False, paths[2]: True}


def test_planted_names_are_not_logged(tmp_path, capfd, caplog, recwarn):
    planted = "PLANTED " * 30  # too long for its element, which pydicom would quote in a warning
    paths = write_series(tmp_path, ramp(), edit=lambda index, dataset: dataset.add_new(0x00100010, "LO", planted))
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[:-30])
    data = bytearray(paths[3].read_bytes())
    position = data.find(b"IS", data.find(b"\x20\x00\x11\x00"))  # SeriesNumber
    data[position + 4 : position + 6] = b"X "
    paths[3].write_bytes(bytes(data))
    caplog.set_level(0)
    tree = scan_in_process(tmp_path)
    assert tree.unreadable == ((paths[3], "has a damaged header (ValueError)"),)
    out = capfd.readouterr()
    assert "PLANTED" not in out.out + out.err + caplog.text + "".join(str(one.message) for one in recwarn)


@pytest.mark.slow
def test_damaged_headers_give_a_reason_without_values(tmp_path):
    """300 files with flipped bits or a missing end: each gives a record, a reason, or is not DICOM."""
    draw = random.Random("headers")
    classic = write_series(tmp_path / "a", ramp((6, 5, 2)))[0].read_bytes()
    enhanced = write_enhanced(tmp_path / "b", ramp()).read_bytes()
    for index in range(300):
        data = bytearray((classic, enhanced)[index % 2])
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        for _ in range(draw.randrange(1, 12)):
            if data:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (tmp_path / "damaged.dcm").write_bytes(bytes(data))
        tree = scan_in_process(tmp_path / "damaged.dcm")
        assert len(tree.series) + len(tree.unreadable) + tree.ignored == 1
        assert all("\n" not in reason and len(reason) < 80 for _, reason in tree.unreadable)
