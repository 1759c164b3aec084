"""The checker of the documentation site, and the notebooks as pages."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "website"))

from check_links import faults  # noqa: E402, beside mkdocs.yml
from notebook_pages import notebook_page  # noqa: E402


def test_every_kind_of_broken_link_is_found_and_no_other(tmp_path):
    (tmp_path / "sub").mkdir()
    good = (
        '<h1 id="so-so">x</h1><a href="sub/b.html#here">b</a><a href="#so-so">c</a><a href="https://example.org">e</a>'
    )
    (tmp_path / "index.html").write_text(good + '<img src="p.png"><a href="sub/">folder</a><a href="#">up</a>')
    (tmp_path / "p.png").touch()
    (tmp_path / "sub/index.html").write_text("")
    (tmp_path / "sub/b.html").write_text('<p id="here"></p><a href="../index.html#so-so">a</a>')
    assert faults(tmp_path) == []

    (tmp_path / "sub/b.html").write_text(
        '<a href="../gone.html">1</a><a href="../index.html#gone">2</a><a href="/index.html">3</a>'
        '<script src="https://cdn.example/x.js"></script><link href="//fonts.example/f.css"><img src="gone.png">'
    )
    found = faults(tmp_path)
    assert [line.split(": ", 1)[0] for line in found] == ["index.html"] + ["sub/b.html"] * 6
    for line, said in zip(
        found[1:],
        ("gone.html does not", "no such anchor", "absolute", "cdn.example", "fonts.example", "gone.png"),
        strict=True,
    ):
        assert said in line
    assert "no page" in faults(tmp_path / "p.png")[0]


def test_a_notebook_becomes_a_page_with_its_pictures():
    png = base64.b64encode(b"picture").decode()
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {
            "cell_type": "code",
            "source": ["draw()"],
            "outputs": [
                {"output_type": "stream", "text": ["said\n"]},
                {"output_type": "display_data", "data": {"image/png": png, "text/plain": "<Figure>"}},
            ],
        },
    ]
    text, pictures = notebook_page({"cells": cells}, "n")
    assert text.startswith("# Title\ntext\n\n```python\ndraw()\n```\n\n```text\nsaid\n```\n\n![")
    assert list(pictures.values()) == [b"picture"] and f"]({next(iter(pictures))})" in text
