"""The gallery of a run: each pair beside the real scan that its grid and mask come from; and blinded reading sets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medaug.cohort.manifest import Case, Manifest
from medaug.errors import UserError
from medaug.files import write_json
from medaug.imaging.cases import read_indices, read_modalities
from medaug.progress import track
from medaug.synthesis.pairs import Pairs
from medaug.viewing import reading
from medaug.viewing.pages import Book, Item, Panel, write_pages
from medaug.viewing.reviews import ACCEPTED, FORMAT, REJECTED

READ = 20
"""Images of each kind in a reading set, unless the options say otherwise."""


@dataclass(frozen=True)
class Gallery:
    """Pairs and the cohort of their generator.

    Attributes:
        pairs: the pairs of a finished run.
        cohort: the cohort that has the hosts of the pairs.
    """

    pairs: Pairs
    cohort: Manifest

    def write(self, out: Path, num: int | None) -> int:
        """Write the gallery of the first `num` pairs, or of all; returns their number.

        Raises:
            UserError: as for `write_pages`.
        """
        manifest, real = self.pairs.manifest, {case.name: case for case in self.cohort.cases}
        cases = manifest.cases[:num]
        hosts = {record["name"]: real.get(record["host"]) for record in self.pairs.records}
        book = Book(
            title=manifest.name + (" (phantoms, not patients)" if manifest.phantom else ""),
            modalities=manifest.modalities,
            classes=manifest.schema.foreground,
            choices=(("a", ACCEPTED, "accept"), ("r", REJECTED, "reject")),
            saved=("reviews.json", {"format": FORMAT, "dataset": manifest.name}),
            entries="pairs",
            notes=True,
        )
        items = (self._item(case, hosts[case.name]) for case in track(cases, "writing pages"))
        write_pages(out, book, [case.name for case in cases], items)
        return len(cases)

    def _item(self, case: Case, host: Case | None) -> Item:
        panels = [_panel("synthetic", self.pairs.manifest, case, labelled=True)]
        if host is not None:
            panels.append(_panel("real host", self.cohort, host, labelled=True))
        return Item(case.name, panels)

    def write_reading_set(self, out: Path, num: int | None, seed: int) -> Path:
        """Write as many synthetic images as real ones of other hosts, in random order and without a mask.

        Args:
            out: the folder, which must not exist yet.
            num: images of each kind; None: `READ`, or as many as there are.
            seed: seed of the choice of images and of their order.

        Returns:
            The key, a file beside the folder that says which images are synthetic.

        Raises:
            UserError: there are too few images of either kind; as for `write_pages`.
        """
        chosen = self._choose(num, seed)
        names = [f"{number:03d}" for number in range(1, len(chosen) + 1)]
        truth = {name: {"synthetic": kind, "case": case.name} for name, (kind, case) in zip(names, chosen, strict=True)}
        key = reading.Key.of(truth)
        manifest = self.pairs.manifest
        book = Book(
            title="Real or synthetic?",
            modalities=manifest.modalities,
            classes=(),
            choices=(("r", reading.REAL, "real"), ("s", reading.SYNTHETIC, "synthetic")),
            saved=("answers.json", {"format": reading.ANSWERS, "set": key.digest}),
            entries="answers",
            notes=False,
        )
        path = out.with_name(f"{out.name}.key.json")
        if path.exists():
            raise UserError("exists already", "choose another folder with out=DIR", path=path)
        write_pages(out, book, names, self._unnamed(names, chosen))
        write_json(path, key.to_mapping())
        return path

    def _choose(self, num: int | None, seed: int) -> list[tuple[bool, Case]]:
        rng, manifest = random.Random(f"reading set {seed} of {self.pairs.digest}"), self.pairs.manifest
        synthetic, real = list(manifest.cases), list(self.cohort.cases)
        rng.shuffle(synthetic)
        rng.shuffle(real)
        number = min(len(synthetic), len(real), READ) if num is None else num
        if number > min(len(synthetic), len(real)):
            raise UserError(
                f"num={number}: there are {len(synthetic)} pairs and {len(real)} real scans",
                "lower num, or leave it out",
            )
        synthetic = synthetic[:number]
        names = {case.name for case in synthetic}
        hosts = {record["host"] for record in self.pairs.records if record["name"] in names}
        real.sort(key=lambda case: case.name in hosts)  # other hosts first: a scan beside its own pair gives it away
        chosen = [*((True, case) for case in synthetic), *((False, case) for case in real[:number])]
        rng.shuffle(chosen)
        return chosen

    def _unnamed(self, names: Sequence[str], chosen: Sequence[tuple[bool, Case]]) -> Iterator[Item]:
        for name, (synthetic, case) in zip(names, track(chosen, "writing pages"), strict=True):
            yield Item(name, [_panel("", self.pairs.manifest if synthetic else self.cohort, case, labelled=False)])


def _panel(title: str, manifest: Manifest, case: Case, labelled: bool) -> Panel:
    image = read_modalities(manifest, case)
    label = read_indices(manifest, case, image.grid) if labelled else None
    return Panel(title, list(image.array), image.affine, label)
