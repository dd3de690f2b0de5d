"""SearchService."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from passerby.v1 import search_service_pb2 as v1
from passerby.v1 import search_service_pb2_grpc as v1_grpc

from passerby_server.growing import GrowingSearch
from passerby_server.ingest import Ingester
from passerby_server.interceptors import Context
from passerby_server.runtime import Runtime, deadline_of
from passerby_server.searcher import Searcher


class SearchService(v1_grpc.SearchServiceServicer):
    """Ranks tracklets."""

    def __init__(self, runtime: Runtime) -> None:
        self._searcher = Searcher(runtime)
        self._growing = GrowingSearch(runtime, self._searcher, Ingester(runtime))

    async def SearchTracklets(  # noqa: N802
        self, request: v1.SearchTrackletsRequest, context: Context
    ) -> v1.SearchTrackletsResponse:
        deadline = deadline_of(context)
        search = await self._searcher.prepared(request)
        query = await self._searcher.query(search, deadline=deadline)
        return await self._searcher.ranked(search, query, deadline=deadline)

    async def StreamSearchTracklets(  # noqa: N802
        self, request_iterator: AsyncIterator[v1.StreamSearchTrackletsRequest], context: Context
    ) -> AsyncIterator[v1.StreamSearchTrackletsResponse]:
        growing = self._growing.answers(request_iterator, deadline=deadline_of(context))
        async with contextlib.aclosing(growing) as answers:
            async for answer in answers:
                yield answer
