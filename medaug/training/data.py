"""Loads the data of a training: its cohort in model space, and the card of its model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medaug.cohort.manifest import Case, Manifest
from medaug.cohort.schema import LabelSchema
from medaug.data.attributes import fit_attributes, with_label_source
from medaug.data.cases import ModelCase, load_cases, read_grids
from medaug.data.cohorts import find_cohort
from medaug.data.contents import case_contents, refuse_copies, refuse_shared
from medaug.data.grid import Shape
from medaug.data.patches import Patches, find_classes
from medaug.data.preprocessing import Preprocessing, common_scale, fit_preprocessing
from medaug.data.quantiles import find_quantiles, is_quantile, with_quantiles
from medaug.diffusion.noise import named_seed
from medaug.errors import UserError
from medaug.imaging.volume import shape_text
from medaug.keys import shown
from medaug.networks.codec_table import codec_stride
from medaug.options import Options
from medaug.progress import track
from medaug.training.checkpoint import Card
from medaug.training.initial import read_base
from medaug.training.tasks import Task, resolve_task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The scans of a training, and the card of the model that is trained on them.

    Attributes:
        card: card of the model.
        train, val: cases in model space; cases without a label are included if the options say so.
        patches: cuts the patches that the model is trained on; None: it is trained on whole volumes.
    """

    card: Card
    train: Sequence[ModelCase]
    val: Sequence[ModelCase]
    patches: Patches | None = None

    @property
    def labelled(self) -> list[ModelCase]:
        """The training cases with a label."""
        return [case for case in self.train if case.label is not None]


def load_training_data(
    options: Options, identity: dict[str, Any], folder: Path, base: Path | None
) -> tuple[TrainingData, Manifest, Task]:
    """Find the cohort, choose the model space, and bring the scans into it.

    Args:
        options: options of the run.
        identity: the options that the model depends on, as plain containers, for its card.
        folder: folder of the run; phantoms and the cache of scans lie beside it.
        base: checkpoint that the training is initialised from.

    Returns:
        The data, the cohort with its splits, and the task with its modalities as indices.

    Raises:
        UserError: the scans are missing or cannot be read, a split is empty, or one scan is in two splits.
    """
    manifest = find_cohort(options.data, folder.parent / "phantom")
    task = resolve_task(identity["task"], manifest.modalities, manifest.schema.num_classes)
    cases = _cases(options, manifest)
    names = options.data.attributes
    quantiles = find_quantiles(names, manifest.schema, manifest.modalities)
    grids = read_grids(manifest, cases["train"], options.data.crop)
    affines = [affine for _, affine in grids]
    scans = list(zip(cases["train"], affines, strict=True))
    attributes = fit_attributes([name for name in names if not is_quantile(name)], scans)
    preprocessing = fit_preprocessing(grids, options.data, multiple=side_multiple(options))
    if options.data.patch is not None:
        _check_grid(options, preprocessing.shape)
    loaded, contents = _load(options, manifest, cases, preprocessing, folder.parent / "cache")
    if quantiles:  # they can only be measured on scans in model space
        loaded = {split: with_quantiles(members, quantiles) for split, members in loaded.items()}
        attributes = fit_attributes(names, [(case.case, case.affine) for case in loaded["train"]])
    attributes = with_label_source(attributes) if options.trainer.pseudo_labels else attributes
    card = Card(
        experiment=options.experiment,
        options=identity,
        preprocessing=preprocessing,
        schema=manifest.schema,
        modalities=manifest.modalities,
        subjects={split: sorted({case.subject for case in members}) for split, members in cases.items()},
        phantom=manifest.phantom,
        attributes=attributes,
        base=None if base is None else read_base(base, manifest),
        preset=options.preset,
        scale=common_scale([case.placement for case in loaded["train"]]),
        contents={case.name: contents[case.name] for members in cases.values() for case in members},
    )
    if task.mask and options.trainer.condition_dropout == 0 and all(case.label is not None for case in loaded["train"]):
        log.warning(
            "trainer.condition_dropout=0 and every scan has a label: the null condition is not trained, so guidance "
            "cannot work; generate with guidance_scale=1"
        )
    attributes.warn_of_unknown((c.case, c.affine) for split in loaded.values() for c in split)
    patches = None if options.data.patch is None else _find_patches(options, loaded, manifest.schema)
    return TrainingData(card, loaded["train"], loaded["val"], patches), manifest, task


