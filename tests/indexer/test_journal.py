"""The journal: append-only, one line each, survives a crash in the middle of a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_indexer.journal import Journal


def test_what_was_added_is_there_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, "g@1") as journal:
        journal.add("/data::a/1/t1", "galleries/g/tracklets/a.1.t1")
        assert "/data::a/1/t1" in journal
    with Journal(path, "g@1") as journal:
        assert "/data::a/1/t1" in journal
        assert "/data::a/2/t1" not in journal
        assert len(journal) == 1


def test_a_line_is_on_disk_as_soon_as_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, "g@1") as journal:
        journal.add("ä", "t")
        assert json.loads(path.read_text()) == {"gallery": "g@1", "source": "ä", "tracklet": "t"}


def test_another_gallery_or_its_successor_shares_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, "g@1") as journal:
        journal.add("a", "t")
    for gallery in ("h@1", "g@2"):
        with Journal(path, gallery) as journal:
            assert "a" not in journal
            journal.add(f"only {gallery}", "t")
    with Journal(path, "g@1") as journal:
        assert len(journal) == 1


@pytest.mark.parametrize("cut", [1, 10, 40], ids=lambda cut: f"{cut}-bytes-missing")
def test_a_torn_last_line_is_dropped_and_the_next_one_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, "g@1") as journal:
        journal.add("a", "t")
        journal.add("b", "t")
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, "g@1") as journal:
        assert "a" in journal
        assert "b" not in journal
        journal.add("c", "t")
    with Journal(path, "g@1") as journal:
        assert "a" in journal
        assert "c" in journal
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    "content", [b"frame,camera\n", b'{"a": 1}\n', b"[]\n", b"\xff\xfe\n", b"one line", b'{"a": 1}'], ids=repr
)
def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match="not a journal"):
        Journal(path, "g@1")
    assert path.read_bytes() == content


def test_a_journal_is_its_owners_alone_for_it_may_name_people(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl", "g@1"):
        assert (tmp_path / "j.jsonl").stat().st_mode & 0o077 == 0


def test_a_journal_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot be opened"):
        Journal(tmp_path / "no" / "j.jsonl", "g@1")
