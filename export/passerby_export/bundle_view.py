"""A bundle for people: what `passerby bundle show` prints, and export and wrap after they have written one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from passerby_model.bundle import Manifest, Parity, RankingRow

from .calibrate import calibration_lines

_WIDTH = 13  # of the first column


def manifest_lines(manifest: Manifest) -> Iterator[str]:
    """Everything that bundle.json says, but checksums, tools and the single rows of the parity reports."""
    shape = manifest.input
    masks = ", ".join(f"COSAM_{mask.block} {mask.height}x{mask.width}" for mask in manifest.masks)
    for key, value in {
        "name": manifest.name,
        "architecture": manifest.architecture,
        "input": f"{shape.snippet_length} frames of {shape.height}x{shape.width}, uint8 RGB",
        "descriptor": f"{manifest.descriptor_dim} values, {manifest.metric.replace('_', ' ')}",
        "masks": masks or "none",
        "fingerprint": manifest.fingerprint,
        "created": manifest.created,
    }.items():
        yield f"{key:{_WIDTH}}{value}"
    yield from artefact_lines(manifest)
    if manifest.calibration is not None:
        yield "calibration"
        yield from (f"  {line}" for line in calibration_lines(manifest.calibration))
    if manifest.training:
        yield "training"
        yield from record_lines(manifest.training)


def artefact_lines(manifest: Manifest) -> Iterator[str]:
    """Each artefact with its size, its runtimes and the sum of its parity report."""
    for artefact in manifest.artefacts:
        size = sum(manifest.files[name].size for name in artefact.files)
        runtimes = ", ".join(artefact.runtimes)
        yield f"{artefact.precision:{_WIDTH}}{artefact.file}, {size / 1e6:.1f} MB, for {runtimes}"
        yield f"{'':{_WIDTH}}parity {_parity(artefact.parity)}"
        if artefact.parity is not None and artefact.parity.ranking:
            yield f"{'':{_WIDTH}}ranking {_ranking(artefact.parity.ranking)}"


def record_lines(record: Mapping[str, Any], indent: str = "  ") -> Iterator[str]:
    """A record of plain values, a row each; what lies deeper than two levels stands on one row, what is empty on none."""
    shown = {key: value for key, value in record.items() if not _empty(value)}
    width = max((len(key) for key, value in shown.items() if not isinstance(value, Mapping)), default=0) + 2
    for key, value in shown.items():
        if isinstance(value, Mapping) and indent == "  ":
            yield indent + key
            yield from record_lines(value, indent * 2)
        else:
            yield f"{indent}{key:{width}}{_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items() if not _empty(item))
    if isinstance(value, list | tuple):
        return ("; " if any(isinstance(item, Mapping) for item in value) else ", ").join(map(_shown, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def _parity(parity: Parity | None) -> str:
    if parity is None or not parity.rows:
        return "not checked"
    rows = parity.rows
    masks = [row.mask_error for row in rows if row.mask_error is not None]
    text = (
        f"{'passed' if parity.passed else 'FAILED'} against {parity.reference}: "
        f"{', '.join(sorted({row.runtime for row in rows}))}; batches {_ranges({row.snippets for row in rows})} of "
        f"{', '.join(dict.fromkeys(row.frames for row in rows))}; "
        f"relative L2 <= {max(row.relative_l2 for row in rows):.1e}, cosine >= {min(row.cosine for row in rows):.6f}"
    )
    return text + (f", masks <= {max(masks):.1e}" if masks else "")


def _ranking(rows: tuple[RankingRow, ...]) -> str:
    rank1 = max(row.network_rank1 - row.rank1 for row in rows)
    mean = max(row.network_mean_average_precision - row.mean_average_precision for row in rows)
    return (
        f"of {rows[0].queries} queries of {rows[0].data}: at most {100 * max(rank1, 0.0):.2f} points of rank-1 lost "
        f"and {100 * max(mean, 0.0):.2f} of mAP"
    )


def _ranges(numbers: set[int]) -> str:
    """`1-8`, or `1, 2, 3, 8` where numbers are missing."""
    low, high = min(numbers), max(numbers)
    return f"{low}-{high}" if len(numbers) == high - low + 1 > 1 else ", ".join(map(str, sorted(numbers)))
