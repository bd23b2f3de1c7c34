"""Files that are damaged, or made to do harm, by a seeded draw: what `fuzz.py` hands to readers."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import random
import re
import zipfile
import zlib
from typing import Any

import numpy as np

NUMBERS = (
    b"0",
    b"-1",
    b"1e9",
    b"1000000000000",
    b"9" * 40,
    b"1e999",
    b"-1e-400",
    b"nan",
    b"inf",
    b"0x10",
    b"1_0",
    b"99999999999999999999",
)
CELLS = (
    *(
        "",
        " ",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "9" * 30,
        "-" + "9" * 400,
        "True",
        "False",
        "true",
        "2020-01-01",
        "20:15",
    ),
    *(
        "0001-01-01",
        "31.12.9999",
        "1,5",
        "1.234,5",
        "?",
        "NA",
        "é",
        "\u202e",
        "\x00",
        "\x1b[31m",
        '"',
        '""',
        "'",
        "=1+1",
    ),
    *(
        "x" * 200_000,
        "0" * 5000 + "1",
        "1" * 5000,
        "#",
        ";",
        "\t",
        "[]",
        "{}",
        "None",
        "0b1",
        "1j",
        "\ufeff",
        "\r",
        "-0",
        "1e-320",
    ),
)
MOST_LETTERS = 10**9  # of a line: a thousand times a thousand long cells would fill the memory before anything is read
STRANGE: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        0.5,
        1,
        10**30,
        10**12,
        10**9,
        200_000,
        1e300,
        1e9,
        float("nan"),
        float("inf"),
        "x",
        "",
    ),
    *([], {}, [1, "x"], {"x": 1}, {"class": 3, "args": 4}, [10**12], [1] * 1000, "\x1b[31m", "../../etc/passwd"),
    *(
        {"same_as": ".pair"},
        {"external": "os.system"},
        {"tensor": [[1], [1, 2]], "dtype": "float32"},
        {"parameter": [10**12], "dtype": "float32"},
    ),
    *(
        {"tuple": [1] * 100},
        {"dict": {}},
        {"type": "torch.nn.modules.activation.ReLU"},
        {"class": "torch.distributions.normal.Normal", "args": {}},
    ),
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes with one to six changes of some of their bits, pieces or numbers."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        size = len(changed)
        at, more = draw.randrange(size + 1), draw.randrange(1, 1 + min(64, size + 1))
        kind = draw.randrange(8)
        if kind == 0 and size:
            changed[at % size] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at : at + more] = draw.randbytes(more)
        elif kind == 2:
            del changed[at : at + more]
        elif kind == 3:
            changed[at:at] = changed[at : at + more] * draw.choice((1, 2, 50))
        elif kind == 4:
            del changed[at:]
        elif kind == 5 and size:  # of a field of four or eight bytes
            wide = draw.choice((2, 4, 8))
            number = draw.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 10**12, 255, 65536))
            changed[at : at + wide] = (number % 2 ** (8 * wide)).to_bytes(wide, draw.choice(("little", "big")))
        elif kind == 6:
            numbers = list(re.finditer(rb"[0-9]+(\.[0-9]+)?", bytes(changed[:20_000])))
            if numbers:
                found = draw.choice(numbers)
                changed[found.start() : found.end()] = draw.choice(NUMBERS)
        else:
            other = draw.randrange(size + 1)
            changed[at : at + more] = changed[other : other + more]
    return bytes(changed)


def strange_table(content: bytes, draw: random.Random) -> bytes:
    """A table with some cells that are unlikely, or a column of them."""
    if draw.random() < 0.4:
        return damaged(content, draw)
    lines = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(draw.choice((1, 2, 5))):
        column, kind = draw.randrange(1 + len(lines[0])), draw.randrange(5)
        rows = range(1, len(lines)) if kind == 0 else [draw.randrange(len(lines))]
        cell = draw.choice(CELLS)
        for row in rows:
            if column < len(lines[row]):
                lines[row][column] = cell if kind < 3 else draw.choice(CELLS)
        if kind == 4:
            row, times = draw.randrange(len(lines)), draw.choice((0, 2, 1000))
            if times * sum(map(len, lines[row])) < MOST_LETTERS:
                lines[row] *= times
    return "\n".join(",".join(line) for line in lines).encode("utf-8", "surrogatepass")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, one in items for inner in places(one, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def strange_json(value: Any, draw: random.Random) -> Any:
    """A JSON value with one or two fields that are something else, are gone, or stand elsewhere."""
    for _ in range(draw.choice((1, 1, 2))):
        path = draw.choice(places(value)[1:])
        new = draw.choice(STRANGE)
        kind = draw.randrange(6)
        if kind == 0:
            here = value
            for key in draw.choice(places(value)[1:]):
                here = here[key]
            new = here
        elif kind == 1:
            for _ in range(draw.choice((3, 100, 600))):
                new = [new] if draw.random() < 0.5 else {"tuple": [new]}
            return put(value, path, new)
        value = put(value, path, new)
    return value


def strange_archive(content: bytes, draw: random.Random) -> bytes:
    """A .npz file with a member that is damaged, crafted, or compressed a thousandfold."""
    if draw.random() < 0.3:
        return damaged(content, draw)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(members))
    kind = draw.randrange(5)
    if kind < 2:
        members[name] = damaged(members[name], draw)
    elif kind == 2:
        members[name] = crafted_array(draw)
    elif kind == 3:
        members[draw.choice(("x.npy", "y.npy", "x_test.npy", "y_test.npy", "../z.npy", "x"))] = crafted_array(draw)
    elif draw.random() < 0.3:
        return bomb()
    else:
        members[name] = header({"descr": "<f4", "fortran_order": False, "shape": (2**18, 2**10)}) + bytes(2**20)
    how = draw.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    with io.BytesIO() as made:
        with zipfile.ZipFile(made, "w", how) as archive:
            for member, inside in members.items():
                archive.writestr(member, inside)
        return made.getvalue()


@functools.cache
def bomb() -> bytes:
    """A small .npz file of half a gigabyte of zeros."""
    with io.BytesIO() as made:
        with (
            zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("x.npy", "w") as member,
        ):
            member.write(header({"descr": "<f4", "fortran_order": False, "shape": (2**17, 2**10)}))
            for _ in range(2**9):
                member.write(bytes(2**20))
        return made.getvalue()


def header(fields: Any) -> bytes:
    text = repr(fields).encode() if not isinstance(fields, bytes) else fields
    return b"\x93NUMPY\x01\x00" + (len(text) % 65536).to_bytes(2, "little") + text[:65535]


def crafted_array(draw: random.Random) -> bytes:
    """A .npy file whose header says something unlikely, or that holds an unlikely dtype."""
    if draw.random() < 0.5:
        shape = draw.choice(
            (
                (10, 3),
                (10,),
                (),
                (0, 3),
                (10**12, 3),
                (10, 10**12),
                (-1, 3),
                (2,) * 40,
                (10, 1, 3, 2),
                (True, 3),
                (1.5, 3),
            )
        )
        dtype = draw.choice(
            (
                "<f4",
                "<f8",
                ">f2",
                "<i8",
                "<u8",
                "|b1",
                "<M8[D]",
                "<m8[s]",
                "|V8",
                "<U5",
                "|S3",
                "|O",
                "<c8",
                "<f16",
                [("a", "<f4"), ("b", "<i4")],
                "x",
                5,
                None,
            )
        )
        fields: Any = {"descr": dtype, "fortran_order": draw.choice((False, True, 1, "x")), "shape": shape}
        if draw.random() < 0.3:
            fields = draw.choice(
                (
                    b"{",
                    b"(" * 200,
                    b"{'descr': '<f4'}",
                    b"\xff" * 30,
                    b"[" * 5000,
                    b"{'descr': '<f4', 'fortran_order': False, 'shape': (9" + b"9" * 5000 + b",)}",
                )
            )
        return header(fields) + draw.randbytes(draw.choice((0, 10, 120, 240, 480)))
    rows = draw.choice((1, 10, 30))
    arrays = (
        np.array(["2020-01-01"] * rows, dtype="M8[D]"),
        np.zeros(rows, dtype=[("a", "f4"), ("b", "i4")]),
        np.zeros(rows, dtype="V8"),
        np.full(rows, np.inf),
        np.array([np.nan, *[2.0**70] * (rows - 1)]),
        np.array(["a", *["\x1b[31m"] * (rows - 1)]),
        np.zeros(rows, dtype="c8"),
        np.full((rows, 3), 2**63, dtype="u8"),
        np.zeros((rows, 3, 2), dtype="f2"),
        np.zeros((rows, 3), dtype=bool),
        np.full((rows, 3), 1e308),
        np.arange(rows, dtype="u8") * 2**60,
        np.array([b"\xff"] * rows),
        np.full((rows, 3), np.longdouble(10) ** 4000),
        np.full(rows, np.datetime64("NaT")),
    )
    with io.BytesIO() as made:
        np.save(made, draw.choice(arrays))
        return made.getvalue()


def strange_safetensors(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file, damaged, or with another header."""
    if draw.random() < 0.4:
        return damaged(content, draw)
    size = int.from_bytes(content[:8], "little")
    changed = strange_json(json.loads(content[8 : 8 + size]), draw)
    if isinstance(changed, dict) and "__metadata__" in changed and draw.random() < 0.3:
        with contextlib.suppress(Exception):
            notes = strange_json(json.loads(changed["__metadata__"]["notes"]), draw)
            changed = put(changed, ("__metadata__", "notes"), json.dumps(notes))
    text = json.dumps(changed).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def strange_notes(content: bytes, draw: random.Random) -> bytes:
    """A checkpoint with other notes, that is otherwise whole."""
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    head["__metadata__"]["notes"] = json.dumps(strange_json(json.loads(head["__metadata__"]["notes"]), draw))
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def strange_png(content: bytes, draw: random.Random) -> bytes:
    """A PNG file with a chunk that is damaged, before it is compressed where it is, and checksums that are right."""
    if draw.random() < 0.3:
        return damaged(content, draw)
    chunks, at = [], 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    chosen = draw.randrange(len(chunks))
    kind, inside = chunks[chosen]
    packed = kind == b"IDAT" and draw.random() < 0.5
    inside = zlib.compress(damaged(zlib.decompress(inside), draw)) if packed else damaged(inside, draw)
    if draw.random() < 0.2:
        kind = draw.choice(
            (b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"fcTL", b"acTL", b"eXIf", b"gAMA")
        )
    chunks[chosen] = kind, inside
    if draw.random() < 0.2:
        chunks.insert(draw.randrange(len(chunks) + 1), draw.choice(chunks))
    checked = [
        (len(part).to_bytes(4, "big"), name, part, zlib.crc32(name + part).to_bytes(4, "big")) for name, part in chunks
    ]
    return content[:8] + b"".join(b"".join(chunk) for chunk in checked)
