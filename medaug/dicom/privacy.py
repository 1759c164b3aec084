"""Pseudonyms of subjects and cases, the private file that explains them, and the removal of identifying words.

The private file is the only output that contains a PatientID or a path of the user's DICOM tree. Only its owner can
read it, and only another ingest and `withdraw` use it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.tag import Tag

from medaug.dicom.instance import quiet
from medaug.dicom.vocabulary import FIELD_WORDS
from medaug.errors import UserError
from medaug.files import atomic_write, json_text
from medaug.inputs import read_json

FORMAT = 1
REMOVED = "[removed]"
_IDENTIFYING_KEYWORDS = (
    "PatientID",
    "OtherPatientIDs",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "AccessionNumber",
    "StudyID",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
)
_SKIPPED = {Tag("PerFrameFunctionalGroupsSequence"), Tag("ROIContourSequence")}  # long, and not about a person
_WORD = re.compile(r"[^\W_]{2,}")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_LETTERS, _LETTERS_AT_END = re.compile(r"[^\W\d_]+"), re.compile(r"[^\W\d_]+$")


@dataclass(frozen=True)
class Private:
    """The content of a private file.

    Attributes:
        salt: secret key of the pseudonyms, hexadecimal.
        subjects: subject in the manifest to PatientID (or study UID if there is no PatientID).
        cases: case to {"subject", "study", "series": {modality: UID}, "files": [path]}.
        problems: the findings, with the files that they are about.
    """

    salt: str
    subjects: dict[str, str] = field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Name:
    """The names of a study outside the private file."""

    subject: str
    case: str


def private_path(out: Path, chosen: str | None) -> Path:
    """Return the path of the private file of the manifest `out`: the user's choice, or beside it."""
    return out.with_suffix(".private.json") if chosen is None else Path(chosen)


def load_private(path: Path) -> Private:
    """Read a private file, or start a new one with a new salt if it does not exist.

    Raises:
        UserError: the file is unreadable, or not a private file of this version.
    """
    if not os.path.lexists(path):
        return Private(secrets.token_hex(32))
    content = read_json(path)
    version = content.pop("format", None)
    kinds = {"salt": str, "subjects": dict, "cases": dict, "problems": list}
    is_valid = version == FORMAT and all(isinstance(content.get(key), kind) for key, kind in kinds.items())
    is_valid = is_valid and all(isinstance(patient, str) for patient in content["subjects"].values())
    is_valid = is_valid and all(
        isinstance(case, dict) and isinstance(case.get("subject"), str) and isinstance(case.get("study"), str)
        for case in content["cases"].values()
    )
    # A shortened salt could be guessed.
    if not is_valid or not re.fullmatch("[0-9a-f]{64}", content["salt"]):
        raise UserError(
            f"not a private file that medaug.ingest wrote (format {FORMAT})",
            "restore it, or give another with private=FILE",
            path=path,
        )
    return Private(**{key: content[key] for key in kinds})


def save_private(path: Path, private: Private) -> None:
    """Write a private file atomically, readable only by its owner at any time.

    Raises:
        UserError: a file with another salt or a damaged one exists, the disk is full, or the folder is not writable.
    """
    if path.exists() and load_private(path).salt != private.salt:
        raise UserError(
            "another ingest has written its private file there meanwhile, which is kept",
            "run the same command again",
            path=path,
        )
    text = json_text({"format": FORMAT, **asdict(private)})
    with atomic_write(path) as temporary:
        temporary.unlink(missing_ok=True)  # a killed process with the same id may have left one with another mode
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)


def pseudonym(salt: str, patient_id: str) -> str:
    """Return a subject's pseudonym: "S" and the first 10 hexadecimal digits of its HMAC-SHA256 (RFC 2104)."""
    return "S" + _keyed(salt, patient_id)[:10]


def name_studies(patients: Mapping[str, str], private: Private, pseudonyms: bool = True) -> dict[str, Name]:
    """Name studies by subject and running number, in an order that does not depend on dates.

    A study in the private file keeps its name. The subject's other studies get the next free numbers, in the order of
    their UID's HMAC.

    Args:
        patients: study UID to PatientID; if it is "", the study is a subject of its own.
        private: the salt, and the names assigned before.
        pseudonyms: if False, a subject's name is its PatientID, made safe for a file name.

    Returns:
        Study UID to its name.
    """
    names = {
        case["study"]: Name(case["subject"], name)
        for name, case in private.cases.items()
        if case["study"] in patients
        and case["subject"] == _subject(private.salt, patients[case["study"]], case["study"], pseudonyms)
    }
    used = set(private.cases)
    for study in sorted(patients.keys() - names.keys(), key=lambda uid: _keyed(private.salt, uid)):
        subject = _subject(private.salt, patients[study], study, pseudonyms)
        number = 1
        while f"{subject}_{number}" in used:
            number += 1
        names[study] = Name(subject, f"{subject}_{number}")
        used.add(f"{subject}_{number}")
    return names


