"""The gallery and the reading set in a real browser, the file that a gallery saves, and how readings are scored."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.stats import beta

from medaug.cohort import provenance
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.provenance import Recipe
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.export import main as export
from medaug.gallery import main as gallery
from medaug.imaging.nifti import write_volume
from medaug.options import ExportOptions, GalleryOptions, Options
from medaug.runs import finish
from medaug.viewing import viewer
from medaug.viewing.reading import Key, interval, score

SCHEMA = LabelSchema(((0, "background"), (3, "lesion")))
SHAPE = (12, 10, 8)
TURNED = np.array([[0, -2, 0, 9], [-1, 0, 0, 4], [0, 0, 1.5, -7], [0, 0, 0, 1]], float)
SHOWN = "document.body && document.body.dataset.shown === '{}'"


def cohort(root: Path, names: str) -> Manifest:
    rng = np.random.default_rng(len(names))
    cases = []
    for name in names:
        label = np.zeros(SHAPE, np.uint8)
        label[2:5, 6:9, 1:3] = 3
        for m in range(2):
            volume = (rng.normal(100, 30, SHAPE) + 80 * (label > 0)).astype(np.int16)
            write_volume(root / f"{name}_{m}.nii.gz", volume, TURNED)
        write_volume(root / f"{name}_seg.nii.gz", label, TURNED)
        cases.append(Case(name, (f"{name}_0.nii.gz", f"{name}_1.nii.gz"), f"{name}_seg.nii.gz", f"subject {name}"))
    return Manifest("toy", "", ("T1", "T2"), SCHEMA, tuple(cases), str(root))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder of an experiment with five scans and the pairs x, y and z of host a."""
    folder = tmp_path_factory.mktemp("runs")
    cohort(folder / "data", "abcde").save(folder / "toy/train/manifest.json")
    pairs = cohort(folder / "toy/synthetic", "xyz")
    pairs.save(folder / "toy/synthetic/manifest.json")
    for index, case in enumerate(pairs.cases):
        recipe = Recipe(index, 0, "a", case.subject, "real", {}, 1.0, "ddim", 1, 0.0, index, "0" * 64)
        files = {"name": case.name, "images": list(case.images), "label": case.label, "subjects": [case.subject]}
        contents = {file: hashlib.sha256(Path(pairs.root, file).read_bytes()).hexdigest() for file in files["images"]}
        contents[case.label] = hashlib.sha256(Path(pairs.root, case.label).read_bytes()).hexdigest()
        line = recipe.to_mapping() | files | {"contents": contents}
        provenance.append(folder / "toy/synthetic/provenance.jsonl", line)
    finish(folder / "toy/synthetic", {"pairs": 3})
    return folder


def options(runs: Path, **node) -> Options:
    return Options(experiment="toy", runs=str(runs), gallery=GalleryOptions(**node))


def exported(runs: Path, out: Path, reviews: Path) -> list[str]:
    export(Options(experiment="toy", runs=str(runs), export=ExportOptions(out=str(out), reviews=str(reviews))))
    return sorted(path.name for path in (out / "labelsTr").glob("*.nii.gz"))


@pytest.mark.slow
def test_a_reader_looks_at_pairs_judges_them_and_the_export_follows(runs, browser, tmp_path):
    gallery(options(runs, out=str(tmp_path / "pages")))
    page, saved = tmp_path / "pages/index.html", tmp_path / "saved"
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(saved))
    for width in (390, 1100):
        browser.open(page, width)
        browser.wait_for(SHOWN.format("x"))
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("[...document.querySelectorAll('h2')].map(one => one.textContent)") == ["synthetic", "real host"]

    # The voxels and the geometry that the viewer got are those of the files.
    for panel, (root, name) in enumerate(((runs / "toy/synthetic", "x"), (runs / "data", "a"))):
        for volume, file in enumerate((f"{name}_0.nii.gz", f"{name}_seg.nii.gz")):
            image = nib.load(root / file)
            shown = f"viewers[{panel}].volumes[{volume}]"
            expected = np.asanyarray(image.dataobj)
            expected = expected // 3 if volume else expected
            np.testing.assert_array_equal(browser.run(f"Array.from({shown}.img)"), expected.ravel("F"))
            np.testing.assert_allclose(browser.run(f"{shown}.hdr.affine"), image.affine)

    # It begins in the middle of the mask: voxels 2:5, 6:9, 1:3 of axes to the back, the left and the head.
    assert [browser.run(f"at('slice{axis}').value") for axis in range(3)] == ["2", "8", "2"]
    before = browser.picture()
    browser.run("at('slice2').value = 6; at('slice2').dispatchEvent(new Event('input'))")
    assert browser.run("viewers.map(one => one.scene.crosshairPos[2])") == pytest.approx([6.5 / 8] * 2)
    assert browser.picture() != before
    browser.run("at('slice2').value = 2; at('slice2').dispatchEvent(new Event('input'))")
    browser.run("at('opacity').value = 100; at('opacity').dispatchEvent(new Event('input'))")
    assert browser.run("viewers.map(one => one.volumes[1].opacity)") == [1, 1]

    browser.press("a")
    browser.press("ArrowRight")
    browser.wait_for(SHOWN.format("y"))
    browser.press("r")
    browser.run("at('note').focus()")
    browser.call("Input.insertText", text="rim <too> dark")
    browser.run("at('save').click()")
    browser.wait_for("at('done').textContent === '2 of 3 answered'")
    browser.run("document.activeElement.blur()")
    browser.press("ArrowLeft")
    browser.wait_for(SHOWN.format("x"))
    assert browser.run("document.querySelector('[data-value=accepted]').getAttribute('aria-pressed')") == "true"
    browser.open(page)  # what was said is kept
    browser.wait_for(f"{SHOWN.format('x')} && at('done').textContent === '2 of 3 answered'")
    assert not browser.faults

    reviews = saved / "reviews.json"
    assert json.loads(reviews.read_text())["pairs"] == {
        "x": {"verdict": "accepted"},
        "y": {"verdict": "rejected", "note": "rim <too> dark"},
    }
    assert exported(runs, tmp_path / "exported", reviews) == ["x.nii.gz", "z.nii.gz"]


