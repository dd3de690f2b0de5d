"""Options that several commands of this room share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Cache = Annotated[
    Path | None,
    typer.Option(
        envvar="PASSERBY_CACHE__FOLDER",
        help="The server's cache.folder. Default: passerby in the user's cache folder.",
        show_default=False,
    ),
]

MachineCache = Annotated[
    Path | None,
    typer.Option(
        "--machine-cache",
        envvar="PASSERBY_CACHE__FOLDER",
        metavar="FOLDER",
        help="On a GPU: the server's cache.folder, for engines and proofs. Default: passerby in the user's cache folder.",
        show_default=False,
    ),
]


def cache_folder(given: Path | None, flag: str = "--cache") -> Path:
    """The cache folder, made when missing; `flag` names it. Raises FailedPreconditionError when it cannot be."""
    import os

    from passerby.errors import FailedPreconditionError
    from passerby_model.machine import default_cache, make_folder

    folder = given or default_cache(os.environ)
    if folder is None:
        raise FailedPreconditionError(f"there is no home folder to keep a result in: name a folder with {flag}")
    try:
        return make_folder(folder)
    except OSError as error:
        raise FailedPreconditionError(
            f"{folder} cannot be written ({error.strerror}): name another folder with {flag}", reason="CACHE_FOLDER"
        ) from error


def one_of(flag: str, value: str, known: tuple[str, ...]) -> Any:
    """`value`; raises InvalidArgumentError when it is none of `known`."""
    if value not in known:
        from passerby.errors import InvalidArgumentError

        raise InvalidArgumentError(f"{flag}: {value!r} is none of {', '.join(known)}")
    return value
