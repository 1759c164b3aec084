"""Checkpoints say what they are, load without running code, and are refused in one line."""

from __future__ import annotations

import functools
import json
import os
import pickle
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import model_options

from medaug.cohort.schema import LabelSchema
from medaug.data.attributes import Attribute, AttributeEncoder
from medaug.data.preprocessing import Preprocessing
from medaug.errors import UserError
from medaug.files import file_sha256
from medaug.training.checkpoint import FORMAT, Card, load_model, read_checkpoint

CARD = Card(
    experiment="demo",
    options=model_options(
        {"noise_schedule": "cosine", "prediction_type": "v_prediction", "num_train_timesteps": 100},
        channels=[8],
        attention=[False],
    ),
    preprocessing=Preprocessing((8, 8, 16), (1.0, 1.5, 2.0), (0.5, 99.5)),
    schema=LabelSchema(
        ((0, "background"), (1, "core"), (4, "rim")), regions=(("whole", (1, 4)),), ignore=255, remap=((3, 4),)
    ),
    modalities=("T1", "T2"),
    subjects={"train": ["a", "b"], "val": ["c"]},
    phantom=True,
    attributes=AttributeEncoder(
        (Attribute("site", ("A", "B")), Attribute("spacing", (), *((x, 1.0, 2.0) for x in (1.5, 1.0, 1.0, 3.0))))
    ),
)


def save(path: Path, card: dict | None = None) -> dict[str, torch.Tensor]:
    """A checkpoint with random weights, which are returned."""
    model = CARD.build()
    weights = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    contents = {"state_dict": {f"model.{key}": value for key, value in weights.items()}, "global_step": 3}
    torch.save(contents | {"medaug": card or CARD.to_dict()}, path)
    return weights


def test_a_card_round_trips_through_plain_values():
    assert Card.from_dict(json.loads(json.dumps(CARD.to_dict()))) == CARD


def test_a_card_of_format_1_held_the_labels_alone():
    old = CARD.to_dict() | {"format": 1, "labels": {"0": "background", "1": "core", "4": "rim"}}
    assert Card.from_dict(old).schema == LabelSchema(CARD.schema.labels)


def test_a_card_from_before_attributes_has_none():
    old = {key: value for key, value in CARD.to_dict().items() if key != "attributes"}
    assert Card.from_dict(old).attributes == AttributeEncoder()


def test_a_checkpoint_gives_card_and_weights(tmp_path):
    weights = save(tmp_path / "last.ckpt")
    card, contents = read_checkpoint(tmp_path / "last.ckpt")
    assert card == CARD and contents["global_step"] == 3
    card, model = load_model(tmp_path / "last.ckpt", torch.device("cpu"))
    assert not model.training
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def missing(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1000])


def cut_to_the_head(path):
    path.write_bytes(path.read_bytes()[:100])


def text(path):
    path.write_text("not a checkpoint\nat all\n")


def noise(path):
    path.write_bytes(bytes(range(256)) * 8)


def foreign_weights(path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def foreign_tensor(path):
    torch.save(torch.zeros(3), path)


def newer(path):
    save(path, CARD.to_dict() | {"format": FORMAT + 1})


def another_dialect(path):
    torch.save({"medaug": {"version": 3}, "state_dict": {}}, path)


def card_of_another_kind(path):
    torch.save({"medaug": [1, 2], "state_dict": {}}, path)


def without_weights(path):
    torch.save({"medaug": CARD.to_dict()}, path)


def part_marked_as_folder(path):
    """Flip one bit of the archive's table of contents, which no checksum covers."""
    damaged = bytearray(path.read_bytes())
    entry = damaged.rindex(b"PK\x01\x02", 0, damaged.rindex(b"/data/1"))
    damaged[entry + 38] ^= 0x10  # the external attributes
    path.write_bytes(damaged)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (missing, "no such checkpoint"),
        (empty, "not a whole checkpoint"),
        (truncated, "not a whole checkpoint"),
        (cut_to_the_head, "not a whole checkpoint"),
        (text, "not a whole checkpoint"),
        (noise, "not a whole checkpoint"),
        (part_marked_as_folder, "not a whole checkpoint .*/data/1.* is marked as a folder"),
        (folder, "cannot be read"),
        (pipe, "cannot be read"),
        (foreign_weights, "not one of medaug's"),
        (foreign_tensor, "not one of medaug's"),
        (another_dialect, "not one of medaug's"),
        (card_of_another_kind, "not one of medaug's"),
        (without_weights, "not one of medaug's"),
        (newer, "newer"),
    ],
)
def test_unreadable_checkpoints_are_refused_with_one_line(tmp_path, harm, named):
    path = tmp_path / "last.ckpt"
    save(path)
    harm(path)
    with pytest.raises(UserError, match=named) as caught:
        load_model(path, torch.device("cpu"))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def lacking(weights, name):
    del weights[name]


def one_more(weights, name):
    weights["model.another"] = torch.zeros(2)


def of_another_shape(weights, name):
    weights[name] = torch.zeros(*weights[name].shape, 2)


def of_another_type(weights, name):
    weights[name] = weights[name].double()


def of_whole_numbers(weights, name):
    weights[name] = weights[name].long()


def complex_numbers(weights, name):
    weights[name] = weights[name].to(torch.complex64)


def sparse(weights, name):
    weights[name] = weights[name].to_sparse()


