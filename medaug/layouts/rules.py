"""The user's rules for a folder: modalities, labels, and which file is which.

A rules file is YAML:

    modalities:                 # in this order
      T1: "images/*_t1.nii.gz"                        # layout pairs: a glob
      FLAIR: {SeriesDescription: flair, EchoTime: ..} # layout dicom: tag: regular expression, all must be found
    label: "labels/*.nii.gz"    # a glob; layout dicom: label files among the series
    case: "(case_\\d+)"          # layout pairs: group 1, searched in a file's path, is its case
    structures:                 # layout dicom: class: regular expression for the names of segments and ROIs
      tumour: "gtv|tumou?r"
    exclude_series:             # layout dicom: files that match one of these are left out
      - {ImageType: localizer}
    labels: {0: background, 1: tumour}
    regions: {whole tumour: [1, 2]}
    ignore: 255
    remap: {4: 3}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from medaug.errors import UserError
from medaug.inputs import read_yaml

COMMAND_LINE = "command line"
SCHEMA_KEYS = ("labels", "regions", "ignore", "remap")


@dataclass(frozen=True)
class Rules:
    """The content of a rules file; every part may be absent.

    Attributes:
        modalities: name to glob (pairs) or to {DICOM keyword: regular expression} (dicom), in the manifest's order.
        label: glob of the label files.
        case: regular expression, searched in a file's path relative to the root; its group 1 is the case.
        structures: class name to the regular expression for the names of its segments and ROIs.
        exclude_series: each {DICOM keyword: regular expression}, or a pattern of the SeriesDescription; DICOM files
            that match any of them are left out.
        schema: `labels`, `regions`, `ignore` and `remap` of the file, for `LabelSchema.from_mapping`.
        source: the file, for messages.

    Raises:
        UserError: a pattern is not a regular expression, `case` has no group 1, or some modalities are named by globs
            and others by tags.
    """

    modalities: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    label: str | None = None
    case: str | None = None
    structures: Mapping[str, str] = field(default_factory=dict)
    exclude_series: Sequence[str | Mapping[str, str]] = ()
    schema: Mapping[str, Any] = field(default_factory=dict)
    source: str = "rules"

    @property
    def is_file(self) -> bool:
        """Whether the rules come from a file; `source` is then its path."""
        return self.source not in {"rules", COMMAND_LINE}

    def __post_init__(self) -> None:
        """Refuse patterns that are not valid."""
        patterns = {} if self.case is None else {"case": self.case}
        patterns |= {f"structures, {name}": pattern for name, pattern in self.structures.items()}
        for name, rule in self.modalities.items():
            if not isinstance(rule, str):
                patterns |= {f"modalities, {name}, {tag}": pattern for tag, pattern in rule.items()}
        for key, pattern in patterns.items():
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise UserError(
                    f"{key}: {pattern} is not a regular expression ({error})", "correct it", path=self.source
                ) from error
            if key == "case" and not groups:
                option = f"case_pattern={pattern}" if self.source == COMMAND_LINE else f"{self.source}: case: {pattern}"
                raise UserError(f"{option} has no group", "put the part that is the case in parentheses ( )")
        if len({isinstance(rule, str) for rule in self.modalities.values()}) > 1:
            raise UserError(
                "modalities are named partly by globs, partly by DICOM tags",
                "use globs for layout pairs, tags for layout dicom",
                path=self.source,
            )


NO_RULES = Rules()


def read_rules(path: Path) -> Rules:
    """Read a rules file.

    Raises:
        UserError: the file is unreadable or not YAML, or has an unknown key (the error suggests the nearest one), a
            value of the wrong kind, or an invalid pattern.
    """
    content = read_yaml(path, "correct it, put globs in quotation marks, and see the rules file in the documentation")
    known = [*(f.name for f in fields(Rules) if f.name not in {"schema", "source"}), *SCHEMA_KEYS]
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"
            raise UserError(f"{key} is not a key of a rules file", hint, path=path)
    for key in ("label", "case"):
        if not isinstance(content.get(key, ""), str):
            raise UserError(f"{key} is not a text", "put it in quotation marks", path=path)
    for key, is_kind in (("modalities", _is_rule), ("structures", _is_pattern)):
        value = content.get(key, {})
        if not isinstance(value, dict) or not all(
            isinstance(name, str) and is_kind(rule) for name, rule in value.items()
        ):
            raise UserError(
                f"{key} is not a mapping from names to texts", "see the rules file in the documentation", path=path
            )
    excluded = content.get("exclude_series", [])
    if not isinstance(excluded, list) or not all(map(_is_rule, excluded)):
        raise UserError("exclude_series is not a list of rules", "write them as - {ImageType: localizer}", path=path)
    schema = {key: content[key] for key in SCHEMA_KEYS if key in content}
    return Rules(**{key: value for key, value in content.items() if key not in schema}, schema=schema, source=str(path))


def with_pairs(
    rules: Rules,
    images: str | None = None,
    labels: str | None = None,
    case_pattern: str | None = None,
    classes: Sequence[str] | None = None,
) -> Rules:
    """Add the options of the command line for a folder of pairs to rules.

    Args:
        rules: rules from a file, or NO_RULES.
        images: glob of the images of the single modality, "image".
        labels: glob of the labels.
        case_pattern: regular expression, searched in a file's path; its group 1 is the case.
        classes: names of the label values 0, 1, 2, ..., background first.

    Raises:
        UserError: the file already has the rule, or as for `Rules`.
    """
    options = {
        "images": ("modalities", None if images is None else {"image": images}),
        "labels": ("label", labels),
        "case_pattern": ("case", case_pattern),
        "classes": ("schema", None if classes is None else {"labels": {str(i): n for i, n in enumerate(classes)}}),
    }
    changes: dict[str, Any] = {}
    for option, (key, value) in options.items():
        if value is None:
            continue
        if getattr(rules, key):
            raise UserError(
                f"{option}: {rules.source} has {'labels' if key == 'schema' else key}", "remove one of them"
            )
        changes[key] = value
    if not changes:
        return rules
    return replace(rules, **changes, source=COMMAND_LINE if rules == NO_RULES else rules.source)


def with_excluded(rules: Rules, excluded: Sequence[str]) -> Rules:
    """Add series to leave out, given on the command line, to rules.

    Args:
        rules: rules from a file, or NO_RULES.
        excluded: each KEYWORD:PATTERN, or a pattern of the SeriesDescription.
    """
    parts = [re.fullmatch(r"(\w+):(.*)", text, re.DOTALL) for text in excluded]
    more = [{part[1]: part[2]} if part else text for part, text in zip(parts, excluded, strict=True)]
    return replace(rules, exclude_series=(*rules.exclude_series, *more)) if more else rules


def _is_rule(rule: Any) -> bool:
    if isinstance(rule, dict):
        return bool(rule) and all(isinstance(k, str) and isinstance(v, str) for k, v in rule.items())
    return _is_pattern(rule)


def _is_pattern(rule: Any) -> bool:
    return isinstance(rule, str) and bool(rule)
