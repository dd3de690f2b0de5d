"""The embedded gallery at scale: ingest, size, start, search beside bare FAISS, recall, filters, re-ranking.

    python benchmarks/gallery.py [--sizes 10000 100000] [--kinds exact int8 auto] [--rerank 500] [--name NAME]

Descriptors are clusters of identities as from six cameras, one in twenty nearly a duplicate of another; 2,048 values.
Queries are new sightings of people of the gallery.
"Bare FAISS" is the same FAISS index called directly in this process: what the gallery adds is store, filter and exact
ranking. Both answer the same queries for the same k, turn by turn. A 64-query latency is that of 64 searches at once
from eight threads; of bare FAISS likewise. What re-ranking takes is the median difference, query by query, to a
search for as many hits without it. `exact` beside another kind is the gallery before that kind is built: it gives
the true neighbours too. Beyond API_ROWS tracklets the rest is stored in large transactions. `auto` at 1,000,000 needs
about 15 GB of memory while it is built, and 20 GB of disk.
"""

from __future__ import annotations

import argparse
import sqlite3
import subprocess
import sys
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
from passerby_server.gallery import embedded, ledger, rows
from passerby_server.gallery.approximate import ApproximateIndex
from passerby_server.gallery.embedded import EmbeddedGalleries
from passerby_server.gallery.snapshot import path_of
from passerby_server.gallery.types import ModelSpace, NewTracklet, Rerank, SearchQuery, TrackletFilter

WIDTH = 2048
LATENT = 64
PER_IDENTITY = 20
NEAR_DUPLICATES = 20
CHUNK = 5000
QUERIES = 64
K = 10
ROUNDS = 3
API_ROWS = 100_000
"""Tracklets that are ingested one by one, as from sixteen clients: enough to tell their rate."""
SPACE = ModelSpace("benchmark", WIDTH, "squared_euclidean")
Work = Callable[[NDArray[np.float32]], Any]
OPENING = """
import sys, time
from pathlib import Path
from passerby_server.gallery.embedded import EmbeddedGalleries
start = time.perf_counter()
galleries = EmbeddedGalleries(Path(sys.argv[1]), index=sys.argv[2], maintained=False)
took = time.perf_counter() - start
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(round(took, 2), int(peak) // 1024, galleries.index_kind("g"))
galleries.close()
"""
"""Prints seconds, peak of memory in MiB and kind of index."""
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


