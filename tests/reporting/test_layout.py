"""The report in a browser: on a phone, in dark mode, and printed."""

from __future__ import annotations

import base64
import re
import zlib
from dataclasses import replace

import pytest
from browser import Browser
from matplotlib.figure import Figure
from pages import toy_benchmark

from medaug.auditing.results import Audit, Group
from medaug.comparison.breakdown import break_down
from medaug.evaluation.statistics import Interval
from medaug.pictures.figures import png
from medaug.reporting.report import write_report

pytestmark = pytest.mark.slow
PAPERS = {"A4": (8.27, 11.69), "Letter": (8.5, 11)}
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
    !e.closest('thead') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
CONTRAST = """(() => {
  const light = c => { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => x / 255)
      .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
      return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2] };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (!c.endsWith(', 0)')) return c } return 'rgb(255,255,255)' };
  const ratio = e => { const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05) };
  const texts = document.querySelectorAll('p, td, th, li, dt, dd, figcaption, caption, summary, h2');
  return Math.min(...[...texts].map(ratio))
})()"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with every kind of section, an arm with a long name, and a folder name without spaces."""
    run = tmp_path_factory.mktemp("layout")
    bench = toy_benchmark(run)
    bench = replace(bench, experiment="an_experiment_with_a_very_long_name_without_any_space_in_it" * 2)
    bench = replace(
        bench, elsewhere=replace(bench, cohort="far"), groups={"site": {f"c{i}": f"s{i % 2}" for i in range(7)}}
    )
    bench = bench.compare([("good", "bad")])
    nan = float("nan")
    groups = [Group(name, Interval(0.5, nan, nan, 6, 6)) for name in ("real_validation", "synthetic", "shuffled")]
    (run / "audit").mkdir()
    Audit(False, {"faithfulness": groups, "coverage": groups[:2], "membership": groups[:1]}, 0.1).save(run / "audit")
    (run / "synthetic").mkdir()
    (run / "synthetic" / "contact_sheet.png").write_bytes(png(Figure(figsize=(4, 16), facecolor="grey")))
    write_report(bench, [], run, run / "report.html", break_down(bench))
    return run / "report.html"


@pytest.fixture
def page(chromium, tmp_path):
    browser = Browser(chromium, tmp_path / "profile")
    yield browser
    browser.close()


def images_drawn(pdf: bytes) -> list[set[bytes]]:
    """The pictures that each content stream of a PDF file draws."""
    found = []
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            content = zlib.decompress(stream)
        except zlib.error:
            continue
        if drawn := set(re.findall(rb"/(X\d+) Do", content)):
            found.append(drawn)
    return found


def test_nothing_is_wider_than_a_phone_and_text_is_readable_in_both_schemes(report, page):
    for width in (390, 1100):
        for scheme in ("light", "dark"):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.open(report, width)
            page.wait_for("document.readyState === 'complete'")
            page.run("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert page.run("document.documentElement.scrollWidth") <= width
            assert page.run(TOO_WIDE) == []
            assert page.run(CONTRAST) >= 4.5, scheme
            dark = page.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
            assert dark == (scheme == "dark")
    assert page.faults == []


def test_no_picture_is_cut_when_it_is_printed(report, page):
    page.open(report)
    page.wait_for("document.readyState === 'complete'")
    pictures = page.run("document.images.length")
    for width, height in PAPERS.values():
        pdf = base64.b64decode(page.call("Page.printToPDF", paperWidth=width, paperHeight=height)["data"])
        drawn = images_drawn(pdf)
        assert sum(map(len, drawn)) == len(set().union(*drawn)) == pictures == 3
