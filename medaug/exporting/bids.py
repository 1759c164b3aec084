"""Export as BIDS derivatives (Brain Imaging Data Structure, bids.neuroimaging.io)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.exporting.request import Export

BIDS_VERSION = "1.10.0"
_SUFFIXES = {
    "T1W?": "T1w",
    "T1N": "T1w",
    "T1(C|CE|GD)": "ce-gadolinium_T1w",
    "T2W?": "T2w",
    "(T2)?-?FLAIR|T2F": "FLAIR",
    "PD(W)?": "PDw",
    "T2(STAR|\\*)W?|SWI": "T2starw",
}
"""Pattern of a modality's name in capitals -> end of the file's name in BIDS."""


def write_bids(export: Export) -> None:
    """Write BIDS derivatives: `sub-CASE/anat/sub-CASE_T1w.nii.gz` and `..._dseg.nii.gz`, with a JSON file beside each.

    Every case is a participant of its own. Cases of one subject, such as pairs made from one host, have the same
    `source_subject` in `participants.tsv`. `dseg.tsv` names the label values. `manifest.json` and `rules.yaml`, which
    BIDS ignores, let medaug read the folder again.

    Raises:
        UserError: as for `Export.fill`, `Export.images` and `Export.indices`; or BIDS has no name for a modality.
    """
    manifest = export.manifest
    suffixes = _suffixes(manifest.modalities, export.suffixes)
    labels = _participants(manifest.cases)
    schema = replace(manifest.schema, remap=())

    def name(case: Case, suffix: str) -> str:
        return f"sub-{labels[case.name]}/anat/sub-{labels[case.name]}_{suffix}"

    def write_case(case: Case, folder: Path) -> None:
        images, first = export.images(case)
        for suffix, image in zip(suffixes, images, strict=True):
            path = folder / f"{name(case, suffix)}.nii.gz"
            export.write(case, path, image, first.affine, SkullStripped=export.skull_stripped)
        if case.label is not None:
            label = schema.to_values(export.indices(case, first))
            export.write(case, folder / f"{name(case, 'dseg')}.nii.gz", label, first.affine, SpatialReference="orig")

    def files(cases: list[Case]) -> dict[str, Any]:
        written = [
            replace(
                case,
                images=tuple(f"{name(case, suffix)}.nii.gz" for suffix in suffixes),
                label=None if case.label is None else f"{name(case, 'dseg')}.nii.gz",
            )
            for case in cases
        ]
        content = replace(manifest, schema=schema, cases=tuple(written)).to_mapping()
        return {
            "dataset_description.json": _description(manifest),
            "README.md": f"# {manifest.name}\n\n{manifest.description or 'Written by medaug export.'}\n",
            "participants.tsv": _table(
                ("participant_id", "case", "source_subject", "split", "synthetic"),
                [
                    (f"sub-{labels[c.name]}", c.name, c.subject, c.split, str(c.name in export.records).lower())
                    for c in cases
                ],
            ),
            "participants.json": {
                "case": {"Description": "name of the case in medaug"},
                "source_subject": {"Description": "the person whose scan the case is, or was made from"},
                "split": {"Description": "train, val or test"},
                "synthetic": {"Description": "whether the images were made by a diffusion model"},
            },
            "dseg.tsv": _table(("index", "name"), _values(schema)),
            ".bidsignore": "manifest.json\nrules.yaml\nPHANTOM.txt\n",
            "manifest.json": {"root": ".", **content},
            "rules.yaml": _rules(manifest.modalities, suffixes, schema),
        }

    export.fill(write_case, files)


def _suffixes(modalities: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return the end of the file names of each modality."""
    named = dict(word.split(":", 1) for word in given if ":" in word)
    if wrong := [word for word in given if word.split(":")[0] not in modalities or not re.search(r":[\w-]+$", word)]:
        raise UserError(
            f"suffixes: {wrong[0]}: expected MODALITY:SUFFIX, where the cohort has this modality",
            f"write suffixes=[{modalities[0]}:T1w]",
        )
    found = []
    for modality in modalities:
        patterns = (suffix for pattern, suffix in _SUFFIXES.items() if re.fullmatch(pattern, modality.upper()))
        suffix = named.get(modality) or next(patterns, "")
        if not suffix:
            raise UserError(
                f"modality {modality}: medaug does not know the suffix of this name in BIDS",
                f"give one, as in suffixes=[{modality}:T1w]",
            )
        found.append(suffix)
    if twice := [suffix for suffix, count in Counter(found).items() if count > 1]:
        raise UserError(
            f"two modalities would be called {twice[0]}", "distinguish them with suffixes=[NAME:SUFFIX,...]"
        )
    # Mark scans without contrast agent, so that globs for them do not also match scans with contrast agent.
    return [f"acq-native_{s}" if any(other.endswith(f"_{s}") for other in found) else s for s in found]


def _participants(cases: Sequence[Case]) -> dict[str, str]:
    """Return the participant label of each case: letters and digits of its name, or numbers if two would be equal."""
    labels = {case.name: re.sub(r"[^A-Za-z0-9]", "", case.name) for case in cases}
    if len({label.lower() for label in labels.values()} - {""}) == len(cases):
        return labels
    return {case.name: f"{number:05d}" for number, case in enumerate(cases, start=1)}


def _description(manifest: Manifest) -> dict[str, Any]:
    made_by = {"Name": "medaug", "Version": version("medaug"), "Description": manifest.description or "medaug export"}
    return {
        "Name": manifest.name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [made_by],
    }


def _values(schema: LabelSchema) -> list[tuple[str, str]]:
    rows = [(str(value), name) for value, name in schema.labels]
    return rows + ([] if schema.ignore is None else [(str(schema.ignore), "ignored")])


def _rules(modalities: Sequence[str], suffixes: Sequence[str], schema: LabelSchema) -> str:
    """Return the rules file that `ingest` needs to read the folder."""
    content = {
        "modalities": {
            modality: f"sub-*/anat/sub-*_{suffix}.nii.gz" for modality, suffix in zip(modalities, suffixes, strict=True)
        },
        "label": "sub-*/anat/sub-*_dseg.nii.gz",
        "case": r"(sub-[A-Za-z0-9]+)/",
        **schema.to_mapping(),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a TSV file; line breaks and tabs within a value become spaces."""
    return "".join("\t".join(" ".join(cell.split()) or "n/a" for cell in row) + "\n" for row in (columns, *rows))
