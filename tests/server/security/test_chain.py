"""The sealed records: whatever is changed, removed, added or cut off is found; time and disk do what they do."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import threading
import time
from pathlib import Path

import pytest
from passerby.errors import DataLossError, FailedPreconditionError, NotFoundError, UnavailableError
from passerby_server.security import audit, chain
from passerby_server.security.audit import AuditLog
from passerby_server.security.chain import Head

NAMES = [f"name-{number}" for number in range(9)]


def _written(folder: Path, *names: str) -> Head:
    """Appends records; the head."""
    log = AuditLog(folder)
    for future in [log.append("Search", caller=name) for name in names]:
        future.result(10)
    log.close()
    return log.head


def _callers(folder: Path) -> list[str]:
    return [record["caller"] for record in chain.read(folder, chain.load_key(folder / "key")) if "caller" in record]


def _file(folder: Path) -> Path:
    (path,) = chain.segments(folder)
    return path


def test_what_was_written_is_sound_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    _written(folder, *NAMES[:5])
    head = _written(folder, *NAMES[5:])
    assert _callers(folder) == NAMES
    found = chain.verify(folder, chain.load_key(folder / "key"), head)
    assert found.head == head
    assert found.records == head.seq == len(NAMES) + 3  # a segment's first record, and two ends
    assert found.last is not None
    assert found.last["event"] == chain.STOPPED
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "key", _file(folder))] == [0o700, 0o600, 0o600]


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    _written(folder, *NAMES[:1])
    path, key = _file(folder), chain.load_key(folder / "key")
    good = path.read_bytes()
    for place in range(len(good) - 1):  # without the last line's end: that looks like one that is being written
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(DataLossError, match="tampered with or is damaged"):
            chain.verify(folder, key)
    path.write_bytes(good)
    chain.verify(folder, key)


def test_lines_that_are_removed_moved_or_added_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    head = _written(folder, *NAMES)
    path, key = _file(folder), chain.load_key(folder / "key")
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    for first, second in itertools.combinations(range(len(lines)), 2):
        swapped = list(lines)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        for wrong in (swapped, lines[:first] + lines[second:], [*lines[:second], lines[first], *lines[second:]]):
            path.write_bytes(b"".join(wrong))
            with pytest.raises(DataLossError, match=r"audit-000000000001\.jsonl"):
                chain.verify(folder, key)
    # An edit by somebody who knows how it is done, but not the key.
    forged, _ = chain.seal(
        chain.Key.of(b"guess"), Head(1, bytes.fromhex(lines[0][-67:-3].decode())), {"event": "Search"}
    )
    path.write_bytes(lines[0] + forged + b"".join(lines[2:]))
    with pytest.raises(DataLossError, match="line 2: its seal does not fit"):
        chain.verify(folder, key)
    # The end cut off: sound in itself, which is why the head is noted elsewhere.
    path.write_bytes(b"".join(lines[:-2]))
    assert chain.verify(folder, key).records == len(lines) - 2
    with pytest.raises(DataLossError, match="the newest records were cut off"):
        chain.verify(folder, key, head)
    path.write_bytes(good)
    with pytest.raises(DataLossError, match="another one than was noted"):
        chain.verify(folder, key, Head(head.seq - 1, head.mac))


def test_records_that_are_all_gone_are_not_sound(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    _written(folder, *NAMES)
    for left in (b"", _file(folder).read_bytes()[:40]):
        _file(folder).write_bytes(left)
        with pytest.raises(DataLossError, match="holds no whole record"):
            chain.verify(folder, chain.load_key(folder / "key"))


def test_the_key_is_needed_and_kept(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "audit", tmp_path / "audit.key"
    log = AuditLog(folder, elsewhere)
    log.close()
    assert not (folder / "key").exists()
    other = chain.make_key(tmp_path / "other.key")
    with pytest.raises(DataLossError, match="the key is another one"):
        chain.verify(folder, other)
    elsewhere.chmod(0o644)
    with pytest.raises(FailedPreconditionError, match="every user of this machine can read"):
        AuditLog(folder, elsewhere)
    elsewhere.unlink()
    with pytest.raises(NotFoundError, match="no such key"):  # a new one would make the records worthless
        AuditLog(folder, elsewhere)
    elsewhere.write_text("guess")
    elsewhere.chmod(0o600)
    with pytest.raises(FailedPreconditionError, match="64 hex digits"):
        AuditLog(folder, elsewhere)


def test_a_crash_in_the_middle_of_a_line_loses_only_what_nobody_was_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    _written(folder, *NAMES)
    path, key = _file(folder), chain.load_key(folder / "key")
    good = path.read_bytes()
    for torn in range(len(good) - 200, len(good)):
        path.write_bytes(good[:torn])
        found = chain.verify(folder, key)
        assert found.unfinished_bytes == torn - (good.rfind(b"\n", 0, torn) + 1)
    _written(folder, "later")
    assert _callers(folder)[-1] == "later"
    assert chain.verify(folder, key).unfinished_bytes == 0
    # Killed between making a file and writing to it.
    (folder / chain.segment_name(999)).touch()
    _written(folder, "last")
    assert _callers(folder)[-1] == "last"
    chain.verify(folder, key)


def test_a_damaged_file_is_not_continued(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    _written(folder, *NAMES)
    path = _file(folder)
    path.write_bytes(path.read_bytes().replace(b"name-3", b"name-4"))
    with pytest.raises(DataLossError, match="move the folder elsewhere"):
        AuditLog(folder)


def test_one_server_writes(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    with pytest.raises(FailedPreconditionError, match="another server writes the audit"):
        AuditLog(tmp_path / "audit")
    log.close()


def test_days_have_files_of_their_own_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, day = tmp_path / "audit", 86_400.0
    clock = [time.time() - 10 * day]
    monkeypatch.setattr(audit.time, "time", lambda: clock[0])  # type: ignore[attr-defined]
    for name in NAMES[:5]:
        _written(folder, name)
        clock[0] += day
    key = chain.load_key(folder / "key")
    assert len(chain.segments(folder)) == 5
    assert chain.verify(folder, key).records == 15
    first, second = chain.segments(folder)[:2]
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(DataLossError, match="seal does not fit"):
        chain.verify(folder, key)
    second.write_bytes(kept)
    oldest = first.read_bytes()
    first.unlink()
    with pytest.raises(DataLossError, match="no retention deleted them"):
        chain.verify(folder, key)
    first.write_bytes(oldest)

    log = AuditLog(folder, keep_days=3)
    log.append("Search", caller=NAMES[5]).result(10)
    log.close()
    assert _callers(folder) == NAMES[2:6]
    found = chain.verify(folder, key)
    assert found.first is not None
    assert found.first["seq"] == 7

    clock[0] += 100 * day  # an idle server's records go too
    log = AuditLog(folder, keep_days=3)
    log.append("Search", caller=NAMES[6]).result(10)
    log.close()
    assert _callers(folder) == [NAMES[6]]
    chain.verify(folder, key)
    assert [record["event"] for record in chain.read(folder, key)] == [
        "Segment",
        "Retention",
        "Search",
        "ServerStopped",
    ]


def test_the_sweep_looks_at_the_ends_of_old_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, day = tmp_path / "audit", 86_400
    clock = [1_767_000_000.0]
    monkeypatch.setattr(audit.time, "time", lambda: clock[0])  # type: ignore[attr-defined]
    for _ in range(6):
        _written(folder, *("x" * 200 for _ in range(300)))
        clock[0] += day
    looked: list[Path] = []
    last_time = audit._last_time

    def looking(path: Path) -> str:
        looked.append(path)
        return last_time(path)

    monkeypatch.setattr(audit, "_last_time", looking)
    files = chain.segments(folder)
    assert all(last_time(path) == json.loads(path.read_bytes().splitlines()[-1])["time"] for path in files)
    with files[1].open("ab") as file:
        file.write(b'{"seq":' + b"9" * 5_000)  # a crash
    monkeypatch.setattr(audit, "TAIL_BYTES", 16)
    assert last_time(files[1]) == last_time(files[0]).replace("2025-12-29", "2025-12-30")
    AuditLog(folder, keep_days=3.5).close()
    assert chain.segments(folder)[:3] == files[3:]
    assert looked == [files[-1], *files[:4]]


def test_a_file_that_cannot_be_swept_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "audit"
    _written(folder, "ann")
    (folder / chain.segment_name(0)).write_bytes(b'{"seq":0}\n')
    log = AuditLog(folder, keep_days=1)
    log.append("Search", caller="bob").result(10)
    log.close()
    assert "could not be deleted" in caplog.text


def test_many_records_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs, sync = [], os.fdatasync

    def slow(file: int) -> None:
        time.sleep(0.01)
        syncs.append(file)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", slow)
    monkeypatch.setattr(audit, "SEGMENT_BYTES", 20_000)
    folder = tmp_path / "audit"
    _written(folder, *(str(number) for number in range(500)))
    assert _callers(folder) == [str(number) for number in range(500)]
    assert len(syncs) < 50
    assert len(chain.segments(folder)) > 1
    chain.verify(folder, chain.load_key(folder / "key"))


def test_a_disk_that_refuses_fails_what_waits_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "audit"
    log = AuditLog(folder)
    log.append("Search", caller="before").result(10)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    for what in ("pwrite", "fdatasync"):
        with monkeypatch.context() as broken:
            broken.setattr(os, what, full)
            with pytest.raises(UnavailableError, match="nothing is answered without its record"):
                log.append("Search", caller="lost").result(10)
            assert log.broken
            with pytest.raises(UnavailableError):
                log.append("Search", caller="lost too").result(10)
        log.append("Search", caller=f"after {what}").result(10)
        assert not log.broken
    log.close()
    assert _callers(folder) == ["before", "after pwrite", "after fdatasync"]
    chain.verify(folder, chain.load_key(folder / "key"))
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 2


def test_a_new_day_that_cannot_begin_leaves_the_old_one_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, now = tmp_path / "audit", time.time()
    _written(folder, "before")
    monkeypatch.setattr(audit.time, "time", lambda: now + 86_400)  # type: ignore[attr-defined]

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    log = AuditLog(folder)
    for what in ("pwrite", "fdatasync", "fsync", "open"):
        with monkeypatch.context() as broken:
            broken.setattr(os, what, full)
            with pytest.raises(UnavailableError):
                log.append("Search", caller="lost").result(10)
        assert len(chain.segments(folder)) == 1
    log.append("Search", caller="after").result(10)
    log.close()
    assert [json.loads(path.read_text().splitlines()[0])["event"] for path in chain.segments(folder)] == ["Segment"] * 2
    _written(folder, "again")
    assert _callers(folder) == ["before", "after", "again"]
    chain.verify(folder, chain.load_key(folder / "key"))


def test_what_is_being_written_can_be_verified(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    log.append("Search").result(10)
    stop, heads = threading.Event(), set[Head]()

    def write() -> None:
        while not stop.is_set():
            log.append("Search", caller="x" * 500).result(10)

    writer = threading.Thread(target=write)
    writer.start()
    deadline = time.monotonic() + 10
    while len(heads) < 10 and time.monotonic() < deadline:
        heads.add(chain.verify(tmp_path / "audit", log.key).head)
    stop.set()
    writer.join()
    log.close()
    assert len(heads) > 1
    for head in heads:
        chain.verify(tmp_path / "audit", log.key, head)


def _days(folder: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> list[float]:
    """Writes a file a day; the clock."""
    clock = [time.time() - days * 86_400.0]
    monkeypatch.setattr(audit.time, "time", lambda: clock[0])  # type: ignore[attr-defined]
    for name in NAMES[:days]:
        _written(folder, name)
        clock[0] += 86_400.0
    return clock


def test_files_that_are_swept_while_they_are_read_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "audit"
    _days(folder, monkeypatch, 5)
    key = chain.load_key(folder / "key")
    records = chain.read(folder, key)
    next(records)
    AuditLog(folder, keep_days=1.5).close()
    rest = list(records)
    assert [record["caller"] for record in rest if "caller" in record] == [NAMES[0], *NAMES[4:5]]
    assert rest[-1]["event"] == chain.STOPPED

    segments = chain.segments
    swept: list[Path] = []

    def sweeping(folder: Path) -> list[Path]:
        found = segments(folder)
        if not swept:
            swept.append(found[0])
            found[0].unlink()  # a retention says that it went: this stands for its being listed before
        return found

    made = folder / chain.segment_name(1)
    made.touch()
    monkeypatch.setattr(chain, "segments", sweeping)
    assert chain.verify(folder, key).head.seq == rest[-1]["seq"]
    assert swept == [made]


def test_a_file_that_somebody_takes_while_it_is_read_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "audit"
    _days(folder, monkeypatch, 4)
    records = chain.walk(folder, chain.load_key(folder / "key"))
    next(records)
    chain.segments(folder)[1].unlink()
    with pytest.raises(DataLossError, match="no retention deleted them"):
        list(records)


def test_closing_twice_is_closing(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    log.append("Search", caller="last")
    threads = [threading.Thread(target=log.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    log.close()
    with pytest.raises(UnavailableError, match="the server is going down"):
        log.append("Search", caller="late").result(10)
    assert _callers(tmp_path / "audit") == ["last"]
    events = [record["event"] for record in chain.read(tmp_path / "audit", chain.load_key(tmp_path / "audit" / "key"))]
    assert events.count(chain.STOPPED) == 1


def test_a_caller_that_goes_away_takes_no_record_along(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")

    async def leave() -> None:
        waiting = asyncio.ensure_future(asyncio.wrap_future(log.append("Search", caller="gone")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(leave())
    log.append("Search", caller="here").result(10)
    log.close()
    assert _callers(tmp_path / "audit") == ["gone", "here"]


def test_records_are_plain_json_lines(tmp_path: Path) -> None:
    _written(tmp_path / "audit", 'é"\n{},"mac":"' + "0" * 64)
    records = [json.loads(line) for line in _file(tmp_path / "audit").read_text().splitlines()]
    assert [record["seq"] for record in records] == [1, 2, 3]
    chain.verify(tmp_path / "audit", chain.load_key(tmp_path / "audit" / "key"))
