"""`passerby bundle wrap`: a bundle from an existing per-frame re-ID model, so that a server is useful on day one.

One frame is one snippet (N = 1); a tracklet's descriptor is the mean over its frames.
"""

from __future__ import annotations

import logging
from pathlib import Path

from passerby.errors import FailedPreconditionError, InternalError, InvalidArgumentError
from passerby_model.backends import open_encoder
from passerby_model.bundle import Artefact, EncoderFormat, Input, Manifest, Runtime, describe_file

from .bundle import check_target, new_bundle, require_file, seal
from .foreign import ForeignModel
from .parity import LIMITS, Proof, make_samples, make_trials, prove
from .reference import write_reference
from .spec import WrapSpec

log = logging.getLogger(__name__)


def wrap(model: Path, target: Path, spec: WrapSpec, *, force: bool = False) -> Manifest:
    """Write a bundle of the per-frame model at `model` to `target`.

    The wrapped encoder is compared, at every batch size that a server makes, with the original run frame by frame by
    its own runtime on input prepared in numpy; without passing, no bundle is written. The limits are those of fp32 whatever
    the weights are stored in: the encoder has the same weights as the original.

    Args:
        model: `.onnx`, or the `.xml` of an OpenVINO IR.
        target: the new bundle's folder.
        spec: how the model wants its input.
        force: replace a bundle at `target`.

    Raises:
        NotFoundError: no such model.
        InvalidArgumentError: not a model that can be wrapped, or the spec does not fit it.
        AlreadyExistsError: `target` exists and `force` is not given.
        FailedPreconditionError: no open batch is possible, or the parity check failed.
        ResourceExhaustedError: the disk is full.
    """
    require_file(model, "model")
    check_target(target, force=force)
    original = _open(model, spec)
    with new_bundle(target, force=force) as folder:
        encoder = original.write(folder)
        input = Input(snippet_length=1, height=original.ports.height, width=original.ports.width)
        artefact = Artefact(
            precision=original.precision,
            format=original.format,
            files=(encoder.name, *sorted(path.name for path in folder.iterdir() if path != encoder)),
            runtimes=_runtimes(encoder, original.format),
        )
        trials = make_trials(original.reference(), make_samples(input))
        described = f"{original.path.name} frame by frame in its own runtime"
        return seal(
            folder,
            [_proven(folder, artefact, Proof(described, input, trials), original)],
            reference=write_reference(folder, trials),
            name=spec.name,
            architecture=f"wrapped:{spec.name}",
            input=input,
            descriptor_dim=int(trials[0].expected.descriptors.shape[1]),
            metric=spec.bundle_metric,
            training=_origin(model, spec),
        )


def _open(model: Path, spec: WrapSpec) -> ForeignModel:
    """The model by its file's format; the formats' packages are only imported when they are needed."""
    if model.suffix == ".onnx":
        from .wrap_onnx import OnnxModel

        return OnnxModel(model, spec)
    if model.suffix == ".xml":
        from .wrap_openvino import OpenVinoModel

        return OpenVinoModel(model, spec)
    raise InvalidArgumentError(f"{model}: give an .onnx model or the .xml of an OpenVINO IR")


def _runtimes(encoder: Path, format: EncoderFormat) -> tuple[Runtime, ...]:
    """Where the encoder has to be right: its own runtime, and OpenVINO for ONNX, if that can load it at all."""
    if format == "openvino":
        return ("openvino",)
    try:
        open_encoder(encoder, format, "openvino")
    except FailedPreconditionError as error:
        if error.reason not in ("BACKEND_LOAD", "BACKEND_MISSING"):
            raise
        log.warning("not checked on OpenVINO, the server will use ONNX Runtime: %s", error.message)
        return ("onnxruntime",)
    return ("onnxruntime", "openvino")


def _proven(folder: Path, artefact: Artefact, proof: Proof, original: ForeignModel) -> Artefact:
    try:
        return prove(folder, artefact, proof, LIMITS["fp32"])
    except InternalError as error:
        # The graph ran at batch 1 when it was made, so it is another batch that it cannot take.
        raise FailedPreconditionError(
            f"{original.path} cannot be made to take any batch size: {error.message}", reason="BATCH_NOT_OPEN"
        ) from error


def _origin(model: Path, spec: WrapSpec) -> dict[str, object]:
    """What bundle.json says of where the weights come from."""
    files = [model, model.with_suffix(".bin")] if model.suffix == ".xml" else [model]
    return {
        "wrapped": {path.name: describe_file(path).sha256 for path in files},
        "spec": spec.model_dump(exclude_none=True),
    }
