"""Imports point one way: proto <- everyone; model <- export, server; client <- indexer, export (which evaluates running
servers); nobody imports the server."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "passerby": ROOT / "proto/passerby",
    "passerby_model": ROOT / "model/passerby_model",
    "passerby_export": ROOT / "export/passerby_export",
    "passerby_server": ROOT / "server/passerby_server",
    "passerby_indexer": ROOT / "indexer/passerby_indexer",
    "passerby_client": ROOT / "clients/passerby_client",
}
ALLOWED = {
    "passerby": set[str](),
    "passerby_model": {"passerby"},
    "passerby_export": {"passerby", "passerby_model", "passerby_client"},
    "passerby_server": {"passerby", "passerby_model"},
    "passerby_client": {"passerby"},
    "passerby_indexer": {"passerby", "passerby_model", "passerby_client"},
}
# What a process without torch must be able to import: the whole server, client and indexer, and of the model room
# whatever they import in turn.
TORCH_FREE = ("passerby", "passerby_server", "passerby_client", "passerby_indexer")


def imports_of(path: Path) -> Iterator[str]:
    """Top-level names of all modules that the file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    files = list(PACKAGES[package].rglob("*.py"))
    assert files
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in files
        for name in imports_of(path)
        if name in PACKAGES and name != package and name not in ALLOWED[package]
    }
    assert not wrong


def test_server_client_and_indexer_import_without_torch() -> None:
    modules = sorted(
        ".".join((name, *path.relative_to(PACKAGES[name]).with_suffix("").parts))
        for name in TORCH_FREE
        for path in PACKAGES[name].rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    )
    program = "\n".join(
        ["import sys, importlib", "sys.modules['torch'] = None", "sys.modules['timm'] = None"]
        + [f"importlib.import_module({name!r})" for name in modules]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(modules) > 10