def _cases(options: Options, manifest: Manifest) -> dict[str, tuple[Case, ...]]:
    """The cases used for training and validation."""
    data, label_wanted = options.data, options.task.target == "label"
    cases = {split: manifest.split(split) for split in ("train", "val")}
    if label_wanted:
        cases = {split: tuple(case for case in members if case.label is not None) for split, members in cases.items()}
    elif not data.unlabelled:
        cases["train"] = tuple(case for case in cases["train"] if case.label is not None)
    for split, members in cases.items():
        if not members:
            labelled = " of labelled scans" if label_wanted or not data.unlabelled else ""
            raise UserError(
                f"data={data.name}: the {split} split{labelled} is empty", "add subjects or change its fraction"
            )
    return cases


def side_multiple(options: Options) -> tuple[int, int, int]:
    """What each side of the model's grid or of a patch must be a multiple of, so that nothing needs to be padded."""
    x, y, z = codec_stride(options.codec, options.network.spatial_dims)
    halved = 2 ** (len(options.network.channels) - 1)
    return x * halved, y * halved, z * halved if options.network.spatial_dims == 3 else 1


def check_patch(options: Options) -> None:
    """Refuse a patch that codec or network would have to pad, and patches for a 2D network.

    Raises:
        UserError: names the patch and the way out.
    """
    if (patch := options.data.patch) is None:
        return
    if options.network.spatial_dims == 2:
        raise UserError(f"data.patch={shown(patch)}: a 2D network is trained on slices", "leave one of them out")
    multiple = side_multiple(options)
    if any(side % divisor for side, divisor in zip(patch, multiple, strict=True)):
        raise UserError(
            f"data.patch={shown(patch)}: codec and network need sides that are multiples of {multiple[0]}",
            f"such as {shown([max(1, round(side / m)) * m for side, m in zip(patch, multiple, strict=True)])}",
        )


def _check_grid(options: Options, shape: Shape) -> None:
    """Refuse a patch that does not fit into the model's grid, and a grid that is not made of whole blocks."""
    patch, stride = options.data.patch, codec_stride(options.codec, options.network.spatial_dims)
    if any(size > side for size, side in zip(patch or (), shape, strict=True)):
        raise UserError(
            f"data.patch={shown(patch)}: is larger than the model's grid {shape_text(shape)}",
            "make it smaller, or leave it out to train on whole volumes",
        )
    if any(side % block for side, block in zip(shape, stride, strict=True)):
        raise UserError(
            f"data.shape={shown(list(shape))}: with data.patch, each side must be a multiple of {max(stride)}",
            "leave it out, or round it up",
        )


def _find_patches(options: Options, loaded: dict[str, list[ModelCase]], schema: LabelSchema) -> Patches:
    """The patches of the scans; warns of classes that no patch holds as a whole."""
    assert options.data.patch is not None
    x, y, z = options.data.patch
    labels = {case.case.name: case.label for cases in loaded.values() for case in cases if case.label is not None}
    classes = {
        name: find_classes(label, schema.num_classes, named_seed(0, "classes", name))
        for name, label in track(labels.items(), "finding the classes", len(labels))
    }
    for value, name in enumerate(schema.foreground, start=1):
        extents = [classes[c.case.name].extent.get(value) for c in loaded["train"] if c.case.name in classes]
        sides = [extent for extent in extents if extent is not None]
        if sides and all(any(a > b for a, b in zip(extent, (x, y, z), strict=True)) for extent in sides):
            log.warning(
                "data.patch=%s: %s is larger than a patch in every training scan, so that no patch holds it as a whole",
                shown(options.data.patch),
                name,
            )
    stride = codec_stride(options.codec, options.network.spatial_dims)
    return Patches((x, y, z), stride, options.data.patch_foreground, classes)


def _load(
    options: Options,
    manifest: Manifest,
    cases: dict[str, tuple[Case, ...]],
    preprocessing: Preprocessing,
    cache: Path,
) -> tuple[dict[str, list[ModelCase]], dict[str, list[str]]]:
    """Load the cases in model space and the digests of their files; refuses scans that are in two splits."""
    memory = options.data.cache == "ram"
    loaded = {split: load_cases(manifest, members, preprocessing, cache, memory) for split, members in cases.items()}
    # Test scans may be on another machine; the benchmark reads all of them.
    here = [case for case in manifest.split("test") if all(path.exists() for path in manifest.files(case))]
    contents = case_contents(manifest, [*cases["train"], *cases["val"], *here], cache)
    refuse_shared(manifest, contents)
    refuse_copies(loaded)
    return loaded, contents
