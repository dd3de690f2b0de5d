"""What a `passerby ...` command did, as the fixture `run` of conftest.py gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Done(NamedTuple):
    """Exit status, standard output and standard error of a command that has ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]
