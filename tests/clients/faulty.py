"""A small real gRPC server that fails on command: what a healthy server cannot be asked to do.

It keeps tracklets in memory, remembers each request that reached it, and answers searches with them in stored order.
Everything that needs no fault is tested against the real server.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from grpc_status import rpc_status
from passerby.errors import PasserbyError
from passerby.v1 import (
    gallery_service_pb2,
    gallery_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    resources_pb2,
    search_service_pb2,
    search_service_pb2_grpc,
    tracklet_service_pb2,
    tracklet_service_pb2_grpc,
)


class Faults:
    """What reached the server, and what it shall do next.

    errors[method]: raised one after the other, before the method does anything; None lets one call pass.
    item_errors: statuses for the next items of a bulk stream.
    break_after: after so many bulk answers, the stream breaks with UNAVAILABLE (once).
    delay: seconds before each answer.
    barrier: each call waits for so many others.
    hold: while cleared, bulk streams answer nothing but the next `free` items.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.errors: defaultdict[str, deque[PasserbyError | None]] = defaultdict(deque)
        self.item_errors: deque[PasserbyError] = deque()
        self.break_after: int | None = None
        self.delay = 0.0
        self.barrier: threading.Barrier | None = None
        self.stored: dict[str, resources_pb2.Tracklet] = {}
        self.hold = threading.Event()
        self.hold.set()
        self.free = 0

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.seen if name == method]

    def enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        self.seen.append((method, request))
        time.sleep(self.delay)
        if self.barrier is not None:
            self.barrier.wait(20)
        error = self.errors[method].popleft() if self.errors[method] else None
        if error is not None:
            refuse(context, error)

    def store(self, request: Any, frame_count: int) -> resources_pb2.Tracklet:
        stored = resources_pb2.Tracklet()
        stored.CopyFrom(request.tracklet)
        stored.name = f"{request.parent}/tracklets/{request.tracklet_id or len(self.stored)}"
        stored.frame_count = frame_count
        return self.stored.setdefault(request.request_id or stored.name, stored)


def refuse(context: grpc.ServicerContext, error: PasserbyError) -> NoReturn:
    context.abort_with_status(rpc_status.to_status(error.to_status()))
    raise RuntimeError("abort_with_status raises")


class Galleries(gallery_service_pb2_grpc.GalleryServiceServicer):
    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def CreateGallery(self, request, context):  # noqa: N802
        self.faults.enter("CreateGallery", request, context)
        return gallery_service_pb2.CreateGalleryResponse(
            gallery=resources_pb2.Gallery(name=f"galleries/{request.gallery_id}")
        )

    def GetGallery(self, request, context):  # noqa: N802
        self.faults.enter("GetGallery", request, context)
        return gallery_service_pb2.GetGalleryResponse(gallery=resources_pb2.Gallery(name=request.name))


class Tracklets(tracklet_service_pb2_grpc.TrackletServiceServicer):
    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def IngestTracklet(self, request, context):  # noqa: N802
        self.faults.enter("IngestTracklet", request, context)
        stored = self.faults.store(request, len(request.frames.frames))
        return tracklet_service_pb2.IngestTrackletResponse(tracklet=stored)

    def StreamTracklet(self, request_iterator, context):  # noqa: N802
        messages = list(request_iterator)
        header = messages[0].header
        self.faults.enter("StreamTracklet", header, context)
        return tracklet_service_pb2.StreamTrackletResponse(tracklet=self.faults.store(header, len(messages) - 1))

    def BulkIngestTracklets(self, request_iterator, context):  # noqa: N802
        self.faults.enter("BulkIngestTracklets", None, context)
        for message in request_iterator:
            request = message.request
            self.faults.seen.append(("item", request))
            if self.faults.free:
                self.faults.free -= 1
            else:
                self.faults.hold.wait()
            time.sleep(self.faults.delay)
            if self.faults.break_after == 0:
                # The worst moment: stored, and the answer lost.
                self.faults.break_after = None
                self.faults.store(request, len(request.frames.frames))
                context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
            if self.faults.break_after is not None:
                self.faults.break_after -= 1
            answer = tracklet_service_pb2.BulkIngestTrackletsResponse(request_id=request.request_id)
            if self.faults.item_errors:
                answer.status.CopyFrom(self.faults.item_errors.popleft().to_status())
            else:
                answer.tracklet.CopyFrom(self.faults.store(request, len(request.frames.frames)))
            yield answer


class Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def GetModelInfo(self, request, context):  # noqa: N802
        self.faults.enter("GetModelInfo", request, context)
        return model_service_pb2.GetModelInfoResponse(server_version="0")


class Searches(search_service_pb2_grpc.SearchServiceServicer):
    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def SearchTracklets(self, request, context):  # noqa: N802
        self.faults.enter("SearchTracklets", request, context)
        hits = [search_service_pb2.SearchHit(tracklet=tracklet) for tracklet in self.faults.stored.values()]
        return search_service_pb2.SearchTrackletsResponse(hits=hits)


@contextmanager
def faulty_server(address: str = "127.0.0.1:0") -> Iterator[tuple[str, Faults]]:
    """HOST:PORT of a running server, and the knobs of its faults."""
    faults = Faults()
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        # The generated bases answer UNIMPLEMENTED for the methods that are left out here.
        gallery_service_pb2_grpc.add_GalleryServiceServicer_to_server(Galleries(faults), server)  # type: ignore[abstract]
        tracklet_service_pb2_grpc.add_TrackletServiceServicer_to_server(Tracklets(faults), server)  # type: ignore[abstract]
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(faults), server)  # type: ignore[abstract]
        search_service_pb2_grpc.add_SearchServiceServicer_to_server(Searches(faults), server)  # type: ignore[abstract]
        port = server.add_insecure_port(address)
        server.start()
        try:
            yield f"127.0.0.1:{port}", faults
        finally:
            faults.hold.set()
            server.stop(grace=None).wait()
