"""Who is behind a pseudonym: the private file, the names of subjects and cases, and what must not be said aloud.

The private file is the only thing written that knows a PatientID or a path of the user's DICOM tree. It stays with
the user, readable by its owner alone, and nothing reads it but another ingest and `withdraw`.
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
_NEVER_SAID = (
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
_MANY = {Tag("PerFrameFunctionalGroupsSequence"), Tag("ROIContourSequence")}  # long, and about no person
_WORD = re.compile(r"[^\W_]{2,}")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_LETTERS, _LETTERS_AT_END = re.compile(r"[^\W\d_]+"), re.compile(r"[^\W\d_]+$")


@dataclass(frozen=True)
class Private:
    """The content of a private file.

    Attributes:
        salt: secret key of the pseudonyms, hexadecimal.
        subjects: subject, as the manifest names it, to PatientID (or study UID, where there is none).
        cases: case to {"subject", "study", "series": {modality: UID}, "files": [path]}.
        problems: what was found wrong, with the files that the findings do not name.
    """

    salt: str
    subjects: dict[str, str] = field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Name:
    """What a study is called outside the private file."""

    subject: str
    case: str


def private_path(out: Path, chosen: str | None) -> Path:
    """Where the private file of the manifest `out` lies: where the user chose, or beside it."""
    return out.with_suffix(".private.json") if chosen is None else Path(chosen)


def load_private(path: Path) -> Private:
    """Read a private file; one with a fresh salt where there is none yet.

    Raises:
        UserError: unreadable, or not a private file of this version.
    """
    if not os.path.lexists(path):
        return Private(secrets.token_hex(32))
    content = read_json(path)
    version = content.pop("format", None)
    kinds = {"salt": str, "subjects": dict, "cases": dict, "problems": list}
    is_whole = version == FORMAT and all(isinstance(content.get(key), kind) for key, kind in kinds.items())
    is_whole = is_whole and all(isinstance(patient, str) for patient in content["subjects"].values())
    is_whole = is_whole and all(
        isinstance(case, dict) and isinstance(case.get("subject"), str) and isinstance(case.get("study"), str)
        for case in content["cases"].values()
    )
    # A salt that was cut would be no secret any more.
    if not is_whole or not re.fullmatch("[0-9a-f]{64}", content["salt"]):
        raise UserError(
            f"not a private file that medaug.ingest wrote (format {FORMAT})",
            "restore it, or give another with private=FILE",
            path=path,
        )
    return Private(**{key: content[key] for key in kinds})


def save_private(path: Path, private: Private) -> None:
    """Write a private file, whole or not at all, never readable by anybody but its owner.

    Raises:
        UserError: there is one with another salt, or a damaged one; the disk is full or the folder cannot be written.
    """
    if path.exists() and load_private(path).salt != private.salt:
        raise UserError(
            "another ingest has written its own key there meanwhile, which is kept",
            "run the same command again",
            path=path,
        )
    text = json_text({"format": FORMAT, **asdict(private)})
    with atomic_write(path) as temporary:
        temporary.unlink(missing_ok=True)  # of a killed process of the same number, with any mode
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)


def pseudonym(salt: str, patient_id: str) -> str:
    """A subject's pseudonym: "S" and the first 10 hexadecimal digits of HMAC-SHA256 (RFC 2104) keyed by the salt."""
    return "S" + _keyed(salt, patient_id)[:10]