def a_number(weights, name):
    weights[name] = 3.0


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lacking, "lacks 1 of"),
        (one_more, "holds 1 tensors too many .another."),
        (of_another_shape, "and the model needs float32"),
        (of_another_type, "is float64 .* and the model needs float32"),
        (of_whole_numbers, "is int64"),
        (complex_numbers, "is complex64"),
        (sparse, "is float32"),
        (a_number, "is not a tensor"),
    ],
)
def test_wrong_tensors_are_refused_in_one_line(tmp_path, harm, said):
    path = tmp_path / "last.ckpt"
    save(path)
    contents = torch.load(path, weights_only=True)
    name = max(contents["state_dict"], key=lambda name: contents["state_dict"][name].ndim)
    harm(contents["state_dict"], name)
    torch.save(contents, path)
    with pytest.raises(UserError, match=said) as caught:
        load_model(path, torch.device("cpu"))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and "restore it" in str(caught.value)


def test_invalid_options_on_a_card_are_refused_with_the_path(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path)
    contents = torch.load(path, weights_only=True)
    contents["medaug"]["options"]["trainer"]["precision"] = "fp7"
    torch.save(contents, path)
    with pytest.raises(UserError, match="last.ckpt: .*precision.*fp7") as caught:
        load_model(path, torch.device("cpu"))
    assert caught.value.path == path and caught.value.remedy


def test_a_card_of_a_larger_model_takes_no_memory(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path)
    contents = torch.load(path, weights_only=True)
    contents["medaug"]["options"]["network"]["channels"] = [1 << 15, 1 << 15]  # 100 GiB and more
    contents["medaug"]["options"]["network"]["attention"] = [False, False]
    torch.save(contents, path)
    with pytest.raises(UserError, match="last.ckpt"):
        load_model(path, torch.device("cpu"))


_READER = """
import resource, sys
from pathlib import Path
from medaug.errors import UserError
from medaug.training.checkpoint import read_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_checkpoint(Path(sys.argv[1]))
except UserError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def packed(path: Path) -> None:
    """All parts deflated, and one of 2.25 GiB of zeros among them."""
    with zipfile.ZipFile(path) as old:
        parts = {part.filename: old.read(part) for part in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name, content in parts.items():
            if not name.endswith("/data/0"):
                new.writestr(name, content)
                continue
            with new.open(name, "w", force_zip64=True) as file:
                for _ in range(2304):
                    file.write(bytes(1 << 20))


def large(path: Path, part: str) -> None:
    """One part of 2.25 GiB, of which the disk holds nothing: its zeros are a hole in the file."""
    with zipfile.ZipFile(path) as old:
        parts = {one.filename: old.read(one) for one in old.infolist()}
    crc = functools.reduce(lambda crc, _: zlib.crc32(bytes(1 << 20), crc), range(2304), 0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, content in parts.items():
            if not name.endswith(part):
                new.writestr(name, content)
                continue
            info = zipfile.ZipInfo(name)
            info.file_size = info.compress_size = 2304 << 20
            info.CRC, info.header_offset = crc, new.fp.tell()
            new.fp.write(info.FileHeader(zip64=True))
            new.fp.seek(2304 << 20, os.SEEK_CUR)
            new.filelist.append(info)
            new.NameToInfo[name] = info
            new.start_dir = new.fp.tell()


@pytest.mark.slow
@pytest.mark.parametrize("harm", [packed, "/data.pkl", "/data/0"])
def test_a_part_above_two_gigabytes_is_not_read_into_memory(tmp_path, harm):
    path = tmp_path / "last.ckpt"
    save(path)
    packed(path) if harm is packed else large(path, harm)
    done = subprocess.run([sys.executable, "-c", _READER, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *said, megabytes = done.stdout.splitlines()
    assert len(said) == 1 and said[0].startswith(f"{path}: ") and "; restore it or train again" in said[0], said
    assert int(megabytes) < 300


class Zeros:
    """Unpickling this allocates 3 GiB."""

    def __reduce__(self):
        return bytearray, (3 << 30,)


def test_a_bytearray_of_any_size_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"medaug": CARD.to_dict(), "state_dict": {}, "payload": Zeros()}, path)
    with pytest.raises(UserError, match="holds a bytearray"):
        read_checkpoint(path)


@pytest.mark.parametrize("first", range(0, 256, 5))
def test_arbitrary_bytes_give_one_line_and_no_traceback(tmp_path, first):
    path = tmp_path / "last.ckpt"
    path.write_bytes(bytes([first]) + os.urandom(50))
    with pytest.raises(UserError):
        read_checkpoint(path)


@pytest.mark.slow
def test_damaged_bytes_never_become_weights(tmp_path):
    """A checkpoint cut anywhere, or with any bit turned over, is refused in one line or read as it was written."""
    path = tmp_path / "last.ckpt"
    save(path)
    whole, former = path.read_bytes(), read_checkpoint(path)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(whole)) :]
        else:
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            card, contents = read_checkpoint(path)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            refused += 1
        else:
            assert card == former[0] and contents.keys() == former[1].keys()
            for key, value in former[1]["state_dict"].items():
                assert torch.equal(contents["state_dict"][key], value)
    assert refused > 150


class Code:
    """Unpickling this creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("plain_pickle", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path, plain_pickle):
    path, mark = tmp_path / "last.ckpt", tmp_path / "executed"
    contents = {"medaug": CARD.to_dict(), "state_dict": {}, "payload": Code(mark)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path)
    with pytest.raises(UserError, match="not a whole checkpoint") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")
