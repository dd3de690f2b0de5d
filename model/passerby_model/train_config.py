"""Configuration of a training run: a frozen, validated object, from YAML with overrides (no torch).

The defaults are the recipe of the COSAM authors' code ("cosam"): 8 identities x 4 tracklets x 4 frames, Adam 3e-4,
weight decay 5e-4, x0.1 every 200 of 800 epochs, label smoothing 0.1, triplet margin 0.3, no warm-up, no erasing.
What wins: override > file > preset > default.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from passerby.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from passerby_model.datasets import Format, Part
from passerby_model.presets import PRESETS, PresetName

RUN_CONFIG = "config.json"  # in the folder of a run
Stage = Literal["stem", "layer1", "layer2", "layer3", "layer4"]
# Different ways to say one thing: who writes one of them does not mean the preset's other one.
_ALTERNATIVES = (
    ("epochs", "iterations"),
    ("step_epochs", "step_iterations", "milestones"),
    ("warmup_epochs", "warmup_iterations"),
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSource(_Frozen):
    """One data set of tracklets. Several make one training set; identities of two sources are never merged.

    Unless `part` or `split` say otherwise, a set with a training half gives that half, and one without gives all.
    """

    path: Path
    format: Format = "auto"
    part: Part | None = None
    split: int | None = Field(None, ge=1)  # its training people, in sets with several (iLIDS-VID, PRID 2011)
    identities: Path | None = None  # allow-list: one identity a line
    repeat: int = Field(1, ge=1)  # how often an epoch visits each identity of this source
    masks: Path | None = None  # silhouettes, as `passerby street --masks` writes them, for augmentation.background

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.part is not None and self.split is not None:
            raise ValueError("part and split both choose people; set one of them")
        return self


class Augmentation(_Frozen):
    """Random changes of the training frames. Default: the reference's."""

    crop: float = Field(0.5, ge=0, le=1)  # probability of enlarging by 9/8 and cropping at random
    flip: float = Field(0.5, ge=0, le=1)  # probability of mirroring
    per_clip: bool = False  # the same crop and flip for all frames of a clip (reference: independent)
    erase: float = Field(0, ge=0, le=1)  # probability of erasing a rectangle of a frame (Zhong et al., 1708.04896)
    colour: float = Field(0, ge=0, le=1)  # strength of a camera's light and colour cast, the same for a whole clip
    grey: float = Field(0, ge=0, le=1)  # probability of a clip without colour
    blur: float = Field(0, ge=0, le=1)  # probability of a clip at a lower resolution (down to a third)
    garment: float = Field(0, ge=0, le=1)  # probability of other colours for the upper garment, and for the lower
    background: float = Field(0, ge=0, le=1)  # probability of other backgrounds, where the data source has masks
    spread: float = Field(0, ge=0, le=1)  # probability of frames spread over the tracklet instead of consecutive ones
    join: float = Field(0, ge=0, le=1)  # probability of a clip with another person's lower body; it has no identity


