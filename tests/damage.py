"""Damage to files: on bytes, behind compression and check sums, and in what JSON and pickles hold.

A change takes a file's content and a generator of random numbers, and gives another content.
"""

import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

import torch

Change = Callable[[bytes, random.Random], bytes]

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
NUMBERS = (
    *(b"0", b"-1", b"", b"nan", b"NaN", b"Infinity", b"-inf", b"1e400", b"1e-400", b"1.5", b"1_0"),
    *(b"0x10", b"4294967296", b"-9223372036854775808", b"9" * 20, b"9" * 5000, b"\xc2\xb2", b"1e5"),
    *(b"null", b"true", b'"x"', b"[]", b"{}", b"[[1]]", b"{a = 1}", b"1979-05-27", b"'a'", b"?"),
)
TOKENS = (
    *(b"\0", b"\n", b"\r", b",", b" ", b"{", b"}", b"[", b"]", b'"', b"'", b"#", b"%", b"=", b"-"),
    *(b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"\x1b[31m", b"[" * 3000, b"@data\n"),
    *(b"../", b"/", b"nan,", b"\n\n", b'"""', b":", b";", b"\\", b"1e999", b"--help"),
)
STRANGE = (
    *(None, True, -1, 0, 2**63, 2**64, 1e308, -0.0, float("nan"), float("inf"), "", "x", "inf"),
    *("\n\x1b[31m", "\ud800", "../x", "--help", [], {}, [[]], {"a": 1}, [1, "a"], "\0"),
)


def place(length, rng):
    """Often near an end, where the headers are."""
    near = min(length, 300)
    at = rng.choice((rng.randrange(length + 1), rng.randint(0, near)))
    return length - at if rng.random() < 0.2 else at


def flipped(content, rng):
    at = min(place(len(content), rng), len(content) - 1)
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def cut(content, rng):
    return content[: place(len(content), rng)]


def put_in(content, rng):
    at = place(len(content), rng)
    piece = rng.choice((rng.choice(TOKENS), rng.randbytes(rng.randint(1, 40))))
    return content[:at] + piece + content[at + rng.choice((0, len(piece))) :]


def binary_number(content, rng):
    at, size = place(len(content), rng), rng.choice((1, 2, 4, 8))
    piece = rng.choice((b"\xff" * size, b"\0" * size, b"\x7f" + b"\xff" * (size - 1),
                        b"\xff" * (size - 1) + b"\x7f", b"\0" * (size - 1) + b"\x01"))  # fmt: skip
    return content[:at] + piece + content[at + size :]


def repeated(content, rng):
    a, b = sorted((place(len(content), rng), place(len(content), rng)))
    return (
        content[:b] + content[a:b] * rng.choice((1, 1, 2, 20 if b - a < 1000 else 1)) + content[b:]
    )


def without(content, rng):
    a = place(len(content), rng)
    return content[:a] + content[a + rng.choice((1, 4, 50, 1000)) :]


def other_number(content, rng):
    found = list(NUMBER.finditer(content[:100_000]))
    if not found:
        return put_in(content, rng)
    match = rng.choice(found)
    return content[: match.start()] + rng.choice(NUMBERS) + content[match.end() :]


def swapped_lines(content, rng):
    lines = content.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = (lines[b], lines[a]) if rng.random() < 0.7 else (lines[b], lines[b])
    return b"\n".join(lines)


def soup(content, rng):
    kept = rng.choice((0, 0, 4, 16, 200))
    return content[:kept] + rng.randbytes(rng.randint(0, 500))


ANYWHERE = (flipped, flipped, cut, put_in, put_in, binary_number, repeated, without, other_number,
            other_number, swapped_lines)  # fmt: skip


def damaged(content, rng):
    """A few changes on bytes."""
    if rng.random() < 0.03:
        return soup(content, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        content = rng.choice(ANYWHERE)(content, rng) if content else put_in(content, rng)
    return content


def inside(unpack, pack):
    """Damage behind a check sum or compression."""

    def change(content, rng):
        return pack(damaged(unpack(content), rng))

    return change


def node(value, rng):
    """Another value, or nothing, somewhere in nested lists and dicts."""
    if not isinstance(value, list | dict) or not value or rng.random() < 0.15:
        return rng.choice(STRANGE)
    copy = value.copy()
    key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    if rng.random() < 0.1:
        del copy[key]
    elif isinstance(copy, dict) and rng.random() < 0.05:
        copy[rng.choice(("x", "", "../x", "\0"))] = copy.pop(key)
    else:
        copy[key] = node(copy[key], rng)
    return copy


def json_node(content, rng):
    """One value changed in one line of JSON, or in a whole file of it."""
    lines = [content] if content[:2] in (b"{\n", b"[\n") else content.split(b"\n")
    k = rng.randrange(max(1, len(lines) - 1))
    lines[k] = json.dumps(node(json.loads(lines[k]), rng)).encode()
    return b"\n".join(lines)


def header_node(content, rng):
    """One value changed in the header of a safetensors file."""
    (size,) = struct.unpack_from("<Q", content)
    header = json.dumps(node(json.loads(content[8 : 8 + size]), rng)).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def state_node(content, rng):
    """One value changed in what torch.save wrote, tensors in its place included."""
    value = node(torch.load(io.BytesIO(content), weights_only=True), rng)
    if rng.random() < 0.3:
        value = {"model": value}
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=rng.random() < 0.8)
    return stream.getvalue()


def zip_member(content, rng):
    """One member damaged, check sums right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info: archive.read(info) for info in archive.infolist()}
    chosen, stream = rng.choice(list(members)), io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for info, text in members.items():
            method = rng.choice((0, 8, 12, 14)) if rng.random() < 0.03 else info.compress_type
            text = damaged(text, rng) if info is chosen else text
            archive.writestr(info.filename, text, method)
    return stream.getvalue()


def tar_header(content, rng):
    """One header damaged, its check sum right again."""
    raw = bytearray(gzip.decompress(content))
    starts = [k for k in range(0, len(raw), 512) if raw[k + 257 : k + 262] == b"ustar"]
    k = rng.choice(starts)
    at, size = rng.choice(((0, 100), (100, 8), (124, 12), (124, 12), (156, 1), (157, 100), (257, 8),
                           (345, 155), (386, 96), (482, 30)))  # fmt: skip
    claims = (b"77777777777", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"00000000000", b"../../x\0",
              b"/etc/x\0", b"L", b"x", b"g", b"S", b"1", b"2", b"3", b"\0" * 12)  # fmt: skip
    piece = rng.choice((rng.choice(claims), rng.randbytes(size)))[:size]
    raw[k + at : k + at + len(piece)] = piece
    raw[k + 148 : k + 156] = b" " * 8
    raw[k + 148 : k + 156] = b"%06o\0 " % sum(raw[k : k + 512])
    return gzip.compress(bytes(raw), 1)


def png_chunk(content, rng):
    """One chunk damaged, length and check sum right again."""
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack_from(">I", content, at)
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + size]])
        at += 12 + size
    chosen = rng.choice(chunks)
    if rng.random() < 0.3:
        kinds = (b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"PLTE", b"tRNS", b"eXIf", b"iCCP",
                 b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"IDAT")  # fmt: skip
        chosen[0] = rng.choice(kinds)
    chosen[1] = damaged(chosen[1], rng)
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b))
             for k, b in chunks]  # fmt: skip
    return content[:8] + b"".join(parts)


in_gzip = inside(gzip.decompress, lambda raw: gzip.compress(raw, 1))
