"""Screening in a run of `generate`: fits the rules before pairs are made, and judges the whole set afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medaug.cohort import provenance
from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.provenance import REJECTED, REJECTED_FOLDER
from medaug.data.cases import ModelCase, load_cases, read_case
from medaug.data.contents import case_contents
from medaug.errors import UserError
from medaug.evaluation.scores import check_scoring
from medaug.locks import locked
from medaug.options import ScoringOptions, ScreenOptions, SegmenterOptions
from medaug.screening.results import FILE, ScreeningResult, count_verdicts
from medaug.screening.rules import Reference, Sample, verdicts_to_mapping
from medaug.screening.screen import Screen, needs_segmenter
from medaug.screening.screener import prepare_screener
from medaug.screening.table import rule_words
from medaug.synthesis.attempts import Attempts
from medaug.synthesis.generation import Screening
from medaug.synthesis.pairs import Pairs
from medaug.training.checkpoint import Card, refuse_changed_scans

log = logging.getLogger(__name__)

LOCK = ".lock.screening"


@dataclass(frozen=True)
class Preparation:
    """What the screening of a run is made from.

    Attributes:
        card: card of the generator.
        cohort: cohort that the generator was trained on.
        screen, segmenter, scoring: options of these groups.
        seed: root seed of the run.
        cache: folder with the cache of scans in model space.
    """

    card: Card
    cohort: Manifest
    screen: ScreenOptions
    segmenter: SegmenterOptions
    scoring: ScoringOptions
    seed: int
    cache: Path

    def load(self, folder: Path) -> Screening | None:
        """Fit the rules on the scans that the generator was trained and validated on; None if no rule is chosen.

        Args:
            folder: folder of the run; the screening segmenter is saved there.

        Raises:
            UserError: there are too few scans to fit a rule, a scan has changed since the training, or a file is
                damaged.
        """
        card, cohort, screen = self.card, self.cohort, self.screen
        if not screen.rules:
            return None
        check_scoring(self.scoring, card.schema)
        seen = {
            split: [case for case in cohort.split(split) if not card.contents or case.name in card.contents]
            for split in ("train", "val")
        }
        contents = case_contents(cohort, [case for cases in seen.values() for case in cases], self.cache)
        refuse_changed_scans(card, contents)
        scans = {split: load_cases(cohort, cases, card.preprocessing, self.cache) for split, cases in seen.items()}
        wanted = max(int(needs_segmenter(screen.rules)), screen.ensemble)
        screener, nets = prepare_screener(
            folder, scans, contents, card.schema, screen, self.segmenter, self.seed, wanted
        )
        net = nets[0] if nets else None
        reference = Reference(card.schema, scans["train"], scans["val"], net, self.scoring.lesions)
        fitted = Screen.fit(reference, screen)
        return Screening(fitted, screener.digest, screen.retries, screen.keep_rejected, nets[: screen.ensemble])


@dataclass(frozen=True)
class Conclusion:
    """Screens the finished set of pairs and sums up what the screening did.

    Attributes:
        screening: screening of the run.
        card: card of the generator.
        folder: folder of the run.
        num: number of requested pairs.
    """

    screening: Screening
    card: Card
    folder: Path
    num: int

    def conclude(self) -> ScreeningResult:
        """Remove near-duplicates in one pass, in the order of the pairs' numbers, and write `screening.json`.

        The verdict on a pair depends only on the pairs before it, so the pass can be repeated after an interruption, in
        another process, or when more pairs were requested. Pairs that are removed are moved to the folder of rejected
        pairs.

        Raises:
            UserError: no pair is left, or a file cannot be read or moved.
        """
        with locked(self.folder / LOCK, wait=True):
            pairs = Pairs.collect(self.card, self.folder, self.num)
            verdicts = self._in_order(pairs)
            removed = [name for name, one in verdicts.items() if not _passed(one)]
            for case in pairs.manifest.cases:
                if case.name in removed:
                    self._move(case)
            result = self._result(pairs, verdicts, removed)
            path = result.save(self.folder)
        log_screening(result)
        if not result.kept:
            raise UserError(
                f"none of {result.attempts} images passed the screening",
                "see which rule rejects them; train longer, leave a rule out (screen.rules) or loosen its quantile",
                path=path,
            )
        return result

    def _in_order(self, pairs: Pairs) -> dict[str, dict[str, Any]]:
        if not self.screening.screen.in_order:
            return {}
        cases = pairs.manifest.cases
        judged = self.screening.screen.judge_in_order(self._sample(pairs.manifest, case) for case in cases)
        return {case.name: verdicts_to_mapping(one) for case, one in zip(cases, judged, strict=True)}

    def _sample(self, manifest: Manifest, case: Case) -> Sample:
        """Read a pair from its files, even if an earlier pass has moved them."""
        if not manifest.image_paths(case)[0].exists():
            manifest = Manifest(**{**vars(manifest), "root": str(self.folder / REJECTED_FOLDER)})
        host, label = read_case(manifest, case)
        assert label is not None
        image, placement = self.card.preprocessing.apply_image(host.array, host.affine)
        mask = self.card.preprocessing.apply_label(label, placement)
        return Sample.of_case(ModelCase(case, image, mask, host.affine, host.dtype, placement))

    def _move(self, case: Case) -> None:
        for file in filter(None, (*case.images, case.label, case.confidence)):
            target = self.folder / REJECTED_FOLDER / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # moved by an earlier pass
                os.replace(self.folder / file, target)

    def _result(self, pairs: Pairs, verdicts: Mapping[str, Any], removed: list[str]) -> ScreeningResult:
        attempts = Attempts.read(self.folder, self.screening.retries)
        rejected = provenance.read_all(self.folder / REJECTED_FOLDER, REJECTED).values()
        judged = [record for record in (*pairs.records, *rejected) if record["index"] < self.num]
        rules = count_verdicts([record["screening"] for record in judged]) | count_verdicts(verdicts.values())
        return ScreeningResult(
            requested=self.num,
            kept=len(pairs.records) - len(removed),
            attempts=len(judged),
            passed=len(pairs.records),
            given_up=[index for index in range(self.num) if attempts.given_up(index)],
            rules=rules,
            set_verdicts=verdicts,
            removed=removed,
        )


def _passed(verdicts: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(check["passed"] for checks in verdicts.values() for check in checks.values())


def log_screening(result: ScreeningResult) -> None:
    """Log the pass rate, the share that each rule rejected, and the pairs that are missing."""
    log.info("screening: %d of %d images passed (%.0f%%)", result.passed, result.attempts, 100 * result.pass_rate)
    for name, rule in result.rules.items():
        title, _ = rule_words(name)
        log.info("  %s rejected %d of %d (%.1f%%)", title, rule.rejected, rule.judged, 100 * rule.share)
    if missing := result.requested - result.kept:
        log.warning(
            "%d of %d pairs are missing: %d were given up after their last attempt (screen.retries), and %d were "
            "removed as near-duplicates; see %s",
            missing,
            result.requested,
            len(result.given_up),
            len(result.removed),
            FILE,
        )
