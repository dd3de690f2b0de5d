"""`passerby attention` on real bundles and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from passerby_client.cli import main
from passerby_model import checkpoint
from passerby_model.attention import evaluate_street
from passerby_model.attention_cli import open_model
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder
from passerby_model.street import StreetConfig, write
from PIL import Image

from tests.encoders import make_bundle

CONFIG = StreetConfig(identities=3, cameras=2, frames=5, height=64, width=32, seed=2)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street") / "street"
    write(CONFIG, folder, masks=True)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its masks are the frame's brightness in 4 x 2 cells, to the power of the block."""
    return make_bundle(tmp_path_factory.mktemp("bundle"), masks=(4, 5))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    architecture = Architecture.parse("resnet18+cosam5+tp", snippet_length=2, height=64, width=32)
    model = Classifier(TrackletEncoder(architecture), 3)
    checkpoint.save(path, checkpoint.Checkpoint(architecture, 3, model.state_dict()))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    with pytest.raises(SystemExit) as ended:
        main(["attention", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def brightness(batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float32]]]:
    """What the tiny bundle computes."""
    count, frames = batch.shape[:2]
    light = (batch / 255).reshape(count, frames, 4, 8, 2, 8 * 3).mean(axis=(3, 5)).astype(np.float32)
    return np.zeros((count, 8), np.float32), {4: light**4, 5: light**5}


def test_a_bundle_is_judged(street: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, bundle, "--street", street, "--json", "--threads", 1)
    assert status == 0
    found, wanted = json.loads(out), evaluate_street(brightness, street, 4, (32, 16)).to_dict()
    assert found.pop("model") == "tiny"
    assert found.keys() == wanted.keys() == {"tracklets", "frames", "cosam4", "cosam5", "centre_prior"}
    assert (found["tracklets"], found["frames"]) == (6, 30)
    for block in ("cosam4", "cosam5", "centre_prior"):
        for key in ("auc", "frame_auc", "iou", "frame_iou", "coverage"):
            assert found[block][key] == pytest.approx(wanted[block][key], abs=1e-3), (block, key)
        assert found[block]["regions"].keys() == wanted[block]["regions"].keys()


def test_the_table_says_the_same(street: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = json.loads(run(capsys, bundle, "--street", street, "--json", "--limit", 2)[1])
    status, out, _ = run(capsys, bundle, "--street", street, "--limit", 2)
    assert status == 0
    assert out.startswith("2 tracklets, 10 frames")
    figures = {line[:14].strip(): line[14:].split() for line in out.splitlines()[3:6]}
    assert list(figures) == ["COSAM_4", "COSAM_5", "centre prior"]
    for name, key in (("COSAM_4", "cosam4"), ("COSAM_5", "cosam5"), ("centre prior", "centre_prior")):
        values = [known[key][field] for field in ("auc", "frame_auc", "iou", "threshold", "frame_iou")]
        assert figures[name] == [f"{value:.3f}" for value in values]
    assert "backpack" in out or "handbag" in out or "hat" in out or "umbrella" in out


def test_a_checkpoint_is_judged_and_drawn(
    street: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    status, out, err = run(capsys, trained, "--street", street, "--json", "--sheet", sheet, "--rows", 2, "--threads", 1)
    assert (status, err) == (0, f"picture in {sheet}\n")
    found = json.loads(out)
    assert "cosam4" not in found
    assert found["cosam5"]["frames"] == 30
    with Image.open(sheet) as picture:
        assert picture.width >= 900


def test_real_tracklets_are_drawn_and_not_judged(
    street: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheets = []
    for rows in (1, 4):
        sheet = tmp_path / f"{rows}.png"
        assert run(capsys, bundle, "--tracklets", street, "--sheet", sheet, "--rows", rows)[:2] == (0, "")
        with Image.open(sheet) as picture:
            sheets.append(picture.size)
    assert sheets[0][0] == sheets[1][0]
    assert sheets[1][1] > sheets[0][1] + 2 * 200


def test_masks_elsewhere(street: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").symlink_to(street)
    status, _, err = run(capsys, bundle, "--street", tmp_path / "there", "--json")
    assert status == 1
    assert "there-masks: no such folder" in err
    arguments = ("--street", tmp_path / "there", "--masks", street.with_name("street-masks"), "--json")
    assert run(capsys, bundle, *arguments)[0] == 0


def test_what_does_not_go_together_is_refused(
    street: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ((), "--street"),
        (("--street", street, "--tracklets", street), "--street"),
        (("--tracklets", street), "--sheet"),
        (("--tracklets", street, "--sheet", tmp_path / "a.png", "--json"), "--json go with --street"),
        (("--tracklets", street, "--sheet", tmp_path / "no/a.png"), "cannot be written"),
        (("--tracklets", street, "--sheet", tmp_path / "a.txt"), "cannot be written"),
    ):
        status, out, err = run(capsys, bundle, *arguments)
        assert (status, out) == (1, ""), arguments
        assert message in err
        assert err.count("\n") == 1


def test_a_model_without_masks_or_none_at_all_is_refused(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = make_bundle(tmp_path / "blind")
    for model, message in ((blind, "no COSAM"), (tmp_path / "absent.pt", "absent.pt"), (tmp_path, "is no bundle")):
        status, out, err = run(capsys, model, "--street", street)
        assert (status, out) == (1, "")
        assert message in err


def test_a_checkpoint_and_its_network_agree(trained: Path) -> None:
    opened = open_model(trained, threads=1)
    assert (opened.snippet_length, opened.size, opened.blocks) == (2, (64, 32), (5,))
    batch = np.random.default_rng(0).integers(0, 256, (3, 2, 64, 32, 3), dtype=np.uint8)
    descriptors, masks = opened.encode(batch)
    assert descriptors.shape == (3, 512)
    assert masks[5].shape == (3, 2, 4, 2)
    np.testing.assert_allclose(opened.encode(batch[1:2])[1][5][0], masks[5][1], atol=1e-5)