def _subject(salt: str, patient_id: str, study: str, pseudonyms: bool) -> str:
    if pseudonyms or not patient_id:
        return pseudonym(salt, patient_id or study)
    safe = re.sub(r"[^A-Za-z0-9-]+", "-", patient_id)
    # A hash keeps two PatientIDs apart that differ only in replaced characters.
    return safe if safe == patient_id else f"{safe}-{hashlib.sha256(patient_id.encode()).hexdigest()[:6]}"


def _keyed(salt: str, text: str) -> str:
    return hmac.new(bytes.fromhex(salt), text.encode(), hashlib.sha256).hexdigest()


def identifying_terms(paths: Iterable[Path]) -> frozenset[str]:
    """Return the words in DICOM headers that could identify a patient, to remove them from messages with `scrub`.

    They come from the names of all persons, the numbers of patient and visit, the birth date, and the institution,
    without common imaging words (`FIELD_WORDS`): for `SARCOMA_025_CT_T1` they are `SARCOMA_025`, `SARCOMA` and `025`.

    Args:
        paths: one file per series is enough; files that cannot be read are skipped.
    """
    texts: set[str] = set()
    for path in paths:
        # A damaged header can raise any exception; it is reported elsewhere.
        with quiet(), contextlib.suppress(Exception):
            texts |= set(_identifying(pydicom.dcmread(path, stop_before_pixels=True, force=True)))
    return frozenset(term for text in texts for term in _terms(text.strip()))


def _terms(text: str) -> Iterator[str]:
    """Return the parts of an identifying text between field words, and their words; if too short, the whole text."""
    ends = [(word.start(), word.end()) for word in _WORD.finditer(text) if word[0].casefold() in FIELD_WORDS]
    starts = [0, *(end for _, end in ends)]
    between = [text[start:stop] for start, stop in zip(starts, [*(start for start, _ in ends), len(text)], strict=True)]
    parts = [part for part in (_EDGES.sub("", part) for part in between) if part]
    # For CT-7 the rest, 7, is too common to be removed, but CT-7 as a whole can be.
    if text and (not ends or any(_is_weak(part) for part in parts)):
        yield from [text] if len(text) > 1 else []
    for part in parts:
        yield from (word for word in (part, *_WORD.findall(part)) if not _is_weak(word))


def _is_weak(word: str) -> bool:
    """Whether a part of a text is too common to be removed by itself: one character, or a number below 100."""
    return len(word) < 2 or (len(word) == 2 and word.isdigit())


def _identifying(dataset: pydicom.Dataset) -> Iterator[str]:
    """Yield the identifying values of a dataset and of the sequences in it."""
    for tag in dataset.keys() - _SKIPPED:
        with contextlib.suppress(Exception):  # a damaged element must not hide others
            element = dataset[tag]
            if element.VR == "SQ":
                for item in element.value:
                    yield from _identifying(item)
            elif element.VR == "PN" or element.keyword in _IDENTIFYING_KEYWORDS:
                yield str(element.value)


def scrub(text: str, terms: Iterable[str]) -> str:
    """Replace every term in a text by "[removed]", ignoring case.

    Terms of up to three characters are removed only as whole words, and longer terms not inside a longer field word
    (such as the name Bell in `cerebellum`).
    """
    for term in sorted(terms, key=len, reverse=True):
        pattern = re.escape(term)
        if len(term) <= 3:
            pattern = rf"(?<![^\W_]){pattern}(?![^\W_])"
        text = re.sub(pattern, lambda match: match[0] if _is_within_field_word(match) else REMOVED, text, flags=re.I)
    return text


def _is_within_field_word(match: re.Match[str]) -> bool:
    before, after = _LETTERS_AT_END.search(match.string[: match.start()]), _LETTERS.match(match.string[match.end() :])
    around = (before[0] if before else "", after[0] if after else "")
    return any(around) and f"{around[0]}{match[0]}{around[1]}".casefold() in FIELD_WORDS
