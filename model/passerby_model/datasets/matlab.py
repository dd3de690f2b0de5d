"""Matrices of whole numbers in MATLAB files (version 5, which MATLAB 5 to 7 write), of untrusted origin.

Source: MathWorks, "MAT-File Format", chapter 1 (level 5). A file is a header of 128 bytes and a row of elements, each a
tag (type, bytes) and data; a compressed element holds another; a matrix holds flags, dimensions, name and numbers.

Own code, since scipy.io.loadmat crashes the process (a segmentation fault) on files with a few changed bytes, and since
this much of the format is short: sets with tables can be read without scipy.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from passerby_model.datasets.files import MAX_TABLE_BYTES, broken, read_bytes

_HEADER_BYTES = 128
_HDF5_HEADER_BYTES = 512
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MATRIX, _COMPRESSED = 14, 15  # miMATRIX, miCOMPRESSED
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # mxDOUBLE_CLASS to mxUINT64_CLASS
_COMPLEX = 0x0800
_LARGEST = 2**53  # whole numbers above are not exact as double


def read_matrix(path: Path, key: str, columns: int | None = None) -> NDArray[np.int64]:
    """The matrix `key` of a file, int64 (rows, columns); whole numbers stored as floats count.

    Raises:
        NotFoundError: the file cannot be read.
        InvalidArgumentError: no MATLAB file of version 5, no such matrix, another number of columns, values that are
            no whole numbers, or more than any table of a data set needs.
    """
    data = read_bytes(path)
    if data[_HDF5_HEADER_BYTES:].startswith(_HDF5):
        raise broken(path, "a MATLAB file of version 7.3; save it with -v7")
    try:
        matrix = _find(data, key)
    except (ValueError, struct.error, zlib.error) as error:
        raise broken(path, f"no MATLAB file of version 5 with a matrix {key}: {error}") from error
    if columns is not None and matrix.size and matrix.shape[1] != columns:
        raise broken(path, f"{key} is {matrix.shape}; it takes rows of {columns} columns")
    if not np.all(np.isfinite(matrix)) or np.any(matrix != np.floor(matrix)) or np.any(np.abs(matrix) > _LARGEST):
        raise broken(path, f"{key} holds values that are no whole numbers")
    whole = matrix.astype(np.int64)
    return whole.reshape(-1, columns) if columns is not None else whole


def _find(data: bytes, key: str) -> NDArray[np.float64]:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER_BYTES])
    if order is None or struct.unpack_from(f"{order}H", data, 124)[0] != 0x0100:
        raise ValueError("another header")
    names = []
    for kind, element in _unpacked(data[_HEADER_BYTES:], order):
        if kind == _MATRIX:
            parts = list(itertools.islice(_elements(element, order), 4))
            name = bytes(parts[2][1]).decode("latin1") if len(parts) == 4 else ""
            if name == key:
                return _matrix(parts, order)
            names.append(name)
    raise ValueError(f"there are {', '.join(names)[:200] or 'none'}")


def _matrix(parts: list[tuple[int, memoryview]], order: str) -> NDArray[np.float64]:
    """From flags, dimensions, name and real part; float64 (rows, columns)."""
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    if flags & 0xFF not in _NUMERIC_CLASSES or flags & _COMPLEX:
        raise ValueError("its values are no real numbers")
    sizes = np.frombuffer(parts[1][1], np.dtype(f"{order}i4")).tolist()
    kind, numbers = parts[3]
    values = np.frombuffer(numbers, np.dtype(order + _NUMBERS[kind])) if kind in _NUMBERS else None
    if values is None or len(sizes) != 2 or min(sizes) < 0 or sizes[0] * sizes[1] != len(values):
        raise ValueError(f"its dimensions are {sizes}, which is no table, or not as many as its values")
    return values.astype(np.float64).reshape(sizes, order="F")


def _unpacked(data: bytes, order: str) -> Iterator[tuple[int, memoryview]]:
    """The outermost elements, out of their compression."""
    left = MAX_TABLE_BYTES
    for kind, element in _elements(memoryview(data), order):
        if kind != _COMPRESSED:
            yield kind, element
            continue
        content = zlib.decompressobj().decompress(element, left)
        left -= len(content)
        if left <= 0:
            raise ValueError(f"unpacks to more than {MAX_TABLE_BYTES} bytes")
        yield from _elements(memoryview(content), order)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and data of each element in a row of them."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        end = start + size
        if kind >> 16:  # a small element: type and size share four bytes, the data are the other four
            kind, size = kind & 0xFFFF, kind >> 16
            start = place + 4
            end = start + size
        if end > len(data) or (start == place + 4 and size > 4):
            raise ValueError("cut short")
        yield kind, data[start:end]
        place = end if kind == _COMPRESSED else -(-end // 8) * 8
