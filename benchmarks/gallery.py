"""The embedded gallery at scale: ingest, size, start, search beside bare FAISS, recall, filters, re-ranking.

    python benchmarks/gallery.py [--sizes 10000 100000] [--kinds exact int8 auto] [--rerank 500] [--name NAME]

Descriptors are clusters of identities as from six cameras, one in twenty nearly a duplicate of another; 2,048 values.
Queries are new sightings of people of the gallery.
"Bare FAISS" is the same FAISS index called directly in this process: what the gallery adds is store, filter and exact
ranking. A 64-query latency is that of 64 searches at once from eight threads; of bare FAISS likewise. `auto` at
1,000,000 needs about 20 GB of memory while it is built, and 20 GB of disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from common import save
from descriptors import clustered
from numpy.typing import NDArray
from passerby_model.metrics import evaluate
from passerby_model.rerank import k_reciprocal_descriptors
from passerby_server.gallery import descriptors as reading
from passerby_server.gallery.embedded import EmbeddedGalleries
from passerby_server.gallery.types import ModelSpace, NewTracklet, Rerank, SearchQuery, TrackletFilter

WIDTH = 2048
LATENT = 64
PER_IDENTITY = 20
NEAR_DUPLICATES = 20
CHUNK = 5000
QUERIES = 64
K = 10
SPACE = ModelSpace("benchmark", WIDTH, "squared_euclidean")
SHARES = {"100 %": None, "10 %": 10, "1 %": 100, "0.01 %": 10_000}


def chunks(size: int, seed: int = 0, of: int = 0) -> Iterator[NDArray[np.float32]]:
    """float32 (n <= CHUNK, WIDTH) each, `size` in all: people are clusters, one in NEAR_DUPLICATES a near-duplicate.

    `of`: the size of the gallery whose people they are (default: `size`). Another `seed` is another sighting of them.
    """
    world = np.random.default_rng(0)
    people = world.standard_normal((max((of or size) // PER_IDENTITY, 1), LATENT), np.float32)
    to_width = world.standard_normal((LATENT, WIDTH), np.float32) / np.float32(np.sqrt(LATENT))
    rng = np.random.default_rng([seed, 1])
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        latent = people[np.arange(start, start + count) % len(people)]
        latent = latent + 0.6 * rng.standard_normal(latent.shape, np.float32)
        again = np.arange(NEAR_DUPLICATES, count, NEAR_DUPLICATES)
        latent[again] = latent[again - 1] + 0.01 * rng.standard_normal((len(again), LATENT), np.float32)
        yield np.maximum(latent @ to_width, 0.0)


def tracklet(number: int, size: int) -> NewTracklet:
    labels = {f"one in {share}": "" for share in (10, 100, 10_000) if number % share == 0}
    identity = f"p{number % max(size // PER_IDENTITY, 1)}"
    return NewTracklet(f"t{number}", f"c{number % 6}", identity_id=identity, labels=labels)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def milliseconds(work: Callable[[NDArray[np.float32]], Any], queries: NDArray[np.float32]) -> dict[str, float]:
    """Median of single queries one after the other, and all of them at once from eight threads."""
    work(queries[0])
    single = [seconds(lambda query=query: work(query)) for query in queries]  # type: ignore[misc]
    with ThreadPoolExecutor(8) as pool:
        together = seconds(lambda: list(pool.map(work, queries)))
    return {"single_ms": round(1000 * float(np.median(single)), 3), "all_64_ms": round(1000 * together, 1)}


def filled(folder: Path, size: int, kind: str) -> tuple[EmbeddedGalleries, dict[str, Any]]:
    """A gallery of `size` tracklets whose index has become what it is to be."""
    galleries = EmbeddedGalleries(folder, index=kind, maintained=False)
    galleries.create_gallery("g", "", SPACE)
    numbers = iter(range(size))

    def ingest(vector: NDArray[np.float32]) -> None:
        galleries.ingest("g", tracklet(next(numbers), size), vector, SPACE.fingerprint, b"")

    spent = 0.0
    with ThreadPoolExecutor(16) as pool:
        for some in chunks(size):
            spent += seconds(lambda some=some: list(pool.map(ingest, some)))  # type: ignore[misc]
    built = seconds(galleries.maintain)
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return galleries, {
        "index": str(galleries.index_kind("g")),
        "ingest_per_second": round(size / spent),
        "build_seconds": round(built, 1),
        "memory_bytes_per_tracklet": round(galleries.stats("g").index_size_bytes / size),
        "disk_bytes_per_tracklet": round(on_disk / size),
    }


def measured(size: int, kind: str) -> dict[str, Any]:
    queries = np.concatenate([some[:QUERIES] for some in chunks(QUERIES, seed=1, of=size)])
    flat = faiss.IndexFlatL2(WIDTH)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        galleries, row = filled(folder, size, kind)
        live = next(iter(galleries._live.values()))
        for _, vectors in reading.batches(galleries._store.read, 1, -1, galleries._stop):
            flat.add(vectors)
        exact = np.sort(flat.search(queries, K)[0], axis=1)

        def search(query: NDArray[np.float32], **options: Any) -> Any:
            return galleries.search("g", SearchQuery(query, SPACE.fingerprint, options.pop("top_k", K), **options))

        bare = flat
        if live.index.approximate:
            bare = live.index._faiss  # type: ignore[attr-defined]
            if live.kind.lists:
                bare.nprobe = live.index.effort  # type: ignore[attr-defined]
        row["gallery"] = milliseconds(search, queries)
        row["bare_faiss"] = milliseconds(lambda query: bare.search(query[None], K), queries)
        found = np.array([[hit.distance for hit in search(query)] for query in queries])
        row["recall_at_10"] = round(float((found <= exact[:, -1:] * (1 + 1e-4)).mean()), 4)
        for share, one_in in SHARES.items():
            where = TrackletFilter(labels={f"one in {one_in}": ""} if one_in else {})
            times = milliseconds(lambda query, where=where: search(query, filter=where), queries)  # type: ignore[misc]
            row[f"filter {share}"] = times
        for shortlist in (200, 1000):
            rerank = Rerank(shortlist_size=shortlist, budget=60.0)
            plain = milliseconds(lambda query, n=shortlist: search(query, top_k=n), queries[:16])  # type: ignore[misc]
            with_it = milliseconds(lambda query, n=shortlist, r=rerank: search(query, top_k=n, rerank=r), queries[:16])  # type: ignore[misc]
            row[f"rerank {shortlist} beyond the search"] = round(with_it["single_ms"] - plain["single_ms"], 1)
        galleries.close()
        again: list[EmbeddedGalleries] = []
        row["start_seconds"] = round(seconds(lambda: again.append(EmbeddedGalleries(folder, index=kind))), 2)
        row["started_from"] = "snapshot" if str(again[0].index_kind("g")) != "exact" else "store"
        again.pop().close()
        row["start_from_store_seconds"] = round(
            seconds(lambda: again.append(EmbeddedGalleries(folder, index="exact"))), 2
        )
        again.pop().close()
    return row


def shortlist_loss(queries: int) -> dict[str, float]:
    """mAP of the full joint method and of shortlists of 500, on a clustered set of MARS's proportions."""
    data = clustered(queries, round(queries * 11310 / 1980), WIDTH)
    labels = (data.query_ids, data.gallery_ids, data.query_cameras, data.gallery_cameras)
    full = k_reciprocal_descriptors(data.query, data.gallery)
    with tempfile.TemporaryDirectory() as name:
        galleries = EmbeddedGalleries(Path(name), index="exact", maintained=False)
        galleries.create_gallery("g", "", SPACE)
        for number, vector in enumerate(data.gallery):
            galleries.ingest("g", NewTracklet(f"t{number}", "c"), vector, SPACE.fingerprint, b"")
        ranks = np.full(full.shape, np.float32(len(data.gallery)))
        for row, query in enumerate(data.query):
            asked = SearchQuery(query, SPACE.fingerprint, 500, rerank=Rerank(shortlist_size=500, budget=60.0))
            for place, hit in enumerate(galleries.search("g", asked)):
                ranks[row, int(hit.tracklet.tracklet_id[1:])] = place
            beyond = ranks[row] == len(data.gallery)
            ranks[row, beyond] += ((data.gallery[beyond] - query) ** 2).sum(axis=1)
        galleries.close()
    return {
        "mAP_full": round(100 * evaluate(full, *labels).mean_average_precision, 2),
        "mAP_shortlist_500": round(100 * evaluate(ranks, *labels).mean_average_precision, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", default=["exact", "fp16", "int8", "auto"])
    parser.add_argument("--rerank", type=int, default=500, help="queries of the comparison of mAP; 0 for none")
    parser.add_argument("--name", help="also write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    for size in arguments.sizes:
        for kind in arguments.kinds:
            result[f"{size} {kind}"] = measured(size, kind)
            print(size, kind, result[f"{size} {kind}"], flush=True)
    if arguments.rerank:
        result["rerank"] = shortlist_loss(arguments.rerank)
        print(result["rerank"], flush=True)
    if arguments.name:
        print(save(arguments.name, result))


if __name__ == "__main__":
    main()
