"""The report of a run: one page that needs nothing beside it, and says what it cannot show."""

from __future__ import annotations

import base64
import io
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from passerby.errors import FailedPreconditionError
from passerby_model import checkpoint
from passerby_model.report import write_report
from passerby_model.report_page import Picture, Section, write_page
from PIL import Image

from tests.training_runs import config, log, run, write_people

VOID = {"meta", "img"}
COSAM = ["architecture=test_resnet+cosam5+tp", "snippet_length=2", "iterations=4"]


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what a reader sees."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: dict[str, Image.Image] = {}
        self.text = ""
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.links += [values[key] for key in ("src", "href") if key in values]
        if tag == "img":
            data = values["src"].removeprefix("data:image/png;base64,")
            self.pictures[values["alt"]] = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"), count=10, frames=3)


@pytest.fixture(scope="module")
def finished(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first <run>"
    run(config(people, *COSAM, "val_identities=0.4", "val_every=1"), out)
    return out


def test_a_finished_run(finished: Path) -> None:
    told: list[str] = []
    path = write_report(finished, tell=told.append)
    page = Page(path)
    assert path == finished / "report" / "index.html"
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    pngs = sorted(file.name for file in path.parent.glob("*.png"))
    assert len(pngs) == len(page.pictures) == 10
    assert {"cmc.png", "distances.png", "loss.png", "ranked_worst.png", "ranked_best.png", "attention.png"} <= set(pngs)
    for word in ("loss", "validation", "accuracy", "learning rate", "CMC", "histograms", "ranked", "COSAM"):
        assert any(word in alt for alt in page.pictures), word
    assert "Training run first <run>" in page.text
    assert "val_identities: 0.4" in page.text
    assert checkpoint.load(finished / "final.pt").architecture.name in page.text
    best = max(row["validation"]["mean_average_precision"] for row in log(finished) if "validation" in row)
    assert f"mAP{100 * best:.1f} %" in page.text
    assert "not finished" not in page.text
    assert told[-1] == "report: 8 validation tracklets"


def test_a_run_without_validation_that_was_stopped(people: Path, tmp_path: Path) -> None:
    answers = iter([False, False, True])
    run(config(people), tmp_path, stop=lambda: next(answers))
    page = Page(write_report(tmp_path))
    assert "2 (not finished)" in page.text
    assert "No identities were held out" in page.text
    assert len(page.pictures) == 4


def test_data_that_were_moved_or_changed_are_named(people: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(people, copy)
    run(config(copy, "val_identities=0.4", "iterations=1"), tmp_path / "out")
    shutil.rmtree(copy / "p0")
    assert "the data are no longer those that the run was trained on" in Page(write_report(tmp_path / "out")).text
    shutil.rmtree(copy)
    assert f"Could not be drawn: {copy}" in Page(write_report(tmp_path / "out")).text


def test_no_run_and_no_checkpoint_yet(people: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="no training run"):
        write_report(tmp_path)
    run(config(people, "iterations=1"), tmp_path)
    for name in ("last.pt", "final.pt"):
        (tmp_path / name).unlink()
    with pytest.raises(FailedPreconditionError, match="no checkpoint yet"):
        write_report(tmp_path)


def test_what_is_shown_cannot_break_the_page(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "a.png")
    nasty = '<script>"&'
    section = Section(nasty, nasty, [(nasty, nasty)], [Picture(tmp_path / "a.png", nasty)], nasty)
    page = Page(write_page(tmp_path / "sub" / "page.html", nasty, [section]))
    assert page.pictures[nasty].size == (3, 2)
    assert page.text.count(nasty) == 8
    assert "<script>" not in (tmp_path / "sub" / "page.html").read_text()
