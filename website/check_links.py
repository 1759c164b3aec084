"""Checks a built site: every link and anchor inside it leads somewhere, and no page loads anything from elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}
"""Attributes whose address a browser loads without being asked."""


class Page(HTMLParser):
    """The anchors of a page, and its addresses with their tag and attribute."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.addresses: list[tuple[str, str, str]] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the anchors and addresses of a tag."""
        for name, value in attrs:
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)
            if value and name in {"href", "src"}:
                self.addresses.append((tag, name, value))


def faults(site: Path) -> list[str]:
    """What is wrong with the pages of a site, a line for each fault."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    found = [f"{site}: holds no page"] if not pages else []
    for path, page in pages.items():
        found += [f"{path.relative_to(site.resolve())}: {fault}" for fault in _faults_of(path, page, pages)]
    return found


def _faults_of(path: Path, page: Page, pages: dict[Path, Page]) -> Iterable[str]:
    for tag, name, address in page.addresses:
        parts = urlsplit(address)
        if parts.scheme in {"data", "mailto"}:
            continue
        if parts.scheme or parts.netloc:
            if (tag, name) in LOADED:
                yield f"loads {address} from elsewhere"
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if parts.path.startswith("/"):
            yield f"{address} is absolute; it must work in any folder"
        elif not (target.is_file() or (target / "index.html").is_file()):
            yield f"{address} does not exist"
        elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
            yield f"{address}: there is no such anchor"


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    sys.exit(bool(wrong))
