"""Notebooks as pages of the site."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any


def notebook_page(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name."""
    parts, pictures = [], {}
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for kind, content in outputs(cell):
            if kind == "image/png":
                picture = f"{name}_{number}_{len(pictures)}.png"
                pictures[picture] = base64.b64decode(content)
                parts.append(f"![What the cell above draws]({picture})")
            else:
                parts.append(f"```text\n{content.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def outputs(cell: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The outputs of a code cell: kind and content, a picture rather than its text."""
    for output in cell["outputs"]:
        data = output.get("data") or {"text/plain": output.get("text", "")}
        kind = "image/png" if "image/png" in data else "text/plain"
        yield kind, "".join(data.get(kind, ""))
