"""Applies a trained model to scans (`medaug.predict`) and writes volumes, scores and a picture."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medaug.cohort import provenance
from medaug.cohort.seen import Contents
from medaug.data.contents import case_contents, cohort_digest
from medaug.evaluation.scores import check_scoring
from medaug.imaging.nifti import write_volume
from medaug.options import Options
from medaug.pictures.figures import save_figure
from medaug.prediction.picture import predictions_picture
from medaug.prediction.predictor import Predictor, file_part
from medaug.prediction.request import check_request
from medaug.prediction.results import RECORD, Predictions
from medaug.prediction.scans import Scan, read_scan
from medaug.processes import choose_device
from medaug.progress import track
from medaug.training.checkpoint import load_experiment

log = logging.getLogger(__name__)

PICTURED = 4


@dataclass(frozen=True)
class Job:
    """A trained model and the scans that it is applied to.

    Attributes:
        predictor: the model and the request.
        checkpoint: SHA-256 of the model's checkpoint.
        contents: digests of the scans' files.
    """

    predictor: Predictor
    checkpoint: str
    contents: Contents

    @classmethod
    def load(cls, checkpoint: Path, options: Options, cache: Path) -> Job:
        """Load the model and check the request. Writes only to the cache.

        Args:
            checkpoint: the model's checkpoint; the `manifest.json` of its training lies beside it.
            options: options of the stage; `predict`, `sampler` and `scoring` are read.
            cache: folder in which digests of files are stored.

        Raises:
            UserError: the model cannot do what the options ask for.
        """
        digest, card, model = load_experiment(checkpoint, options.experiment, choose_device())
        request = check_request(card, model, checkpoint.parent / "manifest.json", options.predict, options.sampler)
        check_scoring(options.scoring, card.schema)
        contents = case_contents(request.manifest, request.cases, cache)
        return cls(Predictor(card, model, request, options.predict, options.scoring), digest, contents)

    @property
    def identity(self) -> dict[str, Any]:
        """Digests of the checkpoint and of the scans that the predictions depend on."""
        manifest = self.predictor.request.manifest
        scans = hashlib.sha256(json.dumps(manifest.to_mapping(), sort_keys=True).encode()).hexdigest()
        return {"checkpoint": self.checkpoint, "scans": scans, "contents": cohort_digest(manifest, self.contents)}

    def run(self, folder: Path, title: str) -> Predictions:
        """Predict every scan that is not yet recorded in `folder`, and draw the contact sheet.

        Args:
            folder: folder of the run.
            title: title of the contact sheet.
        """
        predictor = self.predictor
        card, cases = predictor.card, predictor.request.cases
        seen = {case.subject for case in cases} & card.seen.in_split("train")
        seen |= {case.subject for case in card.seen.scans(cases, self.contents)}
        if seen:
            log.warning(
                "the model was trained on %d of these subjects; their scores do not show how well it does on new ones",
                len(seen),
            )
        made = {record["index"] for record in Predictions.load(folder).records}
        for index in track([i for i in range(len(cases)) if i not in made], "predicting"):
            self._predict(index, folder)
        predictions = Predictions.load(folder)
        shown = [(self._scan(r["index"]), folder, r["files"]) for r in predictions.records[:PICTURED]]
        title += ": phantoms, not patients" if card.phantom else ""
        sheet = predictions_picture(shown, card, predictor.model.task, predictor.request, title)
        save_figure(sheet, folder / "contact_sheet.png")
        return predictions

    def _scan(self, index: int) -> Scan:
        predictor = self.predictor
        request = predictor.request
        with_label = predictor.model.task.mask or bool(request.inpainted)
        case = request.cases[index]
        return read_scan(request.manifest, case, predictor.card, request.inputs, with_label, predictor.refine)

    def _predict(self, index: int, folder: Path) -> None:
        """Write the volumes of one scan, then its record."""
        scan, predictor = self._scan(index), self.predictor
        predictor.model.attributes.warn_of_unknown([(scan.case, scan.affine)])
        prediction = predictor.predict(scan)
        files = {kind: f"{file_part(scan.case.name)}_{kind}.nii.gz" for kind in prediction.volumes}
        description = "medaug predicted" + (" phantom" if predictor.card.phantom else "")
        for kind, volume in prediction.volumes.items():
            write_volume(folder / files[kind], volume, scan.affine, description)
        provenance.append(
            folder / RECORD,
            {
                "index": index,
                "attempt": 0,
                "name": scan.case.name,
                "subjects": [scan.case.subject],
                "checkpoint": self.checkpoint,
                "files": files,
                "scores": prediction.scores,
            },
        )
