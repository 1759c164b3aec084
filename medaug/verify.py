"""Stage: say whether files are synthetic, whether they are unchanged, and what made them.

python -m medaug.verify FILE_OR_DIR [public_key=public.pem] [report=FILE.json]
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from medaug.errors import UserError
from medaug.launcher import launch
from medaug.options import Options

log = logging.getLogger(__name__)

_MOST_SHOWN = 20  # lines on files that are as they should be


def main(options: Options) -> None:
    """Print what a file, or every file of a folder, is; refuse if a file does not match its mark.

    Raises:
        UserError: no path, no such file, or a file was changed, is missing, damaged or wrongly signed; with
            `public_key`, also if a file is not signed by that key.
    """
    wanted = options.verify
    if wanted.path is None:
        raise UserError("path=FILE_OR_DIR is missing", "name the file or folder to look at")

    from medaug.files import write_json
    from medaug.marking.signing import load_public_key
    from medaug.marking.verification import TRUSTED, verify

    public_key = None if wanted.public_key is None else load_public_key(Path(wanted.public_key))
    verdicts = verify(Path(wanted.path), public_key)
    wrong = [one for one in verdicts if one.is_wrong or (public_key is not None and one.signature != TRUSTED)]
    right = [one for one in verdicts if one not in wrong]
    for verdict in right[:_MOST_SHOWN]:
        log.info("%s", verdict)
    if len(right) > _MOST_SHOWN:
        log.info("... and %d more files", len(right) - _MOST_SHOWN)
    for verdict in wrong:
        log.error("%s", verdict)
    counts = Counter(f"{one.origin}, {one.state}, {one.signature}" for one in verdicts)
    for kind, count in sorted(counts.items()):
        log.info("%d files: %s", count, kind)
    if wanted.report is not None:
        write_json(Path(wanted.report), [one.to_mapping() for one in verdicts])
        log.info("all of it is in %s", wanted.report)
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(verdicts)} files are not what they should be, as listed above",
            "restore or generate them again, and do not use them as they are",
            path=wanted.path,
        )


if __name__ == "__main__":
    launch("verify", main)
