"""What a run's own files say, in sentences that answer items of reporting checklists; "" where they say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from medaug.auditing.results import Audit
from medaug.comparison.results import Benchmark
from medaug.evaluation.statistics import Interval
from medaug.reporting.text import (
    elsewhere_statement,
    format_interval,
    metric_of,
    primary_statement,
    warnings_of,
)
from medaug.screening.results import ScreeningResult


@dataclass(frozen=True)
class Facts:
    """Sentences about a benchmark, its audit and the screening of its pairs.

    Attributes:
        benchmark: results.
        audit: the audit of its pairs; None: there is none.
        screening: what the screening of the pairs rejected; None: they were not screened.
    """

    benchmark: Benchmark
    audit: Audit | None = None
    screening: ScreeningResult | None = None

    def _training(self, node: str) -> Mapping[str, Any]:
        found = (self.benchmark.config.get("training") or {}).get(node)
        return found if isinstance(found, Mapping) else {}

    def _setting(self, node: str, key: str) -> Any:
        return (self.benchmark.config.get(node) or {}).get(key)

    def method(self) -> str:
        """The kind of method."""
        names = ", ".join(self.benchmark.arms)
        return f"Segmentation by a convolutional network, trained with different data (arms: {names})."

    def question(self) -> str:
        """The primary comparison, if it was declared."""
        if not self.benchmark.declared:
            return ""
        one = self.benchmark.declared[-1].primary
        margin = "" if one.margin is None else f", margin {one.margin:g}"
        title = metric_of(one.metric).title
        return f"Declared comparison: {one.arm} against {one.baseline}, {one.structure} {title}{margin}."

    def source(self) -> str:
        """Where the scans come from."""
        if self.benchmark.phantom:
            return "Computed phantoms, no patients."
        manifest = self._training("data").get("manifest")
        return f"Manifest {manifest}." if manifest else ""

    def numbers(self) -> str:
        """How many subjects trained and tested."""
        one = self.benchmark
        trained = (
            "" if one.num_training_subjects is None else f"{one.num_training_subjects} labelled training subjects, "
        )
        tested = "validation" if one.evaluated == "val" else "test"
        others = "" if one.elsewhere is None else f", {one.elsewhere.num_test_subjects} external test subjects"
        return (
            f"{trained}{one.num_test_subjects} {tested} subjects with {len(one.subjects)} scans{others}; "
            f"{one.num_synthetic} synthetic pairs."
        )

    def preprocessing(self) -> str:
        """How scans are preprocessed."""
        data = self._training("data")
        known = [f"{key} {data[key]}" for key in ("intensity", "spacing", "crop", "bias_correction") if key in data]
        return f"Intensities and grid: {', '.join(known)}; see the resolved configuration." if known else ""

    def partitions(self) -> str:
        """How scans were divided."""
        if self.benchmark.folds:
            return "Cross-validation over folds of subjects; all scans of a subject are in the same fold."
        return "By subject: no subject is in two splits, by name or by the contents of files (leak guard)."

    def network(self) -> str:
        """The segmenter."""
        backend, channels = self._setting("benchmark", "backend"), self._setting("segmenter", "channels")
        return f"Backend {backend}, features per level {channels}." if backend else ""

    def training(self) -> str:
        """How segmenters were trained."""
        rate, size = (self._setting("segmenter", key) for key in ("learning_rate", "batch_size"))
        seeds = ", ".join(map(str, self.benchmark.seeds))
        return (
            f"{self.benchmark.steps} steps in every arm, batch size {size}, peak learning rate {rate}, training seeds "
            f"{seeds}; augmentation depends on the arm."
        )

    def selection(self) -> str:
        """Which weights are used."""
        return "The weights of the last step, in every arm; no model is selected."

    def ensembling(self) -> str:
        """Whether predictions are combined."""
        mirror = "averaged over mirrored scans" if self._setting("segmenter", "mirror") else "of one network"
        return f"Predictions are {mirror}; seeds are compared, not combined."

    def metrics(self) -> str:
        """The scores."""
        return ", ".join(metric_of(name).title for name in self.benchmark.scores.metrics) + "."

    def statistics(self) -> str:
        """How uncertainty is expressed."""
        return (
            "95% bootstrap intervals over subjects and training seeds; Wilcoxon's test with Holm's adjustment; a "
            "crossed test over subjects and seeds for verdicts."
        )

    def internal(self) -> str:
        """The primary result."""
        return " ".join(primary_statement(self.benchmark)) if self.benchmark.comparisons else ""

    def external(self) -> str:
        """The result on the external test cohort."""
        return " ".join(elsewhere_statement(self.benchmark))

    def performance(self) -> str:
        """Mean Dice of every arm."""
        one = self.benchmark
        scores = [
            f"{title} {format_interval(one.mean(arm, one.structures[0], 'dice', labelled), 3)}"
            for title, arm, labelled in one.rows
        ]
        return f"{one.structures[0]} Dice: {'; '.join(scores)}. All scores are in the report."

    def groups(self) -> str:
        """Subgroups."""
        by = ", ".join(self.benchmark.groups)
        return f"breakdown.csv shows the primary comparison by {by}, and by difficulty." if by else ""

    def failures(self) -> str:
        """Where the arms fail."""
        return "The report shows the best, middle and worst scan, and groups of scans (breakdown.csv)."

    def calibration(self) -> str:
        """Calibration, if it was measured."""
        names = [name for name in ("ece", "brier") if name in self.benchmark.scores.metrics]
        return f"Measured: {', '.join(metric_of(name).title for name in names)}." if names else ""

    def limits(self) -> str:
        """Warnings of the report."""
        one = self.benchmark
        once = ["One generator was trained once."] if one.num_synthetic and not one.pairs_of else []
        return " ".join([*once, *warnings_of(one)])

    def software(self) -> str:
        """Software."""
        return f"medaug {version('medaug')}, PyTorch, MONAI; versions in constraints.txt."

    def reproduction(self) -> str:
        """What is needed to repeat the run."""
        return "The resolved configuration, seeds, and digests of cohort, pairs and checkpoint are kept with the run."

    def power(self) -> str:
        """The smallest difference that could have been shown."""
        one = self.benchmark.primary
        if one is None or one.tests is None or one.tests.detectable != one.tests.detectable:
            return ""
        digits = metric_of(one.metric).digits
        return f"Detectable with 80% power: {one.tests.detectable:.{digits}f} ({metric_of(one.metric).title})."

    def measured(self, *names: str) -> str:
        """Values of the audit's measures: of the pairs, beside real scans."""
        found = []
        for name in names:
            for group in () if self.audit is None else self.audit.results.get(name, ()):
                found.append(f"{name.replace('_', ' ')}, {group.images.replace('_', ' ')}: {_value(group.interval)}")
        return "; ".join(found) + "." if found else ""

    def screened(self) -> str:
        """What the screening rejected."""
        one = self.screening
        return "" if one is None else f"Screening kept {one.passed} of {one.attempts} generated images."

    def privacy(self) -> str:
        """Membership inference."""
        found = self.measured("membership")
        return found and f"{found} Identifiers of DICOM headers are replaced at ingest."


def _value(interval: Interval) -> str:
    known = interval.low == interval.low
    text = format_interval(interval, 3) if known else f"{interval.mean:.3f}"
    return f"{text} (n = {interval.n})"
