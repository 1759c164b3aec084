"""The mark of a synthetic file, which says that the file is synthetic and what made it, and holds a digest of it.

A NIfTI file has a note in its header, and its mark in a JSON file of the same name beside it (a.nii.gz has a.json). A
DICOM file holds its mark in a private element of its own header.
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
"""The note in the header of every synthetic NIfTI file begins with this."""
PHANTOM_NOTE = "medaug export, phantom"
"""The note in the header of an exported phantom."""
_GROUP, _CREATOR, _ELEMENT = 0x0011, "medaug", 0x01  # private DICOM block
_SHOWN = 32  # characters of the digest that are shown in a NIfTI header, whose note has room for 79


def synthetic_note(recipe: Mapping[str, Any], phantom: bool) -> str:
    """The note in the header of a synthetic NIfTI file: what it is, and the first 128 bits of its recipe's SHA-256.

    Args:
        recipe: the fields of the recipe; other fields are ignored.
        phantom: whether the model was trained on phantoms.
    """
    return f"{SYNTHETIC_NOTE}{' phantom' if phantom else ''}, recipe {recipe_digest(recipe)[:_SHOWN]}"


@dataclass(frozen=True)
class Mark:
    """What made a synthetic file, and the digest of the file as it was written.

    Attributes:
        sha256: digest of the file; for a DICOM file, of its content without the mark (`dicom_digest`).
        recipe: the fields of the `Recipe` that made the file.
        phantom: whether the model was trained on phantoms.
        version: version of medaug that wrote the file.
        signature: signature of the other attributes (`medaug.marking.signing`); empty: not signed.
    """

    sha256: str
    recipe: Mapping[str, Any]
    phantom: bool
    version: str
    signature: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sha256: str, record: Mapping[str, Any], phantom: bool, signer: Signer | None) -> Mark:
        """The mark for a file that this version of medaug writes.

        Args:
            sha256: see `Mark`.
            record: provenance of the pair.
            phantom: see `Mark`.
            signer: signs the mark; None: the mark is not signed.
        """
        mark = cls(sha256, recipe_of(record), phantom, version("medaug"))
        return mark if signer is None else cls(**{**vars(mark), "signature": signer.sign(mark.message)})

    @property
    def message(self) -> bytes:
        """The bytes that are signed: everything except the signature, in one fixed form."""
        content = {key: value for key, value in self.to_mapping().items() if key != "signature"}
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @property
    def recipe_sha256(self) -> str:
        """SHA-256 of the recipe."""
        return recipe_digest(self.recipe)

    def is_signed_by(self, public_key: str) -> bool:
        """Whether the signature is valid for exactly this mark and a public key (hexadecimal)."""
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
            UserError: the mark is damaged, or its recipe was changed; names `path`.
        """
        with parsing(path, "restore it"):
            recipe, signature = dict(content["recipe"]), dict(content.get("signature", {}))
            mark = cls(str(content["sha256"]), recipe, content["phantom"] is True, str(content["version"]), signature)
            same = mark.recipe_sha256 == content["recipe_sha256"]
        if not same:
            raise UserError("its recipe does not have the digest that is stored with it", "restore it", path=path)
        return mark


def sidecar(path: Path) -> Path:
    """The JSON file beside a NIfTI file: a.nii.gz has a.json."""
    return path.with_name(path.name.removesuffix(suffix_of(path.name)) + ".json")


def mark_file(path: Path, record: Mapping[str, Any], phantom: bool, signer: Signer | None, **beside: Any) -> None:
    """Write the mark of a complete NIfTI file into the JSON file beside it.

    Args:
        path: the NIfTI file.
        record, phantom, signer: as for `Mark.of`.
        beside: further keys of the JSON file.

    Raises:
        UserError: the JSON file cannot be written.
    """
    write_json(sidecar(path), {**beside, "medaug": Mark.of(file_sha256(path), record, phantom, signer).to_mapping()})


def read_sidecar(path: Path) -> Mark | None:
    """The mark in the JSON file beside a NIfTI file; None if there is no such file or mark.

    Raises:
        UserError: the JSON file is damaged.
    """
    return read_mark(sidecar(path)) if sidecar(path).is_file() else None


def read_mark(path: Path) -> Mark | None:
    """The mark in a JSON file; None if it holds none.

    Raises:
        UserError: the file is damaged.
    """
    content = read_json(path, "restore it").get("medaug")
    return None if content is None else Mark.from_mapping(content, path)


def mark_dataset(dataset: Dataset, record: Mapping[str, Any], phantom: bool, signer: Signer | None) -> None:
    """Add the mark to a DICOM dataset, as a private element.

    Args:
        dataset: dataset that is complete except for the mark.
        record, phantom, signer: as for `Mark.of`.
    """
    text = json.dumps(Mark.of(dicom_digest(dataset), record, phantom, signer).to_mapping(), sort_keys=True)
    dataset.private_block(_GROUP, _CREATOR, create=True).add_new(_ELEMENT, "UT", text)


def read_dataset_mark(dataset: Dataset, path: Path) -> Mark | None:
    """The mark in a DICOM dataset; None if it has none.

    Raises:
        UserError: the mark is damaged; names `path`.
    """
    try:
        value = dataset.private_block(_GROUP, _CREATOR)[_ELEMENT].value
    except KeyError:
        return None
    with parsing(path, "restore it"):  # a file with implicit types does not say that the element is a text
        content = json.loads(value.decode() if isinstance(value, bytes) else value)
    return Mark.from_mapping(content, path)


def dicom_digest(dataset: Dataset) -> str:
    """SHA-256 of the elements of a dataset except private ones; it does not depend on how a file encodes them."""
    public = pydicom.Dataset({element.tag: element for element in dataset if not element.tag.is_private})
    # Leave types out, because the type of some elements is decided only when the file is written.
    content = json.loads(json.dumps(public.to_json_dict()), object_hook=_without_type)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_type(element: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in element.items() if key != "vr"}
