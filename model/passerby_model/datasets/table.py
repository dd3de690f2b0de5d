"""CSV tables of untrusted origin."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path

from passerby_model.datasets.files import broken, read_bytes


def read_csv(path: Path, required: Collection[str]) -> Iterator[dict[str, str]]:
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
        check_header(path, header, required)
        for values in lines:
            if values and len(values) != len(header):
                raise broken(path, f"line {lines.line_num}: {len(values)} values, and the header has {len(header)}")
            if values:
                yield dict(zip(header, values, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise broken(path, f"no CSV table: {error}") from error


def check_header(path: Path, header: list[str], required: Collection[str]) -> None:
    """Raises InvalidArgumentError when a column is missing or named twice."""
    missing = sorted(set(required) - set(header))
    if missing:
        raise broken(path, f"no column {', '.join(missing)}; there are {', '.join(header)[:200] or 'none'}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise broken(path, f"column {', '.join(twice)} is there twice")
