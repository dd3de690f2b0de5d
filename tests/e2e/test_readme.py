"""The README is run: every block of it, in order, against a real server, with data as small as the text allows.

That its commands and flags exist is checked by tests/test_docs.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from passerby_model import train_config
from passerby_model.bundle import open_bundle

from tests.export.conftest import foreign_onnx

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BUNDLES = (ROOT / "bundles/README.md").read_text()
ADDRESS = "127.0.0.1:50051"
BINARIES = Path(sys.executable).parent


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def block_with(language: str, text: str) -> str:
    found = [block for block in blocks(language) if text in block]
    assert len(found) == 1, f"{len(found)} blocks of README.md hold {text!r}"
    return found[0]


def run(script: str, folder: Path, address: str = "", *, timeout: float = 240) -> str:
    """Runs a shell script as the README's reader would; what it printed. Fails with its output."""
    environment = {**os.environ, "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    environment |= {"PASSERBY_SERVER": address} if address else {}
    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def server(script: str, folder: Path) -> Iterator[str]:
    """The README's server on a free port instead of its own."""
    command = shlex.split(script.replace(ADDRESS, "127.0.0.1:0"))
    command[0] = str(BINARIES / command[0])
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = re.match(r"passerby is serving on (\S+) ", process.stdout.readline())
            assert ready
            yield ready[1]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README takes for granted, a model; and what it makes first, a folder of tracklets and a query."""
    folder = tmp_path_factory.mktemp("readme")
    foreign_onnx(folder / "model.onnx")
    run(block_with("sh", "passerby street cameras").replace("--identities 8", "--identities 3"), folder)
    return folder


def test_wrap_serve_index_search_and_the_python_client(workplace: Path) -> None:
    run(block_with("sh", "passerby bundle wrap"), workplace)
    with server(block_with("sh", "passerby serve --bundle my-bundle"), workplace) as address:
        printed = run(block_with("sh", "passerby gallery create"), workplace, address)
        assert "8" in printed  # 3 people x 3 cameras but for the query
        assert (workplace / "result.png").stat().st_size > 10_000
        program = block_with("python", "from passerby_client").replace(ADDRESS, address)
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=workplace, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.split()[:2] == ["ann", "entrance"], done.stderr


@pytest.mark.timeout(900)
def test_train_and_export(workplace: Path) -> None:
    small = {"architecture": "resnet18+cosam45+tp", "height": 64, "width": 32, "epochs": 1, "identities_per_batch": 4}
    recipe = yaml.safe_load(block_with("yaml", "architecture:")) | small
    (workplace / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    printed = run(block_with("sh", "passerby train"), workplace, timeout=800)
    assert "parity passed" in printed
    assert "all-vs-all" in printed, "evaluate names its protocol"
    assert (workplace / "runs/first/final.pt").exists()
    assert open_bundle(workplace / "first-bundle").manifest.encoder == "encoder.w8.onnx"


def test_settings_are_shown_and_a_token_is_made(workplace: Path) -> None:
    printed = run(block_with("sh", "passerby config show"), workplace)
    assert "limits.max_frames" in printed
    assert (workplace / "callers.json").stat().st_mode & 0o077 == 0


def test_extras_make_targets_and_image_targets_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"passerby\[(\w+)\]", README)) <= set(extras)
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert "AS cpu" in (ROOT / "Dockerfile").read_text()


def test_retrieval_figures_are_those_of_the_results() -> None:
    rows = re.findall(
        r"^\| .* \| ([\d.]+) / ([\d.]+) \| ([\d.]+) / ([\d.]+) \| \[\w+\]\((\S+)\) \|$", README, re.MULTILINE
    )
    assert len(rows) >= 3
    for *figures, path in rows:
        result = json.loads((ROOT / path).read_text())
        measured = [result[gallery][key] for gallery in ("by-camera", "all-against-all") for key in ("rank_1", "mAP")]
        assert [float(figure) for figure in figures] == measured


def test_minutes_of_training_are_the_sum_of_its_steps() -> None:
    steps = [int(minutes) for minutes in re.findall(r"^\| \d: .* \| .* \| .* \| (\d+) \|", BUNDLES, re.MULTILINE)]
    assert set(re.findall(r"(\d+) minutes of training", README + BUNDLES)) <= {str(sum(steps))}


def test_recipes_of_the_sample_bundle_are_valid() -> None:
    recipes = sorted((ROOT / "bundles/recipes").glob("*.yaml"))
    assert [recipe.name for recipe in recipes if recipe.name not in BUNDLES] == []
    architectures = {recipe.stem: train_config.load(recipe).architecture for recipe in recipes}
    steps = [architectures[f"street-ward-{number}"] for number in range(1, 5)]
    assert steps == [*["se_resnet50+none+tp"] * 3, "se_resnet50+cosam45+tp"]


def test_files_that_it_links_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
