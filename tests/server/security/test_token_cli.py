"""`passerby token`: what it writes is what the server reads, and no token stays anywhere but with its owner."""

from __future__ import annotations

import json
import os
import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from passerby.errors import UnauthenticatedError
from passerby_server.security import callers
from passerby_server.security.access import Access

from tests.commands import Run


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PASSERBY_ACCESS__FILE", str(tmp_path / "callers.json"))
    return tmp_path / "callers.json"


class _Clock:
    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def _name(access: Access, token: str) -> str:
    return access.identify(f"Bearer {token}", list).name


def test_from_the_first_token_to_its_end(run: Run, file: Path) -> None:
    token = run("token", "create", "entrance", "--role", "ingester", "--gallery", "station").out.strip()
    assert callers.TOKEN.fullmatch(token)
    clock = _Clock()
    access = Access(file, clock=clock)
    caller = access.identify(f"Bearer {token}", list)
    assert (caller.name, caller.roles, caller.galleries) == (
        "entrance",
        frozenset({"ingester"}),
        frozenset({"station"}),
    )

    again = run("token", "create", "entrance", "--role", "reader", "--all-galleries")
    assert again.code == 1
    assert "passerby token rotate entrance" in again.err
    new = run("token", "rotate", "entrance", "--overlap", "1h", "--expires", "90d").out.strip()
    assert access.identify(f"Bearer {new}", list).galleries == frozenset({"station"})
    assert _name(access, token) == "entrance"
    clock.ahead = timedelta(minutes=61)
    assert _name(access, new) == "entrance"
    with pytest.raises(UnauthenticatedError, match="has expired"):
        _name(access, token)
    clock.ahead = timedelta(days=91)
    with pytest.raises(UnauthenticatedError, match="has expired"):
        _name(access, new)
    clock.ahead = timedelta()

    listed = run("token", "list").out
    assert listed.count("entrance ") == 2
    entries = json.loads(run("token", "list", "--json").out)
    assert [entry["credential"] for entry in entries] == [f"token:{token[5:21]}", f"token:{new[5:21]}"]
    for secret in (token[22:], new[22:]):
        assert secret not in listed + json.dumps(entries) + file.read_text()
    done = run("token", "revoke", token[5:21])
    assert done.out == f"revoked token:{token[5:21]} of entrance\n"
    assert _name(access, new) == "entrance"
    assert run("token", "revoke", "entrance").code == 0
    with pytest.raises(UnauthenticatedError):
        _name(access, new)
    assert "no caller and no token" in run("token", "revoke", "entrance").err


def test_a_token_goes_to_a_file_of_its_own(run: Run, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "desk.token"
    done = run("token", "create", "desk", "--role", "reader", "--all-galleries", "--out", out)
    token = out.read_text().strip()
    assert token not in done.out + done.err
    assert [path.stat().st_mode & 0o777 for path in (out, file)] == [0o600, 0o600]
    assert Access(file).identify(f"Bearer {token}", list).galleries is None
    # Neither a file that is there nor the callers change when one of the two cannot be written.
    assert "File exists" in run("token", "rotate", "desk", "--out", out).err
    assert "desk has a token: `passerby token rotate desk`" in (
        run("token", "create", "desk", "--role", "reader", "--all-galleries", "--out", out).err
    )
    assert out.read_text().strip() == token
    assert len(callers.read(file)) == 1
    assert run("token", "create", "desk", "--role", "reader", "--all-galleries", "--out", tmp_path / "new").code == 1
    assert not (tmp_path / "new").exists()


def test_certificates(run: Run, file: Path) -> None:
    flags = ["--role", "reader", "--role", "ingester", "--all-galleries", "--certificate", "desk.example"]
    assert run("token", "trust", "desk", *flags).out == "the certificate desk.example is desk now\n"
    assert "revoke that first" in run("token", "trust", "other", *flags).err
    caller = Access(file).identify(None, lambda: ["x.example", "desk.example"])
    assert (caller.name, caller.roles, caller.credential) == (
        "desk",
        frozenset({"reader", "ingester"}),
        "certificate:desk.example",
    )
    assert "certificate:desk.example" in run("token", "list").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--role", "owner", "--all-galleries"], "'owner' is no role; there are reader, ingester, admin"),
        (["a", "--role", "reader"], "--all-galleries"),
        (["a", "--role", "reader", "--all-galleries", "--gallery", "x"], "--all-galleries"),
        (["a", "--role", "reader", "--gallery", "UPPER"], "--gallery: 'UPPER' is not the id of a gallery"),
        (["a", "--role", "reader", "--gallery", "-"], "is no gallery of its own"),
        (["a b", "--role", "reader", "--all-galleries"], "NAME: 'a b' is not 1 to 64 letters"),
        (["a", "--role", "reader", "--all-galleries", "--expires", "soon"], "is not a time such as"),
        (["a", "--role", "reader", "--all-galleries", "--expires", "0d"], "would make it expired"),
        (["a", "--role", "reader", "--all-galleries", "--expires", "9999999d"], "beyond the year 9999"),
    ],
)
def test_wrong_usage(run: Run, file: Path, arguments: list[str], message: str) -> None:
    done = run("token", "create", *arguments)
    assert done.code == 2
    assert message in re.sub(r"[\s│]+", " ", done.err)
    assert not file.exists()


