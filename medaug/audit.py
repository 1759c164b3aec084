"""Stage: measure how well the images match their masks.

python -m medaug.audit experiment=hippocampus [guidance_scales=[0,1,3]]
python -m medaug.audit experiment=cohort cohort=REAL.json pairs=SYNTHETIC.json
"""

from __future__ import annotations

import logging

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.paths import stage_folder
from medaug.runs import KEEP_SETS, claim, command, finish, how_made, trained_checkpoint

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Train the judge, compute all measures of the pairs, and write faithfulness.json, tables and a picture."""
    from rich.console import Console

    from medaug.auditing.audit import audit, check_pairs, log_audit
    from medaug.auditing.results import Audit
    from medaug.comparison.inputs import audit_inputs
    from medaug.reporting.console import print_audit

    folder = stage_folder(options, "audit")
    checkpoint = None if options.audit.cohort is not None else trained_checkpoint(options)
    inputs = audit_inputs(options, checkpoint, folder.parent, command("generate", options))
    num = check_pairs(inputs)
    identity = part(options, "audit", "segmenter") | inputs.identity
    identity |= how_made(folder)
    if not claim(folder, identity, options.overwrite, recorded=("cohort",), keep=KEEP_SETS):
        print_audit(Audit.load(folder), Console())
        return
    result = audit(inputs, options, folder)
    pictures = [path for path in [folder / "guidance.png"] if path.exists()]
    files = [*result.save(folder), *pictures, folder / "judge.pt"]
    finish(folder, {"pairs": num}, files)
    print_audit(result, Console())
    log_audit(result, folder / "faithfulness.json")
    log.info("the audit is in %s; next: %s", folder, command("benchmark", options))


if __name__ == "__main__":
    launch("audit", main)
