"""The mark of a synthetic file: that it is synthetic, what made it, and a digest of what was written.

A NIfTI file has a note in its header and its mark in a JSON file of the same name beside it (a.nii.gz: a.json). A DICOM
file holds its mark in a private element of its own header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from medaug.cohort.provenance import recipe_digest, recipe_of
from medaug.errors import UserError
from medaug.files import file_sha256, write_json
from medaug.imaging.reading import suffix_of
from medaug.inputs import parsing, read_json
from medaug.marking.signing import Signer, is_signed_by

SYNTHETIC_NOTE = "medaug synthetic"
"""How the note in the header of every synthetic NIfTI file begins."""
PHANTOM_NOTE = "medaug export, phantom"
"""The note in the header of an exported phantom."""
_GROUP, _CREATOR, _ELEMENT = 0x0011, "medaug", 0x01  # private block of DICOM
_SHOWN = 32  # characters of a digest in a NIfTI header, whose note holds 79


def synthetic_note(recipe: Mapping[str, Any], phantom: bool) -> str:
    """The note in the header of a synthetic NIfTI file: what it is, and the first 128 bits of its recipe's SHA-256.

    Args:
        recipe: the recipe's fields; may hold more.
        phantom: whether the model was trained on phantoms.
    """
    return f"{SYNTHETIC_NOTE}{' phantom' if phantom else ''}, recipe {recipe_digest(recipe)[:_SHOWN]}"


@dataclass(frozen=True)
class Mark:
    """What made a synthetic file, and what it was when it was written.

    Attributes:
        sha256: of the file; of a DICOM file, of its content without the mark (`dicom_digest`).
        recipe: the fields of the `Recipe` that made it.
        phantom: whether the model was trained on phantoms.
        version: of medaug that wrote it.
        signature: of all of this (`medaug.marking.signing`); empty: not signed.
    """

    sha256: str
    recipe: Mapping[str, Any]
    phantom: bool
    version: str
    signature: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sha256: str, record: Mapping[str, Any], phantom: bool, signer: Signer | None) -> Mark:
        """The mark of a file that is written now.

        Args:
            sha256: see `Mark`.
            record: provenance of the pair.
            phantom: see `Mark`.
            signer: signs the mark; None: it is not signed.
        """
        mark = cls(sha256, recipe_of(record), phantom, version("medaug"))
        return mark if signer is None else cls(**{**vars(mark), "signature": signer.sign(mark.message)})

    @property
    def message(self) -> bytes:
        """What is signed: everything but the signature, in one fixed form."""
        content = {key: value for key, value in self.to_mapping().items() if key != "signature"}
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @property
    def recipe_sha256(self) -> str:
        """SHA-256 of the recipe."""
        return recipe_digest(self.recipe)

    def is_signed_by(self, public_key: str) -> bool:
        """Whether the signature is that of the holder of a public key (hexadecimal) for exactly this mark."""
        return is_signed_by(self.signature, self.message, public_key)

    def to_mapping(self) -> dict[str, Any]:
        """The content of the JSON file, under the key "medaug"."""
        return {
            "version": self.version,
            "synthetic": True,
            "phantom": self.phantom,
            "sha256": self.sha256,
            "recipe_sha256": self.recipe_sha256,
            "recipe": dict(self.recipe),
            **({"signature": dict(self.signature)} if self.signature else {}),
        }

    @classmethod
    def from_mapping(cls, content: Any, path: Path) -> Mark:
        """Return the inverse of `to_mapping`.

        Raises:
            UserError: it is damaged, or its recipe was changed; names `path`.
        """
        with parsing(path, "restore it"):
            recipe, signature = dict(content["recipe"]), dict(content.get("signature", {}))
            mark = cls(str(content["sha256"]), recipe, content["phantom"] is True, str(content["version"]), signature)
            same = mark.recipe_sha256 == content["recipe_sha256"]
        if not same:
            raise UserError("its recipe is not the one that it names", "restore it", path=path)
        return mark


def sidecar(path: Path) -> Path:
    """The JSON file beside a NIfTI file: a.nii.gz has a.json."""
    return path.with_name(path.name.removesuffix(suffix_of(path.name)) + ".json")


def mark_file(path: Path, record: Mapping[str, Any], phantom: bool, signer: Signer | None, **beside: Any) -> None:
    """Write the mark of a NIfTI file that is complete, into the JSON file beside it.

    Args:
        path: the NIfTI file.
        record, phantom, signer: as for `Mark.of`.
        beside: further keys of the JSON file.

    Raises:
        UserError: it cannot be written.
    """
    write_json(sidecar(path), {**beside, "medaug": Mark.of(file_sha256(path), record, phantom, signer).to_mapping()})


def read_sidecar(path: Path) -> Mark | None:
    """The mark in the JSON file beside a NIfTI file; None: there is none.

    Raises:
        UserError: it is damaged.
    """
    return read_mark(sidecar(path)) if sidecar(path).is_file() else None


def read_mark(path: Path) -> Mark | None:
    """The mark in a JSON file; None: it holds none.

    Raises:
        UserError: it is damaged.
    """
    content = read_json(path, "restore it").get("medaug")
    return None if content is None else Mark.from_mapping(content, path)


def mark_dataset(dataset: Dataset, record: Mapping[str, Any], phantom: bool, signer: Signer | None) -> None:
    """Put the mark of a DICOM dataset, which is complete otherwise, into its private element.

    Args:
        dataset: not marked yet.
        record, phantom, signer: as for `Mark.of`.
    """
    text = json.dumps(Mark.of(dicom_digest(dataset), record, phantom, signer).to_mapping(), sort_keys=True)
    dataset.private_block(_GROUP, _CREATOR, create=True).add_new(_ELEMENT, "UT", text)


def read_dataset_mark(dataset: Dataset, path: Path) -> Mark | None:
    """The mark in a DICOM dataset, None if it has none; `path` is named in errors.

    Raises:
        UserError: it is damaged.
    """
    try:
        value = dataset.private_block(_GROUP, _CREATOR)[_ELEMENT].value
    except KeyError:
        return None
    with parsing(path, "restore it"):  # a file with implicit types does not say that it is a text
        content = json.loads(value.decode() if isinstance(value, bytes) else value)
    return Mark.from_mapping(content, path)


def dicom_digest(dataset: Dataset) -> str:
    """SHA-256 of the elements of a dataset, without private ones and however they are encoded in a file."""
    public = pydicom.Dataset({element.tag: element for element in dataset if not element.tag.is_private})
    # Types are left out: that of some elements is settled only when the file is written.
    content = json.loads(json.dumps(public.to_json_dict()), object_hook=_without_type)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_type(element: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in element.items() if key != "vr"}