def beside(works: dict[str, Work], queries: NDArray[np.float32], rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Of each work, turn by turn: the median of single queries, and of all of them at once from eight threads."""
    single: dict[str, list[float]] = {name: [] for name in works}
    together: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work(queries[0])
    with ThreadPoolExecutor(8) as pool:
        for _ in range(rounds):
            for query in queries:
                for name, work in works.items():
                    single[name].append(seconds(lambda work=work, query=query: work(query)))  # type: ignore[misc]
            for name, work in works.items():
                together[name].append(seconds(lambda work=work: list(pool.map(work, queries))))  # type: ignore[misc]
    return {
        name: {
            "single_ms": round(1000 * float(np.median(single[name])), 3),
            "all_64_ms": round(1000 * float(np.median(together[name])), 1),
        }
        for name in works
    }


def store_many(galleries: EmbeddedGalleries, first: int, vectors: NDArray[np.float32], size: int) -> None:
    """Stores `vectors` (n, WIDTH) as tracklets `first`, `first` + 1, ... in one transaction."""

    def change(connection: sqlite3.Connection) -> list[int]:
        gallery, ids = rows.get_gallery(connection, "g"), []
        for number, vector in enumerate(vectors, first):
            new = tracklet(number, size)
            ids.append(embedded._insert(connection, gallery, new.tracklet_id, new))
            rows.put_descriptor(connection, ids[-1], vector)
            ledger.record(connection, "IngestTracklet", "g", new.tracklet_id)
        return ids

    (live,) = galleries._live.values()
    galleries._store.write(change, lambda ids: live.index.add(np.array(ids, np.int64), vectors))


def filled(folder: Path, size: int, kind: str) -> tuple[EmbeddedGalleries, dict[str, Any]]:
    """A gallery of `size` tracklets whose index is still the exact one."""
    galleries = EmbeddedGalleries(folder, index=kind, maintained=False)
    galleries.create_gallery("g", "", SPACE)

    def ingest(number: int, vector: NDArray[np.float32]) -> None:
        galleries.ingest("g", tracklet(number, size), vector, SPACE.fingerprint, b"")

    spent, stored = 0.0, 0
    with ThreadPoolExecutor(16) as pool:
        for some in chunks(size):
            numbers = range(stored, stored + len(some))
            if stored < API_ROWS:
                spent += seconds(lambda n=numbers, v=some: list(pool.map(ingest, n, v)))  # type: ignore[misc]
            else:
                store_many(galleries, stored, some, size)
            stored += len(some)
    return galleries, {"ingest_per_second": round(min(size, API_ROWS) / spent)}


def improved(galleries: EmbeddedGalleries, folder: Path, size: int) -> dict[str, Any]:
    """Lets the index become what it is to be; its size and time."""
    built = seconds(galleries.maintain)
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "index": str(galleries.index_kind("g")),
        "build_seconds": round(built, 1),
        "memory_bytes_per_tracklet": round(galleries.stats("g").index_size_bytes / size),
        "disk_bytes_per_tracklet": round(on_disk / size),
    }


def bare_faiss(galleries: EmbeddedGalleries) -> Any:
    """The FAISS index in the gallery, or a flat one of the same vectors."""
    (live,) = galleries._live.values()
    if isinstance(live.index, ApproximateIndex):
        if live.kind.lists:
            live.index._inverted.nprobe = live.index.effort
        return live.index._faiss
    flat = faiss.IndexFlatL2(WIDTH)
    for _, vectors in reading.batches(galleries._store.read, 1, -1, galleries._stop):
        flat.add(vectors)
    return flat


def distances(search: Callable[..., Any], queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the K nearest found to each query, float32 (Q, K)."""
    return np.array([[hit.distance for hit in search(query)] for query in queries])


def beside_faiss(
    galleries: EmbeddedGalleries, search: Callable[..., Any], queries: NDArray[np.float32], exact: NDArray[np.float32]
) -> dict[str, Any]:
    """The gallery and bare FAISS; recall by the `exact` distances (Q, K), which a flat FAISS index has to confirm."""
    bare = bare_faiss(galleries)
    row: dict[str, Any] = beside({"gallery": search, "bare_faiss": lambda query: bare.search(query[None], K)}, queries)
    for measure in ("single_ms", "all_64_ms"):
        row[f"of bare FAISS, {measure}"] = round(row["gallery"][measure] / row["bare_faiss"][measure], 2)
    if isinstance(bare, faiss.IndexFlat):
        exact = np.sort(bare.search(queries, K)[0], axis=1)
    found = distances(search, queries) <= exact[:, -1:] * (1 + 1e-4)
    return row | {"recall_at_10": round(float(found.mean()), 4)}


def reranking_beyond(
    search: Callable[..., Any], queries: NDArray[np.float32], shortlist: int, rounds: int = ROUNDS
) -> float:
    """Milliseconds that re-ranking adds to a search for as many hits: median of differences, query by query."""
    rerank = Rerank(shortlist_size=shortlist, budget=60.0)
    search(queries[0], top_k=shortlist, rerank=rerank)
    differences = []
    for _ in range(rounds):
        for query in queries:
            plain = seconds(lambda query=query: search(query, top_k=shortlist))  # type: ignore[misc]
            with_it = seconds(lambda query=query: search(query, top_k=shortlist, rerank=rerank))  # type: ignore[misc]
            differences.append(with_it - plain)
    return round(1000 * float(np.median(differences)), 1)


def starts(folder: Path, kind: str) -> dict[str, Any]:
    """Seconds until a closed gallery is open again in a new process, and its memory: as it is and without its snapshot."""

    def opened() -> list[str]:
        command = [sys.executable, "-c", OPENING, str(folder), kind]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    snapshot = path_of(folder, 1)
    found: dict[str, Any] = {"started_from": "snapshot" if snapshot.exists() else "store"}
    took, peak, _ = opened()
    found |= {"start_seconds": float(took), "start_peak_mib": int(peak)}
    snapshot.unlink(missing_ok=True)
    took, peak, first = opened()
    return found | {
        "start_from_store_seconds": float(took),
        "start_from_store_peak_mib": int(peak),
        "start_from_store_index": first,
    }


def measured(size: int, kind: str) -> dict[str, Any]:
    queries = np.concatenate([some[:QUERIES] for some in chunks(QUERIES, seed=1, of=size)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        galleries, row = filled(folder, size, kind)

        def search(query: NDArray[np.float32], **options: Any) -> Any:
            return galleries.search("g", SearchQuery(query, SPACE.fingerprint, options.pop("top_k", K), **options))

        before = beside({"exact": search}, queries, rounds=1)
        exact = distances(search, queries)
        row |= improved(galleries, folder, size)
        if row["index"] != "exact":
            row |= before
        row |= beside_faiss(galleries, search, queries, exact)
        for share, one_in in SHARES.items():
            where = TrackletFilter(labels={f"one in {one_in}": ""} if one_in else {})
            row |= beside({f"filter {share}": lambda query, where=where: search(query, filter=where)}, queries)  # type: ignore[misc]
        for shortlist in (200, 1000):
            row[f"rerank {shortlist} beyond the search"] = reranking_beyond(search, queries[:16], shortlist)
        galleries.close()
        return row | starts(folder, kind)


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
