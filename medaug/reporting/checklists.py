"""The checklists that reviewers ask for, filled from the files of a run.

The items are named in our own short words; the sources have their full text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medaug.csv_files import write_csv
from medaug.reporting.facts import Facts

OPEN = "to be filled by the authors"
COLUMNS = ("checklist", "item", "topic", "answer")
Answer = Callable[[Facts], str]


@dataclass(frozen=True)
class Item:
    """An item of a checklist.

    Attributes:
        number: number in the source.
        topic: what it asks for.
        answers: functions that answer it from a run; none: only the authors can.
    """

    number: str
    topic: str
    answers: Sequence[Answer] = ()

    def answer(self, facts: Facts) -> str:
        """What the run says, or that the authors have to fill it in."""
        return " ".join(filter(None, (one(facts) for one in self.answers))) or OPEN


@dataclass(frozen=True)
class Checklist:
    """A checklist.

    Attributes:
        name: its name.
        source: where it was published.
        items: its items, in order.
    """

    name: str
    source: str
    items: Sequence[Item]


def _items(*rows: tuple[object, ...]) -> tuple[Item, ...]:
    return tuple(Item(str(number), str(topic), answers) for number, topic, *answers in rows)  # type: ignore[arg-type]


CLAIM = Checklist(
    "CLAIM 2024",
    "Tejani et al., Radiology: Artificial Intelligence 6(4), e240300, 2024",
    _items(
        (1, "title: kind of AI method", Facts.method),
        (2, "abstract with a structured summary"),
        (3, "background and intended use"),
        (4, "aims and hypotheses", Facts.question),
        (5, "prospective or retrospective"),
        (6, "goal of the study"),
        (7, "data sources", Facts.source),
        (8, "inclusion and exclusion"),
        (9, "preprocessing", Facts.preprocessing),
        (10, "choice of parts of the data"),
        (11, "de-identification"),
        (12, "missing data"),
        (13, "image acquisition"),
        (14, "definition of the reference standard"),
        (15, "reason for that standard"),
        (16, "who made the reference labels"),
        (17, "how the test set was labelled"),
        (18, "variation between and within raters"),
        (19, "assignment to partitions", Facts.partitions),
        (20, "level at which partitions are disjoint", Facts.partitions),
        (21, "intended sample size", Facts.power),
        (22, "model", Facts.network),
        (23, "software", Facts.software),
        (24, "initial weights"),
        (25, "training", Facts.training),
        (26, "choice of the final model", Facts.selection),
        (27, "ensembles", Facts.ensembling),
        (28, "performance metrics", Facts.metrics),
        (29, "significance and uncertainty", Facts.statistics),
        (30, "robustness and sensitivity"),
        (31, "explainability"),
        (32, "evaluation on internal data", Facts.internal),
        (33, "testing on external data", Facts.external),
        (34, "registration of a clinical trial"),
        (35, "numbers of included and excluded subjects", Facts.numbers),
        (36, "characteristics of each partition"),
        (37, "performance with uncertainty", Facts.performance),
        (38, "estimates and their precision", Facts.internal),
        (39, "failures", Facts.failures),
        (40, "limitations", Facts.limits),
        (41, "implications for practice"),
        (42, "study protocol"),
        (43, "availability of software, model and data", Facts.reproduction),
        (44, "funding"),
    ),
)
TRIPOD = Checklist(
    "TRIPOD+AI",
    "Collins et al., BMJ 385, e078378, 2024",
    _items(
        (1, "title"),
        (2, "abstract"),
        ("3a", "healthcare context"),
        ("3b", "target population and users"),
        ("3c", "known health inequalities"),
        (4, "objectives", Facts.question),
        ("5a", "data sources", Facts.source),
        ("5b", "dates"),
        ("6a", "setting and centres"),
        ("6b", "eligibility"),
        ("6c", "treatments"),
        (7, "data preparation", Facts.preprocessing),
        ("8a", "outcome"),
        ("8b", "who assessed the outcome"),
        ("8c", "blinding of that assessment"),
        ("9a", "choice of predictors"),
        ("9b", "definition of predictors", Facts.preprocessing),
        ("9c", "who assessed predictors"),
        (10, "sample size", Facts.numbers, Facts.power),
        (11, "missing data"),
        ("12a", "use of the data", Facts.partitions),
        ("12b", "handling of predictors", Facts.preprocessing),
        ("12c", "model and how it was built", Facts.network, Facts.training),
        ("12d", "differences between clusters", Facts.groups),
        ("12e", "performance measures", Facts.metrics, Facts.statistics),
        ("12f", "updating of the model"),
        ("12g", "how predictions were made", Facts.ensembling),
        (13, "class imbalance"),
        (14, "fairness", Facts.groups),
        (15, "output of the model"),
        (16, "differences between training and evaluation data"),
        (17, "ethical approval"),
        ("18a", "funding"),
        ("18b", "conflicts of interest"),
        ("18c", "protocol"),
        ("18d", "registration"),
        ("18e", "sharing of data"),
        ("18f", "sharing of code", Facts.software, Facts.reproduction),
        (19, "involvement of patients and public"),
        ("20a", "flow of participants", Facts.numbers),
        ("20b", "characteristics"),
        ("20c", "development data compared with evaluation data"),
        (21, "numbers in each analysis", Facts.numbers),
        (22, "the full model", Facts.reproduction),
        ("23a", "performance with intervals", Facts.performance, Facts.calibration),
        ("23b", "differences in performance between clusters", Facts.groups, Facts.external),
        (24, "results of updating"),
        (25, "interpretation"),
        (26, "limitations", Facts.limits),
        ("27a", "poor or missing input in use"),
        ("27b", "expertise needed in use"),
        ("27c", "next steps"),
    ),
)
SCORECARD = Checklist(
    "Synthetic medical data scorecard",
    "Zamzmi et al., Communications Engineering 4, 130, 2025",
    _items(
        (
            "Congruence",
            "likeness to the distribution of real data",
            lambda f: f.measured("frechet_radiomics", "frechet_distance", "density", "sharpness"),
        ),
        ("Coverage", "variety of real data that is covered", lambda f: f.measured("coverage", "mask_volumes")),
        (
            "Constraint",
            "agreement with anatomy and with the mask",
            lambda f: f.measured("faithfulness", "mask_shapes", "mask_positions"),
            Facts.screened,
        ),
        ("Completeness", "all needed details are there", Facts.numbers),
        ("Compliance", "privacy, rules and formats", Facts.privacy),
        ("Comprehension", "how the data were made can be understood", Facts.reproduction),
        ("Consistency", "results hold over sites, subgroups and repeats", Facts.groups, Facts.external),
    ),
)
CHECKLISTS = (CLAIM, TRIPOD, SCORECARD)


def filled(facts: Facts) -> list[tuple[Checklist, list[tuple[str, str, str]]]]:
    """Every checklist with its rows (item, topic, answer)."""
    return [(one, [(item.number, item.topic, item.answer(facts)) for item in one.items]) for one in CHECKLISTS]


def save_checklists(path: Path, facts: Facts) -> None:
    """Write all checklists to a CSV file.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    write_csv(path, COLUMNS, [(one.name, *row) for one, rows in filled(facts) for row in rows])
