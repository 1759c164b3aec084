"""`Seen`: which subjects and files a model was trained on. Every check for leaks uses it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from medaug.cohort.manifest import Case, Manifest
from medaug.errors import UserError

Contents = Mapping[str, Sequence[str]]
"""Maps the name of a case to the SHA-256 of each of its files: its images, then its label if it has one."""


@dataclass(frozen=True)
class Seen:
    """What a model saw in its training, and in earlier trainings whose weights it started from.

    Attributes:
        subjects: the subjects whose scans were used, by split: "train" to fit the weights, "val" to select a model.
        contents: SHA-256 of every file that was read; empty for checkpoints that did not record it.
    """

    subjects: Mapping[str, Sequence[str]]
    contents: frozenset[str] = frozenset()

    def __or__(self, other: Seen) -> Seen:
        """Return the union of what the two saw."""
        splits = sorted({*self.subjects, *other.subjects})
        both = {s: sorted({*self.subjects.get(s, ()), *other.subjects.get(s, ())}) for s in splits}
        return Seen(both, self.contents | other.contents)

    def in_split(self, split: str) -> frozenset[str]:
        """Return the subjects that were seen as members of a split."""
        return frozenset(self.subjects.get(split, ()))

    def test_subjects(self, cohort: Manifest) -> list[str]:
        """Return the test subjects of a cohort that were seen in any split, sorted."""
        return sorted(cohort.subjects("test") & self._everyone())

    def trained_outside(self, subjects: Collection[str]) -> list[str]:
        """Return the training subjects that are not among `subjects`, sorted."""
        return sorted(self.in_split("train").difference(subjects))

    def scans(self, cases: Iterable[Case], contents: Contents) -> list[Case]:
        """Return the cases of which an image file was read, under any name."""
        return [case for digest, case in image_owners(cases, contents).items() if digest in self.contents]

    def refuse_test_scans(self, who: str, cohort: Manifest, contents: Contents) -> None:
        """Refuse a model that read an image file of a test scan.

        Args:
            who: what to call the model in the message.
            cohort: real scans with splits.
            contents: digests of its test cases.

        Raises:
            UserError: the model saw a test scan; the error names the case.
        """
        for case in self.scans(cohort.split("test"), contents):
            raise UserError(f"leak: {who} saw the test scan {case.name} under another name", "train it again")

    def _everyone(self) -> frozenset[str]:
        return frozenset(name for names in self.subjects.values() for name in names)


def image_owners(cases: Iterable[Case], contents: Contents) -> dict[str, Case]:
    """Map the digest of each image file to its case; cases without contents are left out."""
    return {digest: case for case in cases for digest in contents.get(case.name, [])[: len(case.images)]}
