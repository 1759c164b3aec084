"""Damage for DICOM's elements and torch's archives; `fuzz_formats` is for simpler formats."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from fuzz_formats import NUMBERS, TEXTS, bomb, change_value

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_VRS = (*sorted(_LONG), b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"PN", b"SH")
_VRS += (b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US", b"??", b"\0\0")
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Element:
    """Position of an element in explicit little endian: its tag, its length field (2 or 4 bytes) and its value."""

    start: int
    tag: int
    vr: bytes
    length_at: int
    width: int
    value: int
    end: int


def elements(content: bytes, start: int = 132, stop: int | None = None) -> Iterator[Element]:
    """The elements of a file, including those within sequences, as far as they can be parsed."""
    at, stop = start, len(content) if stop is None else stop
    while at + 8 <= stop:
        group, number = struct.unpack_from("<HH", content, at)
        if group == 0xFFFE:
            (length,) = struct.unpack_from("<I", content, at + 4)
            is_item = number == 0xE000
            end = at + 8 + (length if is_item and length != _UNDEFINED else 0)
            yield Element(at, 0xFFFE0000 + number, b"", at + 4, 4, at + 8, min(end, stop))
            # The content of an item follows it, but a fragment of pixels has no elements.
            at = at + 8 if not is_item or _holds_elements(content, at + 8) else end
            continue
        vr = content[at + 4 : at + 6]
        wide = vr in _LONG
        if at + (12 if wide else 8) > stop:
            return
        length = struct.unpack_from("<I" if wide else "<H", content, at + (8 if wide else 6))[0]
        value = at + (12 if wide else 8)
        inside = vr == b"SQ" or length == _UNDEFINED
        end = value if inside else min(value + length, stop)
        yield Element(at, (group << 16) + number, vr, at + (8 if wide else 6), 4 if wide else 2, value, end)
        at = end


def _holds_elements(content: bytes, at: int) -> bool:
    return content[at + 4 : at + 6] in _VRS[:-2] or content[at : at + 2] == b"\xfe\xff"


def _choose(content: bytearray, rng: random.Random) -> Element | None:
    found = list(elements(bytes(content)))
    if not found:
        return None
    # The few elements with sizes and types are chosen as often as all others together.
    weighty = {
        0x00020010,
        0x00080016,
        0x00280002,
        0x00280008,
        0x00280010,
        0x00280011,
        0x00280100,
        0x00280101,
        0x00280102,
    }
    weighty |= {
        0x00280103,
        0x00280030,
        0x00200032,
        0x00200037,
        0x7FE00010,
        0x52009230,
        0x00620002,
        0x30060039,
        0x30060050,
    }
    few = [element for element in found if element.tag in weighty]
    return rng.choice(few if few and rng.random() < 0.5 else found)


def dicom_border(content: bytearray, rng: random.Random) -> None:
    """Truncate the file at the border of an element: before it, after its header, after its value, or a byte off."""
    if one := _choose(content, rng):
        at = rng.choice((one.start, one.length_at, one.value, one.end)) + rng.choice((0, 0, -1, 1))
        del content[max(at, 1) :]


def dicom_length(content: bytearray, rng: random.Random) -> None:
    """Change the length of an element or item."""
    if one := _choose(content, rng):
        most = 1 << 8 * one.width
        length = rng.choice(
            (0, 1, 2, 3, 255, most - 1, most - 2, most // 2, one.end - one.value + 1, one.end - one.value + 8)
        )
        content[one.length_at : one.length_at + one.width] = (length % most).to_bytes(one.width, "little")


def dicom_type(content: bytearray, rng: random.Random) -> None:
    """Change the VR or the tag of an element."""
    if one := _choose(content, rng):
        if one.vr and rng.random() < 0.7:
            content[one.start + 4 : one.start + 6] = rng.choice(_VRS)
        else:
            content[one.start + rng.randrange(4)] = rng.randrange(256)


def dicom_value(content: bytearray, rng: random.Random) -> None:
    """Set an element to an extreme value of matching length."""
    one = _choose(content, rng)
    if one is None or one.vr in {b"", b"SQ"} or one.end == one.value and rng.random() < 0.5:
        return
    if one.vr in {b"US", b"SS", b"UL", b"SL", b"FL", b"FD", b"AT"}:
        size = {b"US": 2, b"SS": 2, b"FD": 8}.get(one.vr, 4)
        value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size * rng.choice((1, 1, 1, 2, 0))
        value = rng.choice((value, (1).to_bytes(size, "little"), (65535).to_bytes(max(size, 2), "little")))
    elif one.vr in {b"OB", b"OW", b"UN", b"OF", b"OD"}:
        value = bytes(content[one.value : one.end])[: rng.choice((0, 1, 2, 100))] * rng.choice((1, 3))
    else:
        parts = bytes(content[one.value : one.end]).split(b"\\")
        other = rng.choice((*NUMBERS, *TEXTS, "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.90")).encode()[:60000]
        parts[rng.randrange(len(parts))] = other
        value = rng.choice((b"\\".join(parts), other, b"\\".join(parts * rng.choice((2, 100)))))[:65000]
    value += b"\0" * (len(value) % 2)
    content[one.length_at : one.end] = len(value).to_bytes(one.width, "little") + value


def dicom_move(content: bytearray, rng: random.Random) -> None:
    """Remove, double or move an element or item."""
    one = _choose(content, rng)
    if one is None:
        return
    taken = bytes(content[one.start : one.end])
    how = rng.randrange(3)
    if how != 1:
        del content[one.start : one.end]
    if how != 0 and (other := _choose(content, rng)):
        content[other.start : other.start] = taken


def dicom_nest(content: bytearray, rng: random.Random) -> None:
    """Insert sequences within sequences, without lengths, unusually deep."""
    if one := _choose(content, rng):
        depth = rng.choice((10, 300, 2000, 20_000))
        open_ = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        close = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" if rng.random() < 0.7 else b""
        content[one.start : one.start] = open_ * depth + close * depth


def dicom_deflated(content: bytearray, rng: random.Random) -> None:
    """Deflate the data, and damage or truncate the stream or put a bomb of 3 GiB into it."""
    found = [one for one in elements(bytes(content)) if one.tag >> 16 == 2]
    syntax = next((one for one in found if one.tag == 0x00020010), None)
    if syntax is None:
        return
    head, rest = bytes(content[: found[-1].end]), bytes(content[found[-1].end :])
    name = b"1.2.840.10008.1.2.1.99"
    head = head[: syntax.length_at] + len(name).to_bytes(2, "little") + name + head[syntax.end :]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    how = rng.randrange(4)
    if how == 0:  # an element of 3 GiB before all others
        element = b"\x05\x00\x10\x10OB\0\0" + (3 << 30).to_bytes(4, "little")
        stream = packer.compress(element) + packer.flush(zlib.Z_FULL_FLUSH) + bomb(3 << 30)
    elif how == 1:  # behind the last
        stream = packer.compress(rest) + packer.flush(zlib.Z_FULL_FLUSH) + bomb(3 << 30)
    else:
        stream = packer.compress(rest) + packer.flush()
        stream = stream[: rng.randrange(len(stream))] if how == 2 else stream
    content[:] = head + stream


# Archives of torch


def _members(content: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(part, archive.read(part)) for part in archive.infolist()]


def _archive(members: list[tuple[zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for part, data in members:
            archive.writestr(part.filename, data)
    return file.getvalue()


def zip_member(content: bytearray, rng: random.Random) -> None:
    """Damage, cut, lengthen, double or remove a part of the archive; the checksums stay correct."""
    try:
        members = _members(bytes(content))
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError):
        return
    pickles = [place for place, (part, _) in enumerate(members) if part.filename.endswith("data.pkl")]
    place = rng.choice(pickles) if pickles and rng.random() < 0.6 else rng.randrange(len(members))
    part, data = members[place]
    damaged = bytearray(data)
    how = rng.randrange(7)
    if how == 0:
        del members[place]
    elif how == 1:
        members.append((part, data))
    elif how == 2:
        del damaged[rng.randrange(len(damaged) + 1) :]
    elif how == 3:
        damaged += rng.randbytes(rng.choice((1, 1000)))
    else:
        for _ in range(rng.choice((1, 3, 10))):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.choice(
                    (0, 255, ord("."), ord("b"), ord("R"), rng.randrange(256))
                )
    if how:
        members[place] = (part, bytes(damaged))
    content[:] = _archive(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def zip_directory(content: bytearray, rng: random.Random) -> None:
    """Set sizes, offsets, flags, methods and attributes in the archive's directory to extremes."""
    places = [at for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06") for at in _all(content, mark)]
    if places:
        at = rng.choice(places) + rng.randrange(4, 46)
        value = rng.choice(
            (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x10\0\0\0", b"\x08\0", b"\x01", b"\x63\0")
        )
        content[at : at + len(value)] = value


def _all(content: bytearray, mark: bytes) -> Iterator[int]:
    at = content.find(mark)
    while at >= 0:
        yield at
        at = content.find(mark, at + 1)


@cache
def _zeros_crc(start: bytes, size: int) -> int:
    """Checksum of some bytes followed by this many zeros."""
    crc = zlib.crc32(start)
    for _ in range(size >> 24):
        crc = zlib.crc32(bytes(1 << 24), crc)
    return crc


def zip_bomb(content: bytearray, rng: random.Random) -> None:
    """Make a compressed part of 2.25 GiB: the pickle, the numbers of a tensor, or a part that nothing uses."""
    members = _members(bytes(content))
    ending = rng.choice(("data.pkl", "data/0", "more"))
    name = next((part.filename for part, _ in members if part.filename.endswith(ending)), "archive/more")
    size = 9 << 28
    start = b"\x80\x02\x8d" + size.to_bytes(8, "little") if ending == "data.pkl" else b""  # a text of as many letters
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH) + bomb(size)
    kept = [member for member in members if member[0].filename != name]
    archive = _archive([*kept, (zipfile.ZipInfo(name), b"")])
    # The last, empty member becomes the bomb: its data and sizes, here and in the directory, whose place moves.
    at, directory = archive.rindex(b"PK\x03\x04"), archive.rindex(b"PK\x01\x02")
    first = archive.index(b"PK\x01\x02")
    sizes = struct.pack("<HIIII", 8, 0, _zeros_crc(start, size), len(stream), len(start) + size)
    local, central, end = bytearray(archive[at:first]), bytearray(archive[directory:]), archive.rindex(b"PK\x05\x06")
    local[8:26], central[10:28] = sizes, sizes
    made = archive[:at] + local + stream + archive[first:directory] + central
    place = len(made) - (len(archive) - end) + 16
    content[:] = made[:place] + struct.pack("<I", first + len(stream)) + made[place + 4 :]


def tensor_value(content: bytearray, rng: random.Random) -> None:
    """Change a value, type, shape or name in the stored objects; the archive itself stays valid."""
    try:
        stored = torch.load(io.BytesIO(bytes(content)), map_location="cpu", weights_only=True)
    except Exception:
        return
    made = (
        *(
            torch.zeros(0),
            torch.zeros(()),
            torch.zeros(3, 3),
            torch.full((2,), float("nan")),
            torch.zeros(2, dtype=torch.int64),
        ),
        *(torch.zeros(2, dtype=torch.complex64), torch.zeros(1).expand(1 << 40), torch.zeros(2, dtype=torch.bool)),
        *(None, True, -1, 0, 10**30, float("nan"), "", "x", "\x1b[31m", "a\nb", [], {}, [1], {"a": 1}, (1, 2)),
    )
    leaves: tuple[Any, ...] = tuple(leaf for leaf in made)
    for _ in range(rng.choice((1, 1, 2))):
        stored = change_value(stored, rng, leaves)
    file = io.BytesIO()
    torch.save(stored, file)
    content[:] = file.getvalue()
