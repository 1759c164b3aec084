"""The dataset card of a run's pairs: README.md in the format of the Hugging Face hub, from the run's own files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from medaug.cohort.hub import FILE, licence_fields, page, plain, table
from medaug.cohort.manifest import Manifest
from medaug.files import atomic_write
from medaug.screening.results import ScreeningResult
from medaug.screening.table import rule_words
from medaug.synthesis.pairs import Pairs
from medaug.training.checkpoint import Card

_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_dataset_card(
    card: Card, pairs: Pairs, cohort: Manifest, screening: ScreeningResult | None, folder: Path
) -> None:
    """Write README.md beside the pairs.

    Args:
        card: card of the generator.
        pairs: pairs of the run.
        cohort: cohort that the generator was trained on.
        screening: result of the screening; None if the pairs were not screened.
        folder: folder of the run.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    with atomic_write(folder / FILE) as temporary:
        temporary.write_text(dataset_card(card, pairs, cohort, screening), encoding="utf-8")


def dataset_card(card: Card, pairs: Pairs, cohort: Manifest, screening: ScreeningResult | None) -> str:
    """The card as Markdown with a YAML header; for the arguments see `write_dataset_card`."""
    texts = (_contents(card, pairs, cohort), _screening(pairs, screening), _limits(card, cohort))
    return page(_header(card, pairs, cohort), f"# {_title(card)}\n", *texts)


def _title(card: Card) -> str:
    return f"Synthetic image-mask pairs of {card.experiment}" + (" (phantoms)" if card.phantom else "")


def _header(card: Card, pairs: Pairs, cohort: Manifest) -> dict[str, Any]:
    number = len(pairs.manifest.cases)
    return {
        "pretty_name": _title(card),
        **licence_fields(cohort.licence),
        "task_categories": ["image-segmentation"],
        "size_categories": [next((name for limit, name in _SIZES if number < limit), "n>1M")],
        "tags": ["medical", "synthetic", "medaug", *(["phantom"] if card.phantom else [])],
    }


def _contents(card: Card, pairs: Pairs, cohort: Manifest) -> str:
    records = pairs.records
    recipe = records[0]
    sources = _counted(record["mask_source"] for record in records)
    trained = {split: len(names) for split, names in sorted(card.seen.subjects.items())}
    rows = {
        "pairs": f"{len(records)}, from {len({r['host'] for r in records})} host scans of "
        f"{len({r['host_subject'] for r in records})} subjects",
        "modalities": ", ".join(card.modalities),
        "classes": ", ".join(card.schema.foreground),
        "cohort": f"{cohort.name}: {plain(cohort.description)}" if cohort.description else cohort.name,
        "licence": f"{cohort.licence or 'unknown'} (that of the cohort, which the pairs inherit)",
        "generator": f"checkpoint with SHA-256 `{recipe['checkpoint']}`, "
        + ", ".join(f"{number} {split} subjects" for split, number in trained.items()),
        "masks": sources,
        "sampling": f"{recipe['sampler']}, {recipe['num_inference_steps']} steps, guidance scale "
        f"{recipe['guidance_scale']:g}",
        "made with": f"medaug {version('medaug')}",
    }
    edits = {"insert": "is a real scan with a lesion put into it", "remove": "is a real scan without its lesions"}
    made = edits.get(recipe["mask_parameters"].get("mode", ""), "was generated for the mask beside it")
    return (
        f"A mask-conditioned diffusion model made these pairs: every image {made}. "
        "`manifest.json` lists the pairs, and `provenance*.jsonl` says how each was made.\n\n" + table(rows)
    )


def _screening(pairs: Pairs, result: ScreeningResult | None) -> str:
    if result is None:
        return "## Screening\n\nThe pairs were **not screened**: no pair was checked, not even for copies.\n"
    lines = [
        "## Screening\n",
        f"{result.passed} of {result.attempts} generated images passed ({result.pass_rate:.1%}). "
        f"{len(result.given_up)} pairs were given up, {len(result.removed)} removed as near-duplicates; "
        f"{result.kept} of {result.requested} requested pairs are here.\n",
        "| rule | rejected | share | reason |",
        "|---|---|---|---|",
    ]
    for name, rule in result.rules.items():
        title, note = rule_words(name)
        lines.append(f"| {title} | {rule.rejected} of {rule.judged} | {rule.share:.1%} | {note} |")
    if copies := list(_near_copy_figures(pairs.records)):
        lines += ["", "Near-copy figures of the pairs that were kept:\n", *copies]
    return "\n".join(lines) + "\n"


def _near_copy_figures(records: tuple[Mapping[str, Any], ...]) -> Iterator[str]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        for name, check in record.get("screening", {}).get("near_copies", {}).items():
            found.setdefault(name, []).append(check)
    for name, checks in found.items():
        values = np.array([check["figure"] for check in checks])
        limit = "at most" if "at_most" in checks[0] else "at least"
        threshold = checks[0].get("at_most", checks[0].get("at_least"))
        yield (
            f"- {name}: median {np.median(values):.3f}, range {values.min():.3f} to {values.max():.3f} "
            f"({limit} {threshold:.3f} was required)"
        )


def _limits(card: Card, cohort: Manifest) -> str:
    lines = [
        "## Limits\n",
        "- Not for clinical use. Whether the pairs help a segmenter is a question for `medaug benchmark`.",
        "- The images may resemble the scans that the generator was trained on. Do not treat them as anonymous.",
        "- Do not evaluate a model that was trained on these pairs on subjects that the generator was trained or "
        "validated on.",
        "- Near the edge of its host's grid, an image may be darker than the host.",
    ]
    if card.phantom:
        lines.insert(1, "- The cohort consists of phantoms, not of patients.")
    if not cohort.licence:
        lines.append("- The cohort's manifest names no licence. Find out which one applies before you share the pairs.")
    return "\n".join(lines) + "\n"


def _counted(values: Iterator[str]) -> str:
    return ", ".join(f"{name} ({number})" for name, number in Counter(values).items())
