"""KaTeX, which turns formulas into HTML and MathML when the site is built: fetched once with npm, run by node.

Pages need none of its scripts, only its style sheet and fonts, which the site carries.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

VERSION = "0.19.1"
INTEGRITY = "jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA=="
"""SHA-512 of the package's archive, base64, as npm writes it."""
FOLDER = Path(__file__).parents[1] / "build" / f"katex-{VERSION}"
ARCHIVE = FOLDER / f"katex-{VERSION}.tgz"

_RENDER = """
const katex = require(process.argv[1]);
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(formulas.map(([text, displayMode]) => katex.renderToString(text, {displayMode}))));
"""


def fetch() -> dict[str, bytes]:
    """The files of KaTeX that pages need, by their path in the site; gets the package unless it is there.

    Raises:
        RuntimeError: npm fails, or the archive is another one.
    """
    if not ARCHIVE.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--pack-destination", str(FOLDER), f"katex@{VERSION}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if base64.b64encode(hashlib.sha512(ARCHIVE.read_bytes()).digest()).decode() != INTEGRITY:
        raise RuntimeError(f"{ARCHIVE}: is not KaTeX {VERSION}: its SHA-512 differs; remove it")
    files = {}
    with tarfile.open(ARCHIVE) as content:
        for name in content.getnames():
            short = name.removeprefix("package/dist/")
            if short in {"katex.min.css", "katex.min.js"} or (short.startswith("fonts/") and short.endswith(".woff2")):
                member = content.extractfile(name)
                assert member is not None
                files[f"katex/{short}"] = member.read()
    (FOLDER / "katex.js").write_bytes(files.pop("katex/katex.min.js"))
    return files


def render(formulas: Sequence[tuple[str, bool]]) -> list[str]:
    """The HTML of formulas, each given as LaTeX and whether it stands on a line of its own.

    Raises:
        CalledProcessError: a formula is not understood; node's message names it.
    """
    command = ["node", "-e", _RENDER, str(FOLDER / "katex.js")]
    done = subprocess.run(command, input=json.dumps(formulas), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)
