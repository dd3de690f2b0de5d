"""What an engine of TensorRT takes and gives, held against bundle.json before anything is computed with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from passerby.errors import FailedPreconditionError

from passerby_model.bundle import DESCRIPTOR_NAME, INPUT_NAME, Manifest

_TYPES = {"FLOAT": "float32", "HALF": "float16"}
_OPEN = -1


@dataclass(frozen=True)
class EnginePort:
    """An input or output: number format (`uint8`, `float32`, `float16`...) and sizes, -1 where they are open.

    `batches`: of an input, the least and the greatest number of rows that the engine was built for.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    batches: tuple[int, int] | None = None

    def describe(self) -> str:
        """`descriptor float32 (batch, 2048)`."""
        sizes = ("batch" if not place and size == _OPEN else str(size) for place, size in enumerate(self.shape))
        return f"{self.name} {self.type} ({', '.join(sizes)})"


def read_ports(engine: Any) -> tuple[list[EnginePort], list[EnginePort]]:
    """Inputs and outputs of a `tensorrt.ICudaEngine`."""
    inputs, outputs = [], []
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        kind = engine.get_tensor_dtype(name).name
        shape = tuple(int(size) for size in engine.get_tensor_shape(name))
        if engine.get_tensor_mode(name).name == "INPUT":
            least, _, greatest = engine.get_tensor_profile_shape(name, 0)
            batches = int(least[0]), int(greatest[0])
            inputs.append(EnginePort(name, _TYPES.get(kind, kind.lower()), shape, batches))
        else:
            outputs.append(EnginePort(name, _TYPES.get(kind, kind.lower()), shape))
    return inputs, outputs


def check_ports(
    inputs: Sequence[EnginePort], outputs: Sequence[EnginePort], manifest: Manifest, max_batch: int
) -> None:
    """The engine takes the snippets of `manifest`, 1 to `max_batch` of them, and gives its descriptor and masks.

    More outputs do no harm (cost volumes), nor do sizes that the engine leaves open.

    Raises:
        FailedPreconditionError: it does not (BACKEND_LOAD); the message names what differs.
    """
    size = manifest.input
    frames = size.snippet_length
    snippets = EnginePort(INPUT_NAME, "uint8", (_OPEN, frames, size.height, size.width, 3))
    wanted = [EnginePort(DESCRIPTOR_NAME, "float32", (_OPEN, manifest.descriptor_dim))]
    wanted += [
        EnginePort(f"mask_cosam{mask.block}", "float32", (_OPEN, frames, mask.height, mask.width))
        for mask in manifest.masks
    ]
    problems = [*_missing("input", inputs, [snippets]), *_missing("output", outputs, wanted)]
    problems += [f"input {port.describe()} is one too many" for port in inputs if port.name != INPUT_NAME]
    for port in inputs:
        least, greatest = port.batches or (1, max_batch)
        if port.name == INPUT_NAME and not least <= 1 <= max_batch <= greatest:
            problems.append(f"it takes {least} to {greatest} snippets at a time instead of 1 to {max_batch}")
    if problems:
        raise FailedPreconditionError(
            f"TensorRT's engine does not fit bundle.json: {'; '.join(problems)}. Delete tensorrt/ in the cache folder, "
            "and where that does not help, export the bundle again",
            reason="BACKEND_LOAD",
        )


def _missing(what: str, ports: Sequence[EnginePort], wanted: Sequence[EnginePort]) -> list[str]:
    """What is wanted and not there, and what is there and another one."""
    named = {port.name: port for port in ports}
    problems = []
    for want in wanted:
        have = named.get(want.name)
        if have is None:
            problems.append(f"it has no {what} {want.describe()}")
        elif have.type != want.type or not _fits(have.shape, want.shape):
            problems.append(f"{what} {have.describe()} should be {want.describe()}")
    return problems


def _fits(have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """As many sizes, each the wanted one or open; the batch is open in what is wanted, so in what is there, too."""
    return len(have) == len(want) and all(size in (_OPEN, other) for size, other in zip(have, want, strict=True))
