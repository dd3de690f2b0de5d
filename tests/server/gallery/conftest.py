"""Galleries under test. Another implementation of the protocol joins by one more name in OPENERS."""

from __future__ import annotations

from datetime import timedelta

import pytest
from passerby_server.gallery import ledger, rows
from passerby_server.gallery.embedded import open_galleries

from tests.server.gallery.filling import SPACE, START

OPENERS = {"embedded": open_galleries}


class Reopenable:
    """Galleries in a folder, that a test can close and open again."""

    def __init__(self, opener, folder) -> None:
        self._opener = opener
        self.folder = folder
        self.galleries = opener(folder)

    def reopen(self):
        self.galleries.close()
        self.galleries = self._opener(self.folder)
        return self.galleries

    def now_and_reopened(self):
        """The open galleries, then the same ones after a restart."""
        yield self.galleries
        yield self.reopen()


@pytest.fixture(params=list(OPENERS))
def home(request, tmp_path):
    home = Reopenable(OPENERS[request.param], tmp_path / "data")
    yield home
    home.galleries.close()


@pytest.fixture
def galleries(home):
    return home.galleries


@pytest.fixture
def gallery(galleries):
    """Galleries with an empty gallery `g`, of 4 values, squared Euclidean."""
    galleries.create_gallery("g", "Gallery", SPACE)
    return galleries


@pytest.fixture
def clock(monkeypatch):
    """Sets the time of everything that is stored or judged, in days after the first."""

    def turn(days):
        now = rows.to_microseconds(START + timedelta(days=days))
        monkeypatch.setattr(rows, "now", lambda: now)
        monkeypatch.setattr(ledger, "now", lambda: now)

    turn(0)
    return turn
