"""Kinds of index: what an operator may ask for, and what the size decides where nothing is asked for.

| asked for | is |
|---|---|
| `auto` | by size: `exact`, from AUTO_ROWS tracklets on `IVF<lists>,SQ8` with about 4 sqrt(n) lists, from REDUCED_ROWS on
 `PCA256,IVF<lists>,SQ8` unless descriptors have less than 512 values or it would miss neighbours |
| `exact` | float32 in memory, every distance computed |
| `fp16`, `int8` | every code compared, of half or a quarter of the memory (FAISS `SQfp16`, `SQ8`) |
| anything else | a FAISS factory string, after a semicolon its parameters: `IVF4096,SQ8;nprobe=32` |

All but `exact` only find candidates: the distances that rank them are computed from the stored descriptors.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from passerby_model.metrics import unit_rows

from passerby_server.gallery.types import Metric

AUTO = "auto"
AUTO_ROWS = 100_000
"""Tracklets from which `auto` leaves the exact index: 0.8 GB at 2,048 values, some tens of milliseconds a search."""
REDUCED_ROWS = 200_000
"""Tracklets from which `auto` compares principal components only. With fewer the time goes to reading the descriptors
that rank the candidates, of which there are more to read then."""
REDUCED = 256
"""Principal components: of 2,048 values an eighth of the memory and of the time."""
POINTS_PER_CENTROID = 40
"""Descriptors that train one centroid; FAISS warns below 39."""
MIN_TRAINING_ROWS = 256
"""Descriptors that train whatever has no centroids, such as the range of each value in SQ8."""
FEWEST_OF_CENTROID = 8
"""Descriptors whose mean a centroid is at least. K-means leaves some with one, which is that descriptor then, bit by bit."""
START_ROWS = 10_000
"""Tracklets from which an index that is filled at a start has 8-bit codes, where another kind than `exact` is asked for:
fewer take 80 MB at most in float32 at 2,048 values."""
TRIAL_DIMENSION = 1024
"""Width at which a factory string is tried out: most splits divide it."""
_UNSUPPORTED = re.compile(r"IDMap|Refine|RFlat|IMI|ZnLattice|NSG|NNDescent")


@dataclass(frozen=True, slots=True)
class IndexKind:
    """A FAISS factory string ("" for the exact index) and FAISS's parameters for it ("" for our own choice)."""

    factory: str = ""
    parameters: str = ""

    def __str__(self) -> str:
        return ";".join(filter(None, (self.factory, self.parameters))) or "exact"

    @property
    def lists(self) -> int:
        """Lists of an inverted file; 0 for other kinds."""
        found = re.search(r"IVF(\d+)(K?)", self.factory)
        return int(found[1]) * (1024 if found[2] else 1) if found else 0

    @property
    def reduced(self) -> bool:
        """Whether only principal components are compared."""
        return "PCA" in self.factory

    @property
    def training_rows(self) -> int:
        """Descriptors without which it is not worth training; until there are as many, the exact index answers."""
        codebook = 256 if re.search(r"PQ|RQ|LSQ", self.factory) else 0
        return max(MIN_TRAINING_ROWS, POINTS_PER_CENTROID * max(self.lists, codebook)) if self.factory else 0


EXACT, INT8 = IndexKind(), IndexKind("SQ8")
_NAMED = {"exact": EXACT, "Flat": EXACT, "fp16": IndexKind("SQfp16"), "int8": INT8}


def parse(text: str) -> IndexKind | None:
    """The kind that an operator's words mean; None for `auto`. Raises InvalidArgumentError (INDEX_KIND)."""
    if text == AUTO:
        return None
    if text in _NAMED:
        return _NAMED[text]
    factory, _, parameters = text.partition(";")
    kind = IndexKind(factory.strip(), parameters.strip())
    if _UNSUPPORTED.search(kind.factory):
        raise InvalidArgumentError(
            f"index kind {text!r}: leave out IDMap and Refine, which are done here already; IMI and lattices cannot "
            "take deletes, NSG and NNDescent nothing after they are built",
            reason="INDEX_KIND",
        )
    try:
        untrained(kind, TRIAL_DIMENSION, "squared_euclidean")
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"index kind {text!r} is neither auto, exact, fp16, int8 nor a FAISS factory string, with parameters after "
            f"a semicolon if need be ('IVF4096,SQ8;nprobe=32'): {_of_faiss(error)}",
            reason="INDEX_KIND",
        ) from error
    return kind


def _of_faiss(error: RuntimeError) -> str:
    """What FAISS has to say, without the place in its source: `Error in FUNCTION at FILE:LINE: WHAT`."""
    what = re.split(r" at \S+:\d+: ", str(error).splitlines()[-1], maxsplit=1)[-1]
    return re.sub(r"^Error: '.*' failed: |^ParameterSpace::set_index_parameter:", "", what)


