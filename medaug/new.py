"""Stage: write a commented file for an experiment of your own.

medaug new mri manifest=cohort.json
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from medaug.errors import UserError
from medaug.launcher import launch
from medaug.options import Options

if TYPE_CHECKING:
    from medaug.cohort.manifest import Manifest

log = logging.getLogger(__name__)

_TEXT = """# @package _global_
# {name}: {about}
#
#     medaug train experiment={name}
#
# reads this file if it is run in the folder that holds `conf`. Remove the # in front of what you want to change.
# `medaug train --help` lists all keys, `--cfg` prints the configuration that results. A preset overrides this file, and
# keys on the command line override both.
defaults:
  - override /data: manifest
  # - override /codec: kl              # where the diffusion runs: haar (default), identity, kl
  # - override /network: unet2d        # slices instead of volumes; spade and controlnet let the mask in elsewhere
  # - override /process: edm           # noise schedule and prediction: rectified_flow (default), ddpm, cosine, edm
  # - override /sampler: dpmpp_2m_sde  # how images are sampled: dpmpp_2m (default), ddim, heun, ...
  # - override /masks: population      # where new masks come from: deformed (default), real, composed, ...
  # - override /screen: all            # reject pairs that fail a rule

preset: cpu  # size and budget: smoke (a minute, means nothing), cpu, gpu, multi_gpu

data:
  manifest: {manifest}
  # spacing: [1.0, 1.0, 1.0]           # voxel size of the model in mm
  # intensity: window                  # for CT, with window: [-1000, 1000]; give it to ingest as well
  # attributes: []                     # what the model is conditioned on besides the mask

# network:
#   channels: [32, 64, 96]
#   coordinates: true                  # if all scans lie in the same position, as after registration
# segmenter:
#   channels: [16, 32, 64, 128]
"""


def main(options: Options) -> None:
    """Write `conf/experiment/NAME.yaml` in this folder, for the cohort of a manifest.

    Raises:
        UserError: no or an impossible name, no or a damaged manifest, or there is such a file or experiment already.
    """
    from medaug.cohort.manifest import Manifest
    from medaug.config import choices
    from medaug.files import atomic_write

    name, manifest = options.new.name, options.new.manifest
    if name is None or manifest is None:
        raise UserError("a name and manifest=FILE.json are needed", "as in medaug new mri manifest=cohort.json")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"name={name}: is not a name", "use letters, digits, _ and -")
    path = Path("conf") / "experiment" / f"{name}.yaml"
    if path.exists():
        raise UserError("exists already", "edit it, or give another name", path=path)
    if name in choices("experiment"):
        raise UserError(f"name={name}: medaug has an experiment of this name", "give another name")
    text = _TEXT.format(name=name, about=described(Manifest.load(manifest)), manifest=json.dumps(manifest))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    log.info("%s is written; next: medaug train experiment=%s dry_run=true", path, name)


def described(cohort: Manifest) -> str:
    """A cohort in a line: modalities, scans, subjects per split, classes."""
    subjects = {split: len({case.subject for case in cohort.split(split)}) for split in ("train", "val", "test")}
    counted = ", ".join(f"{number} {split}" for split, number in subjects.items())
    classes = ", ".join(cohort.schema.foreground)
    text = f"{', '.join(cohort.modalities)}; {len(cohort.cases)} scans of subjects {counted}; {classes}"
    return " ".join(text.split())


if __name__ == "__main__":
    launch("new", main)
