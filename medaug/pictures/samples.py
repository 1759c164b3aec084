"""Pictures of the samples of a model in training, for every task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medaug.cohort.manifest import Manifest
from medaug.pictures.figures import comparison_picture, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from medaug.training.tasks import Task

MOST_ROWS = 4


@dataclass(frozen=True)
class SamplePictures:
    """The pictures of a training run; see `medaug.training.module.Picture`.

    Attributes:
        folder: folder of the run.
        task: targets and conditions of the model.
        manifest: the cohort.
    """

    folder: Path
    task: Task
    manifest: Manifest

    def __call__(self, step: int, batch: dict[str, Tensor], sample: Tensor, made: str = "synthetic") -> Path:
        """Draw samples, or reconstructions of a codec, beside the batch that they were made for; returns the PNG."""
        prefix = "codec_" if made == "reconstruction" else ""
        path = self.folder / "pictures" / f"{prefix}step_{step:06d}.png"
        title = f"step {step}" + (", phantoms" if self.manifest.phantom else "")
        save_figure(samples_picture(batch, sample, self.task, self.manifest, title, made), path)
        return path


def samples_picture(
    batch: Mapping[str, Tensor],
    sample: Tensor,
    task: Task,
    manifest: Manifest,
    title: str,
    made: str = "synthetic",
) -> Figure:
    """Samples beside their conditions (if there are any) and the real images, one slice per row.

    Args:
        batch: a training batch, on the CPU.
        sample: (B, num_targets, X, Y, Z), sampled for this batch.
        task: targets and conditions of the model.
        manifest: the cohort, for the names of its modalities and classes.
        title: heading of the picture.
        made: heading of the samples' column.
    """
    label = batch["label"].numpy()
    images = task.images_of(batch["image"], batch["seed"]).numpy()
    rows = []
    for i in range(len(label)):
        if task.target == "label":
            pairs = [("label", task.label_of(sample[i : i + 1])[0].numpy(), label[i])]
        else:
            real = batch["image"][i].numpy()
            pairs = [(manifest.modalities[m], sample[i, c].numpy(), real[m]) for c, m in enumerate(task.generated)]
        for c, (name, synthetic, real) in enumerate(pairs):
            if task.mask:
                given = [label[i]]
            elif task.degradation != "none":
                given = [images[i, c - len(pairs)]]  # the degraded ones come last
            else:
                given = [*images[i, :1]]
            rows.append((f"case {i + 1}, {name}", *given, synthetic, real))
    first = ["mask"] if task.mask else ["given"] if task.num_images else []
    panels = (*first, made, "real")
    return comparison_picture(rows[:MOST_ROWS], title, manifest.schema.foreground, window=(-1.0, 1.0), panels=panels)
