"""Lint the .proto files and regenerate the committed stubs; with --check, fail on a difference.

Needs the `dev` extra. The stubs are made by the oldest grpcio-tools whose runtime the package accepts, so
that a client is not forced to the newest grpcio.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PROTOS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("passerby/v1/*.proto"))
STUBS = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def google_protos() -> Path:
    """Folder of googleapis-common-protos that holds google/rpc/status.proto."""
    from google.rpc import status_pb2  # a namespace package: only a module in it has a file

    return Path(status_pb2.__file__).parents[2]


def lint() -> None:
    """Check buf's STANDARD and COMMENTS rules; raises CalledProcessError after buf has named the lines."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or "buf"
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        shutil.copytree(ROOT / "passerby", workspace / "proto" / "passerby", ignore=shutil.ignore_patterns("*.py*"))
        (workspace / "third/google/rpc").mkdir(parents=True)
        shutil.copy(google_protos() / "google/rpc/status.proto", workspace / "third/google/rpc")
        shutil.copy(ROOT / "buf.yaml", workspace)
        subprocess.run([buf, "lint"], cwd=workspace, check=True)


def generate(target: Path) -> None:
    """Write the Python modules and type stubs of every .proto below `target`."""
    # protoc finds the mypy plugins on the PATH; they live beside this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    include = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT}", f"-I{google_protos()}", f"-I{include}"]
    arguments += [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main([*arguments, *PROTOS]) != 0:
        raise SystemExit("protoc failed")


def differences(fresh: Path) -> list[str]:
    """Names of the stubs below `fresh` that the committed ones differ from, and of stale committed ones."""
    names = {
        path.relative_to(base)
        for base in (fresh, ROOT)
        for path in base.glob("passerby/v1/*")
        if path.name.endswith(STUBS)
    }
    return sorted(
        str(n)
        for n in names
        if not ((ROOT / n).exists() and (fresh / n).exists() and (ROOT / n).read_bytes() == (fresh / n).read_bytes())
    )


def main() -> None:
    lint()
    if sys.argv[1:] != ["--check"]:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        if stale := differences(Path(folder)):
            raise SystemExit(f"stale stubs, run `python proto/generate.py`: {', '.join(stale)}")


if __name__ == "__main__":
    main()