def choose(rows: int, current: IndexKind, width: int, *unfit: IndexKind) -> IndexKind:
    """The automatic choice for a gallery of `rows` tracklets, whose descriptors have `width` values.

    Leaves `current` only when it no longer fits, so that a gallery about a threshold does not change to and fro: exact
    again below half of AUTO_ROWS, other lists when 4 sqrt(n) is more than twice or less than half of them, components
    from REDUCED_ROWS on. `unfit` ones miss too many neighbours there, or cannot be built.
    """
    if rows < (AUTO_ROWS if current == EXACT else AUTO_ROWS // 2):
        return EXACT
    wanted = 4.0 * math.sqrt(rows)
    whole = IndexKind(f"IVF{2 ** round(math.log2(wanted))},SQ8")
    reduced = IndexKind(f"PCA{REDUCED},{whole.factory}")
    may_reduce = rows >= REDUCED_ROWS and width >= 2 * REDUCED and reduced not in unfit
    if wanted / 2 <= current.lists <= wanted * 2 and (current.reduced or not may_reduce):
        return current
    return reduced if may_reduce else whole


def at_start(rows: int, wanted: IndexKind | None) -> IndexKind:
    """The kind that is filled with `rows` tracklets at a start, before `wanted` (None: by size) is trained.

    Not the exact one where that is not wanted in the end: the machine may not have memory for it. 8-bit codes take a
    quarter, are trained in no time, and miss next to nothing.
    """
    kind = choose(rows, EXACT, 0) if wanted is None else wanted
    fewest = kind.training_rows if kind == INT8 else START_ROWS
    return EXACT if kind == EXACT or rows < fewest else INT8


def untrained(kind: IndexKind, dimension: int, metric: Metric) -> Any:
    """A FAISS index that takes ids. Raises RuntimeError for a factory string or parameters that FAISS refuses."""
    # Of unit vectors both rank alike, but principal components are of vectors moved by their mean: angles change.
    by_angle = metric == "cosine" and not kind.reduced
    measure = faiss.METRIC_INNER_PRODUCT if by_angle else faiss.METRIC_L2
    index = faiss.index_factory(dimension, kind.factory, measure)
    if kind.parameters:
        space: Any = faiss.ParameterSpace()  # its type stub knows another overload only
        space.set_index_parameters(index, kind.parameters)
    # An inverted file keeps ids itself; whatever else numbers its rows, which move up when one is removed.
    return index if inverted_file(index) is not None else faiss.IndexIDMap(index)


def trained(kind: IndexKind, metric: Metric, sample: NDArray[np.float32]) -> Any:
    """An empty FAISS index that is trained on `sample`, float32 (n, D): unit vectors for cosine."""
    index = untrained(kind, sample.shape[1], metric)
    if not index.is_trained:
        index.train(sample)
        if (ivf := inverted_file(index)) is not None:
            for transform in transforms(index):
                sample = transform.apply(sample)
            _blur(ivf.quantizer, sample, index.metric_type)
    return index


def _blur(quantizer: Any, sample: NDArray[np.float32], measure: int) -> None:
    """Puts the mean of the FEWEST_OF_CENTROID nearest of the sample in the place of each centroid that is of fewer: what
    is trained outlives the erasure of those it was trained on, and must not hold anybody's descriptor."""
    flat = faiss.downcast_index(quantizer)
    if not isinstance(flat, faiss.IndexFlat | faiss.IndexHNSWFlat) or len(sample) < FEWEST_OF_CENTROID:
        return
    centroids = flat.reconstruct_n(0, flat.ntotal)
    members = np.bincount(flat.search(sample, 1)[1][:, 0], minlength=len(centroids))
    few = members < FEWEST_OF_CENTROID
    _, nearest = faiss.knn(centroids[few], sample, FEWEST_OF_CENTROID, metric=measure)
    centroids[few] = sample[nearest].mean(axis=1)
    flat.reset()
    flat.add(unit_rows(centroids) if measure == faiss.METRIC_INNER_PRODUCT else centroids)


def inverted_file(index: Any) -> Any:
    """The inverted file in a FAISS index, None where there is none."""
    found = faiss.try_extract_index_ivf(index)
    return None if found is None else faiss.downcast_index(found)


def core(index: Any) -> Any:
    """What holds the codes, behind ids and transformations."""
    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexIDMap | faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner


def transforms(index: Any) -> list[Any]:
    """What turns a descriptor into what an index compares, such as a projection on principal components; in order."""
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain: Any = index.chain  # its type stub has a list
    return [chain.at(number) for number in range(chain.size())]
