"""Export in the layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medaug.cohort.manifest import Case
from medaug.exporting.request import Export, training_part
from medaug.imaging.nifti import save_array


def write_msd(export: Export) -> None:
    """Write one image file per case (4-D if there are several modalities) and dataset.json, as in the MSD.

    Test cases are written to `imagesTs` and listed under "test" without their labels, as in the MSD. A remapped label
    value is written as the value that it was remapped to.

    Raises:
        UserError: as for `Export.fill`, `Export.images` and `Export.indices`.
    """
    manifest = export.manifest
    schema = replace(manifest.schema, remap=())

    def write_case(case: Case, folder: Path) -> None:
        part = training_part(case)
        images, first = export.images(case)
        target = folder / f"images{part}" / f"{case.name}.nii.gz"
        if len(images) == 1:
            export.write(case, target, images[0], first.affine)
        else:
            save_array(target, np.stack(images, axis=-1), first.affine, export.note(case))
            export.mark(case, target)
        if part == "Tr":
            label = schema.to_values(export.indices(case, first))
            export.write(case, folder / "labelsTr" / f"{case.name}.nii.gz", label, first.affine)

    def files(cases: list[Case]) -> dict[str, Any]:
        listed = {part: [c for c in cases if training_part(c) == part] for part in ("Tr", "Ts")}
        dataset = {
            "name": manifest.name,
            "description": manifest.description,
            **({"phantom": True} if manifest.phantom else {}),
            "tensorImageSize": "3D" if len(manifest.modalities) == 1 else "4D",
            "modality": {str(i): name for i, name in enumerate(manifest.modalities)},
            **schema.to_mapping(),
            "numTraining": len(listed["Tr"]),
            "numTest": len(listed["Ts"]),
            "training": [
                {
                    "image": f"./imagesTr/{c.name}.nii.gz",
                    "label": f"./labelsTr/{c.name}.nii.gz",
                    "subject": c.subject,
                    "split": c.split,
                    **({"attributes": dict(c.attributes)} if c.attributes else {}),
                }
                for c in listed["Tr"]
            ],
            "test": [f"./imagesTs/{c.name}.nii.gz" for c in listed["Ts"]],
        }
        return {"dataset.json": dataset}

    export.fill(write_case, files)
