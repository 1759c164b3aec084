"""Intensity quantiles of structures as attributes of scans, so that a model can be asked for a lesion's brightness.

`data.attributes=[p90/oedema/FLAIR]` is the 90th percentile of the FLAIR intensities in the oedema of a scan, in model
space (-1 to 1). It is measured on the scan itself and then treated like an attribute of the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medaug.cohort.schema import LabelSchema
from medaug.data.cases import ModelCase
from medaug.errors import UserError

_FORM = re.compile(r"p(\d+(?:\.\d+)?)/([^/]+?)(?:/([^/]+))?")


@dataclass(frozen=True)
class Quantile:
    """A quantile of the intensities in a structure.

    Attributes:
        name: the attribute's name, pPERCENT/STRUCTURE/MODALITY; with one modality, MODALITY may be left out.
        share: the quantile, 0..1.
        members: class indices of the structure.
        modality: index of the modality.
    """

    name: str
    share: float
    members: tuple[int, ...]
    modality: int

    def of(self, case: ModelCase) -> float | None:
        """The quantile of a scan in model space, -1..1; None if it has no label or no voxel of the structure."""
        if case.label is None:
            return None
        voxels = np.asarray(case.image)[self.modality][np.isin(case.label, self.members)]
        return float(np.quantile(voxels, self.share)) if voxels.size else None


def is_quantile(name: str) -> bool:
    """Whether the name of an attribute has the form of a quantile's."""
    return _FORM.fullmatch(name) is not None


def find_quantiles(names: Sequence[str], schema: LabelSchema, modalities: Sequence[str]) -> tuple[Quantile, ...]:
    """The quantiles among the names of attributes.

    Raises:
        UserError: the percentile is above 100, or the cohort lacks the structure or the modality.
    """
    found = []
    for name in names:
        if (match := _FORM.fullmatch(name)) is None:
            continue
        percent, structure, modality = match.groups()
        structures = schema.structures()
        if float(percent) > 100:
            raise UserError(f"data.attributes: {name}: {percent} is no percentile", "give 0 to 100")
        if structure not in structures:
            raise UserError(
                f"data.attributes: {name}: no structure {structure}", f"choose from {', '.join(structures)}"
            )
        if modality is None and len(modalities) > 1:
            raise UserError(
                f"data.attributes: {name}: does not say which modality", f"add one, as in {name}/{modalities[0]}"
            )
        if modality is not None and modality not in modalities:
            raise UserError(f"data.attributes: {name}: no modality {modality}", f"choose from {', '.join(modalities)}")
        index = 0 if modality is None else list(modalities).index(modality)
        found.append(Quantile(name, float(percent) / 100, tuple(structures[structure]), index))
    return tuple(found)


def with_quantiles(cases: Sequence[ModelCase], quantiles: Sequence[Quantile]) -> list[ModelCase]:
    """Scans with their quantiles as further attributes; a quantile that a scan does not have is left out."""
    if not quantiles:
        return list(cases)
    found = []
    for case in cases:
        values = {quantile.name: quantile.of(case) for quantile in quantiles}
        known = {name: value for name, value in values.items() if value is not None}
        found.append(replace(case, case=replace(case.case, attributes={**case.case.attributes, **known})))
    return found
