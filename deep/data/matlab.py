"""Numeric arrays of MATLAB files, version 5, the format SVHN is published in.

SciPy's `loadmat` reads far more, but its documentation says that it is not hardened against damaged
files, and an unknown type code in an uncompressed file ends the whole process by a segmentation
fault. What is needed here is small enough to check every length and code.

Layout: a header of 128 bytes whose last two tell the byte order, then elements. An element is a
type code and a byte count (4 bytes each) followed by so many bytes, padded to a multiple of 8; up
to four bytes are packed into the tag itself. An array is an element of four: flags, dimensions,
name and values, column by column; it may be wrapped in a zlib stream.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

_COMPRESSED, _ARRAY = 15, 14
_NUMBERS = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"},
    **{7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}
_NUMERIC_CLASSES = range(6, 16)  # double, single and the eight kinds of integer
_COMPLEX_FLAG = 0x800
_HEADER_SIZE = 128
_MOST_BYTES = 2**28  # unpacked, in one file; SVHN's training part has 225 MB


def read_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Return the real numeric arrays in a MATLAB file of version 5, by name.

    Values have the type in which they are stored, which MATLAB chooses as small as it can.

    Args:
        content: The whole file.

    Raises:
        ValueError: Not such a file, damaged or cut short, or it holds anything else, or more than
            256 MiB of compressed arrays.
        zlib.error: A compressed array is damaged or cut short.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER_SIZE])
    if order is None:
        raise ValueError("no MATLAB file of version 5")
    arrays = {}
    left = _MOST_BYTES
    for kind, body in _elements(memoryview(content)[_HEADER_SIZE:], order):
        if kind == _COMPRESSED:
            unpacked = _unpacked(body, left)
            left -= len(unpacked)
            ((kind, body),) = _elements(memoryview(unpacked), order)
        if kind != _ARRAY:
            raise ValueError(f"element of type {kind} where an array should be")
        name, values = _array(body, order)
        arrays[name] = values
    return arrays


def _unpacked(body: memoryview, most: int) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(body, most + 1)
    if len(content) > most:
        raise ValueError(f"its arrays unpack to more than {_MOST_BYTES} bytes")
    if not stream.eof:
        raise ValueError("a compressed array is cut short")
    return content


def _elements(buffer: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    while buffer:
        if len(buffer) < 8:
            raise ValueError("an element is cut short")
        kind, size = struct.unpack_from(f"{order}II", buffer)
        start, end = 8, 8 + size
        if kind >> 16:  # the small form: byte count and type share four bytes, the values follow
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = 4, 4 + size
        if end > len(buffer) or (start == 4 and size > 4):
            raise ValueError("an element is cut short")
        yield kind, buffer[start:end]
        # Compressed elements are the one kind without padding.
        buffer = buffer[end if kind == _COMPRESSED else -(-end // 8) * 8 :]


def _array(body: memoryview, order: str) -> tuple[str, np.ndarray]:
    (_, flags), (_, dims), (_, name), (kind, values) = _elements(body, order)
    (flag_bits,) = struct.unpack_from(f"{order}I", flags) if len(flags) >= 4 else (0,)
    if flag_bits & 0xFF not in _NUMERIC_CLASSES or flag_bits & _COMPLEX_FLAG:
        raise ValueError("an array is not of real numbers")
    if kind not in _NUMBERS:
        raise ValueError(f"values of unknown type {kind}")
    shape = np.frombuffer(dims, f"{order}i4").tolist()
    if min(shape, default=-1) < 0:
        raise ValueError("an array has no proper shape")
    numbers = np.frombuffer(values, order + _NUMBERS[kind]).reshape(shape, order="F")
    return str(name, "ascii"), numbers
