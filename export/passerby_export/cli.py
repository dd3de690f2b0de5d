"""`passerby export` and `passerby bundle ...`. Heavy packages are imported inside the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from .options import Cache, cache_folder, one_of
from .tune_cli import tune_command

if TYPE_CHECKING:
    from passerby_model.bundle import Manifest


class _CheckpointFirst(TyperGroup):
    """`passerby export CHECKPOINT TARGET` is `passerby export checkpoint CHECKPOINT TARGET`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["checkpoint", *args]
        return super().parse_args(ctx, args)


export = typer.Typer(name="export", cls=_CheckpointFirst, rich_markup_mode=None)
bundle = typer.Typer(
    name="bundle", help="Make, show and check the model bundles that a server runs.", no_args_is_help=True
)

bundle.command("tune")(tune_command)

_Target = Annotated[Path, typer.Argument(help="Folder of the new bundle.", show_default=False)]
_Bundle = Annotated[Path, typer.Argument(help="Folder of the bundle.", show_default=False)]
_Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")]
_AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


@export.command("checkpoint", epilog="See also: passerby export inspect --help")
def export_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="From `passerby train`, or a state dict of the COSAM authors' code.", show_default=False),
    ],
    target: _Target,
    precision: Annotated[
        str,
        typer.Option(
            help="With commas: fp32, fp16 (half the size; for GPUs), w8 (a quarter), bf16 (twice as fast), int8."
        ),
    ] = "fp32",
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of tracklets that int8 is calibrated on.", show_default=False)
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            help="Folder of labelled tracklets on which rankings must agree. Default: every other person of "
            "--calibration, whom int8 is not calibrated on then.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: its architecture.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Of a state dict that does not give it away, e.g. se_resnet50+cosam45+tp.")
    ] = None,
    snippet_length: Annotated[int, typer.Option(help="Frames a snippet; only with --architecture.")] = 4,
    with_cost_volume: Annotated[
        bool,
        typer.Option("--with-cost-volume", help="Also give what each COSAM's correlation computes, for verification."),
    ] = False,
    force: _Force = False,
) -> None:
    """Make a bundle from a checkpoint, proven equal to it on every runtime and batch size."""
    try:
        from passerby_model.encoder import Architecture

        from .artefacts import parse_precisions
        from .export import Options
        from .export import export as export_checkpoint
    except ImportError as error:
        from passerby.errors import FailedPreconditionError

        raise FailedPreconditionError(
            f"exporting needs {error.name}: pip install 'passerby[export]'", reason="EXTRA_MISSING"
        ) from error

    parsed = Architecture.parse(architecture, snippet_length=snippet_length) if architecture else None
    options = Options(
        precisions=parse_precisions(precision),
        name=name,
        calibration=calibration,
        labelled=labelled,
        with_cost_volume=with_cost_volume,
        force=force,
    )
    _print_written(target, export_checkpoint(checkpoint, target, options, architecture=parsed))


@export.command("inspect")
def inspect_command(
    path: Annotated[
        Path, typer.Argument(help="A bundle, an .onnx file, or the .xml of an OpenVINO IR.", show_default=False)
    ],
    as_json: _AsJson = False,
) -> None:
    """Versions, inputs, outputs, operators and sizes of an encoder, and the nodes of its correlation (NCC)."""
    from .inspection import inspect_encoder

    encoders = [path]
    if path.is_dir():
        from passerby_model.bundle import read_manifest

        encoders = [path / artefact.file for artefact in read_manifest(path).artefacts]
    reports = [inspect_encoder(encoder) for encoder in encoders]
    if as_json:
        typer.echo(json.dumps([report.to_dict() for report in reports], indent=2))
        return
    for report in reports:
        typer.echo("\n".join(report.lines()))


