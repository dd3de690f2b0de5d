"""The encoder files of a bundle, one network in the number formats asked for.

precision  file                        runs on                   weights, arithmetic
fp32       encoder.onnx                ONNX Runtime, OpenVINO    float32
fp16       encoder.fp16.onnx           ONNX Runtime, OpenVINO    float16, NCC in float32; on a CPU all in float32
w8         encoder.w8.onnx             ONNX Runtime, OpenVINO    int8, computed in float32
bf16       encoder.bf16.xml, .bin      OpenVINO                  bfloat16, NCC in float32
int8       encoder.int8.onnx           ONNX Runtime, TensorRT    int8, COSAM in float32
           encoder.int8.xml, .bin      OpenVINO                  int8, COSAM in bfloat16 or float32, NCC in float32
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from passerby.errors import FailedPreconditionError, InvalidArgumentError
from passerby_model.backends.choice import processor_has_bf16
from passerby_model.bundle import Artefact, EncoderFormat, Runtime

from .half import to_half
from .openvino_ir import read_model, write_ir
from .quantise import Calibration, OnnxQuantiser, OpenVinoQuantiser, Quantised, groups_of
from .storage import Storage, store_weights

Precision = Literal["fp32", "fp16", "w8", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "w8", "bf16", "int8")  # from exact to coarse
ONNX_RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Work:
    """What artefacts are made of: the graph in float32, the folder of the new bundle, what int8 is calibrated on."""

    graph: onnx.ModelProto
    folder: Path
    calibration: Calibration | None


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """`fp32,bf16` as precisions, from exact to coarse.

    Raises:
        InvalidArgumentError: one of them is unknown.
    """
    wanted = [part.strip() for part in text.split(",")]
    for part in wanted:
        if part not in PRECISIONS:
            raise InvalidArgumentError(f"unknown precision {part!r}; there are {', '.join(PRECISIONS)}")
    return tuple(precision for precision in PRECISIONS if precision in wanted)


def check_possible(precisions: Sequence[Precision], *, calibrated: bool) -> None:
    """Refuse what cannot be made or proven here, before any work is done.

    Raises:
        InvalidArgumentError: int8 without tracklets to calibrate on.
        FailedPreconditionError: bf16 on a processor that does not compute in it.
    """
    if "int8" in precisions and not calibrated:
        raise InvalidArgumentError("int8 is calibrated on tracklets: give a folder of them with --calibration")
    if "bf16" in precisions and not processor_has_bf16():
        raise FailedPreconditionError(
            "this processor does not compute in bf16, so a bf16 encoder cannot be proven equal here: "
            "export on one that has it (avx512_bf16 or amx_bf16), or leave bf16 out",
            reason="PRECISION_UNSUPPORTED",
        )


def make_artefacts(work: Work, precision: Precision) -> list[Artefact]:
    """Write the encoder in that precision; its parity report is still missing.

    Raises:
        FailedPreconditionError: a tool for it is not installed, or it cannot hold a weight.
    """
    return _MAKERS[precision](work)


def _stored(storage: Storage) -> Callable[[Work], list[Artefact]]:
    def make(work: Work) -> list[Artefact]:
        path = work.folder / ("encoder.onnx" if storage == "fp32" else f"encoder.{storage}.onnx")
        path.write_bytes(serialised(store_weights(work.graph, storage)))
        return [_artefact(storage, "onnx", (path,), ONNX_RUNTIMES)]

    return make


def _fp16(work: Work) -> list[Artefact]:
    path = work.folder / "encoder.fp16.onnx"
    path.write_bytes(serialised(to_half(work.graph)))
    return [_artefact("fp16", "onnx", (path,), ONNX_RUNTIMES)]


def _bf16(work: Work) -> list[Artefact]:
    with tempfile.TemporaryDirectory(dir=work.folder) as scratch:
        graph = Path(scratch) / "encoder.onnx"
        graph.write_bytes(serialised(store_weights(work.graph, "bf16")))
        files = write_ir(read_model(graph), work.folder / "encoder.bf16.xml")
    return [_artefact("bf16", "openvino", files, ("openvino",))]


def _int8(work: Work) -> list[Artefact]:
    if work.calibration is None:
        raise InvalidArgumentError("int8 is calibrated on tracklets: give a folder of them with --calibration")
    groups = groups_of(work.graph)
    onnx_file, ir_file = work.folder / "encoder.int8.onnx", work.folder / "encoder.int8.xml"
    with tempfile.TemporaryDirectory(dir=work.folder) as scratch:
        graph = Path(scratch) / "encoder.onnx"
        graph.write_bytes(serialised(work.graph))
        for_openvino = OpenVinoQuantiser(graph, groups, work.calibration)
        files, made = for_openvino.write(ir_file)
        for_onnx = OnnxQuantiser(graph, groups, work.calibration, lambda: for_openvino.worst_first)
        made_onnx = for_onnx.write(onnx_file)
    return [
        _artefact("int8", "openvino", files, ("openvino",), _record(work.graph, work.calibration, made)),
        _artefact("int8", "onnx", (onnx_file,), ("onnxruntime",), _record(work.graph, work.calibration, made_onnx)),
    ]


_MAKERS: dict[Precision, Callable[[Work], list[Artefact]]] = {
    "fp32": _stored("fp32"),
    "fp16": _fp16,
    "w8": _stored("w8"),
    "bf16": _bf16,
    "int8": _int8,
}


def serialised(model: onnx.ModelProto) -> bytes:
    """Deterministic, so that the same weights give the same fingerprint."""
    return bytes(model.SerializeToString(deterministic=True))


def _artefact(
    precision: Precision,
    format: EncoderFormat,
    files: Sequence[Path],
    runtimes: tuple[Runtime, ...],
    quantisation: dict[str, object] | None = None,
) -> Artefact:
    return Artefact(
        precision=precision,
        format=format,
        files=tuple(path.name for path in files),
        runtimes=runtimes,
        quantisation=quantisation,
    )


def _record(graph: onnx.ModelProto, calibration: Calibration, made: Quantised) -> dict[str, object]:
    cosam = ["cosam"] if any("/cosam." in node.name for node in graph.graph.node) else []
    return {
        "calibrated_on": calibration.data,
        "snippets": len(calibration.seen),
        "kept_in_float": [*cosam, *made.kept],
        "cosine_on_unseen": round(made.cosine, 6),
    }
