"""What the training stage refuses before it writes or replaces anything, and which models it scores."""

from __future__ import annotations

import pytest

from medaug.config import load_options
from medaug.errors import UserError
from medaug.segmentation.teachers import SoftLabels
from medaug.train import main
from medaug.training.checkpoint import read_checkpoint


def train(runs, *words):
    main(load_options("train", ["experiment=demo", "preset=smoke", f"runs={runs}", *words]))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["task=unconditional", "trainer.class_dropout=0.2"], "trainer.class_dropout=0.2: has no effect"),
        (["trainer.image_dropout=0.2"], "trainer.image_dropout=0.2: has no effect"),
        (["trainer.attribute_dropout=0.2"], "trainer.attribute_dropout=0.2: has no effect"),
        (["masks=generated", "trainer.score_every=2"], "masks=generated: while a model trains"),
        (["codec=kl", "codec.checkpoint=a.ckpt", "init_from=FILE"], "codec.checkpoint=a.ckpt: has no effect with init"),
        (["codec=kl", "codec.max_steps=9", "init_from=FILE"], "codec.max_steps=9: has no effect with init_from"),
    ],
)
def test_options_without_effect_are_refused_before_anything_is_written(tmp_path, words, complaint):
    (tmp_path / "base.ckpt").touch()
    words = [word.replace("FILE", str(tmp_path / "base.ckpt")) for word in words]
    with pytest.raises(UserError) as refused:
        train(tmp_path / "runs", *words)
    assert str(refused.value).startswith(complaint) and "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_is_not_replaced_if_the_options_are_invalid(tmp_path):
    folder = tmp_path / "demo" / "train"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("task: {target: label}\n")
    (folder / "finished.json").write_text("{}\n")
    with pytest.raises(UserError, match="trainer.gradient_clip=0"):
        train(tmp_path, "trainer.gradient_clip=0", "overwrite=true")
    assert (folder / "finished.json").exists()


@pytest.mark.slow
def test_only_mask_to_image_models_are_scored(tmp_path):
    cohort = ("data.phantom_subjects=5", "data.max_side=16", "data.val_fraction=0.2", "data.test_fraction=0.2")
    scored = ("trainer.score_every=1", "trainer.max_steps=2", "trainer.precision=fp32", "logger=csv")
    train(tmp_path, "task=denoise", "task.mask=true", *cohort, *scored)
    folder = tmp_path / "demo" / "train"
    assert (folder / "finished.json").exists() and not (folder / "scores.csv").exists()


@pytest.mark.slow
def test_pseudo_labels_are_made_once_recorded_and_replaced_with_the_run(tmp_path):
    words = ("data.phantom_subjects=6", "data.max_side=16", "data.val_fraction=0.2", "trainer.precision=fp32")
    words = (*words, "logger=csv", "segmenter.channels=[4,8]", "pseudo.steps=2", "pseudo.teachers=1")
    with pytest.raises(UserError, match="trainer.pseudo_labels: of 3 training scans 3 have a label"):
        train(tmp_path, "trainer.pseudo_labels=true", "trainer.max_steps=1", *words)
    words = (*words, "trainer.pseudo_labels=true", "data.labelled=2")
    train(tmp_path, *words, "trainer.max_steps=1", "overwrite=true")
    folder = tmp_path / "demo" / "train"
    card, _ = read_checkpoint(folder / "last.ckpt")
    assert [attribute.name for attribute in card.attributes.attributes] == ["label_source"]
    labelled = {name for name, files in card.contents.items() if len(files) == 5}
    assert len(labelled) == 3, "two training labels, which teachers saw, too, and one of validation"
    labels = SoftLabels.load(folder / "pseudo_labels.npz")
    assert len(labels.probabilities) == 1 and labels.weights == [1.0]
    before = (folder / "pseudo_labels.npz").stat().st_mtime_ns
    train(tmp_path, *words, "trainer.max_steps=2", "resume=true")
    assert (folder / "pseudo_labels.npz").stat().st_mtime_ns == before, "resumed with the same labels"
    train(tmp_path, *words, "trainer.max_steps=1", "trainer.seed=1", "overwrite=true")
    assert (folder / "pseudo_labels.npz").stat().st_mtime_ns != before
