"""Stage: measure how well the images match their masks.

python -m medaug.audit experiment=hippocampus [guidance_scales=[0,1,3]]
"""

from __future__ import annotations

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.runs import claim, command, finish, stage_folder, trained_checkpoint


def main(options: Options) -> None:
    """Train the judge, compute all measures of the pairs, and write faithfulness.json, tables and a picture."""
    from medaug.auditing.audit import audit, check_pairs, log_audit
    from medaug.comparison.inputs import read_inputs

    folder, train, synthetic = (stage_folder(options, name) for name in ("audit", "train", "generate"))
    inputs = read_inputs(trained_checkpoint(options), train, synthetic, command("generate", options))
    num = check_pairs(inputs)
    identity = part(options, "audit", "segmenter") | inputs.identity
    if not claim(folder, identity, options.overwrite, recorded=("cohort",)):
        return
    result = audit(inputs, options, folder)
    files = [*result.save(folder), folder / "guidance.png", folder / "judge.pt"]
    finish(folder, {"pairs": num}, files)
    log_audit(result, folder / "faithfulness.json")


if __name__ == "__main__":
    launch("audit", main)
