"""`passerby bundle diff`: what changed between two bundles, from weights to metrics.

bundle.json      every value that is another one: model, artefacts, worst figures of the proofs, calibration,
                 tools, training
weights          of the first artefact of each, decoded to float32 and compared by name (`encoder_weights.py`)
descriptors      of the first artefact of each, run on the snippets that the bundles keep for `passerby bundle verify`
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError
from passerby_model.backends import Backend, open_artefact
from passerby_model.bundle import Artefact, Bundle, Calibration, Manifest, open_bundle

from .encoder_weights import Weights, read_weights
from .reference import read_reference
from .samples import SYNTHETIC, sample_snippets
from .verify import ABSENT

SNIPPETS_OF_A_KIND = 2
"""Snippets of each kind (drawn, noise, smooth) that both encoders are run on."""
_SCOPE_PARTS = 3  # encoder.backbone.layer3, encoder.cosam.4

Facts = dict[str, object]


@dataclass(frozen=True)
class Change:
    """A value of bundle.json that differs; None on the side that does not have it."""

    section: str
    key: str
    a: object
    b: object


@dataclass(frozen=True)
class TensorChange:
    """A tensor that differs. `relative_l2` = |a - b| / max(|a|, |b|), so 0 to 2; None for tensors of two shapes."""

    name: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    relative_l2: float | None


@dataclass(frozen=True)
class ScopeChange:
    """The tensors of one module: how many are the same, changed, or in one file only; `relative_l2` over all that both
    have in the same shape."""

    scope: str
    equal: int
    changed: int
    only_a: int
    only_b: int
    relative_l2: float


@dataclass(frozen=True)
class WeightDiff:
    """Tensors of two encoder files, `a` and `b`. `changed`: the most changed ones first; `scopes` likewise."""

    a: str
    b: str
    equal: int
    changed: tuple[TensorChange, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    scopes: tuple[ScopeChange, ...]


@dataclass(frozen=True)
class DescriptorDiff:
    """What both encoders make of the same `snippets` snippets: cosine of their descriptors, the least and the mean; and
    the largest |a - b| / |a|. `frames` names the snippets, `a` and `b` file and runtime."""

    a: str
    b: str
    frames: tuple[str, ...]
    snippets: int
    least_cosine: float
    mean_cosine: float
    relative_l2: float


@dataclass(frozen=True)
class BundleDiff:
    """What `diff` finds. `not_compared`: why there are no descriptors; "" where there are."""

    a: str
    b: str
    same_fingerprint: bool
    changes: tuple[Change, ...]
    weights: WeightDiff
    descriptors: DescriptorDiff | None
    not_compared: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def diff(a: Path, b: Path) -> BundleDiff:
    """What changed from the bundle at `a` to the one at `b`; a missing or failed parity report is no hindrance.

    Raises:
        The errors of `open_bundle` for files that are not what bundle.json says; InvalidArgumentError for an encoder
        that cannot be read.
    """
    first, second = open_bundle(a, allow_unverified=True), open_bundle(b, allow_unverified=True)
    descriptors, problem = None, ""
    try:
        descriptors = compare_descriptors(first, second)
    except FailedPreconditionError as error:
        problem = error.message
    return BundleDiff(
        a=str(a),
        b=str(b),
        same_fingerprint=first.fingerprint == second.fingerprint,
        changes=tuple(compare_manifests(first.manifest, second.manifest)),
        weights=compare_weights(
            read_weights(first.encoder_path), read_weights(second.encoder_path), *map(_main_file, (first, second))
        ),
        descriptors=descriptors,
        not_compared=problem,
    )


def compare_manifests(a: Manifest, b: Manifest) -> Iterator[Change]:
    """The values of bundle.json that differ, section by section."""
    shared = {_name(artefact) for artefact in a.artefacts} & {_name(artefact) for artefact in b.artefacts}
    first, second = facts(a, shared), facts(b, shared)
    for section in first:
        for key in dict.fromkeys([*first[section], *second[section]]):
            one, other = first[section].get(key), second[section].get(key)
            if one != other:
                yield Change(section, key, one, other)


def facts(manifest: Manifest, detailed: Collection[str]) -> dict[str, Facts]:
    """bundle.json as sections of plain values: dotted keys, a parity report by its worst figures.

    Args:
        detailed: artefacts (`fp32 onnx`) to describe value by value; of others, that they are there.
    """
    shape = manifest.input
    artefacts: Facts = {}
    parity: Facts = {}
    for artefact in manifest.artefacts:
        name = _name(artefact)
        if name not in detailed:
            artefacts[name] = f"{artefact.file}, {_megabytes(manifest, artefact)} MB"
            continue
        artefacts |= {f"{name}: {key}": value for key, value in _artefact(manifest, artefact).items()}
        parity |= {f"{name} on {key}": value for key, value in _worst(artefact)}
    return {
        "model": {
            "name": manifest.name,
            "architecture": manifest.architecture,
            "input": f"{shape.snippet_length} frames of {shape.height}x{shape.width}",
            "metric": manifest.metric,
            "descriptor size": manifest.descriptor_dim,
            "masks": [f"COSAM_{mask.block} {mask.height}x{mask.width}" for mask in manifest.masks],
            "fingerprint": manifest.fingerprint,
            "created": manifest.created,
        },
        "artefacts": artefacts,
        "parity, worst of all rows": parity,
        "calibration": {} if manifest.calibration is None else _calibration(manifest.calibration),
        "tools": dict(manifest.tools),
        "training": dict(_flat(manifest.training)),
    }


def compare_weights(a: Weights, b: Weights, name_a: str = "a", name_b: str = "b") -> WeightDiff:
    """The tensors of two files, by name."""
    both = [name for name in a if name in b]
    changed = {name: _tensor_change(name, a[name], b[name]) for name in both if not np.array_equal(a[name], b[name])}
    scopes: dict[str, list[str]] = {}
    for name in dict.fromkeys([*a, *b]):
        scopes.setdefault(scope_of(name), []).append(name)
    return WeightDiff(
        a=name_a,
        b=name_b,
        equal=len(both) - len(changed),
        changed=tuple(sorted(changed.values(), key=_most_changed)),
        only_a=tuple(name for name in a if name not in b),
        only_b=tuple(name for name in b if name not in a),
        scopes=tuple(
            sorted(
                (_scope_change(scope, names, a, b, changed) for scope, names in scopes.items()),
                key=lambda change: -change.relative_l2,
            )
        ),
    )


def scope_of(name: str) -> str:
    """The module that a tensor belongs to: `encoder.backbone.layer3`, of a name without parts the name itself."""
    parts = name.replace("/", ".").split(".")
    return ".".join(parts[: max(1, min(_SCOPE_PARTS, len(parts) - 1))])


def compare_descriptors(a: Bundle, b: Bundle) -> DescriptorDiff:
    """Both first artefacts on the same few snippets.

    Raises:
        FailedPreconditionError: they take other snippets or give descriptors of other sizes, or no runtime here loads
            one of them.
    """
    if a.manifest.input != b.manifest.input:
        raise FailedPreconditionError("the two take other snippets (see input)")
    if a.manifest.descriptor_dim != b.manifest.descriptor_dim:
        raise FailedPreconditionError("their descriptors have other sizes")
    samples = _samples(a, b)
    snippets = np.concatenate(list(samples.values()))
    backend_a, backend_b = _load(a), _load(b)
    one, other = (backend.encode(snippets).descriptors.astype(np.float64) for backend in (backend_a, backend_b))
    lengths = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    tiny = np.finfo(np.float64).tiny
    cosines = (one * other).sum(axis=1) / np.maximum(lengths[0] * lengths[1], tiny)
    return DescriptorDiff(
        a=f"{a.manifest.encoder} on {backend_a.name}",
        b=f"{b.manifest.encoder} on {backend_b.name}",
        frames=tuple(samples),
        snippets=len(snippets),
        least_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        relative_l2=float((np.linalg.norm(one - other, axis=1) / np.maximum(lengths[0], tiny)).max()),
    )


def _main_file(bundle: Bundle) -> str:
    return f"{bundle.manifest.encoder} ({bundle.manifest.precision})"


def _name(artefact: Artefact) -> str:
    return f"{artefact.precision} {artefact.format}"


def _megabytes(manifest: Manifest, artefact: Artefact) -> float:
    return round(sum(manifest.files[name].size for name in artefact.files) / 1e6, 2)


def _artefact(manifest: Manifest, artefact: Artefact) -> Facts:
    return {
        **{name: manifest.files[name].sha256[:12] for name in artefact.files},
        "MB": _megabytes(manifest, artefact),
        "runtimes": list(artefact.runtimes),
        **dict(_flat(artefact.quantisation or {}, "quantisation.")),
    }


def _worst(artefact: Artefact) -> Iterator[tuple[str, object]]:
    for runtime in artefact.runtimes:
        rows = [row for row in artefact.parity.rows if row.runtime == runtime] if artefact.parity else []
        yield f"{runtime}: proven", not artefact.unproven(runtime)
        if artefact.parity is None or not rows:
            continue
        yield f"{runtime}: batches", len({row.snippets for row in rows})
        yield f"{runtime}: relative L2", max(row.relative_l2 for row in rows)
        yield f"{runtime}: cosine", min(row.cosine for row in rows)
        yield f"{runtime}: masks", max((row.mask_error for row in rows if row.mask_error is not None), default=None)
        for ranking in (row for row in artefact.parity.ranking if row.runtime == runtime):
            where = f"{runtime}: {ranking.data}, gallery of {'its own' if ranking.gallery == 'own' else 'the network'}"
            yield f"{where}: rank-1", ranking.rank1
            yield f"{where}: mAP", ranking.mean_average_precision


def _calibration(block: Calibration) -> Facts:
    whole = block.model_dump(mode="json", exclude={"points", "sha256"})
    points = {
        f"FMR {point.fmr:g}: {key}": getattr(point, key) for point in block.points for key in ("threshold", "fnmr")
    }
    return dict(_flat(whole)) | points


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _tensor_change(name: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> TensorChange:
    distance = _distance([(a, b)]) if a.shape == b.shape else None
    return TensorChange(name, a.shape, b.shape, distance)


def _most_changed(change: TensorChange) -> tuple[float, str]:
    return (-np.inf if change.relative_l2 is None else -change.relative_l2, change.name)


def _scope_change(scope: str, names: list[str], a: Weights, b: Weights, changed: Mapping[str, object]) -> ScopeChange:
    both = [name for name in names if name in a and name in b]
    differ = sum(name in changed for name in both)
    return ScopeChange(
        scope=scope,
        equal=len(both) - differ,
        changed=differ,
        only_a=sum(name not in b for name in names),
        only_b=sum(name not in a for name in names),
        relative_l2=_distance([(a[name], b[name]) for name in both if a[name].shape == b[name].shape]),
    )


def _distance(pairs: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> float:
    """|a - b| / max(|a|, |b|) over all pairs together; 0 where all are zero."""
    squares = np.zeros(3)
    for a, b in pairs:
        for place, values in enumerate((a - b, a, b)):
            squares[place] += float(np.sum(np.square(values, dtype=np.float64)))
    largest = max(squares[1], squares[2])
    return float(np.sqrt(squares[0] / largest)) if largest > 0 else 0.0


def _samples(a: Bundle, b: Bundle) -> dict[str, NDArray[np.uint8]]:
    """A few snippets of each kind, from where the bundles keep them, and made up where neither does."""
    found: dict[str, NDArray[np.uint8]] = {}
    for bundle in (a, b):
        if bundle.manifest.reference is not None:
            for trial in read_reference(bundle.root / bundle.manifest.reference):
                found.setdefault(trial.frames, trial.snippets[:SNIPPETS_OF_A_KIND])
    return found or {kind: sample_snippets(SNIPPETS_OF_A_KIND, a.manifest.input, kind) for kind in SYNTHETIC}


def _load(bundle: Bundle) -> Backend:
    """The first artefact on the first runtime here that loads it, OpenVINO before ONNX Runtime as the server has it."""
    artefact = bundle.manifest.artefacts[0]
    problems = []
    for runtime in sorted(artefact.runtimes, reverse=True):
        try:
            return open_artefact(bundle, artefact, runtime)
        except FailedPreconditionError as error:
            if error.reason not in ABSENT:
                raise
            problems.append(error.message)
    raise FailedPreconditionError(f"no runtime here can load {bundle.root}: {'; '.join(problems)}")
