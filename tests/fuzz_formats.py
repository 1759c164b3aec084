"""Damage for specific formats: header fields at their extremes, wrong types and lengths, truncation, bombs.

Each function changes a content in place, by a seeded generator, as those of `fuzz` do.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import nibabel as nib
import numpy as np
import yaml

Mutator = Callable[[bytearray, random.Random], None]

NUMBERS = (
    "0",
    "-1",
    "1",
    "3",
    "255",
    "65536",
    "2147483648",
    "-9223372036854775809",
    "9" * 30,
    "1e308",
    "-1e-320",
    "nan",
)
TEXTS = (
    "",
    " ",
    "inf",
    "None",
    "\x00",
    "a\nb",
    "\x1b[31m",
    "=1+1",
    "../../x",
    "/etc/passwd",
    "ä" * 9,
    "x" * 70000,
    "%s%n",
)
_GIB = 1 << 30


@cache
def bomb(size: int, wbits: int = -15) -> bytes:
    """A deflate stream (raw, or as `wbits` says) of this many zeros, made without expanding them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    stream = block * (size >> 24) + packer.flush()
    return stream if wbits < 0 else zlib.compress(b"", 9)[:2] + stream


# NIfTI


def nifti_field(content: bytearray, rng: random.Random) -> None:
    """Set one to three fields of the header to extremes."""
    kind = nib.Nifti2Header if content[4:7] == b"n+2" else nib.Nifti1Header
    size = kind.sizeof_hdr
    if len(content) < size:
        return
    header = np.frombuffer(bytes(content[:size]), kind.template_dtype).copy()
    names = [*header.dtype.names, *["dim", "pixdim", "vox_offset", "datatype", "bitpix", "scl_slope"] * 3]
    for name in rng.choices(names, k=rng.choice((1, 1, 2, 3))):
        field = header[name].reshape(-1)
        place = rng.randrange(len(field))
        if field.dtype.kind in "iu":
            limits = np.iinfo(field.dtype)
            known = (0, 1, 2, 3, 7, 8, 64, 128, 512, 1536, 2304, limits.min, limits.max, limits.max // 2)
            field[place] = rng.choice([value for value in known if value <= limits.max])
        elif field.dtype.kind == "f":
            with np.errstate(all="ignore"):
                field[place] = rng.choice((np.nan, np.inf, -np.inf, 1e300, -1e300, 1e-45, 0, -1, 352, 1e9, 3.5))
        else:
            field[place] = rng.randbytes(rng.randrange(9))
        header[name] = field.reshape(header[name].shape)
    content[:size] = header.tobytes()


def nifti_border(content: bytearray, rng: random.Random) -> None:
    """Truncate the file at a border of the header or of the voxels."""
    del content[
        min(len(content) - 1, rng.choice((4, 40, 108, 252, 344, 347, 348, 351, 352, 353, 540, 544, len(content) - 1))) :
    ]


def nifti_scaled_bomb(content: bytearray, rng: random.Random) -> None:
    """256 MiB of uint8 with a slope, which become 2 GiB of float64."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((1024, 512, 512))
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["scl_slope"], header["scl_inter"] = rng.choice((0.5, 2.5)), 1
    head = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = head.compress(header.binaryblock + bytes(4)) + head.flush(zlib.Z_FULL_FLUSH)
    body = bomb(1 << 28)
    crc = zlib.crc32(header.binaryblock + bytes(4))
    for _ in range(16):
        crc = zlib.crc32(bytes(1 << 24), crc)
    content[:] = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + start + body + struct.pack("<II", crc, 352 + (1 << 28))


def packed(*mutators: Mutator) -> tuple[Mutator, ...]:
    """The same damage inside a gzip file."""

    def wrap(mutator: Mutator) -> Mutator:
        def inside(content: bytearray, rng: random.Random) -> None:
            try:
                plain = bytearray(gzip.decompress(bytes(content)))
            except (OSError, EOFError, zlib.error):
                return
            mutator(plain, rng)
            content[:] = gzip.compress(bytes(plain), 1, mtime=0)

        inside.__name__ = f"packed_{mutator.__name__}"
        return inside

    return tuple(map(wrap, mutators))


def gzip_wrapper(content: bytearray, rng: random.Random) -> None:
    """Put a bomb, rubbish or a second member after a gzip stream, or damage its header or trailer."""
    how = rng.randrange(5)
    if how == 0:
        content += b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + bomb(3 * _GIB) + bytes(8)
    elif how == 1:
        content += rng.randbytes(rng.choice((1, 8, 5000)))
    elif how == 2:
        content += bytes(content)
    elif how == 3:
        content[3] = rng.randrange(256)  # flags: names, comments, extra fields
    else:
        content[-8:] = rng.choice((bytes(8), b"\xff" * 8, rng.randbytes(8)))


# Text headers: MetaImage, NRRD


def header_line(content: bytearray, rng: random.Random) -> None:
    """Change, drop, double or lengthen a line of a text header; the voxels after it stay."""
    end = max(content.find(b"ElementDataFile"), content.find(b"\n\n"), 0)
    end = content.find(b"\n", end) + 1 or len(content)
    lines = bytes(content[:end]).split(b"\n")
    place = rng.randrange(len(lines))
    name, mark, value = lines[place].partition(b"= " if b"= " in lines[place] else b": ")
    extreme = rng.choice(
        (*NUMBERS, *TEXTS, "LOCAL", "LIST", "MET_DOUBLE", "MET_CHAR", "True", "False", "gzip", "bzip2")
    )
    parts = value.split()
    if parts and rng.random() < 0.6:
        parts[rng.randrange(len(parts))] = extreme.encode()
        value = b" ".join(parts)
    else:
        value = extreme.encode()
    how = rng.randrange(6)
    if how == 0:
        del lines[place]
    elif how == 1:
        lines.insert(place, lines[place])
    elif how == 2:
        lines.insert(rng.randrange(len(lines)), name + mark + value)
    else:
        lines[place] = name + mark + value
    content[:end] = b"\n".join(lines)


def text_bomb(content: bytearray, rng: random.Random) -> None:
    """Put voxels that expand to 3 GiB after the header of a MetaImage or NRRD; the header may claim as many."""
    meta = b"ElementDataFile" in content
    end = content.find(b"\n", content.find(b"ElementDataFile")) + 1 if meta else content.find(b"\n\n") + 2
    head = bytes(content[:end])
    if rng.random() < 0.5:
        for old in (b"DimSize = 9 10 11", b"sizes: 9 10 11"):
            head = head.replace(old, old.replace(b"9 10 11", b"1500 1024 1024"))
    if meta and b"CompressedData = True" not in head:
        head = head.replace(b"CompressedData = False", b"CompressedData = True")
    head = head.replace(b"encoding: raw", b"encoding: gzip")
    wrapped = bomb(3 * _GIB, 15) if meta else b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + bomb(3 * _GIB) + bytes(8)
    content[:] = b"\n".join(line for line in head.split(b"\n") if b"CompressedDataSize" not in line) + wrapped


# JSON, YAML, CSV

_LEAVES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2.5, 10**30, -(10**400), float("nan"), float("inf"), 1e308),
    *(*TEXTS, [], {}, [[]], [None], {"": ""}, {"0": 0}, [1, "a"], "train", "0"),
)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below a node."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


def change_value(node: Any, rng: random.Random, leaves: tuple[Any, ...] = _LEAVES) -> Any:
    """Replace, drop, double, rename or wrap something inside plain values; returns them."""
    places = list(itertools.islice(_places(node), 10_000))  # would never end if aliases multiply
    if not places:
        return rng.choice(leaves)
    container, key = rng.choice(places)
    how = rng.randrange(8)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, list):
        container.insert(key, container[key])
    elif how == 1:
        container[rng.choice(("x", "0", "-1", "format"))] = container[key]
    elif how == 2 and isinstance(container, dict):
        container[rng.choice((f"{key} ", str(key).upper(), ""))] = container.pop(key)
    elif how == 3:
        container[key] = rng.choice(([container[key]], {"a": container[key]}))
    elif how == 4:
        other, place = rng.choice(places)
        try:
            container[key] = other[place] if not isinstance(other[place], dict | list) else container[key]
        except LookupError:
            container[key] = None
    else:
        container[key] = rng.choice(leaves)
    return node


def json_value(content: bytearray, rng: random.Random) -> None:
    """Change a value or key of a JSON file, or of one line of a file of JSON lines."""
    lines = bytes(content).split(b"\n")
    is_lines = len([line for line in lines if line.startswith(b"{") and line.endswith(b"}")]) > 1
    place = rng.randrange(max(len(lines) - 1, 1)) if is_lines else 0
    try:
        node = json.loads(lines[place] if is_lines else bytes(content))
    except ValueError:
        return
    for _ in range(rng.choice((1, 1, 2))):
        node = change_value(node, rng)
    text = json.dumps(node, indent=None if is_lines else 1).encode()
    if is_lines:
        lines[place] = text
    content[:] = b"\n".join(lines) if is_lines else text


def json_text(content: bytearray, rng: random.Random) -> None:
    """Odd or invalid JSON: deep nesting, keys given twice, endless numbers, other encodings."""
    text = bytes(content)
    made = (
        b"[" * rng.choice((100, 2000, 200_000)),
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" + b"9" * 5000 + b"]",
        text.replace(b": ", b": 1e999, ", 1),
        text.replace(b'": ', b'": NaN, "x": ', 1),
        text[: len(text) // 2] + text,
        text.replace(b"{", b'{"name": 1, "name": 2, ', 1),
        text.decode("utf-8", "replace").encode("utf-16"),
        b"\xef\xbb\xbf" + text,
        text.replace(b"a", b"\\ud800", 1),
        text.replace(b"e", b"\\u0000", 2),
        text + b" " * (1 << 20),
        b"null",
        b'"text"',
        b"",
    )
    content[:] = rng.choice(made)


def yaml_value(content: bytearray, rng: random.Random) -> None:
    """Change a value or key of a YAML file."""
    try:
        node = yaml.safe_load(bytes(content))
    except (yaml.YAMLError, ValueError):
        return
    for _ in range(rng.choice((1, 1, 2))):
        node = change_value(node, rng)
    content[:] = yaml.safe_dump(node, sort_keys=False, allow_unicode=True).encode()


def yaml_text(content: bytearray, rng: random.Random) -> None:
    """Features that only YAML has: aliases that multiply, tags, dates, sets, binaries, merge keys, lists as keys."""
    lines = bytes(content).split(b"\n")
    place = rng.randrange(len(lines))
    name, _, _ = lines[place].partition(b":")
    bomb_ = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (i + 1, i + 1, b",".join([b"*%c" % i] * 9)) for i in range(ord("a"), ord("j"))
    )
    value = rng.choice(
        (
            *(b"2020-01-01", b"2020-13-45", b"2020-01-01 00:00:00", b"!!set {a, b}", b"!!binary aGFsbG8=", b"0o17"),
            *(b"!!python/object/apply:os.system [ls]", b"!!float x", b"!!int ''", b"&a [*a]", b"*nothing", b".inf"),
            *(
                b"1:30:00",
                b"[" * 3000,
                b"{" * 200,
                b"? [a]\n: b",
                b"{[1]: 2}",
                b"|",
                b"\t",
                b"'",
                b"@",
                b"1_000",
                b"!!omap [a: 1]",
            ),
            *(
                b".nan",
                b"9" * 400,
                b"- - - - 1",
                b"~",
                b"yes",
                b"!!timestamp x",
                b"!!null x",
                b"!!map []",
                b"!<x> y",
                b"<<: 1",
            ),
        )
    )
    how = rng.randrange(5)
    if how == 0:
        lines.insert(rng.choice((0, place, len(lines))), bomb_)
    elif how == 1:
        lines.insert(place, lines[rng.randrange(len(lines))])
    elif how == 2:
        lines.insert(place, b"<<: " + value)
    else:
        lines[place] = name + b": " + value
    content[:] = b"\n".join(lines)


def csv_cell(content: bytearray, rng: random.Random) -> None:
    """Change, drop, double or blow up a cell, a column or a row of a CSV file, or its quotes and line ends."""
    rows = list(csv.reader(io.StringIO(bytes(content).decode("utf-8", "replace"))))
    if not rows:
        return
    row = rng.choice((rows[0], rng.choice(rows)))
    place = rng.randrange(len(row)) if row else 0
    how = rng.randrange(9)
    if how < 4 and row:
        row[place] = rng.choice((*NUMBERS, *TEXTS, "y" * 140_000, "'=", "test", rows[0][-1], "1,5"))
    elif how == 4 and row:
        del row[place]
    elif how == 5:
        row.insert(place, rng.choice(row) if row else "x")
    elif how == 6:
        rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))
    elif how == 7:
        rows.insert(rng.randrange(len(rows) + 1), [])
    text = io.StringIO()
    csv.writer(text, lineterminator=rng.choice(("\n", "\n", "\r\n", "\r"))).writerows(rows)
    made = text.getvalue()
    if how == 8:
        made = rng.choice((made.replace(",", ";"), made.replace(",", '"', 1), made + '"', "\0" + made, "\ufeff" + made))
    content[:] = made.encode()


# Arrays of numpy


def npy_header(content: bytearray, rng: random.Random) -> None:
    """Change type, order and shape in the header of a .npy file; its length may or may not stay correct."""
    length = struct.unpack("<H", content[8:10])[0]
    header = bytes(content[10 : 10 + length]).decode("latin-1").strip()
    shape = header.partition("(")[2].partition(")")[0]
    changes = (
        *(
            (shape, other)
            for other in ("", "-1,", "1,", "2**40,", "9" * 30 + ",", "1000000, 1000000", "0,", "None,", "'a',")
        ),
        *(("<f4", other) for other in ("|O", "<f8", ">f4", "|S0", "<U9", "|V3", "x", "", "<M8[s]")),
        ("False", "True"),
        ("{", "[" * 500),
        ("}", ", 'x': 1}"),
        ("'shape'", "'shap'"),
    )
    old, new = rng.choice(changes)
    made = header.replace(old, new, 1).encode("latin-1")
    made = made.ljust(length)[: max(length, len(made))]
    content[8:10] = struct.pack("<H", rng.choice((len(made), len(made), 0, 65535)))
    content[10 : 10 + length] = made