@pytest.mark.parametrize(("name", "message"), [("", "is no name"), ("a" * 254, "a name of at most 253")])
def test_a_certificate_without_a_usable_name_is_refused(run: Run, file: Path, name: str, message: str) -> None:
    done = run("token", "trust", "desk", "--role", "reader", "--all-galleries", "--certificate", name)
    assert done.code == 2
    assert message in re.sub(r"[\s│]+", " ", done.err)
    assert not file.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_servers_user_keeps_its_file(run: Run, file: Path) -> None:
    assert run("token", "create", "desk", "--role", "reader", "--all-galleries").code == 0
    os.chown(file, 12345, 12346)
    file.chmod(0o640)
    assert run("token", "revoke", "desk").code == 0
    found = file.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12345, 12346, 0o640)


def test_a_broken_file_is_not_written_over(run: Run, file: Path) -> None:
    file.write_text("{")
    done = run("token", "create", "desk", "--role", "reader", "--all-galleries")
    assert done.code == 1
    assert "is no file of callers" in done.err
    assert file.read_text() == "{"


def test_changes_at_the_same_time_all_count(file: Path) -> None:
    from tests.server.security.callers import add

    threads = [threading.Thread(target=add, args=(file, f"c{number}", "reader")) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.name for entry in callers.read(file)} == {f"c{number}" for number in range(12)}
    assert [path.name for path in file.parent.iterdir()] == ["callers.json"]


def test_the_audit_is_verified_and_shown(run: Run, tmp_path: Path) -> None:
    from passerby_server.security.audit import AuditLog

    folder = tmp_path / "audit"
    log = AuditLog(folder)
    ann = log.key.pseudonym("identity", "", "ann")
    seen = log.key.pseudonym("tracklet", "station", "t1")
    log.append("SearchTracklets", code="OK", caller="desk", peer="10.0.0.7", gallery="station", hits=3, about=[ann])
    log.append("GetTracklet", code="OK", caller="desk", gallery="station", about=[seen, ann])
    log.append("EraseIdentity", code="OK", caller="boss", gallery="-", about=[ann], tracklet_count=2)
    log.append("Refused", code="REFUSED", reason="TOKEN_INVALID", method="SearchTracklets", peer="10.0.0.66")
    log.append("BulkIngestTracklets", code="OK", caller="camera", items={"station": 7, "yard": 1}).result(10)

    def shown(*flags: str) -> list[str]:
        return [json.loads(line)["event"] for line in run("audit", "show", folder, *flags, "--json").out.splitlines()]

    assert len(shown()) == 6
    assert shown("--caller", "desk") == ["SearchTracklets", "GetTracklet"]
    assert shown("--identity", "ann") == ["SearchTracklets", "GetTracklet", "EraseIdentity"]
    assert shown("--tracklet", "galleries/station/tracklets/t1") == ["GetTracklet"]
    assert shown("--identity", "bob") == []
    assert shown("--gallery", "yard") == ["EraseIdentity", "BulkIngestTracklets"]
    assert shown("--method", "SearchTracklets") == ["SearchTracklets", "Refused"]
    assert shown("--refused") == ["Refused"]
    assert shown("--before", "2026-01-01") == []
    assert len(shown("--after", "2026-01-01T00:00Z")) == 6
    table = run("audit", "show", folder, "--caller", "boss").out
    assert "EraseIdentity" in table
    assert "tracklet_count=2" in table
    assert "ann" not in table.replace("about", "")
    assert "is not a time" in run("audit", "show", folder, "--after", "soon").err
    assert "'SearchTracklet' is none of" in run("audit", "show", folder, "--method", "SearchTracklet").err
    assert shown("--method", "Refused") == ["Refused"]
    elsewhere = run("audit", "show", tmp_path / "other", "--key", folder / "key")
    assert elsewhere.code == 1
    assert f"there are no audit records in {tmp_path / 'other'}" in elsewhere.err

    running = run("audit", "verify", folder)
    assert "the last record is not the server's end" in running.out
    head = re.search(r"^head (\d+:[0-9a-f]{64})$", running.out, re.MULTILINE)
    assert head
    log.close()
    done = run("audit", "verify", folder, "--noted", head[1])
    assert done.out.startswith("sound: 7 records, ")
    assert "not the server's end" not in done.out
    assert json.loads(run("audit", "verify", folder, "--json").out)["stopped_in_order"] is True
    assert "is no head as" in run("audit", "verify", folder, "--noted", "7").err
    (path,) = folder.glob("*.jsonl")
    path.write_text(path.read_text().replace('"hits":3', '"hits":2'))
    for command in ("verify", "show"):
        broken = run("audit", command, folder)
        assert broken.code == 1
        assert "line 2: its seal does not fit" in broken.err
    assert "there are no audit records" in run("audit", "verify", tmp_path, "--key", folder / "key").err