@pytest.mark.slow
def test_a_reading_set_is_answered_by_keyboard_and_scored(runs, browser, tmp_path, caplog):
    gallery(options(runs, out=str(tmp_path / "set"), blinded=True, num=3))
    key = tmp_path / "set.key.json"
    truth = Key.load(key).truth
    kinds = [image["synthetic"] for image in truth.values()]
    assert sorted(kinds) == [False] * 3 + [True] * 3
    # Hosts come last: a scan beside its own pair would give it away.
    assert {image["case"] for image in truth.values()} <= set("xyz") | set("bcde")
    for path in (tmp_path / "set").rglob("*.js"):
        if path.parent.name == "items":
            content = json.loads(path.read_text().removeprefix("medaugShow(").removesuffix(");\n"))
            assert content["panels"][0]["title"] == "" and content["panels"][0]["label"] is None
            assert content["at"] == [0.5, 0.5, 0.5]
    saved = tmp_path / "saved"
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(saved))
    browser.open(tmp_path / "set/index.html", 390)
    for number, synthetic in enumerate(kinds):
        browser.wait_for(SHOWN.format(f"{number + 1:03d}"))
        browser.press(
            "s" if synthetic or number == kinds.index(False) else "r"
        )  # one real image is taken for synthetic
        browser.press("ArrowRight")
    browser.run("at('save').click()")
    browser.wait_for("new Promise(done => setTimeout(() => done(true), 500))")
    assert not browser.faults
    with caplog.at_level(logging.INFO):
        gallery(Options(gallery=GalleryOptions(answers=str(saved / "answers.json"), key=str(key))))
    low, high = beta.ppf(0.025, 5, 2), beta.ppf(0.975, 6, 1)  # Clopper and Pearson's interval of 5 of 6
    assert f"correct: 5 of 6, 83% (95% interval {low:.0%} to {high:.0%}); guessing gives 50%" in caplog.messages
    assert any(line.startswith("real images called real: 2 of 3") for line in caplog.messages)


def test_intervals_are_exact():
    assert interval(0, 0) == (0.0, 1.0) and interval(0, 4)[0] == 0.0 and interval(4, 4)[1] == 1.0
    assert interval(13, 20) == pytest.approx((beta.ppf(0.025, 13, 8), beta.ppf(0.975, 14, 7)))


def test_files_that_do_not_belong_are_refused_in_one_line(runs, tmp_path, monkeypatch):
    def saved(name: str, content: dict) -> Path:
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    reviews = {"format": "medaug reviews 1", "pairs": {"x": {"note": "good"}, "w": {}, "v": {}}}
    foreign, damaged = saved("foreign.json", reviews), saved("damaged.json", reviews | {"format": "other"})
    with pytest.raises(UserError, match=r"foreign.json: names v and 1 more, not among the pairs of this run; give the"):
        exported(runs, tmp_path / "out", foreign)
    with pytest.raises(UserError, match="damaged.json: is damaged .*; save it again in the gallery"):
        exported(runs, tmp_path / "out", damaged)
    none = saved("none.json", reviews | {"pairs": {name: {"verdict": "rejected"} for name in "xyz"}})
    with pytest.raises(UserError, match="no pair is left; every pair was rejected"):
        exported(runs, tmp_path / "out", none)
    key = Key.of({"001": {"synthetic": True, "case": "x"}})
    mine = saved("key.json", key.to_mapping())
    other = saved("answers.json", {"format": "medaug answers 1", "set": "other", "answers": {}})
    with pytest.raises(
        UserError, match="answers.json: are the answers of another reading set; give the key of that set"
    ):
        score(other, mine)
    changed = saved("changed.json", key.to_mapping() | {"images": {"001": {"synthetic": False, "case": "x"}}})
    with pytest.raises(UserError, match="changed.json: is damaged .*it was changed"):
        score(other, changed)
    with pytest.raises(UserError, match="num=4: there are 3 pairs and 5 real scans; lower num"):
        gallery(options(runs, out=str(tmp_path / "set"), blinded=True, num=4))
    with pytest.raises(UserError, match="exists already; choose a folder that does not"):
        gallery(options(runs, out=str(tmp_path)))
    monkeypatch.setattr("medaug.viewing.viewer.SCRIPT", tmp_path / "absent.js")
    with pytest.raises(
        UserError, match="absent.js: the viewer of the gallery is missing; install a wheel, or run `make v"
    ):
        gallery(options(runs, out=str(tmp_path / "pages")))
    with pytest.raises(UserError, match="its SHA-512 differs"):
        viewer.unpacked(b"something else", tmp_path / "archive.tgz")
    monkeypatch.setattr(viewer.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"npm is not installed; install Node.js"):
        viewer.fetch()
    assert not (tmp_path / "pages").exists() and not (tmp_path / "out").exists()
