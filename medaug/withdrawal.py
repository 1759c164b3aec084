"""Lists everything that contains or was made with a subject's data, for subjects who withdraw consent.

`python -m medaug.ingest withdraw=SUBJECT` uses it. Nothing is deleted, because a person has to decide what to delete:
removing a scan does not remove what a model learned from it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medaug.cohort import provenance
from medaug.cohort.manifest import Manifest
from medaug.csv_files import read_csv
from medaug.errors import UserError
from medaug.files import json_text
from medaug.inputs import parsing, read_bytes, read_json, read_text, read_yaml
from medaug.paths import sets_of_pairs

_BOOKKEEPING = {"config.yaml", "manifest.json", "finished.json"}  # files of a run without data of a scan
_USES = {"train": "learned from the subject", "val": "was validated on the subject"}


@dataclass(frozen=True)
class Artefact:
    """A file or folder that contains, or may contain, data of the subject or was made with it.

    Attributes:
        kind: private, manifest, scan, record, cache, checkpoint, log, pairs, pair, predictions,
            prediction, audit, benchmark or export.
        path: the file or folder.
        why: its relation to the subject, in words without a PatientID.
        certain: False if it is unknown whether it is related to the subject.
    """

    kind: str
    path: Path
    why: str
    certain: bool = True


@dataclass(frozen=True)
class _Who:
    """All names of a subject in manifests, and its cases according to the private file."""

    subjects: frozenset[str]
    cases: frozenset[str]

    def has(self, subject: str | None, case: str | None) -> bool:
        return subject in self.subjects or case in self.cases


def withdraw(subject: str, runs: Path, private: Path | None = None, manifest: Path | None = None) -> list[Artefact]:
    """List every artefact that is related to a subject.

    Args:
        subject: its name in manifests; or a PatientID, if the private file is given.
        runs: the folder of all experiments.
        private: the private file that medaug.ingest wrote.
        manifest: manifest of the cohort; the subject's files in it are listed, too.

    Returns:
        The cohort's files first, then those of each experiment.

    Raises:
        UserError: the subject is found nowhere, or a file that must be read is damaged.
    """
    who, found = _identify(subject, private)
    cohort = None if manifest is None else Manifest.load(manifest)
    experiments = sorted(path for pattern in ("*", "sweep/*/*") for path in runs.glob(pattern) if path.is_dir())
    trained = {path: _manifest(path / "train") for path in experiments}
    # A manifest may use another name than the pseudonym; later artefacts contain only that name.
    also = {c.subject for m in (cohort, *trained.values()) if m for c in m.cases if who.has(c.subject, c.name)}
    who = _Who(who.subjects | also, who.cases)
    if cohort is not None and manifest is not None:
        found += _in_cohort(cohort, manifest, who, private)
    for experiment in experiments:
        found += _in_experiment(experiment, trained[experiment], who)
    if not any(artefact.certain for artefact in found):
        raise UserError(
            f"withdraw: no manifest, checkpoint or pair below {runs} contains that subject",
            "give its name as in the manifest, or private=FILE with its PatientID, and runs=DIR where the results are",
        )
    return found


def _identify(subject: str, private: Path | None) -> tuple[_Who, list[Artefact]]:
    if private is None:
        return _Who(frozenset({subject}), frozenset()), []
    from medaug.dicom.privacy import load_private

    if not private.exists():
        raise UserError("no such file", "give private=FILE that medaug.ingest wrote", path=private)
    known = load_private(private)
    names = {name for name, patient in known.subjects.items() if subject in {name, patient}}
    if not names:
        return _Who(frozenset({subject}), frozenset()), []
    cases = frozenset(case for case, entry in known.cases.items() if entry["subject"] in names)
    why = "says who the subject is and which files belong to it"
    return _Who(frozenset(names), cases), [Artefact("private", private, why)]


def _manifest(folder: Path) -> Manifest | None:
    path = folder / "manifest.json"
    return Manifest.load(path) if path.exists() else None


def _in_cohort(cohort: Manifest, path: Path, who: _Who, private: Path | None) -> Iterator[Artefact]:
    cases = [case for case in cohort.cases if who.has(case.subject, case.name)]
    if not cases:
        return
    yield Artefact("manifest", path, f"lists {len(cases)} scan(s) of the subject")
    for case in cases:
        for image in cohort.image_paths(case):
            yield Artefact("scan", image, f"image of {case.name}")
        if label := cohort.label_path(case):
            yield Artefact("scan", label, f"label of {case.name}")
    for out, _ in _exports(path.with_suffix(".exports.jsonl")):
        yield Artefact("export", out, "a copy of the cohort as it was then")
    # The report and the folds lie beside the manifest, under names of the user's choice.
    names = {name for case in cases for name in (case.name, case.subject)}
    quoted = {text for name in names for text in (json.dumps(name), json_text(name).rstrip())}
    known = {file.resolve() for file in (path, private) if file is not None}
    for other in sorted(path.parent.glob("*.json")):
        if other.resolve() not in known and any(text in _text(other) for text in quoted):
            yield Artefact("record", other, "names the subject or a scan of it")


def _in_experiment(folder: Path, cohort: Manifest | None, who: _Who) -> Iterator[Artefact]:
    if cohort is not None and (cases := [c for c in cohort.cases if who.has(c.subject, c.name)]):
        splits = ", ".join(sorted({case.split for case in cases}))
        yield Artefact("manifest", folder / "train" / "manifest.json", f"lists {len(cases)} scan(s) for {splits}")
    yield from _in_cache(folder / "cache", who)
    models = yield from _in_training(folder / "train", who)
    pairs = {made: list(_in_pairs(made, who, models)) for made in sets_of_pairs(folder, "synthetic")}
    for made, found in pairs.items():
        yield from found
        yield from _in_pairs(made / "rejected", who, models)
    yield from _in_predictions(folder / "predictions", who, models)
    names = {case.name for case in cohort.cases if who.has(case.subject, case.name)} if cohort else set()
    for stage in ("audit", "benchmark", "tuning"):
        for measured in sets_of_pairs(folder, stage):
            yield from _in_measurement(measured, stage, who, names, models)
    yield from _in_exports(folder, pairs)


def _in_cache(folder: Path, who: _Who) -> Iterator[Artefact]:
    unknown = 0
    for path in sorted(folder.glob("*.json")):
        try:
            owners = [(owner["subject"], owner["case"]) for owner in read_json(path)["owners"]]
        except (UserError, LookupError, TypeError):
            unknown += 1
            continue
        for subject, case in owners:
            if who.has(subject, case):
                for part in sorted(folder.glob(f"{path.stem}.*")):
                    yield Artefact("cache", part, f"{case} in model space")
    if unknown:
        why = f"the subjects of {unknown} entries are unknown; delete the cache, it is made again when needed"
        yield Artefact("cache", folder, why, certain=False)


def _in_training(folder: Path, who: _Who) -> Generator[Artefact, None, dict[str, str]]:
    """Yield artefacts of the training; return SHA-256 of each checkpoint -> its use of the subject ("" if none)."""
    from medaug.files import file_sha256
    from medaug.training.checkpoint import read_checkpoint

    models: dict[str, str] = {}
    for path in sorted(folder.rglob("*.ckpt")):
        try:
            card, _ = read_checkpoint(path, "codec" if path.name == "codec.ckpt" else "state_dict")
        except UserError as error:
            yield Artefact("checkpoint", path, f"cannot be checked ({error})", certain=False)
            continue
        uses = [use for split, use in _USES.items() if who.subjects & card.seen.in_split(split)]
        models[file_sha256(path)] = uses[0] if uses else ""
        if uses:
            yield Artefact("checkpoint", path, f"a model that {uses[0]}")
    if any(models.values()):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name not in _BOOKKEEPING and path.suffix != ".ckpt" and not path.name.startswith("."):
                yield Artefact("log", path, "belongs to that training; pictures may show the subject's scans")
    return models


def _in_pairs(folder: Path, who: _Who, models: Mapping[str, str]) -> Iterator[Artefact]:
    records = list(provenance.read_all(folder).values())
    reasons = {_made_by(record.get("checkpoint"), models) for record in records}
    for why, certain in sorted(reasons, key=lambda one: not one[1]):
        if why:
            yield Artefact("pairs", folder, f"all pairs: {why}", certain)
    for record in records:
        sources = {*record["subjects"], record.get("host_subject"), *record.get("mask_validation_subjects", [])}
        if who.subjects & sources or record.get("host") in who.cases:
            for file in [*record.get("images", []), *([record["label"]] if "label" in record else [])]:
                yield Artefact(
                    "pair",
                    folder / file,
                    "uses a scan of the subject: its grid, its mask (perhaps deformed), or a mask from a generator "
                    "that was trained or validated on it",
                )


def _in_predictions(folder: Path, who: _Who, models: Mapping[str, str]) -> Iterator[Artefact]:
    """Yield predictions for the subject's scans, and all predictions of models that used the subject."""
    for path in sorted(folder.glob("*/provenance.jsonl")):
        records = list(provenance.read(path, provenance.PREDICTION).values())
        for why, certain in sorted({_made_by(record["checkpoint"], models) for record in records}):
            if why:
                yield Artefact("predictions", path.parent, f"all of them: {why}", certain)
        mine = [record for record in records if who.subjects & {*record["subjects"]} or record["name"] in who.cases]
        for record in mine:
            for file in record["files"].values():
                yield Artefact("prediction", path.parent / file, f"predicted from {record['name']}")
        if mine:
            for name in ("metrics.csv", "metrics.json", "contact_sheet.png", path.name):
                if (path.parent / name).exists():
                    yield Artefact(
                        "prediction", path.parent / name, "scores, picture or record that include the subject"
                    )


