"""The viewer of the pages, NiiVue: where it is, and the build step that fetches it (`make viewer`).

Wheels carry the viewer and its licence. It is not in the repository: `python -m medaug.viewing.viewer` gets the pinned
version from the npm registry and checks its digest. Nothing is fetched when medaug runs.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from medaug.errors import UserError
from medaug.files import atomic_write

PACKAGE, VERSION = "@niivue/niivue", "0.69.0"
INTEGRITY = "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
"""SHA-512 of the package's archive, base64, as npm writes it."""
SCRIPT = Path(__file__).parent / "vendor" / "niivue.umd.js"
LICENCE = Path(__file__).parent / "NIIVUE_LICENSE.txt"


def viewer_files() -> dict[str, bytes]:
    """The viewer and its licence by file name.

    Raises:
        UserError: the viewer is not there.
    """
    if not SCRIPT.is_file():
        raise UserError("the viewer of the gallery is missing", "install a wheel, or run `make viewer`", path=SCRIPT)
    return {SCRIPT.name: SCRIPT.read_bytes(), LICENCE.name: LICENCE.read_bytes()}


def fetch() -> None:
    """Get the viewer with npm, unless it is there.

    Raises:
        UserError: npm is missing or fails, or the archive is another one.
    """
    if SCRIPT.is_file():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed", "install Node.js, which brings it along, and run `make viewer` again")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--pack-destination", folder, f"{PACKAGE}@{VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            last = (done.stderr.strip().splitlines() or ["no archive"])[-1]
            raise UserError(f"npm could not get {PACKAGE} {VERSION}", "see its message", detail=last)
        SCRIPT.parent.mkdir(exist_ok=True)
        with atomic_write(SCRIPT) as temporary:
            temporary.write_bytes(unpacked(archives[0].read_bytes(), archives[0]))


def unpacked(archive: bytes, path: Path) -> bytes:
    """The script in the package's archive, whose digest is checked first.

    Raises:
        UserError: it is not the pinned archive.
    """
    if base64.b64encode(hashlib.sha512(archive).digest()).decode() != INTEGRITY:
        raise UserError(f"is not {PACKAGE} {VERSION}: its SHA-512 differs", "check the registry of npm", path=path)
    with tarfile.open(path) as content:
        member = content.extractfile("package/dist/niivue.umd.js")
        assert member is not None
        return member.read()


if __name__ == "__main__":
    try:
        fetch()
    except UserError as error:
        sys.exit(f"medaug: error: {error}")
