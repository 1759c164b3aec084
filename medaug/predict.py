"""Stage: apply a trained model to real scans.

python -m medaug.predict experiment=brats split=test [num_samples=8]
python -m medaug.predict experiment=brats manifest=new_scans.json
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.processes import choose_device
from medaug.runs import claim, finish, stage_folder, trained_checkpoint

if TYPE_CHECKING:
    from medaug.prediction.scans import Scan

log = logging.getLogger(__name__)

COLUMNS = ("case", "subject", "structure", "metric", "value")
PICTURED = 4


def main(options: Options) -> None:
    """Write what the model draws of each scan, how it compares with the truth where there is one, and a picture."""
    from medaug.data.contents import case_contents, cohort_digest
    from medaug.prediction.request import check_request
    from medaug.training.checkpoint import load_experiment

    settings = options.predict
    device = choose_device()
    digest, card, model = load_experiment(trained_checkpoint(options), options.experiment, device)
    request = check_request(card, model, stage_folder(options, "train") / "manifest.json", settings, options.sampler)
    name = settings.name or (Path(settings.manifest).stem if settings.manifest else settings.split or "val")
    folder = stage_folder(options, "predict") / name
    scans = hashlib.sha256(json.dumps(request.manifest.to_mapping(), sort_keys=True).encode()).hexdigest()
    contents = case_contents(request.manifest, request.cases, stage_folder(options, "train").parent / "cache")
    identity = part(options, "predict", "sampler")
    identity |= {"checkpoint": digest, "scans": scans, "contents": cohort_digest(request.manifest, contents)}
    if not claim(folder, identity, options.overwrite, recorded=("contents",), keep="name=NAME keeps both"):
        return
    seen = {case.subject for case in request.cases} & card.seen.in_split("train")
    seen |= {case.subject for case in card.seen.scans(request.cases, contents)}
    if seen:
        log.warning("the model was trained on %d of these subjects; their scores say nothing of others", len(seen))

    from medaug.cohort import provenance
    from medaug.imaging.nifti import write_volume
    from medaug.pictures.figures import save_figure
    from medaug.prediction.drawing import Draughtsman, file_part
    from medaug.prediction.picture import predictions_picture
    from medaug.prediction.scans import read_scan
    from medaug.progress import track

    draughtsman = Draughtsman(card, model, request, settings, options.sampler)
    with_label = model.task.mask or bool(request.redrawn)

    def scan_of(index: int) -> Scan:
        return read_scan(request.manifest, request.cases[index], card, request.told, with_label, draughtsman.refine)

    record = folder / "provenance.jsonl"
    made = {index for index, _ in provenance.read(record, provenance.PREDICTION)}
    for index in track([i for i in range(len(request.cases)) if i not in made], "predicting"):
        scan = scan_of(index)
        model.attributes.warn_of_unknown([(scan.case, scan.affine)])
        drawn = draughtsman.draw(scan)
        files = {kind: f"{file_part(scan.case.name)}_{kind}.nii.gz" for kind in drawn.volumes}
        description = "medaug predicted" + (" phantom" if card.phantom else "")
        for kind, volume in drawn.volumes.items():
            write_volume(folder / files[kind], volume, scan.affine, description)
        provenance.append(
            record,
            {
                "index": index,
                "attempt": 0,
                "name": scan.case.name,
                "subjects": [scan.case.subject],
                "checkpoint": digest,
                "files": files,
                "scores": drawn.scores,
            },
        )
    records = sorted(provenance.read(record, provenance.PREDICTION).values(), key=lambda one: one["index"])
    scored = _write_scores(records, folder, settings.seed)
    shown = [(scan_of(i), folder, records[i]["files"]) for i in range(min(PICTURED, len(records)))]
    title = f"{options.experiment}, {name}" + (": phantoms, not patients" if card.phantom else "")
    save_figure(predictions_picture(shown, card, model.task, request, title), folder / "contact_sheet.png")
    finish(folder, {"scans": len(records), "checkpoint": digest})
    log.info("%d scans are in %s%s", len(records), folder, "" if scored else "; there is no truth to compare them with")


def _write_scores(records: list[dict[str, Any]], folder: Path, seed: int) -> bool:
    """metrics.csv, and metrics.json with means and intervals over subjects; returns whether there is any score."""
    import numpy as np

    from medaug.csv_files import write_csv
    from medaug.evaluation.statistics import bootstrap_mean
    from medaug.files import write_json

    rows = [(r["name"], r["subjects"][0], *score) for r in records for score in r["scores"]]
    defined = [row for row in rows if row[4] is not None]
    if not defined:
        return False
    write_csv(folder / "metrics.csv", COLUMNS, [(*row[:4], "" if row[4] is None else row[4]) for row in rows])
    summary = []
    for structure, metric in dict.fromkeys((row[2], row[3]) for row in defined):
        chosen = [row for row in defined if row[2:4] == (structure, metric)]
        interval = bootstrap_mean(np.array([row[4] for row in chosen]), [row[1] for row in chosen], seed)
        low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
        about = {"structure": structure, "metric": metric, "mean": interval.mean, "low": low, "high": high}
        summary.append(about | {"n": interval.n, "subjects": interval.clusters})
        log.info(
            "%s, %s: %.3f on %d scans of %d subjects",
            structure,
            metric,
            *(about["mean"], interval.n, interval.clusters),
        )
    write_json(folder / "metrics.json", summary)
    return True


if __name__ == "__main__":
    launch("predict", main)
