"""The files around the code agree with one another: project, lock, image, CI."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "requirements.lock").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_extras_of_the_design_exist() -> None:
    assert {"server", "server-gpu", "train", "export", "console", "dev"} <= set(EXTRAS)


def test_lock_pins_every_requirement_at_an_allowed_version() -> None:
    pinned: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", LOCK, re.MULTILINE):
        pinned.setdefault(canonicalize_name(name), set()).add(version)
    wanted = [Requirement(text) for group in [PROJECT["dependencies"], *EXTRAS.values()] for text in group]
    for requirement in wanted:
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= set(EXTRAS)
            continue
        versions = pinned.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement} is not in requirements.lock: run `make lock`"
        assert all(requirement.specifier.contains(version) for version in versions), requirement


def test_lock_has_hashes_and_names_no_host() -> None:
    blocks = re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip())
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in LOCK


def test_dockerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--format", "json", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert json.loads(done.stdout) == []
    assert done.returncode == 0


def test_dockerfile_names_only_files_that_exist_and_reach_the_build() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    named = {
        source
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for source in sources.split()
    } - {"."}
    assert named
    assert named <= kept
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(packages["packages"]) <= kept


def test_dockerfile_extras_and_stages_exist() -> None:
    assert set(re.findall(r"--extra (\S+)", DOCKERFILE)) == {"server", "server-gpu"}
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert {"cpu", "gpu"} <= set(stages)
    assert set(re.findall(r"--from=(\S+)", DOCKERFILE)) <= set(stages)


@pytest.mark.parametrize("instruction", ["USER 10001", "HEALTHCHECK", "VOLUME /data", "STOPSIGNAL SIGTERM"])
def test_dockerfile_is_fit_to_operate(instruction: str) -> None:
    assert instruction in DOCKERFILE


def test_make_and_ci_pin_the_same_installer_as_the_image() -> None:
    version = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert version
    assert f"uv=={version[1]}" in DOCKERFILE
    assert "make test" in (ROOT / ".ci/run").read_text()