@bundle.command("wrap")
def wrap_command(
    model: Annotated[Path, typer.Argument(help="The model: .onnx, or the .xml of an OpenVINO IR.", show_default=False)],
    target: _Target,
    spec: Annotated[Path | None, typer.Option(help="YAML file with the settings below; a flag overrides it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: its file name.")] = None,
    layout: Annotated[str | None, typer.Option(help="NCHW (default) or NHWC.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels. Default: what the model says.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels. Default: what the model says.")] = None,
    colour: Annotated[str | None, typer.Option(help="Order of the input channels: RGB (default) or BGR.")] = None,
    range: Annotated[
        str | None, typer.Option(help="What pixels 0 and 255 become: 0,255 (default), 0,1 or -1,1.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Then (value - mean) / std, in channel order: 0.485,0.456,0.406")
    ] = None,
    std: Annotated[str | None, typer.Option(help="See --mean: 0.229,0.224,0.225")] = None,
    metric: Annotated[str | None, typer.Option(help="cosine (default) or euclidean.")] = None,
    normalise: Annotated[
        bool | None,
        typer.Option("--normalise/--no-normalise", help="Scale descriptors to length 1. Default: for cosine."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Output of the model; needed when it has several.")] = None,
    force: _Force = False,
) -> None:
    """Make a bundle from an existing per-frame re-identification model, proven equal to it."""
    from .spec import load_spec
    from .wrap import wrap

    flags: dict[str, object] = {
        "name": name or (model.stem if spec is None else None),
        "layout": layout,
        "height": height,
        "width": width,
        "colour": colour,
        "range": _numbers("--range", range, 2),
        "mean": _numbers("--mean", mean, 3),
        "std": _numbers("--std", std, 3),
        "metric": metric,
        "normalise": normalise,
        "output": output,
    }
    _print_written(target, wrap(model, target, load_spec(spec, flags), force=force))


@bundle.command("show")
def show_command(path: _Bundle, as_json: _AsJson = False) -> None:
    """What is in a bundle, checked against its checksums; a missing or failed parity report is shown, not refused."""
    from passerby_model.bundle import open_bundle

    manifest = open_bundle(path, allow_unverified=True).manifest
    if as_json:
        typer.echo(manifest.model_dump_json(indent=2))
        return
    from .bundle_view import manifest_lines

    for line in manifest_lines(manifest):
        typer.echo(line)


@bundle.command("diff")
def diff_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a bundle.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of another one.", show_default=False)],
    as_json: _AsJson = False,
) -> None:
    """What changed from bundle A to bundle B, weights to metrics. The exit status is 0 whether they differ or not."""
    from .bundle_diff import diff

    found = diff(a, b)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from .bundle_diff_view import print_diff

    print_diff(found)


@bundle.command("verify")
def verify_command(
    path: _Bundle,
    backend: Annotated[
        str,
        typer.Option(
            help="Only what the server would run with this: openvino, onnxruntime; or prove it on the GPU of this "
            "machine: tensorrt, onnxruntime-tensorrt, onnxruntime-cuda."
        ),
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="Only what the server would run with this: auto, fp32, fp16, w8, bf16 or int8.", show_default=False
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="On ONNX Runtime's GPU providers: as the server's cuda_graphs.")
    ] = False,
    cache: Cache = None,
    as_json: _AsJson = False,
) -> None:
    """Check files and proofs, and that the encoder computes here what the network computes, at every batch size."""
    from typing import get_args

    from passerby_model.backends import BackendKind, PrecisionKind
    from passerby_model.backends.base import GPU_RUNTIMES

    from .verify import verify

    kind = one_of("--backend", backend, get_args(BackendKind))
    chosen = None if precision is None else one_of("--precision", precision, get_args(PrecisionKind))
    kept = None
    if kind in GPU_RUNTIMES:
        from .verify_gpu import verify_on_gpu

        report, kept = verify_on_gpu(path, kind, chosen or "auto", cache_folder(cache), cuda_graphs=cuda_graphs)
    else:
        report = verify(path, kind, chosen)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    for row in report.rows:
        typer.echo(row.describe())
    typer.echo(f"{path}: whole, and right on this machine{f'; kept in {kept}' if kept else ''}")


def _numbers(flag: str, text: str | None, count: int) -> tuple[float, ...] | None:
    if text is None:
        return None
    from passerby.errors import InvalidArgumentError

    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise InvalidArgumentError(f"{flag}: give {count} numbers with commas, not {text!r}")
    return numbers


def _print_written(target: Path, manifest: Manifest) -> None:
    typer.echo(f"{target}: {manifest.name}, {manifest.descriptor_dim} values, {manifest.metric}")
    typer.echo(f"fingerprint {manifest.fingerprint}")
    from .bundle_view import artefact_lines

    for line in artefact_lines(manifest):
        typer.echo(line)
