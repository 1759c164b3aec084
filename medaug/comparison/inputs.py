"""The inputs of audit and benchmark: a cohort, synthetic pairs and what made them, checked for leaks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.seen import Seen
from medaug.comparison.arms import ARMS
from medaug.comparison.external import External, read_external, refuse_external_leaks
from medaug.comparison.external_cohort import ExternalCohort, read_external_cohort, refuse_known_subjects
from medaug.comparison.folds import fold_cohort
from medaug.comparison.guard import guarded_cohort, refuse_leaks
from medaug.data.cases import ModelCase, load_cases, read_grids
from medaug.data.cohorts import find_cohort
from medaug.data.contents import case_contents, cohort_digest, refuse_shared
from medaug.data.preprocessing import fit_preprocessing
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.options import AuditOptions, BenchmarkOptions, Options
from medaug.ownership import finished
from medaug.paths import stage_folder
from medaug.synthesis.pairs import Pairs
from medaug.training.checkpoint import Card, read_checkpoint, refuse_changed_scans

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """A cohort, with the synthetic pairs that segmenters may be trained on.

    Attributes:
        checkpoint: checkpoint of the experiment's generator; None: nothing was trained.
        digest: SHA-256 of the checkpoint.
        card: card of the checkpoint; of a cohort for which nothing was trained, its preprocessing.
        pairs: the pairs; None: there are none, and none are needed.
        cohort: real scans with splits.
        content: digest of the cohort's splits, schema and files.
        cache: folder of cases in model space.
        external: the pairs and their declaration, if the experiment's generator did not make them.
        elsewhere: test scans of an external cohort; None: there are none.
        folds: the inputs of each fold of a cross-validation, with its own splits and pairs; empty: there are none.
    """

    checkpoint: Path | None
    digest: str | None
    card: Card
    pairs: Pairs | None
    cohort: Manifest
    content: str
    cache: Path
    external: External | None = None
    elsewhere: ExternalCohort | None = None
    folds: Mapping[int, Inputs] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What a result depends on, apart from options, and what was declared about the pairs."""
        made: dict[str, Any] = {} if self.pairs is None else {"pairs": self.pairs.digest}
        if self.external is not None:
            made["declared"] = self.external.declared
        if any(one.external is not None for one in self.folds.values()):
            found = [one.identity for one in self.folds.values()]
            made = {key: [one[key] for one in found] for key in ("pairs", "declared")}
        space = {"preprocessing": self.card.preprocessing.to_dict()} if self.digest is None else {}
        made |= {} if self.elsewhere is None else {"test": self.elsewhere.digest}
        return ({} if self.digest is None else {"checkpoint": self.digest}) | made | space | {"cohort": self.content}

    @property
    def seen(self) -> Seen:
        """What the generator of the pairs saw, as far as it is known."""
        if self.external is None:
            return self.card.seen
        return self.external.seen or Seen({})

    def save_splits(self, folder: Path) -> None:
        """Write the manifests that no training has written: of a cohort that was not trained on, and of each fold.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        if self.checkpoint is None:
            self.cohort.save(folder / "manifest.json")
        for fold, one in self.folds.items():
            one.cohort.save(folder / "folds" / f"fold_{fold}.json")

    def labelled(self, split: str) -> list[Case]:
        """The cases of a split that have a label."""
        return [case for case in self.cohort.split(split) if case.label is not None]

    def load_real(self, split: str) -> list[ModelCase]:
        """The labelled cases of a split in model space."""
        return load_cases(self.cohort, self.labelled(split), self.card.preprocessing, self.cache)

    def load_elsewhere(self) -> list[ModelCase]:
        """The test scans of the external cohort in model space; empty if there is none."""
        if self.elsewhere is None:
            return []
        manifest = self.elsewhere.manifest
        return load_cases(manifest, manifest.cases, self.card.preprocessing, self.cache)

    def load_synthetic(self) -> list[ModelCase]:
        """All pairs in model space."""
        if self.pairs is None:
            return []
        return load_cases(self.pairs.manifest, self.pairs.manifest.cases, self.card.preprocessing, self.cache)


def read_inputs(checkpoint: Path, train: Path, synthetic: Path, command: str) -> Inputs:
    """Read generator, pairs and cohort, and refuse leaks (`medaug.comparison.guard`).

    Args:
        checkpoint: checkpoint of the generator.
        train: folder of the generator's training; the cache is beside it.
        synthetic: folder of the pairs.
        command: the command that makes the pairs; messages name it.

    Raises:
        UserError: the pairs are missing, unfinished or made by another checkpoint, a file is damaged, or there is a
            leak.
    """
    digest = file_sha256(checkpoint)
    pairs = Pairs.load(synthetic, command)
    card, _ = read_checkpoint(checkpoint)
    cohort, content = guarded_cohort(train, pairs, card, digest)
    return Inputs(checkpoint, digest, card, pairs, cohort, content, train.parent / "cache")


def read_trained(checkpoint: Path, train: Path) -> Inputs:
    """Read the cohort of a training, without pairs.

    Args:
        checkpoint: checkpoint of the training.
        train: its folder; the cache is beside it.

    Raises:
        UserError: a file is damaged, or scans changed since the training.
    """
    card, _ = read_checkpoint(checkpoint)
    cohort, cache = Manifest.load(train / "manifest.json"), train.parent / "cache"
    contents = case_contents(cohort, cohort.cases, cache)
    refuse_shared(cohort, contents)
    refuse_changed_scans(card, contents)
    digest = file_sha256(checkpoint)
    return Inputs(checkpoint, digest, card, None, cohort, cohort_digest(cohort, contents), cache)


def read_untrained(options: Options, manifest: str | None, run: Path) -> Inputs:
    """Read a cohort for which nothing was trained, without pairs, and fit the model space on its training scans.

    Args:
        options: `data` says how scans are preprocessed.
        manifest: path of the cohort's manifest.
        run: folder of the experiment.

    Raises:
        UserError: a file is missing or damaged, or the training split is empty.
    """
    data = replace(options.data, manifest=manifest)
    cohort, cache = find_cohort(data, run / "phantom"), run / "cache"
    train = cohort.split("train")
    if not train:
        raise UserError("the training split is empty", "give scans the split train", path=data.manifest)
    preprocessing = fit_preprocessing(read_grids(cohort, train, data.crop), data, multiple=(1, 1, 1))
    contents = case_contents(cohort, cohort.cases, cache)
    refuse_shared(cohort, contents)
    settings = {"data": asdict(data)}
    card = Card(options.experiment, settings, preprocessing, cohort.schema, cohort.modalities, {}, cohort.phantom)
    return Inputs(None, None, card, None, cohort, cohort_digest(cohort, contents), cache)


def benchmark_inputs(options: Options, checkpoint: Path | None, run: Path, command: str) -> Inputs:
    """Read what a benchmark needs: the cohort, pairs if an arm trains on them, and an external test cohort.

    Args:
        options, checkpoint, run, command: as for `cohort_and_pairs`.

    Raises:
        UserError: as for `cohort_and_pairs`, `read_external_cohort` and `refuse_known_subjects`; or an external test
            cohort cannot be scored with these options.
    """
    inputs, path = cohort_and_pairs(options, checkpoint, run, command), options.benchmark.test
    if path is None:
        return inputs
    if inputs.folds or options.benchmark.evaluate == "val":
        other = "folds" if inputs.folds else "evaluate=val"
        raise UserError(f"benchmark.test cannot be scored with benchmark.{other}", "leave one of them out")
    elsewhere = read_external_cohort(Path(path), inputs.cohort, inputs.cache)
    contents = case_contents(inputs.cohort, inputs.cohort.cases, inputs.cache)
    refuse_known_subjects(inputs.cohort, contents, inputs.seen, inputs.pairs, elsewhere)
    return replace(inputs, elsewhere=elsewhere)


def cohort_and_pairs(options: Options, checkpoint: Path | None, run: Path, command: str) -> Inputs:
    """Read the cohort of a benchmark, and pairs if an arm trains on them.

    The experiment's own pairs are read if they are finished, even if no arm needs them.

    Args:
        options: options of the stage.
        checkpoint: checkpoint of the experiment's generator; None: `benchmark.cohort` names a cohort.
        run: folder of the experiment.
        command: the command that makes the experiment's own pairs, for messages.

    Raises:
        UserError: as for `read_inputs`, `read_trained`, `read_untrained` and `read_external`; arms need pairs that do
            not exist; or there is a leak.
    """
    settings, wanted = options.benchmark, [name for name in options.arms.names if ARMS[name].synthetic]
    own, made = settings.pairs is None and checkpoint is not None, run / stage_folder(options, "generate").name
    if checkpoint is not None and own and (wanted or finished(made) is not None):
        return _with_folds(read_inputs(checkpoint, run / "train", made, command), options, bool(wanted))
    inputs = (
        read_untrained(options, settings.cohort, run) if checkpoint is None else read_trained(checkpoint, run / "train")
    )
    if settings.pairs is None:
        if wanted:
            raise UserError(f"arm {wanted[0]} trains on synthetic pairs", "give pairs=MANIFEST, or leave the arm out")
        return _with_folds(inputs, options, False)
    if not wanted:
        raise UserError("benchmark.pairs: no arm trains on them", "add an arm such as real+classical+synthetic")
    if settings.folds is not None:
        return _with_folds(inputs, options, True)
    return _with_external(inputs, settings)


def _with_folds(inputs: Inputs, options: Options, wanted: bool) -> Inputs:
    """The same with the inputs of each fold; without folds, unchanged.

    Args:
        inputs: of the whole cohort.
        options: options of the stage.
        wanted: whether an arm trains on pairs.

    Raises:
        UserError: what made the pairs saw a subject that a fold scores.
    """
    settings = options.benchmark
    if settings.folds is None:
        return inputs
    seed, found = int(inputs.card.options["data"].get("split_seed", 0)), {}
    for fold in range(settings.folds):
        one = replace(inputs, cohort=fold_cohort(inputs.cohort, settings.folds, fold, seed))
        if wanted and settings.pairs is not None:
            one = _with_external(one, settings, fold)
        elif wanted and one.pairs is not None and one.digest is not None:
            refuse_leaks(one.cohort, one.pairs.manifest, one.pairs.records, one.card.seen, one.digest)
        found[fold] = one
    return replace(inputs, folds=found)


def audit_inputs(options: Options, checkpoint: Path | None, run: Path, command: str) -> Inputs:
    """Read what an audit needs: the cohort, and the pairs.

    Args:
        options: options of the stage.
        checkpoint: checkpoint of the experiment's generator; None: `audit.cohort` names a cohort.
        run: folder of the experiment.
        command: the command that makes the experiment's own pairs, for messages.

    Raises:
        UserError: as for `read_inputs`, `read_trained`, `read_untrained` and `read_external`; or there is a leak.
    """
    settings = options.audit
    if checkpoint is not None and settings.pairs is None:
        return read_inputs(checkpoint, run / "train", run / stage_folder(options, "generate").name, command)
    if checkpoint is None:
        return _with_external(read_untrained(options, settings.cohort, run), settings)
    return _with_external(read_trained(checkpoint, run / "train"), settings)


def _with_external(inputs: Inputs, settings: BenchmarkOptions | AuditOptions, fold: int | None = None) -> Inputs:
    """The same with the external pairs that the options name, checked for leaks.

    Raises:
        UserError: as for `read_external` and `refuse_external_leaks`.
    """
    number = "" if fold is None else str(fold)
    path, seen = (
        None if p is None else Path(p.replace("{fold}", number)) for p in (settings.pairs, settings.pairs_seen)
    )
    assert path is not None
    external = read_external(path, seen, inputs.cache)
    refuse_external_leaks(inputs.cohort, case_contents(inputs.cohort, inputs.cohort.cases, inputs.cache), external)
    if external.seen is None:
        log.warning("%s: it is not declared what its generator saw, so a leak cannot be excluded", path)
    return replace(inputs, pairs=external.pairs, external=external)
