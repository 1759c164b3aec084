"""The Manifest: the files of a cohort, in the format of an MSD dataset.json plus `subject` and `split`."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from medaug.cohort.schema import LabelSchema
from medaug.errors import UserError
from medaug.files import write_json
from medaug.inputs import read_json

SPLITS = ("train", "val", "test")
IMAGE_COUNT = "image-count"
"""Code of the problem that a case has neither one image file nor one per modality."""
SPACING = "spacing"
"""Name of the voxel size as an attribute. No manifest may contain it: it is read from the scan's geometry."""


@dataclass(frozen=True)
class Case:
    """One scan. Paths are relative to the manifest's root; `label` is None if the scan is unlabelled.

    `confidence` is a map of a synthetic pair on the image's grid: 0 where its screening doubts the mask, 1 elsewhere.

    `images` has one file per modality, or a single 4-D file with all modalities. `attributes` maps names (site,
    contrast, grade) to texts or numbers that describe the scan; an unknown attribute is absent.
    """

    name: str
    images: tuple[str, ...]
    label: str | None
    subject: str
    split: str = "train"
    attributes: Mapping[str, str | float] = field(default_factory=dict, hash=False)
    confidence: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A cohort, real or synthetic. Paths in `cases` are relative to the folder `root`.

    `licence` is that of the data, as its owner names it; empty if unknown.
    """

    name: str
    description: str
    modalities: tuple[str, ...]
    schema: LabelSchema
    cases: tuple[Case, ...]
    root: str
    phantom: bool = False
    licence: str = ""

    @classmethod
    def load(cls, path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Manifest:
        """Read and validate a manifest (or a plain MSD dataset.json) without opening its data files.

        Args:
            path: JSON file.
            root: folder of the data; by default the file's own "root", relative to the folder of the file.

        Raises:
            UserError: one line that names the file, the reason and the remedy.
        """
        path = Path(path)
        data = read_json(path, "correct or restore it; the documentation describes the format of a manifest")
        if root is None:
            stored = data.get("root", ".")
            if not isinstance(stored, str):
                raise UserError("root is not a text", 'write "root": "."', path=path)
            root = path.parent / stored
        return cls.from_mapping(data, root, str(path))

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], root: str | os.PathLike[str], source: str) -> Manifest:
        """Build and validate a manifest from the content of its JSON file; errors name `source`.

        As in an MSD dataset.json, a case without "name" is named after its first image, a case without "subject"
        is its own subject, and a case without "split" is in "train".
        """
        entries = data.get("training")
        if not isinstance(entries, list) or not entries:
            raise UserError("the manifest is empty", 'list cases under "training"', path=source)
        manifest = cls(
            name=str(data.get("name", "")) or Path(source).stem,
            description=str(data.get("description", "")),
            modalities=_modalities(data.get("modality"), source),
            schema=LabelSchema.from_mapping(data, source),
            cases=tuple(_case(entry, source) for entry in entries),
            root=os.path.abspath(os.path.expanduser(root)),
            phantom=data.get("phantom") is True,
            licence=str(data.get("licence") or data.get("license") or ""),
        )
        manifest.validate(source)
        return manifest

    def to_mapping(self) -> dict[str, Any]:
        """Return the JSON content without "root", which depends on where the file is written."""
        return {
            "name": self.name,
            "description": self.description,
            **({"licence": self.licence} if self.licence else {}),
            **({"phantom": True} if self.phantom else {}),
            "modality": {str(index): name for index, name in enumerate(self.modalities)},
            **self.schema.to_mapping(),
            "numTraining": len(self.cases),
            "training": [
                {
                    "name": case.name,
                    "image": case.images[0] if len(case.images) == 1 else list(case.images),
                    **({} if case.label is None else {"label": case.label}),
                    **({} if case.confidence is None else {"confidence": case.confidence}),
                    "subject": case.subject,
                    "split": case.split,
                    **({"attributes": dict(case.attributes)} if case.attributes else {}),
                }
                for case in self.cases
            ],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Validate the manifest and write it atomically.

        A root inside the folder of `path` is stored as a relative path, so that file and data can be moved together;
        any other root is stored as an absolute path.

        Raises:
            UserError: the manifest is invalid, the disk is full, or the folder is not writable.
        """
        path = Path(path)
        self.validate(str(path))
        folder, root = Path(os.path.abspath(path.parent)), Path(os.path.abspath(self.root))
        stored = root.relative_to(folder).as_posix() if root.is_relative_to(folder) else str(root)
        content = self.to_mapping()
        content |= {"root": stored, "training": content.pop("training")}  # the short keys first
        write_json(path, content)

    def split(self, name: str) -> tuple[Case, ...]:
        """Return the cases of one split ("train", "val" or "test")."""
        return tuple(case for case in self.cases if case.split == name)

    def subjects(self, split: str) -> set[str]:
        """Return the subjects of one split."""
        return {case.subject for case in self.split(split)}

    def image_paths(self, case: Case) -> list[Path]:
        """Return the image files of a case: one per modality, or a single 4-D file."""
        return [Path(self.root, image) for image in case.images]

    def label_path(self, case: Case) -> Path | None:
        """Return the label file of a case, or None if it is unlabelled."""
        return None if case.label is None else Path(self.root, case.label)

    def confidence_path(self, case: Case) -> Path | None:
        """Return the confidence map of a case, or None if it has none."""
        return None if case.confidence is None else Path(self.root, case.confidence)

    def files(self, case: Case) -> list[Path]:
        """Return every file of a case: its images, then its label and its confidence map if it has them."""
        others = (self.label_path(case), self.confidence_path(case))
        return [*self.image_paths(case), *(path for path in others if path is not None)]

    def validate(self, source: str) -> None:
        """Raise the first of `problems`, if there is one, with `source` named."""
        for problem in self.problems():
            raise problem.within(source)

    def problems(self) -> Iterator[UserError]:
        """Yield every inconsistency that shows without opening a data file, with the code of its finding."""
        if not self.cases:
            yield UserError("the manifest is empty", 'list cases under "training"', code="empty-manifest")
        for name, count in Counter(case.name for case in self.cases).items():
            if count > 1:
                what = f"case {name} occurs {count} times"
                yield UserError(what, "give every case its own name", code="duplicate-name")
        splits: dict[str, set[str]] = {}
        for case in self.cases:
            splits.setdefault(case.subject, set()).add(case.split)
            if case.split not in SPLITS:
                what = f'case {case.name} has split "{case.split}"'
                yield UserError(what, "use train, val or test", code="unknown-split")
            if len(case.images) not in {1, len(self.modalities)}:
                what = f"case {case.name} has {len(case.images)} images for {len(self.modalities)} modalities"
                yield UserError(what, "list one file per modality, or one 4-D file", code=IMAGE_COUNT)
            for file in (*case.images, case.label, case.confidence):
                if file is not None and _leaves_root(file):
                    what = f"case {case.name}: {file} is not a path below root"
                    yield UserError(what, "write it relative to root", code="outside-root")
        for subject, names in splits.items():
            if len(names) > 1:
                found = ", ".join(sorted(names))
                what = f"subject {subject} is in several splits ({found})"
                yield UserError(what, "keep all its cases in one split", code="subject-in-two-splits")
        yield from attribute_problems(self.cases)