class TrainConfig(_Frozen):
    """Everything that decides what a training run computes, and what it leaves behind."""

    preset: PresetName = "cosam"  # named recipe that the keys below start from; see presets.py
    data: tuple[DataSource, ...] = Field(min_length=1)
    val_identities: float = Field(0, ge=0, lt=1)  # share of the identities of each source held out for validation
    val_every: int = Field(5, ge=1)  # epochs
    val_snippets: int = Field(2, ge=1)  # snippets a tracklet, evenly spread

    architecture: str = "se_resnet50+cosam45+tp"
    snippet_length: int = Field(4, ge=1)
    height: int = 256
    width: int = 128
    neck: bool = False  # batch norm between descriptor and classifier
    init: Path | None = None  # checkpoint to start from: tensors that fit are taken
    pretrained: str | None = None  # ImageNet weights of the backbone: a local file, or "hub" to download them
    freeze: tuple[Stage, ...] = ()  # leading stages whose weights and batch statistics stay as they are

    epochs: int = Field(800, ge=1)
    iterations: int | None = Field(None, ge=1)  # ends the run earlier or later than `epochs` would
    identities_per_batch: int = Field(8, ge=2)  # P
    tracklets_per_identity: int = Field(4, ge=1)  # K
    accumulate: int = Field(1, ge=1)  # batches of P x K whose gradients make one step
    augmentation: Augmentation = Augmentation()

    optimizer: Literal["adam", "adamw"] = "adam"
    lr: float = Field(3e-4, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["step", "cosine", "constant"] = "step"
    step_epochs: int = Field(200, ge=1)  # the rate is multiplied by step_factor after each so many epochs,
    step_iterations: int | None = Field(None, ge=1)  # or instead after each so many iterations,
    milestones: tuple[int, ...] = ()  # or instead at the beginning of these epochs (0-based)
    step_factor: float = Field(0.1, gt=0, le=1)
    warmup_iterations: int = Field(0, ge=0)  # linear, from 1 % of the rate
    warmup_epochs: int = Field(0, ge=0)  # instead: 1 % in the first epoch, then more in each one
    new_layers_lr_factor: float = Field(1.0, gt=0)  # rate of what `init`/`pretrained` did not bring, relative to lr
    cosam_lr_factor: float = Field(1.0, gt=0)  # rate of COSAM that `init` did bring, relative to lr
    gradient_clip: float = Field(0, ge=0)  # largest norm of the gradient; 0 for none
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    margin: float = Field(0.3, ge=0)
    cross_entropy_weight: float = Field(1.0, ge=0)  # 0: by the teacher and the triplet loss alone
    triplet_weight: float = Field(1.0, ge=0)
    mask_weight: float = Field(0.0, ge=0)  # of COSAM's masks against the silhouettes of data sources that have masks
    teacher: Path | None = None  # bundle whose descriptors the encoder also learns to reproduce (distillation)
    teacher_weight: float = Field(1.0, ge=0)
    teacher_relation_weight: float = Field(0.0, ge=0)  # of its distances between the clips of a batch
    teacher_views: int = Field(100, ge=1)  # different clips drawn from a tracklet; the teacher sees each once
    teacher_sees: Literal["augmented", "plain"] = "augmented"  # plain: its answer stays, whatever augmentation does
    teacher_precision: Literal["f32", "bf16"] = "f32"  # bf16 halves its cost on a processor that has it
    amp: Literal["none", "bf16", "fp16"] = "none"
    compile: bool = False  # torch.compile: minutes at the start, fewer of them for each iteration

    seed: int = Field(0, ge=0)
    threads: int = Field(0, ge=0)  # of torch on the CPU; 0 leaves torch's choice
    workers: int = Field(2, ge=1)  # threads that decode and augment ahead of the step
    cache_gib: float = Field(4.0, ge=0)  # decoded frames kept in memory
    save_minutes: float = Field(3.0, gt=0)  # between checkpoints
    tensorboard: bool = True  # also write the curves for TensorBoard
    report: bool = True  # end with a report folder

    @field_validator("freeze")
    @classmethod
    def _leading_stages(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        order = get_args(Stage)[: len(value)]
        if value != order:
            raise ValueError(f"only leading stages can be frozen: {list(order)} instead of {list(value)}")
        return value

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)) or min(value, default=1) < 1:
            raise ValueError(f"milestones are epochs in ascending order, each once, from 1 on; got {list(value)}")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        for first, second in (("milestones", "step_iterations"), ("warmup_epochs", "warmup_iterations")):
            if getattr(self, first) and getattr(self, second):
                raise ValueError(f"{first} and {second} say different things about the same; set one of them")
        return self

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Self:
        taught = self.teacher is not None and (self.teacher_weight or self.teacher_relation_weight)
        if not (self.cross_entropy_weight or self.triplet_weight or taught):
            raise ValueError("the loss is zero: give cross_entropy_weight, triplet_weight or a teacher a weight")
        return self

    @model_validator(mode="after")
    def _masks_to_learn(self) -> Self:
        if self.mask_weight and "+cosam" not in self.architecture:
            raise ValueError(f"mask_weight is for COSAM's masks, and {self.architecture} has none")
        if self.mask_weight and not any(source.masks for source in self.data):
            raise ValueError("mask_weight needs a data source with masks (`passerby street ... --masks` writes them)")
        return self


