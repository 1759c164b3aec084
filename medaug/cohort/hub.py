"""Parts of dataset cards and model cards: Markdown with a YAML header, as on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

FILE = "README.md"
_LICENCES = {
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
    *("apache-2.0", "mit", "pddl", "odc-by", "odbl"),
}


def page(header: Mapping[str, Any], *parts: str) -> str:
    """A card: the header's fields, then the parts of the text."""
    fields = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    return "\n".join([f"---\n{fields}---\n", *parts])


def licence_fields(text: str) -> dict[str, str]:
    """The hub's licence fields for a licence as the cohort's manifest names it."""
    identifier = re.sub(r"[\s_-]+", "-", text.strip().lower())
    if identifier in _LICENCES:
        return {"license": identifier}
    return {"license": "other", "license_name": text} if text else {"license": "unknown"}


def table(rows: Mapping[str, str]) -> str:
    """A table of two columns without headings."""
    body = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return f"| | |\n|---|---|\n{body}\n"


def plain(text: str) -> str:
    """The text on one line and without `|`, so that it fits in a table cell."""
    return " ".join(text.replace("|", "/").split())
