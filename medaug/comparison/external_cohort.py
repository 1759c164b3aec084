"""External test cohort: scans from elsewhere that the trained segmenters are scored on as well.

Its scores are kept apart from those of the experiment's own test subjects. Nothing is chosen by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medaug.cohort.manifest import Manifest
from medaug.cohort.seen import Contents, Seen, image_owners
from medaug.comparison.external import refuse_other_kind
from medaug.comparison.guard import named
from medaug.data.contents import case_contents, cohort_digest
from medaug.errors import UserError
from medaug.synthesis.pairs import Pairs


@dataclass(frozen=True)
class ExternalCohort:
    """The test scans of another cohort.

    Attributes:
        manifest: the cohort, with its labelled test scans only.
        contents: SHA-256 of their files.
    """

    manifest: Manifest
    contents: Contents

    @property
    def digest(self) -> str:
        """Digest of subjects, schema and files."""
        return cohort_digest(self.manifest, self.contents)

    def is_unchanged(self, cache: Path) -> bool:
        """Whether the files are still those that were read."""
        return case_contents(self.manifest, self.manifest.cases, cache) == self.contents


def read_external_cohort(path: Path, cohort: Manifest, cache: Path) -> ExternalCohort:
    """Read the labelled test scans of a manifest.

    Args:
        path: manifest of the external cohort.
        cohort: the experiment's own cohort, whose modalities and classes it must have.
        cache: folder in which digests of files are stored.

    Raises:
        UserError: a file is missing or damaged, no labelled scan has the split test, or modalities or classes differ.
    """
    manifest = Manifest.load(path)
    refuse_other_kind(cohort, manifest)
    cases = tuple(case for case in manifest.split("test") if case.label is not None)
    if not cases:
        raise UserError("no labelled scan has the split test", 'give the scans to score "split": "test"', path=path)
    manifest = replace(manifest, cases=cases)
    return ExternalCohort(manifest, case_contents(manifest, cases, cache))


def refuse_known_subjects(
    cohort: Manifest, contents: Contents, seen: Seen, pairs: Pairs | None, external: ExternalCohort
) -> None:
    """The leak guard of an external test cohort.

    Args:
        cohort: the experiment's own cohort.
        contents: digests of the contents of all its cases.
        seen: what the generator of the pairs saw.
        pairs: the pairs that segmenters may be trained on.
        external: the external test cohort.

    Raises:
        UserError: an external subject is in the experiment's cohort, was seen by the generator, or is named by a pair;
            or an image file of the external cohort is one of the experiment's, of its pairs, or was seen by the
            generator under another name.
    """
    name, subjects = external.manifest.name, {case.subject for case in external.manifest.cases}
    known = {"the experiment's own cohort": {case.subject for case in cohort.cases}}
    known["what the generator saw"] = {one for split in seen.subjects for one in seen.in_split(split)}
    records = () if pairs is None else pairs.records
    known["the subjects of the pairs"] = {str(subject) for record in records for subject in record["subjects"]}
    for where, found in known.items():
        if shared := subjects & found:
            raise UserError(
                f"leak: subject(s) {named(shared)} of {name} are also among {where}",
                "leave them out; if they are other people, give them other names",
            )
    owners = image_owners(cohort.cases, contents)
    used = seen.contents.union(*map(_digests, records))
    for case in external.manifest.cases:
        for digest in external.contents[case.name][: len(case.images)]:
            if (other := owners.get(digest)) is not None or digest in used:
                where = f"the scan of {other.name} ({other.split})" if other else "a pair, or was seen by its generator"
                raise UserError(f"leak: {case.name} of {name} is {where}", "leave it out")


def _digests(record: Mapping[str, Any]) -> Iterator[str]:
    """The digests of a pair's files, as its record has them: by file, or as a list for external pairs."""
    contents = record.get("contents") or ()
    yield from contents.values() if isinstance(contents, Mapping) else contents
