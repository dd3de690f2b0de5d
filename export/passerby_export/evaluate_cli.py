"""The command `passerby evaluate`. Heavy packages are imported inside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from .options import MachineCache, cache_folder, one_of

if TYPE_CHECKING:
    from passerby_model.descriptors import Progress
    from passerby_model.protocol import Rerank

    from .evaluate_models import EvaluatedModel
    from .evaluate_report import Report

SHEET_ROWS = 6
"""Tracklets of an attention sheet."""


def evaluate_command(
    model: Annotated[
        str,
        typer.Argument(help="A checkpoint (.pt), a bundle's folder, or HOST:PORT of a server.", show_default=False),
    ],
    data: Annotated[
        list[Path],
        typer.Option(help="Labelled tracklets: a data set or a manifest; may be repeated.", show_default=False),
    ],
    format: Annotated[str, typer.Option(help="Of the data; found out by default.")] = "auto",
    protocol: Annotated[
        str | None,
        typer.Option(help="A, B, all-vs-all or by-camera. Default: A where the data names queries, else all-vs-all."),
    ] = None,
    query_camera: Annotated[
        str | None, typer.Option(help="With by-camera: whose tracklets are searched for. Default: the first.")
    ] = None,
    ap: Annotated[
        str, typer.Option(help="Average precision: plain, or trapezoid as in the official MARS code.")
    ] = "plain",
    rerank: Annotated[bool, typer.Option("--rerank", help="Also with k-reciprocal re-ranking.")] = False,
    rerank_options: Annotated[
        str | None, typer.Option(metavar="K1,K2,WEIGHT", help="Of re-ranking, instead of 20,6,0.3.")
    ] = None,
    max_rank: Annotated[int, typer.Option(min=1, help="Length of the CMC.")] = 50,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Of each tracklet, evenly spread. Default: all.")
    ] = None,
    max_snippets: Annotated[
        int | None, typer.Option("--snippets", min=1, help="Of each tracklet, evenly spread. Default: all.")
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(help="Of data with several (iLIDS-VID, PRID): 1,3 or 1-5. Default: all, and their mean."),
    ] = None,
    identities: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only these people: one identity a line.")
    ] = None,
    open_set: Annotated[
        bool, typer.Option("--open-set", help="Also misses and thresholds at false-match rates, and distances.")
    ] = False,
    attributes: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Also by attribute of the query: names, or all.")
    ] = None,
    attribute_labels: Annotated[
        Path | None, typer.Option(metavar="CSV", help="identity,attribute,...: instead of the data's own labels.")
    ] = None,
    silhouettes: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="True masks of a street: also judge where COSAM looks.")
    ] = None,
    calibrate_bundle: Annotated[
        bool, typer.Option("--calibrate", help="Write thresholds into the bundle, so that a server can decide.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write a report: JSON, HTML, PNG.")] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep descriptors here: an interrupted run goes on.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of the encoder; 0 for all cores.")] = 0,
    device: Annotated[str, typer.Option(help="Of a checkpoint: auto, cpu or cuda.")] = "auto",
    backend: Annotated[
        str,
        typer.Option(
            help="Of a bundle: auto, openvino, onnxruntime; on a GPU tensorrt, onnxruntime-tensorrt, onnxruntime-cuda."
        ),
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="Of a bundle with several number formats: auto, or one such as fp32, bf16, int8.")
    ] = "auto",
    machine_cache: MachineCache = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            envvar="PASSERBY_CA_FILE",
            metavar="PEM",
            help="Connect to the server with TLS and trust these certificates.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON for machines instead of tables.")] = False,
) -> None:
    """Measure how well a model finds people: mAP and CMC under a named protocol, and which distance means the same person."""
    from passerby.errors import InvalidArgumentError
    from passerby_model.backends.base import GPU_RUNTIMES, BackendKind
    from passerby_model.backends.choice import PrecisionKind
    from passerby_model.datasets import read_identities
    from passerby_model.protocol import parse_protocol

    from .evaluate import Options, calibrate, evaluate
    from .evaluate_data import read_attribute_labels
    from .evaluate_models import open_model

    if calibrate_bundle and not Path(model).is_dir():
        raise InvalidArgumentError(
            f"--calibrate writes into a bundle, and {model} is none: `passerby export` makes one"
        )
    if calibrate_bundle and len(data) > 1:
        raise InvalidArgumentError("a bundle is calibrated on one data set: give --data once")
    if attribute_labels is not None and attributes is None:
        raise InvalidArgumentError("--attribute-labels goes with --attributes: name some, or all")
    kind = one_of("--backend", backend, get_args(BackendKind))
    number_format = one_of("--precision", precision, get_args(PrecisionKind))
    options = Options(
        format=format,  # type: ignore[arg-type]  # checked by read_splits
        protocol=parse_protocol(protocol),
        query_camera=query_camera,
        average_precision=ap,  # type: ignore[arg-type]  # checked by Options
        rerank=_rerank(rerank, rerank_options),
        max_rank=max_rank,
        max_frames=max_frames,
        max_snippets=max_snippets,
        splits=splits,
        identities=read_identities(identities) if identities is not None else None,
        open_set=open_set or calibrate_bundle,
        attributes=tuple(part.strip() for part in attributes.split(",")) if attributes is not None else (),
        attribute_labels=read_attribute_labels(attribute_labels) if attribute_labels is not None else None,
        silhouettes=silhouettes,
    )
    opened = open_model(
        model,
        threads=threads,
        device=device,
        backend=kind,
        precision=number_format,
        machine_cache=cache_folder(machine_cache, "--machine-cache") if kind in GPU_RUNTIMES else None,
        ca_file=ca_file,
    )
    with opened:
        with _progress() as progress:
            report = evaluate(opened, data, options, cache=cache, progress=progress)
        sheets = _sheets(opened, report, data, silhouettes, out)
    if calibrate_bundle:
        report = replace(report, calibration=calibrate(report, Path(model)))
    if out is not None:
        from .evaluate_pictures import write_report

        typer.echo(f"report: {write_report(report, out, sheets)}", err=True)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report)


def _rerank(wanted: bool, text: str | None) -> Rerank | None:
    """The re-ranking asked for; options of it ask for it, too."""
    from passerby.errors import InvalidArgumentError
    from passerby_model.protocol import Rerank

    if text is None:
        return Rerank() if wanted else None
    try:
        k1, k2, weight = text.split(",")
        return Rerank(int(k1), int(k2), float(weight))
    except ValueError as error:
        raise InvalidArgumentError(f"--rerank-options {text!r}: write k1,k2,weight, for example 20,6,0.3") from error


def _sheets(
    model: EvaluatedModel, report: Report, data: list[Path], silhouettes: Path | None, out: Path | None
) -> dict[str, Path]:
    """An attention sheet of each data set whose masks were judged, in the report's folder."""
    if out is None or not report.attention:
        return {}
    from passerby_model.attention_cli import OpenModel, write_sheet

    from .evaluate_data import subject_names

    shown = model.description
    opened = OpenModel(shown.name, model.encode, shown.snippet_length, (shown.height, shown.width), ())
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for path, name in zip(data, subject_names(data), strict=True):
        found[name] = out / f"attention-{len(found) + 1}.png"
        write_sheet(opened, found[name], SHEET_ROWS, street=path, masks=silhouettes)
    return found


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on standard error; a single line at the end where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("tracklets", total=None)

    def update(done: int, total: int) -> None:
        bar.start()  # with the first tracklets: what fails before leaves one line
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


def _print(report: Report) -> None:
    from passerby_client.commands.common import print_table

    from .calibrate import calibration_lines
    from .evaluate_report import attributes_table, open_set_table, protocol_lines, results_table

    shown = report.model
    typer.echo(
        f"{shown.kind} {shown.source}: {shown.architecture}, fingerprint {shown.fingerprint[:12]}, {shown.runtime}"
    )
    if shown.trained_on:
        typer.echo(f"trained on {', '.join(shown.trained_on)}")
    for table in (results_table(report), attributes_table(report), open_set_table(report)):
        if table is not None:
            print_table(table)
    for line in protocol_lines(report):
        typer.echo(f"protocol {line}")
    if report.attention:
        from passerby_model.attention_cli import table as attention_table

        for data, found in report.attention.items():
            typer.echo(f"\n{data}\n{attention_table(found)}")
    if report.calibration is not None:
        typer.echo("calibration written")
        for line in calibration_lines(report.calibration):
            typer.echo(f"  {line}")


def main() -> None:
    """`python -m passerby_export.evaluate`."""
    from passerby.errors import PasserbyError

    try:
        typer.run(evaluate_command)
    except PasserbyError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(1)
