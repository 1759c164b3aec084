"""Counts how often the test subjects of an experiment were looked at.

If several configurations are tried on the same test subjects and the best one is kept, its score is too high. Therefore
`looks.json`, beside the folders of the stages, has a line for every configuration whose segmenters were scored on the
test subjects. It stays when a benchmark is replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medaug.files import write_json
from medaug.inputs import parsing, read_json

_REMEDY = "restore it; if it is lost, remove it, and say in your report that earlier looks were not counted"


def count_look(path: Path, identity: Mapping[str, Any]) -> int:
    """Record that a configuration is scored on the test subjects, unless it is the last one on record.

    A benchmark that was interrupted and resumed is one look. Adding an arm, or using another model, is another look.

    Args:
        path: `looks.json` of the experiment.
        identity: what the result depends on, as plain containers.

    Returns:
        The number of looks, this one included.

    Raises:
        UserError: the file is damaged or cannot be written.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    looks: list[str] = []
    if path.exists():
        stored = read_json(path, _REMEDY)
        with parsing(path, _REMEDY):
            looks = [str(look) for look in stored["looks"]]
    if looks[-1:] != [digest]:
        looks.append(digest)
        write_json(path, {"looks": looks})
    return len(looks)
