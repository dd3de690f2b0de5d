"""Which tracklets the server has acknowledged: one JSON line each, only ever appended.

A line is written after the acknowledgement, so a crash in between costs one harmless repetition. A last line that was
torn by a crash is dropped. Lines hold the gallery with its creation time: those of a gallery that was deleted since
count for nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from passerby.errors import InvalidArgumentError, NotFoundError

# How every line begins: a last line that does not was never torn off one of ours.
_START = b'{"gallery": "'


class Journal:
    """The journal of one gallery. Use it as a context manager.

    Args:
        path: the file; made when missing. One file may serve several galleries and folders.
        gallery: what tells the gallery from any other, also from one of the same name before it.

    Raises:
        NotFoundError: the file cannot be opened for writing.
        InvalidArgumentError: it is no journal; it is left as it is.
    """

    def __init__(self, path: Path, gallery: str) -> None:
        self._gallery = gallery
        try:
            # For its owner alone: sources may name people.
            self._file: IO[bytes] = open(path, "a+b", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
        except OSError as error:
            raise NotFoundError(f"{path}: the journal cannot be opened: {error.strerror or error}") from error
        try:
            self._done = self._read(path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, source: str) -> bool:
        return source in self._done

    def __len__(self) -> int:
        """Tracklets acknowledged for this gallery."""
        return len(self._done)

    def add(self, source: str, tracklet: str) -> None:
        """Records that `source` (unique on this machine) is durable under the resource name `tracklet`."""
        line = json.dumps({"gallery": self._gallery, "source": source, "tracklet": tracklet}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._done.add(source)

    def _read(self, path: Path) -> set[str]:
        self._file.seek(0)
        done, end = set(), 0
        for line in self._file:
            if not line.endswith(b"\n"):
                if line[: len(_START)] != _START[: len(line)]:
                    raise _no_journal(path)
                break  # torn: its tracklet is sent again
            source = self._source(line, path)
            if source is not None:
                done.add(source)
            end += len(line)
        self._file.seek(0, os.SEEK_END)
        if self._file.tell() > end:
            self._file.truncate(end)
        return done

    def _source(self, line: bytes, path: Path) -> str | None:
        try:
            record = json.loads(line)
            gallery, source = record["gallery"], record["source"]
        except (ValueError, KeyError, TypeError) as error:
            raise _no_journal(path) from error
        return str(source) if gallery == self._gallery else None


def _no_journal(path: Path) -> InvalidArgumentError:
    return InvalidArgumentError(f"{path}: not a journal of `passerby index`; name another file with --journal")
