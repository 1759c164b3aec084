"""Hooks of MkDocs: formulas, and pages made from the changelog and the notebooks."""

from __future__ import annotations

import json
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "website"))
import katex  # noqa: E402, beside this file
from notebook_pages import notebook_page  # noqa: E402

FORMULA = re.compile(r'<(?:span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</(?:span|div)>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the changelog and every notebook as pages."""
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "changelog.md", content=changes))
    for name, content in katex.fetch().items():
        files.append(File.generated(config, name, content=content))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, pictures = notebook_page(json.loads(path.read_text("utf-8")), path.stem)
        files.append(File.generated(config, f"tutorial/{path.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"tutorial/{name}", content=picture))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Render the formulas of a page."""
    found = list(FORMULA.finditer(html))
    if not found:
        return html
    rendered = iter(katex.render([(unescape(each[2]).strip(), each[1] == "[") for each in found]))
    return FORMULA.sub(lambda each: shown(next(rendered), each[1] == "["), html)


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Leave out the page for unknown addresses: only a server shows it, and its links need the site at the root."""
    (Path(config.site_dir) / "404.html").unlink()


def shown(formula: str, own_line: bool) -> str:
    """A rendered formula; one on a line of its own can be scrolled, also with the keyboard."""
    return f'<div class="formula" tabindex="0">{formula}</div>' if own_line else formula
