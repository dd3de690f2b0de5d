"""Tracklets on disk or in a video -> a gallery, over the client's bulk stream.

    tracklets --reader threads, a little ahead--> requests --bulk stream--> server --acknowledged--> journal

Frames go over the wire as they lie on disk, and the server decodes them: what cannot be decoded it names, and the
tracklet is sent again without those frames, after all others. Request ids follow from what is sent, so repeating a run
stores nothing twice, with or without a journal.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from passerby.errors import InvalidArgumentError, PasserbyError, from_status
from passerby.names import TRACKLET_ID
from passerby.v1 import resources_pb2, tracklet_service_pb2
from passerby_client import Client, tracklet_request
from passerby_model.datasets import Tracklet

from passerby_indexer.journal import Journal
from passerby_indexer.scan import known_identity
from passerby_indexer.video import Crop, TrackedVideo, VideoTracklet

READERS = 4
IN_FLIGHT = 16
_REQUEST_IDS = uuid.UUID("6b1a1c1e-6c0b-5a44-9a0e-2f8a7a2f0a51")
# How the server names a frame that it refuses: of a message, and of a stream.
_FRAME_FIELD = re.compile(r"(?:frames\.frames|frame)\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class UnreadableFrame:
    """A frame that was left out, and why. path: of its file; of a frame of a video `walk.mp4#17`."""

    path: Path
    error: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A tracklet that was not stored, and why. `source` is its `Tracklet.key`."""

    source: str
    error: str