def name_studies(patients: Mapping[str, str], private: Private, pseudonyms: bool = True) -> dict[str, Name]:
    """Name studies by subject and running number, in an order that says nothing of dates.

    A study that the private file knows keeps its name; the others of the same subject are numbered after it, by their
    UID's HMAC.

    Args:
        patients: study UID to PatientID; "" where there is none, then the study is a subject of its own.
        private: salt, and the names given before.
        pseudonyms: False: a subject is called by its PatientID, made safe for a file name.

    Returns:
        study UID to its name.
    """
    names = {
        case["study"]: Name(case["subject"], name)
        for name, case in private.cases.items()
        if case["study"] in patients
        and case["subject"] == _subject(private.salt, patients[case["study"]], case["study"], pseudonyms)
    }
    taken = set(private.cases)
    for study in sorted(patients.keys() - names.keys(), key=lambda uid: _keyed(private.salt, uid)):
        subject = _subject(private.salt, patients[study], study, pseudonyms)
        number = 1
        while f"{subject}_{number}" in taken:
            number += 1
        names[study] = Name(subject, f"{subject}_{number}")
        taken.add(f"{subject}_{number}")
    return names


def _subject(salt: str, patient_id: str, study: str, pseudonyms: bool) -> str:
    if pseudonyms or not patient_id:
        return pseudonym(salt, patient_id or study)
    safe = re.sub(r"[^A-Za-z0-9-]+", "-", patient_id)
    # Two PatientIDs that differ only in what was replaced remain two subjects.
    return safe if safe == patient_id else f"{safe}-{hashlib.sha256(patient_id.encode()).hexdigest()[:6]}"


def _keyed(salt: str, text: str) -> str:
    return hmac.new(bytes.fromhex(salt), text.encode(), hashlib.sha256).hexdigest()


def identifying_terms(paths: Iterable[Path]) -> frozenset[str]:
    """The words in DICOM headers that could name a patient, to be kept out of messages with `scrub`.

    They come from every person's name, the patient's and the visit's numbers, the birth date, and the institution,
    without the words of imaging among them (`FIELD_WORDS`): of `SARCOMA_025_CT_T1` they are `SARCOMA_025`, `SARCOMA`
    and `025`.

    Args:
        paths: one file of a series says as much as all of them; what cannot be read says nothing.
    """
    texts: set[str] = set()
    for path in paths:
        # A damaged header raises anything, and is a finding elsewhere.
        with quiet(), contextlib.suppress(Exception):
            texts |= set(_identifying(pydicom.dcmread(path, stop_before_pixels=True, force=True)))
    return frozenset(term for text in texts for term in _terms(text.strip()))


def _terms(text: str) -> Iterator[str]:
    """What is left of an identifying text between its field words, and the words of that; all of it if too short."""
    ends = [(word.start(), word.end()) for word in _WORD.finditer(text) if word[0].casefold() in FIELD_WORDS]
    starts = [0, *(end for _, end in ends)]
    between = [text[start:stop] for start, stop in zip(starts, [*(start for start, _ in ends), len(text)], strict=True)]
    parts = [part for part in (_EDGES.sub("", part) for part in between) if part]
    # What is left of CT-7 is everywhere, but CT-7 as a whole is not.
    if text and (not ends or any(_is_weak(part) for part in parts)):
        yield from [text] if len(text) > 1 else []
    for part in parts:
        yield from (word for word in (part, *_WORD.findall(part)) if not _is_weak(word))


def _is_weak(word: str) -> bool:
    """Whether a part of a text is too common to be removed by itself: one character, or a number below 100."""
    return len(word) < 2 or (len(word) == 2 and word.isdigit())


def _identifying(dataset: pydicom.Dataset) -> Iterator[str]:
    """The identifying values of a dataset and of the sequences in it."""
    for tag in dataset.keys() - _MANY:
        with contextlib.suppress(Exception):  # one damaged element hides no other
            element = dataset[tag]
            if element.VR == "SQ":
                for item in element.value:
                    yield from _identifying(item)
            elif element.VR == "PN" or element.keyword in _NEVER_SAID:
                yield str(element.value)


def scrub(text: str, terms: Iterable[str]) -> str:
    """Put "[removed]" for every term in a text, whatever its case.

    Terms of up to three characters are removed as whole words only, and longer ones not within a longer field word (of
    the name Bell in `cerebellum`).
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
