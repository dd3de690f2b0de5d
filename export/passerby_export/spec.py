"""What `passerby bundle wrap` has to know about a foreign model: flags, or a small YAML file.

    name: osnet_x0_25_msmt17
    layout: NCHW              # or NHWC
    colour: RGB               # or BGR: order of the model's input channels
    range: [0, 1]             # pixel 0 becomes the first number, pixel 255 the second
    mean: [0.485, 0.456, 0.406]   # then (value - mean) / std, in the order of the model's input channels
    std: [0.229, 0.224, 0.225]
    metric: cosine            # or euclidean

`height`, `width`, `output`, `normalise` (to length 1; default: for cosine), `licence` and `source` may be added.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from passerby.errors import InvalidArgumentError
from passerby_model.bundle import Metric
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .bundle import require_file

Triple = tuple[float, float, float]
_Finite = Field(allow_inf_nan=False)


class WrapSpec(BaseModel):
    """How a per-frame model wants its input, and how its output is compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    height: Annotated[int, Field(ge=16, le=2048)] | None = None
    """Pixels; by default what the model's input says."""
    width: Annotated[int, Field(ge=16, le=2048)] | None = None
    colour: Literal["RGB", "BGR"] = "RGB"
    range: tuple[Annotated[float, _Finite], Annotated[float, _Finite]] = (0.0, 255.0)
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    metric: Literal["cosine", "euclidean"] = "cosine"
    normalise: bool | None = None
    """Scale each descriptor to length 1; by default for cosine only."""
    output: str | None = None
    """Name of the model's output; needed when it has several."""
    licence: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if min(self.std) <= 0 or not np.isfinite([*self.std, *self.mean]).all():
            raise ValueError("std must be above 0, mean and std finite")
        if self.range[0] >= self.range[1]:
            raise ValueError("range must rise, e.g. [0, 1] or [0, 255]")
        return self

    @property
    def bundle_metric(self) -> Metric:
        """The metric as a bundle names it."""
        return "cosine" if self.metric == "cosine" else "squared_euclidean"

    @property
    def unit_length(self) -> bool:
        """Whether descriptors are scaled to length 1."""
        return self.metric == "cosine" if self.normalise is None else self.normalise

    def scale_and_shift(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`value = pixel * scale + shift` for pixels 0..255; float32 (3,) each, in the model's channel order."""
        low, high = self.range
        std = np.asarray(self.std)
        scale = (high - low) / 255.0 / std
        shift = (low - np.asarray(self.mean)) / std
        return scale.astype(np.float32), shift.astype(np.float32)


def load_spec(path: Path | None, overrides: Mapping[str, object]) -> WrapSpec:
    """The spec in the YAML file at `path` (if any), with what is not None in `overrides` on top.

    Raises:
        NotFoundError: no such file.
        InvalidArgumentError: not YAML, an unknown key (the nearest known one is suggested), or a wrong value.
    """
    values: dict[str, object] = {}
    if path is not None:
        values = _read(require_file(path, "spec"))
    values.update({key: value for key, value in overrides.items() if value is not None})
    for key in values:
        if key not in WrapSpec.model_fields:
            near = difflib.get_close_matches(key, WrapSpec.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(WrapSpec.model_fields)}"
            raise InvalidArgumentError(f"{path}: unknown key {key!r}{hint}", reason="SPEC_INVALID")
    try:
        return WrapSpec.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'spec'}: {item['msg']}" for item in error.errors()
        )
        raise InvalidArgumentError(f"{path or 'flags'}: {problems}", reason="SPEC_INVALID") from error


def _read(path: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            f"{path}: not YAML: {' '.join(str(error).split())}", reason="SPEC_INVALID"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidArgumentError(f"{path}: must hold keys and values, e.g. `layout: NCHW`", reason="SPEC_INVALID")
    return content
