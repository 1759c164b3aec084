"""Generates the configuration reference (docs/reference/configuration.md) from the declarations of the options.

python -m medaug.reference > docs/reference/configuration.md
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields, is_dataclass

from medaug.config import choices
from medaug.keys import Key, condition_text, keys, shown, values_text
from medaug.options import Options
from medaug.stages import STAGES

_HEAD = """# Configuration reference

Every key, generated from its declaration in `medaug/options/` by `make docs`. [configuration.md](../configuration.md)
explains groups, presets and precedence. A stage also takes its own keys (`generate.num`) without the prefix (`num=8`).
"""


def reference() -> str:
    """The page as Markdown: a section per group of keys, a row per key."""
    known = keys()
    top = [key for path, key in known.items() if "." not in path]
    sections = [_HEAD, "## Keys of all groups\n", _table(top)]
    options = Options()
    for name in (field.name for field in fields(Options)):
        node = getattr(options, name)
        if not is_dataclass(node):
            continue
        rows = [key for path, key in known.items() if path.startswith(f"{name}.")]
        readers = [stage.name for stage in STAGES.values() if any(stage.accepts(key.path) for key in rows)]
        about = [f"## {name}\n", inspect.cleandoc(type(node).__doc__ or "")]
        if files := choices(name):
            about.append(f"Choices: {', '.join(f'`{name}={choice}`' for choice in files)}.")
        about.append(f"Read by {', '.join(f'`{reader}`' for reader in readers)}.\n")
        sections += ["\n".join(about), _table(rows)]
    return "\n".join(sections)


def _table(rows: list[Key]) -> str:
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key in rows:
        meaning = key.help + (f" ({condition})" if (condition := condition_text(key)) else "")
        cells = (f"`{key.path}`", values_text(key), f"`{shown(key.default)}`", meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
