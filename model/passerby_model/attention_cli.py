"""The command `passerby attention`: how well a model's masks fit the person, and what they look like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray

if TYPE_CHECKING:
    from passerby_model.attention import Encode, MaskQuality, Masks, StreetAttention


@dataclass(frozen=True)
class OpenModel:
    """An encoder with masks, ready to run. size: (H, W) of its frames, pixels; blocks: CNN blocks with a COSAM."""

    name: str
    encode: Encode
    snippet_length: int
    size: tuple[int, int]
    blocks: tuple[int, ...]


def attention(
    model: Annotated[
        Path, typer.Argument(help="Folder of a bundle, or a checkpoint of `passerby train`.", show_default=False)
    ],
    street: Annotated[
        Path | None, typer.Option(help="A synthetic street written with --masks: judge the masks against it.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="The street's masks. Default: <street>-masks.")] = None,
    tracklets: Annotated[
        Path | None, typer.Option(help="Any data set of tracklets, to look at: there is no truth to judge against.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge on at most so many tracklets.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a picture here: frames with their masks.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Tracklets in the picture.")] = 6,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for all cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Check where a model with COSAM looks: against a street's true silhouettes, and in a picture.

    AUC: that a pixel of the person gets more attention than one of the background, over all frames and as the mean
    of each frame's own; 0.5 is chance. IoU: overlap with the silhouette at the best threshold, one for all frames
    and each frame's own. Centre prior: the mean silhouette as every frame's mask, the best map that never looks.
    """
    from passerby.errors import InvalidArgumentError

    from passerby_model.attention import evaluate_street

    if (street is None) == (tracklets is None):
        raise InvalidArgumentError("give --street, to judge the masks, or --tracklets, to look at them")
    if street is None and (sheet is None or masks is not None or limit is not None or as_json):
        raise InvalidArgumentError(
            "tracklets without true masks can only be looked at: give --sheet; "
            "--masks, --limit and --json go with --street"
        )
    opened = open_model(model, threads=threads)
    if street is not None:
        result = evaluate_street(opened.encode, street, opened.snippet_length, opened.size, limit, masks=masks)
        found = {"model": opened.name, **result.to_dict()}
        typer.echo(json.dumps(found, indent=2) if as_json else table(result))
    if sheet is not None:
        write_sheet(opened, sheet, rows, street=street, masks=masks, tracklets=tracklets)
        typer.echo(f"picture in {sheet}", err=True)


def open_model(path: Path, *, threads: int = 0) -> OpenModel:
    """A bundle's encoder on its runtime, or a checkpoint's in PyTorch, in eval mode on the CPU.

    Raises:
        NotFoundError, InvalidArgumentError, DataLossError, FailedPreconditionError: it cannot be opened, or gives no
            attention masks.
    """
    from passerby.errors import InvalidArgumentError

    opened = _open_bundle(path, threads) if path.is_dir() else _open_checkpoint(path, threads)
    if not opened.blocks:
        raise InvalidArgumentError(
            f"{path}: {opened.name} has no COSAM and so no attention masks to look at", reason="NO_MASKS"
        )
    return opened


def _open_bundle(path: Path, threads: int) -> OpenModel:
    from passerby_model.backends import open_backend
    from passerby_model.bundle import open_bundle

    bundle = open_bundle(path)
    backend = open_backend(bundle, threads=threads)

    def encode(batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Mapping[int, Masks]]:
        encoded = backend.encode(batch)
        return encoded.descriptors, encoded.masks

    taken = bundle.manifest.input
    blocks = tuple(mask.block for mask in bundle.manifest.masks)
    return OpenModel(bundle.manifest.name, encode, taken.snippet_length, (taken.height, taken.width), blocks)


def _open_checkpoint(path: Path, threads: int) -> OpenModel:
    from passerby_model.open_checkpoint import open_checkpoint

    opened = open_checkpoint(path, threads=threads)
    arch = opened.encoder.architecture
    return OpenModel(path.name, opened.encode, arch.snippet_length, (arch.height, arch.width), arch.cosam)


def write_sheet(
    model: OpenModel,
    path: Path,
    rows: int,
    *,
    street: Path | None = None,
    masks: Path | None = None,
    tracklets: Path | None = None,
) -> None:
    """Write an attention sheet of tracklets drawn from a street, with true outlines, or from any data set.

    Raises InvalidArgumentError when the picture cannot be written; other errors as `attention_sheet.snippet_row`.
    """
    from passerby.errors import InvalidArgumentError

    from passerby_model import datasets
    from passerby_model.attention_sheet import attention_sheet, snippet_row
    from passerby_model.street_labels import Street, sample

    if street is not None:
        known = Street.open(street, masks)
        chosen, labels_of, where = known.sample(rows), known.labels_of, street
    elif tracklets is not None:
        dataset = datasets.read(tracklets)
        chosen, labels_of, where = sample(dataset.people().tracklets, rows), None, tracklets
    else:
        raise InvalidArgumentError("there is neither a street nor a data set to draw tracklets from")
    drawn = [snippet_row(model.encode, tracklet, model.snippet_length, model.size, labels_of) for tracklet in chosen]
    shown = {1: "one tracklet"}.get(len(drawn), f"{len(drawn)} tracklets")
    subtitle = f"{shown} of {where.resolve().name}, {model.snippet_length} frames each"
    picture = attention_sheet(drawn, title=f"Where {model.name} looks", subtitle=subtitle)
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"{path}: the picture cannot be written: {error}") from error


def table(result: StreetAttention) -> str:
    """The figures for people."""
    lines = [
        f"{result.tracklets} tracklets, {result.frames} frames; "
        f"the person covers {result.centre_prior.coverage:.0%} of the pixels",
        "",
        f"{'':14}{'AUC':>7}{'a frame':>9}{'IoU':>7}{'at':>7}{'a frame':>9}",
    ]
    lines += [_line(f"COSAM_{block}", quality) for block, quality in result.blocks.items()]
    lines += [_line("centre prior", result.centre_prior), "", "AUC against the background / mean attention, by part"]
    parts = list(result.centre_prior.regions)
    lines.append(f"{'':14}" + "".join(f"{part:>14}" for part in parts))
    for block, quality in result.blocks.items():
        found = [f"{quality.regions[part].auc:.3f} / {quality.regions[part].mean:.2f}" for part in parts]
        lines.append(f"{f'COSAM_{block}':14}" + "".join(f"{text:>14}" for text in found))
    found = [f"{result.centre_prior.regions[part].auc:.3f}" for part in parts]
    lines.append(f"{'centre prior':14}" + "".join(f"{text:>14}" for text in found))
    return "\n".join(lines)


def _line(name: str, quality: MaskQuality) -> str:
    return (
        f"{name:14}{quality.auc:>7.3f}{quality.frame_auc:>9.3f}{quality.iou:>7.3f}{quality.threshold:>7.3f}"
        f"{quality.frame_iou:>9.3f}"
    )