def load(file: Path | None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None) -> TrainConfig:
    """Read a configuration.

    Args:
        file: YAML, or None for `base`. Relative paths in it start at its folder.
        overrides: "key=value" with dots and indices for nested keys ("augmentation.erase=0.5", "data.0.path=street");
            the value is YAML; relative paths start at the working directory. They win over the file.
        base: values to start from when there is no file, all of them, as `read_config` gives them; the preset's when
            not given.

    Raises:
        NotFoundError: no such file.
        InvalidArgumentError: not YAML, an unknown key (the nearest known one is named), or a wrong value.
    """
    values = dict(base or {})
    if file is not None:
        values = _absolute(_read_yaml(file), file.parent)
    for override in overrides:
        _apply(values, override)
    if base is None:
        return parse(_over_preset(values))
    if values.get("preset") != base.get("preset"):
        raise InvalidArgumentError("preset: a run keeps the recipe it began with; change single keys with --set")
    return parse(values)


def parse(values: dict[str, Any]) -> TrainConfig:
    """Validate plain values.

    Raises:
        InvalidArgumentError: names each wrong key, and the nearest known name of an unknown one.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise InvalidArgumentError("training configuration: " + "; ".join(_explain(error))) from error


def read_config(out: Path) -> TrainConfig:
    """The configuration of the run in `out`.

    Raises:
        FailedPreconditionError: no run there.
    """
    path = out / RUN_CONFIG
    if not path.is_file():
        raise FailedPreconditionError(f"{path}: no training run in this folder")
    return parse(json.loads(path.read_text(encoding="utf-8")))


def _over_preset(values: dict[str, Any]) -> dict[str, Any]:
    """`values` above those of the preset that they name; an unknown preset is left to validation."""
    name = values.get("preset", "cosam")
    below: Mapping[str, Any] = PRESETS[name].values if isinstance(name, str) and name in PRESETS else {}
    given = {key for group in _ALTERNATIVES if any(key in values for key in group) for key in group}
    merged = {key: value for key, value in below.items() if key not in given} | values
    for key, value in below.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            merged[key] = value | values[key]
    return merged


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] != "extra_forbidden":
            lines.append(f"{place}: {item['msg']}")
            continue
        nested: dict[str, type[BaseModel]] = {"data": DataSource, "augmentation": Augmentation}
        owner = nested.get(str(item["loc"][0]), TrainConfig) if len(item["loc"]) > 1 else TrainConfig
        known = owner.model_fields
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        lines.append(f"unknown key {place!r}, {hint}")
    return lines


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InvalidArgumentError(f"{file}: expected keys and values at the top level")
    return values


def _absolute(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths of a file made independent of where the command runs, before overrides are mixed in."""

    def joined(owner: dict[str, Any], *keys: str) -> dict[str, Any]:
        found = {key: str(folder / owner[key]) for key in keys if isinstance(owner.get(key), str)}
        return {**owner, **found}

    if values.get("pretrained") != "hub":
        values = joined(values, "pretrained")
    sources = values.get("data")
    if isinstance(sources, list):
        listed = [
            joined(source, "path", "identities", "masks") if isinstance(source, dict) else source for source in sources
        ]
        values = {**values, "data": listed}
    return joined(values, "init", "teacher")


def _apply(values: dict[str, Any], override: str) -> None:
    place, equals, text = override.partition("=")
    keys = place.strip().split(".")
    if not equals or not all(keys):
        raise InvalidArgumentError(f"--set {override}: write key=value, e.g. --set lr=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidArgumentError(f"--set {override}: the value is not valid YAML") from error
    owner: Any = values
    for key, below in zip(keys, [*keys[1:], None], strict=True):
        if isinstance(owner, list):
            if not key.isdigit() or int(key) > len(owner):
                raise InvalidArgumentError(f"--set {override}: {key!r} is no place in a list of {len(owner)}")
            if int(key) == len(owner):
                owner.append({})
            index: Any = int(key)
        else:
            index = key
            if below is not None and not isinstance(owner.get(key), dict | list):
                owner[key] = [] if below.isdigit() else {}
        if below is None:
            owner[index] = value
        else:
            owner = owner[index]
