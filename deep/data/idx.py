"""Reader of gzipped IDX files, the format that MNIST is published in.

Layout: two zero bytes, the code of the values' type (8: unsigned bytes), the number of axes, the
length of each axis as a big-endian 32-bit number, then the values, the last axis fastest.
"""

import gzip
import struct
from math import prod
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from deep.data.files import reading

_UNSIGNED_BYTES = 8
# MNIST's largest file unpacks to 47 MB. A header may claim 2^32 along each axis.
_MOST_BYTES = 2**28


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Return the array of bytes in a gzipped IDX file.

    Raises:
        InputError: The file is missing, damaged, cut short or longer than its header says, holds
            other values than bytes, or claims more than 256 MiB of them.
    """
    with reading(path), gzip.open(path) as stream:
        head = stream.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UNSIGNED_BYTES:
            raise ValueError("no IDX file of unsigned bytes")
        axes = head[3]
        lengths = stream.read(4 * axes)
        if not axes or len(lengths) < 4 * axes:
            raise ValueError("its header is cut short")
        shape = struct.unpack(f">{axes}I", lengths)
        size = prod(shape)
        if size > _MOST_BYTES:
            raise ValueError(f"its header claims {size} bytes")
        content = stream.read(size + 1)  # one more, to see that the file ends there
        if len(content) != size:
            found = f"only {len(content)}" if len(content) < size else "more"
            raise ValueError(f"its header claims {size} bytes, it holds {found}")
        return np.frombuffer(content, np.uint8).reshape(shape)
