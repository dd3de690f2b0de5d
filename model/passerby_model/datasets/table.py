"""CSV and Parquet tables of untrusted origin."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path

from passerby.errors import FailedPreconditionError

from passerby_model.datasets.files import broken, read_bytes, shown

Cell = str | list[str]
MAX_ROWS = 50_000_000
"""Of a Parquet table, whose rows may be packed a thousand to a byte."""


def read_csv(path: Path, required: Collection[str]) -> Iterator[dict[str, Cell]]:
    """Rows by column name; UTF-8 with or without a byte order mark, LF or CRLF.

    Raises:
        NotFoundError: the file cannot be read.
        InvalidArgumentError: no UTF-8, no header, a column of `required` is missing, a column named twice, or a row
            that is longer or shorter than the header.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip() for name in next(lines, [])]
        _check_header(path, header, required)
        for values in lines:
            if values and len(values) != len(header):
                raise broken(path, f"line {lines.line_num}: {len(values)} values, and the header has {len(header)}")
            if values:
                yield dict(zip(header, values, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise broken(path, f"no CSV table: {error}") from error


def read_parquet(path: Path, required: Collection[str]) -> Iterator[dict[str, Cell]]:
    """Rows by column name; numbers, booleans and times as text, nothing as "".

    Raises:
        NotFoundError: the file cannot be read.
        InvalidArgumentError: no Parquet, a column of `required` is missing, more than MAX_ROWS rows, or a cell that is
            neither text, a whole number, a boolean, a time nor a list of texts.
        FailedPreconditionError: pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            f"{shown(path)}: Parquet needs pyarrow: pip install 'passerby[train]'; CSV does without",
            reason="EXTRA_MISSING",
        ) from error
    try:
        with parquet.ParquetFile(io.BytesIO(read_bytes(path))) as file:
            header = list(file.schema_arrow.names)
            _check_header(path, header, required)
            if file.metadata.num_rows > MAX_ROWS:
                raise broken(path, f"{file.metadata.num_rows} rows, more than {MAX_ROWS}")
            for batch in file.iter_batches(batch_size=4096, use_threads=False):
                for row in batch.to_pylist():
                    yield {name: _cell(path, name, value) for name, value in row.items()}
    except (ArrowException, OSError, ValueError, UnicodeDecodeError) as error:
        raise broken(path, f"no Parquet table: {error}") from error


def _check_header(path: Path, header: list[str], required: Collection[str]) -> None:
    missing = sorted(set(required) - set(header))
    if missing:
        raise broken(path, f"no column {', '.join(missing)}; there are {', '.join(header)[:200] or 'none'}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise broken(path, f"column {', '.join(twice)} is there twice")


def _cell(path: Path, column: str, value: object) -> Cell:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise broken(path, f"column {column} holds {str(value)[:80]!r}, where text, a number or a list of texts belongs")