def case_name(image: str) -> str:
    """Return the file name of an image without folder and NIfTI suffix."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", PurePosixPath(image).name, flags=re.IGNORECASE)


def attribute_problems(cases: Iterable[Case]) -> Iterator[UserError]:
    """Yield an error for each attribute that is not allowed, or is a text in one case and a number in another."""
    first: dict[str, Case] = {}
    for case in cases:
        for name, value in case.attributes.items():
            other = first.setdefault(name, case)
            if name == SPACING:
                what = f"case {case.name} has an attribute {SPACING}, which is reserved for the voxel size"
                yield UserError(what, "rename or remove it", code="manifest")
            elif isinstance(value, str) != isinstance(other.attributes[name], str):
                what = (
                    f"attribute {name} is {other.attributes[name]!r} in case {other.name} and {value!r} in {case.name}"
                )
                yield UserError(what, "write texts in all cases, or numbers in all", code="manifest")


def attributes_from(value: Any, where: str) -> dict[str, str | float]:
    """Return the attributes of a case from the content of a JSON file; an attribute that is null is unknown.

    Raises:
        UserError: the content is not a mapping from names to texts or finite numbers; the error names `where`.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: attributes are {value!r:.60}", 'write {"site": "A", "grade": 2}')
    attributes: dict[str, str | float] = {}
    for name, content in value.items():
        is_text = isinstance(content, str) and bool(content)
        is_number = type(content) in {int, float} and abs(content) <= sys.float_info.max
        if content is not None and not is_text and not is_number:
            raise UserError(f"{where}: attribute {name} is {content!r:.60}", "write a text or a number, or remove it")
        if not name:
            raise UserError(f"{where}: an attribute has no name", "give it one, or remove it")
        if content is not None:
            attributes[name] = content if is_text else float(content)
    return attributes


def _modalities(value: Any, source: str) -> tuple[str, ...]:
    if not isinstance(value, dict) or set(value) != {str(index) for index in range(len(value))} or not value:
        raise UserError("modality must number the modalities from 0", 'write {"0": "T1", "1": "T2"}', path=source)
    return tuple(str(value[str(index)]) for index in range(len(value)))


def _case(entry: Any, source: str) -> Case:
    if not isinstance(entry, dict):
        raise UserError(
            f'"training" holds {entry!r:.60}', 'each case is an object with "image" and "label"', path=source
        )
    images = entry.get("image")
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(i, str) and i for i in images):
        raise UserError(
            f"case {entry.get('name', 'without name')} has no image", 'add "image": "file.nii.gz"', path=source
        )
    texts = {
        key: entry[key] for key in ("name", "label", "confidence", "subject", "split") if entry.get(key) is not None
    }
    for key, text in texts.items():
        if not isinstance(text, str) or not text:
            raise UserError(f"{key} {text!r:.60} of {images[0]} is not a text", "correct or remove it", path=source)
    name = texts.get("name", case_name(images[0]))
    label, confidence, attributes = texts.get("label"), texts.get("confidence"), entry.get("attributes")
    return Case(
        name=name,
        images=tuple(PurePosixPath(image).as_posix() for image in images),  # "./a" becomes "a"
        label=None if label is None else PurePosixPath(label).as_posix(),
        subject=texts.get("subject", name),
        split=texts.get("split", "train"),
        attributes={} if attributes is None else attributes_from(attributes, f"{source}: case {name}"),
        confidence=None if confidence is None else PurePosixPath(confidence).as_posix(),
    )


def _leaves_root(file: str) -> bool:
    return PurePosixPath(file).is_absolute() or bool(PureWindowsPath(file).drive) or ".." in PurePosixPath(file).parts
