"""An audit of pairs that another generator made, without any training of medaug."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pytest
from small_cohort import SCHEMA, write_case

from medaug import audit
from medaug.auditing.measures import MEASURES, Material
from medaug.auditing.results import Audit
from medaug.cohort.manifest import Manifest
from medaug.config import load_options
from medaug.data.cases import load_cases
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.options import AuditOptions

SPLITS = {f"A{i}": "train" for i in range(12)} | {f"V{i}": "val" for i in range(4)} | {"T": "test"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twelve training subjects and fourteen pairs: copies of the training scans with a little noise, and two others."""
    root = tmp_path_factory.mktemp("audited")
    cases = [write_case(root, f"{s}_1", s, split, seed) for seed, (s, split) in enumerate(SPLITS.items())]
    cohort = Manifest("toy", "", ("T1",), SCHEMA, tuple(cases), str(root))
    # The same seeds as the training scans: the same masks and images, written again.
    pairs = tuple(write_case(root / "peer", f"p{i}", f"p{i}", seed=i if i < 12 else 50 + i) for i in range(14))
    peer = Manifest("peer", "", ("T1",), SCHEMA, pairs, str(root / "peer"))
    cohort.save(root / "cohort.json")
    return root, cohort, peer


def test_measures_tell_copies_from_other_pairs(world, tmp_path):
    root, cohort, peer = world
    space = Preprocessing((8, 8, 8), None, (0.0, 100.0))
    train, val = (load_cases(cohort, cohort.split(name), space, tmp_path) for name in ("train", "val"))
    copies = load_cases(peer, peer.cases[:12], space, tmp_path)
    others = tuple(write_case(root / "other", f"q{i}", f"q{i}", seed=100 + i) for i in range(12))
    manifest = replace(peer, cases=others, root=str(root / "other"))
    new = load_cases(manifest, others, space, tmp_path)
    shrunk = [replace(c, label=np.where(np.arange(512).reshape(8, 8, 8) % 9, 0, c.label).astype(np.uint8)) for c in new]

    def measured(name, synthetic):
        material = Material(SCHEMA, AuditOptions(), val, synthetic, train=train)
        return {group.images: group.interval for group in MEASURES[name].function(material)}

    assert measured("membership", copies)["area_under_curve"].mean == 1
    other = measured("membership", new)["area_under_curve"]
    assert other.low < 0.5 < other.high and other.n == 16
    for name in ("mask_volumes", "mask_shapes"):
        similar, wrong = measured(name, new), measured(name, shrunk)
        assert similar["real_halves"].mean == wrong["real_halves"].mean and similar["synthetic"].n == 6
        assert similar["synthetic"].mean < 2 * similar["real_halves"].mean
        assert wrong["synthetic"].mean > 3 * wrong["real_halves"].mean


@pytest.mark.slow
def test_pairs_of_another_generator_are_audited_without_a_training(world, tmp_path, monkeypatch):
    root, _, peer = world
    monkeypatch.chdir(tmp_path)
    peer.save(root / "peer" / "manifest.json")
    words = ["experiment=cohort", "preset=smoke", f"cohort={root / 'cohort.json'}", "judge_steps=2"]
    words += ["segmenter.channels=[4,8]", "segmenter.batch_size=2", "segmenter.num_workers=0"]

    def run(*more):
        out = io.StringIO()
        with redirect_stdout(out):
            audit.main(load_options("audit", [*words, *more]))
        return out.getvalue()

    pairs = f"pairs={root / 'peer' / 'manifest.json'}"
    with pytest.raises(UserError, match=r"p0 of peer is the scan of A0_1|p0 \(synthetic\) holds the scan of A0_1"):
        run(pairs)
    only = replace(peer, cases=tuple(write_case(root / "peer", f"n{i}", f"n{i}", seed=200 + i) for i in range(7)))
    only.save(root / "peer" / "new.json")
    pairs = f"pairs={root / 'peer' / 'new.json'}"
    printed = run(pairs)
    assert "Coverage" in printed and "Membership inference" in printed
    folder = tmp_path / "runs/cohort/audit"
    found = Audit.load(folder)
    assert found.results.keys() == {*MEASURES} - {"guidance"} and not (folder / "guidance.png").exists()
    stored = json.loads((folder / "faithfulness.json").read_text())["measures"]
    assert stored["coverage"]["synthetic"]["n"] == stored["coverage"]["real_halves"]["n"] == 6
    assert set(stored["membership"]) == {"training", "real_validation", "area_under_curve"}
    (tmp_path / "seen.txt").write_text("T\n")
    with pytest.raises(UserError, match=r"generator of peer saw test subject\(s\) T"):
        run(pairs, f"pairs_seen={tmp_path / 'seen.txt'}", "overwrite=true")
    shutil.copy(root / "V0_1_seg.nii.gz", root / "peer" / "n0_seg.nii.gz")
    with pytest.raises(UserError, match=r"leak: n0 has the mask of V0_1 \(val\)"):
        run(pairs, "overwrite=true")
    with pytest.raises(UserError, match=r"cohort=.*: has no effect without pairs"):
        load_options("audit", words)
