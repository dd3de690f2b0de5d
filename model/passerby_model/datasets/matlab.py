"""Integer matrices of MATLAB files (version 5), of untrusted origin.

scipy reads them; it is imported here alone and only when a table is read, since folders of images do without.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError

from passerby_model.datasets.files import MAX_TABLE_BYTES, broken, read_bytes, shown

MAX_FILE_BYTES = 64 * 2**20
_HEADER_BYTES = 128
_COMPRESSED = 15  # miCOMPRESSED, MAT-File Level 5 format
_INTEGRAL = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "double", "single")


def read_matrix(path: Path, key: str, columns: int | None = None) -> NDArray[np.int64]:
    """The matrix `key` of a file, int64 (rows, columns); whole numbers stored as floats count.

    Raises:
        NotFoundError: the file cannot be read.
        InvalidArgumentError: no MATLAB file of version 5, no such matrix, another number of columns, values that are
            no whole numbers, or more than any table of a data set needs.
        FailedPreconditionError: scipy is not installed.
    """
    data = read_bytes(path, MAX_FILE_BYTES)
    _refuse_bombs(path, data)
    loaded = _load(path, data, key)
    if loaded.ndim != 2 or (columns is not None and loaded.size and loaded.shape[1] != columns):
        raise broken(path, f"{key} is {loaded.shape}; it takes rows of {columns} columns")
    if not np.all(np.isfinite(loaded)) or not np.all(loaded == np.floor(loaded)) or np.any(np.abs(loaded) > 2**53):
        raise broken(path, f"{key} holds values that are no whole numbers")
    matrix = loaded.astype(np.int64)
    return matrix.reshape(-1, columns) if columns is not None else matrix


def _load(path: Path, data: bytes, key: str) -> NDArray[np.generic]:
    try:
        from scipy import io as scipy_io
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            f"{shown(path)}: MATLAB tables need scipy: pip install 'passerby[train]'", reason="EXTRA_MISSING"
        ) from error
    try:
        kinds = {name: kind for name, _, kind in scipy_io.whosmat(io.BytesIO(data))}
        if kinds.get(key) in _INTEGRAL:
            return np.asarray(scipy_io.loadmat(io.BytesIO(data), variable_names=[key])[key])
    except Exception as error:
        raise broken(path, f"no MATLAB file of version 5: {error}") from error
    raise broken(path, f"no numeric matrix {key}; there are {', '.join(f'{n} ({k})' for n, k in kinds.items())[:200]}")


def _refuse_bombs(path: Path, data: bytes) -> None:
    """Unpacks every compressed element within the limit, before scipy does so without one."""
    order = ">" if data[126:128] == b"MI" else "<"
    place, unpacked = _HEADER_BYTES, 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        place += 8
        if kind == _COMPRESSED:
            try:
                element = zlib.decompressobj().decompress(data[place : place + size], MAX_TABLE_BYTES)
            except zlib.error as error:
                raise broken(path, f"no MATLAB file of version 5: {error}") from error
            unpacked += len(element)
        place += size
        if unpacked >= MAX_TABLE_BYTES:
            raise broken(path, f"unpacks to more than {MAX_TABLE_BYTES} bytes")
