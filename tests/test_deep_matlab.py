"""The reader of MATLAB files against SciPy's writer, and on files damaged at random."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from deep.data.matlab import read_arrays

TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


def saved(arrays, compressed):
    stream = io.BytesIO()
    savemat(stream, arrays, do_compression=compressed)
    return stream.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_scipy_writes_is_read_back(dtype, compressed):
    """Every numeric type, sizes that need padding or fit into a tag, several arrays in a file."""
    rng = np.random.default_rng(0)
    arrays = {
        f"a{'x' * i}": rng.integers(0, 100, shape).astype(dtype)
        for i, shape in enumerate([(1, 1), (3, 1), (2, 3), (2, 3, 4, 5), (0, 4)])
    }
    content = saved(arrays, compressed)
    found = read_arrays(content)
    assert found.keys() == arrays.keys()
    oracle = loadmat(io.BytesIO(content))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(found[name], oracle[name])
        assert found[name].dtype == array.dtype


def test_big_endian_files_are_read():
    """Written by hand: one array `v` of 16-bit integers, 1 × 3, the values 1, 2, 300."""
    parts = [
        struct.pack(">IIII", 6, 8, 10, 0),  # flags: class int16
        struct.pack(">IIii", 5, 8, 1, 3),  # dimensions
        struct.pack(">HHc3x", 1, 1, b"v"),  # name, packed into its tag
        struct.pack(">IIhhh2x", 3, 6, 1, 2, 300),  # values, padded
    ]
    body = b"".join(parts)
    header = b"by hand".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    content = header + struct.pack(">II", 14, len(body)) + body
    np.testing.assert_array_equal(read_arrays(content)["v"], [[1, 2, 300]])
    np.testing.assert_array_equal(loadmat(io.BytesIO(content))["v"], [[1, 2, 300]])


@pytest.mark.parametrize("value", ["text", np.array([[1 + 2j]]), {"a": 1}])
def test_what_is_no_real_numeric_array_is_refused(value):
    with pytest.raises(ValueError, match=r"not of real numbers|to unpack"):
        read_arrays(saved({"v": value}, compressed=False))


@given(data=st.data(), compressed=st.booleans())
@settings(max_examples=300)
def test_damaged_files_are_refused_or_read_as_arrays(data, compressed):
    """Whatever bytes are changed or cut off, nothing but the two stated exceptions comes out."""
    content = bytearray(saved({"X": np.zeros((4, 3), np.uint8), "y": np.ones(3)}, compressed))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        arrays = read_arrays(bytes(content))
    except (ValueError, zlib.error):
        return
    assert all(isinstance(array, np.ndarray) for array in arrays.values())


def test_unknown_type_code_is_refused():
    """The damage on which `loadmat` ends the process."""
    content = bytearray(saved({"X": np.zeros((4, 4), np.uint8)}, compressed=False))
    tag = content.index(struct.pack("<II", 2, 16))
    content[tag + 1] = 0x7D
    with pytest.raises(ValueError, match="unknown type"):
        read_arrays(bytes(content))