@dataclass(slots=True)
class IndexReport:
    """What became of a run.

    stored: tracklets that the server acknowledged. frames: in them. already: left out because the journal has them.
    unreadable: frames left out of stored or failed tracklets. failed: tracklets not stored. seconds: since the start.
    """

    gallery: str
    stored: int = 0
    frames: int = 0
    already: int = 0
    unreadable: list[UnreadableFrame] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Tracklets that are settled, in whatever way."""
        return self.stored + self.already + len(self.failed)


@dataclass(frozen=True, slots=True)
class _Job:
    """A tracklet to send: `frames` are those of its frames that are still thought to be good."""

    tracklet: Tracklet | VideoTracklet
    frames: tuple[Path | Crop, ...]

    @property
    def source(self) -> str:
        if isinstance(self.tracklet, VideoTracklet):
            return self.tracklet.source
        return f"{self.tracklet.frames[0].parent.resolve()}::{self.tracklet.key}"


@dataclass(frozen=True, slots=True)
class _Read:
    """A tracklet read: `request` is None when not one of its frames could be."""

    job: _Job
    request: tracklet_service_pb2.IngestTrackletRequest | None
    unreadable: tuple[UnreadableFrame, ...]


def index(
    client: Client,
    gallery_id: str,
    dataset: Iterable[Tracklet] | TrackedVideo,
    *,
    journal: Path | None = None,
    identities: bool = True,
    camera_prefix: str = "",
    limit: int | None = None,
    readers: int = READERS,
    max_in_flight: int = IN_FLIGHT,
    on_progress: Callable[[IndexReport], None] | None = None,
) -> IndexReport:
    """Stores every tracklet of `dataset` in a gallery that exists. Each carries the label `source`, its `key`.

    Args:
        journal: file of acknowledged tracklets, which are left out of this run; None for none.
        identities: store the data set's identities; otherwise all are unknown.
        camera_prefix: put before each camera id, to tell sites apart.
        limit: only so many tracklets.
        readers: threads that read frames ahead.
        max_in_flight: tracklets sent and not yet acknowledged.
        on_progress: called with the report so far whenever a tracklet is settled; never twice at the same time, though
            not always in the caller's thread.

    Raises:
        NotFoundError: no such gallery.
        PasserbyError: the server cannot be reached any more, or the journal cannot be used. A single bad tracklet or
            frame raises nothing: the report has it.
    """
    gallery = client.get_gallery(gallery_id)
    run = _Run(
        client,
        gallery,
        IndexReport(gallery.name),
        identities=identities,
        camera_prefix=camera_prefix,
        max_in_flight=max_in_flight,
        on_progress=on_progress or (lambda report: None),
    )
    pool = ThreadPoolExecutor(readers, thread_name_prefix="passerby-reader")
    try:
        with Journal(journal, _identity_of(gallery)) if journal is not None else nullcontext() as acknowledged:
            run.all(_tracklets(dataset, acknowledged, limit), acknowledged, pool, ahead=2 * readers)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return run.report


class _Run:
    """One run of `index`; its report is up to date at any time, also after an error.

    The caller's thread and the client's feeder thread both settle tracklets: the report is changed and shown by one
    thread at a time (`_changing`).
    """

    def __init__(
        self,
        client: Client,
        gallery: resources_pb2.Gallery,
        report: IndexReport,
        *,
        identities: bool,
        camera_prefix: str,
        max_in_flight: int,
        on_progress: Callable[[IndexReport], None],
    ) -> None:
        self.report = report
        self._client = client
        self._gallery = gallery
        self._identities = identities
        self._camera_prefix = camera_prefix
        self._max_in_flight = max_in_flight
        self._on_progress = on_progress
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def all(
        self,
        dataset: Iterable[Tracklet | VideoTracklet],
        journal: Journal | None,
        pool: ThreadPoolExecutor,
        *,
        ahead: int,
    ) -> None:
        jobs: Iterable[_Job] = (_Job(tracklet, tracklet.frames) for tracklet in dataset)
        while jobs:
            # Each pass leaves frames out of every tracklet that it hands to the next one, so there is a last pass.
            jobs = self._one_pass(jobs, journal, pool, ahead)

    def _one_pass(
        self, jobs: Iterable[_Job], journal: Journal | None, pool: ThreadPoolExecutor, ahead: int
    ) -> list[_Job]:
        """Sends `jobs`; returns those to send again, without the frames that the server could not decode."""
        sent: dict[str, _Job] = {}
        again: list[_Job] = []

        def requests() -> Iterator[tracklet_service_pb2.IngestTrackletRequest]:
            # Runs in the client's feeder thread.
            for read in _ahead(pool, self._read, self._wanted(jobs, journal), ahead):
                with self._changing() as report:
                    report.unreadable.extend(read.unreadable)
                if read.request is None:
                    self._fail(read.job, "not one of its frames can be read")
                elif read.request.request_id in sent:
                    self._fail(read.job, "the same tracklet is in the data set twice")
                else:
                    sent[read.request.request_id] = read.job
                    yield read.request

        for result in self._client.bulk_ingest(requests(), max_in_flight=self._max_in_flight):
            job = sent.pop(result.request_id)
            if result.HasField("tracklet"):
                if journal is not None:
                    journal.add(job.source, result.tracklet.name)
                with self._changing(settled=True) as report:
                    report.stored += 1
                    report.frames += result.tracklet.frame_count
            elif (repaired := self._repair(job, from_status(result.status))) is not None:
                again.append(repaired)
        return again

    def _wanted(self, jobs: Iterable[_Job], journal: Journal | None) -> Iterator[_Job]:
        for job in jobs:
            if journal is not None and job.source in journal:
                with self._changing(settled=True) as report:
                    report.already += 1
            else:
                yield job

    def _read(self, job: _Job) -> _Read:
        """In a reader thread."""
        frames, unreadable = [], []
        for frame in job.frames:
            data, problem = _data(frame)
            if data:
                frames.append((frame, data))
            else:
                unreadable.append(UnreadableFrame(_place(frame), problem))
        job = replace(job, frames=tuple(frame for frame, _ in frames))
        request = self._request(job.tracklet, [data for _, data in frames]) if frames else None
        return _Read(job, request, tuple(unreadable))

    def _request(
        self, tracklet: Tracklet | VideoTracklet, frames: Sequence[bytes]
    ) -> tracklet_service_pb2.IngestTrackletRequest:
        request = tracklet_request(
            self._gallery.name,
            frames,
            camera=self._camera_prefix + tracklet.camera,
            tracklet_id=stored_id(tracklet, self._camera_prefix),
            identity=known_identity(tracklet) if self._identities else "",
            start_time=tracklet.start_time,
            end_time=tracklet.end_time,
            labels={"source": tracklet.key},
        )
        request.request_id = ""
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        request.request_id = str(uuid.uuid5(_REQUEST_IDS, f"{_identity_of(self._gallery)} {digest}"))
        return request

    def _repair(self, job: _Job, error: PasserbyError) -> _Job | None:
        """The job without the frames that `error` names; None, and it has failed, when it names none or all."""
        named = {
            int(match[1]): violation.description
            for violation in error.violations
            if isinstance(error, InvalidArgumentError) and (match := _FRAME_FIELD.fullmatch(violation.field))
        }
        bad = {number: why for number, why in named.items() if number < len(job.frames)}
        with self._changing() as report:
            report.unreadable.extend(UnreadableFrame(_place(job.frames[number]), bad[number]) for number in sorted(bad))
        good = tuple(frame for number, frame in enumerate(job.frames) if number not in bad)
        if not bad:
            self._fail(job, error.message)
        elif not good:
            self._fail(job, "not one of its frames can be read")
        return replace(job, frames=good) if bad and good else None

    def _fail(self, job: _Job, error: str) -> None:
        with self._changing(settled=True) as report:
            report.failed.append(Failure(job.tracklet.key, error))

    @contextmanager
    def _changing(self, *, settled: bool = False) -> Iterator[IndexReport]:
        """The report, for this thread alone; shown once the block ends when that has `settled` a tracklet."""
        with self._lock:
            yield self.report
            self.report.seconds = time.monotonic() - self._start
            if settled:
                self._on_progress(self.report)


def stored_id(tracklet: Tracklet | VideoTracklet, prefix: str = "") -> str:
    """The id under which a tracklet is stored: MARS's own, else identity.camera.tracklet; of a video camera.tracklet.

    What an id may not hold is replaced, and a hash of the whole appended so that two names never become one.
    """
    if isinstance(tracklet, VideoTracklet):
        parts = [prefix + tracklet.camera, tracklet.tracklet_id]
    elif tracklet.tracklet_id.startswith(f"{tracklet.identity}C"):
        parts = [prefix + tracklet.tracklet_id]
    else:
        parts = [tracklet.identity, prefix + tracklet.camera, tracklet.tracklet_id]
    made = ".".join(parts)
    if TRACKLET_ID.fullmatch(made) and not any("." in part for part in parts):
        return made
    digest = hashlib.sha256("/".join(parts).encode()).hexdigest()[:12]
    return re.sub(r"[^A-Za-z0-9._-]", "_", made)[:100] + "~" + digest


def _tracklets(
    dataset: Iterable[Tracklet] | TrackedVideo, journal: Journal | None, limit: int | None
) -> Iterator[Tracklet | VideoTracklet]:
    if isinstance(dataset, TrackedVideo):
        # What the journal has need not be decoded.
        return dataset.tracklets(lambda source: journal is not None and source in journal, limit=limit)
    return itertools.islice(dataset, limit)


def _data(frame: Path | Crop) -> tuple[bytes, str]:
    """A frame as it goes over the wire; empty, and why, when it cannot be read."""
    if isinstance(frame, Crop):
        return frame.image, frame.problem
    try:
        data = frame.read_bytes()
    except OSError as error:
        return b"", error.strerror or str(error)
    return data, "" if data else "the file is empty"


def _place(frame: Path | Crop) -> Path:
    return Path(frame.place) if isinstance(frame, Crop) else frame


def _identity_of(gallery: resources_pb2.Gallery) -> str:
    """What tells a gallery from one of the same name that was deleted."""
    return f"{gallery.name}@{gallery.create_time.ToNanoseconds()}"


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[_Job], _Read], jobs: Iterable[_Job], depth: int
) -> Iterator[_Read]:
    """`read` of each job, in order, with `depth` of them under way."""
    waiting: deque[Future[_Read]] = deque()
    for job in jobs:
        waiting.append(pool.submit(read, job))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
