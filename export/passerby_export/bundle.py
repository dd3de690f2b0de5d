"""Writing bundles: whole under their final name, or not at all.

A bundle is built in a hidden folder beside the target, synced to disk, and renamed into place as the last step. A
failure on the way (a full disk, a failing parity check, an interrupt) leaves the target as it was.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from passerby.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, ResourceExhaustedError
from passerby_model.bundle import (
    MANIFEST_NAME,
    Artefact,
    File,
    Input,
    Manifest,
    MaskOutput,
    Metric,
    describe_file,
    fingerprint_of,
    manifest_bytes,
)

# What "no room" is called: disk full, over quota, over the file size limit of the process.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_TOOLS = ("passerby", "nncf", "numpy", "onnx", "onnxruntime", "onnxscript", "openvino", "timm", "torch")


@contextlib.contextmanager
def new_bundle(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends without an error.

    Args:
        target: where the bundle will be. Its parent folders are made.
        force: replace a bundle that is there. Anything else that is there is never replaced.

    Raises:
        AlreadyExistsError: the target exists, and `force` is not given or it is not a bundle.
        ResourceExhaustedError: the disk is full (or over a quota or file size limit).
    """
    check_target(target, force=force)
    with clear_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            yield folder
            folder.chmod(0o755)  # mkdtemp makes it private; a server of another user has to read it
            for path in folder.iterdir():
                _sync(path)
            _sync(folder)
            _put_in_place(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target that `new_bundle` would refuse, before any work is done. Raises AlreadyExistsError."""
    if not target.exists() and not target.is_symlink():
        return
    is_bundle = target.is_dir() and not target.is_symlink() and (target / MANIFEST_NAME).is_file()
    if not is_bundle:
        raise AlreadyExistsError(f"{target} exists and is no bundle: choose another name", reason="TARGET_EXISTS")
    if not force:
        raise AlreadyExistsError(f"{target} exists: choose another name, or replace it with --force")


def seal(
    folder: Path,
    artefacts: Sequence[Artefact],
    *,
    name: str,
    architecture: str,
    input: Input,
    descriptor_dim: int,
    metric: Metric,
    masks: tuple[MaskOutput, ...] = (),
    training: dict[str, object] | None = None,
    reference: str | None = None,
) -> Manifest:
    """Write bundle.json over the files that lie in `folder`, with their checksums and the fingerprint.

    Args:
        artefacts: whose files they are, the most exact one first.
        reference: the file that `write_reference` wrote.

    Raises:
        FailedPreconditionError: an artefact's parity report is missing, or has a failed row: such an encoder gets no
            bundle.
    """
    problems = [text for a in artefacts for runtime in a.runtimes if (text := a.unproven(runtime))]
    if problems:
        raise FailedPreconditionError(
            f"the encoder is not the model it was made from: {'; '.join(problems)}", reason="PARITY_FAILED"
        )
    files: dict[str, File] = {path.name: describe_file(path) for path in sorted(folder.iterdir())}
    manifest = Manifest(
        name=name,
        architecture=architecture,
        artefacts=tuple(artefacts),
        input=input,
        descriptor_dim=descriptor_dim,
        metric=metric,
        masks=masks,
        reference=reference,
        files=files,
        fingerprint=fingerprint_of(
            files={name: files[name] for name in artefacts[0].files},
            input=input,
            descriptor_dim=descriptor_dim,
            metric=metric,
            architecture=architecture,
        ),
        training=json.loads(json.dumps(training or {}, default=str)),
        tools=tool_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    (folder / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
    return manifest


def tool_versions() -> dict[str, str]:
    """Versions of the installed tools that can have a part in an encoder."""
    versions = {}
    for tool in _TOOLS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[tool] = metadata.version(tool)
    return versions


def require_file(path: Path, what: str) -> Path:
    """`path`, once it is a file. Raises NotFoundError otherwise."""
    if not path.is_file():
        raise NotFoundError(f"{path}: no such {what}", reason="FILE_NOT_FOUND")
    return path


@contextlib.contextmanager
def clear_errors(target: Path) -> Iterator[None]:
    """What goes wrong while `target` is written, in plain words: whoever uses it removes what is half-written.

    Raises:
        ResourceExhaustedError: no room (DISK_FULL).
        FailedPreconditionError: anything else that the system has against it (TARGET_NOT_WRITABLE).
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise ResourceExhaustedError(
                f"no room for {target}: {error.strerror}; nothing was left behind", reason="DISK_FULL"
            ) from error
        if error.errno is None:  # not from the system: a tool's own subclass of OSError
            raise
        raise FailedPreconditionError(
            f"{target} cannot be written: {error.strerror}", reason="TARGET_NOT_WRITABLE"
        ) from error


def _put_in_place(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
        _sync(target.parent)
        return
    # A folder cannot be renamed over one with files in it: the old bundle steps aside, and back if that fails.
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    try:
        target.rename(aside / target.name)
        try:
            folder.rename(target)
        except BaseException:  # an interrupt, too
            (aside / target.name).rename(target)
            raise
    finally:
        _sync(target.parent)
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