def _in_measurement(
    folder: Path, kind: str, who: _Who, names: set[str], models: Mapping[str, str]
) -> Iterator[Artefact]:
    """Yield judge, segmenters, scores and reports that were made with the model or with the subject's scans."""
    config = folder / "config.yaml"
    if not config.exists():
        return
    why, certain = _made_by(read_yaml(config).get("checkpoint"), models)
    if any(who.has(row.get("subject"), row.get("case")) or row.get("case") in names for row in _rows(folder)):
        tested = "holds scores of the subject's scans, or of pairs made with them"
        why, certain = (f"{tested}; {why}" if why and certain else tested), True
    if why:
        for path in sorted(folder.iterdir()):
            if path.name not in _BOOKKEEPING and not path.name.startswith("."):
                yield Artefact(kind, path, why, certain)


def _text(path: Path) -> str:
    return read_bytes(path).decode(errors="replace")


def _rows(folder: Path) -> Iterator[Mapping[str, str]]:
    """Yield the rows of all score tables of a run, and the cases and subjects in its summary and its own manifest."""
    for path in sorted(folder.rglob("*.csv")):
        yield from read_csv(path, (), "restore it, or make it again")
    if (folder / "manifest.json").exists():
        for case in Manifest.load(folder / "manifest.json").cases:
            yield {"case": case.name, "subject": case.subject}
    if (folder / "summary.json").exists():
        with parsing(folder / "summary.json", "restore it, or run its stage again"):
            for case, subject in (read_json(folder / "summary.json").get("subjects") or {}).items():
                yield {"case": case, "subject": subject}


def _in_exports(folder: Path, found: Mapping[Path, Sequence[Artefact]]) -> Iterator[Artefact]:
    from medaug.synthesis.pairs import Pairs

    exports = _exports(folder / "exports.jsonl")
    sets = {}
    for made in found if exports else ():
        with contextlib.suppress(UserError):
            sets[Pairs.load(made).digest] = made
    for out, exported in exports:
        pairs = found[sets[exported]] if exported in sets else []
        if exported not in sets:
            yield Artefact(
                "export", out, "a copy of pairs that no longer exist, so its content is unknown", certain=False
            )
        elif pairs:
            yield Artefact("export", out, f"a copy of {pairs[0].path}, {pairs[0].why}", pairs[0].certain)


def _exports(path: Path) -> list[tuple[Path, str]]:
    """Folder and digest of each export on record."""
    found = []
    for line in read_text(path).splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            found.append((Path(record["out"]), str(record["digest"])))
        except (ValueError, KeyError, TypeError):
            continue  # cut short by a killed process
    return found


def _made_by(checkpoint: str | None, models: Mapping[str, str]) -> tuple[str, bool]:
    """Return how the model behind a result used the subject ("" if it did not), and whether that is certain."""
    if checkpoint is not None and checkpoint in models:
        return (f"made with a model that {models[checkpoint]}" if models[checkpoint] else ""), True
    return "made with a checkpoint that no longer exists: it is unknown whether it learned from the subject", False
