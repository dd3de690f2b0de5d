"""The network, its losses and its optimiser, on one device or many: one update at a time.

Source of the losses and their weights: the reference's `main_video_person_reid.py` (InnovArul/vidreid_cosegmentation),
cross-entropy on the classifier's logits plus batch-hard triplet on the descriptor, weight 1 each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from numpy.typing import NDArray
from passerby.errors import FailedPreconditionError, InvalidArgumentError
from torch import Tensor, nn

from passerby_model import distillation, losses
from passerby_model.backbones import Backbone
from passerby_model.clips import ClipBatch
from passerby_model.embed import normalised
from passerby_model.encoder import Classifier
from passerby_model.train_config import TrainConfig

# The main process validates alone, and the others wait for it.
_PATIENCE = timedelta(hours=3)
_COSAM = "encoder.cosam."


def make_accelerator() -> Accelerator:
    """Devices and processes as `accelerate launch` or torchrun set them up; one process without them.

    Raises:
        InvalidArgumentError: the launcher was told a precision, which is the recipe's to decide.
    """
    # Without being told, accelerate takes processes on a CPU for so many runs of their own, in one folder.
    on_cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
    # Mixed precision is kept out of accelerate's hands: its setting is global, one for the life of the process.
    if accelerator.mixed_precision != "no":
        raise InvalidArgumentError(
            f"the launcher's mixed precision ({accelerator.mixed_precision}) is not used: launch with "
            "--mixed_precision no, and set amp in the recipe"
        )
    return accelerator


@dataclass(frozen=True)
class Figures:
    """Of one update, means over its clips and over processes; the parts of the loss without their weights."""

    loss: float
    cross_entropy: float
    triplet: float
    distillation: float
    mask: float
    accuracy: float


class Learner:
    """What an update changes: the classifier with its encoder, the map to a teacher's descriptors, the optimiser."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        classifier: Classifier,
        taken: Collection[str],
        imitation: distillation.Imitation | None = None,
    ) -> None:
        """Hand everything to its device.

        Args:
            config: what to compute.
            accelerator: of this process.
            classifier: on the CPU.
            taken: names of its parameters that come from elsewhere; the others learn at a rate of their own.
            imitation: maps to the teacher's descriptors, when there is a teacher.
        """
        self.config, self.accelerator, self.plain, self.plain_imitation = config, accelerator, classifier, imitation
        for stage in config.freeze:
            getattr(classifier.encoder.backbone, stage).requires_grad_(False)
        prepared: nn.Module = accelerator.prepare(classifier.to(memory_format=torch.channels_last))
        self._model: nn.Module = torch.compile(prepared) if config.compile else prepared  # type: ignore[assignment]
        self._imitation: nn.Module | None = accelerator.prepare(imitation) if imitation is not None else None
        self._scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.amp == "fp16")
        self.optimizer = self._make_optimizer(taken)

    def update(self, drawn: ClipBatch, labels: NDArray[np.int64], rate: float) -> Figures:
        """One step of the optimiser over `config.accumulate` batches of equal size, one after the other in `drawn`.

        Args:
            drawn: clips of this process.
            labels: int64 (M,), their classes.
            rate: of learning.

        Raises:
            FailedPreconditionError: the loss is not finite, in any process; nothing was changed. Or the network
                cannot be compiled.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        count = self.config.accumulate
        total = torch.zeros(6, device=self.accelerator.device)
        for number, rows in enumerate(np.split(np.arange(len(labels)), count), start=1):
            with self._synchronised(number == count):
                parts = self._losses(_rows(drawn, rows), torch.from_numpy(labels[rows]))
                self.accelerator.backward(self._scaler.scale(parts[0] / count))
            total += torch.stack(parts).detach() / count
        figures = Figures(*self._mean_over_processes(total).tolist())
        if not np.isfinite(figures.loss):
            raise FailedPreconditionError(
                f"the loss is {figures.loss}; lower lr, add warmup_iterations or set gradient_clip"
            )
        if self.config.gradient_clip:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.plain.parameters(), self.config.gradient_clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return figures

    def set_mode(self) -> None:
        """Train mode, but for frozen stages, whose batch statistics stay as they are."""
        self._model.train()
        backbone: Backbone = self.plain.encoder.backbone
        for stage in self.config.freeze:
            getattr(backbone, stage).eval()

    def agree(self, flag: bool) -> bool:
        """Whether any process says so; all of them must ask."""
        if self.accelerator.num_processes == 1:
            return flag
        votes: Tensor = self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum")
        return bool(votes.item() > 0)

    def state(self) -> dict[str, Any]:
        """What an exact continuation needs beside the classifier's own state."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "imitation": self.plain_imitation.state_dict() if self.plain_imitation is not None else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        if self.plain_imitation is not None:
            self.plain_imitation.load_state_dict(state["imitation"])

    def _losses(self, drawn: ClipBatch, labels: Tensor) -> list[Tensor]:
        """Total, cross-entropy, triplet, imitation, mask, accuracy of one batch; scalars."""
        config, device = self.config, self.accelerator.device
        whole = torch.from_numpy(drawn.whole).to(device)
        labels = labels.to(device)[whole]
        half = torch.float16 if config.amp == "fp16" else torch.bfloat16
        with torch.autocast(device.type, half, enabled=config.amp != "none"):
            descriptors, logits, masks = self._forward(normalised(torch.from_numpy(drawn.frames).to(device)))
        descriptors, logits = descriptors.float(), logits.float()[whole]
        # Every clip of the batch may have been joined of two people; the classifier still belongs to the graph then.
        entropy, triplet, accuracy = logits.sum() * 0, descriptors.new_zeros(()), descriptors.new_zeros(())
        if len(labels):
            entropy = losses.cross_entropy(logits, labels, config.label_smoothing)
            triplet = losses.batch_hard_triplet(descriptors[whole], labels, config.margin)
            accuracy = (logits.argmax(dim=1) == labels).float().mean()
        loss = config.cross_entropy_weight * entropy + config.triplet_weight * triplet
        imitation = descriptors.new_zeros(())
        if self._imitation is not None and drawn.targets is not None:
            targets = torch.from_numpy(drawn.targets).to(device)
            imitation = self._imitation(descriptors, targets)
            relation = distillation.distance_relation(descriptors, targets)
            loss = loss + config.teacher_weight * imitation + config.teacher_relation_weight * relation
        mask = descriptors.new_zeros(())
        if config.mask_weight:
            mask = losses.silhouette(masks, torch.from_numpy(drawn.silhouettes).to(device))
            loss = loss + config.mask_weight * mask
        return [loss, entropy, triplet, imitation, mask, accuracy]

    def _forward(self, frames: Tensor) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        if not self.config.compile:
            outputs: tuple[Tensor, Tensor, dict[int, Tensor]] = self._model(frames)
            return outputs
        from torch._dynamo.exc import BackendCompilerFailed

        try:
            outputs = self._model(frames)
        except BackendCompilerFailed as error:
            why = next(iter(str(error).splitlines()), "")
            raise FailedPreconditionError(
                f"torch.compile cannot compile the network here ({why}); it needs a C++ compiler on the CPU, Triton "
                "on a GPU. Or set compile to false"
            ) from error
        return outputs

    def _make_optimizer(self, taken: Collection[str]) -> torch.optim.Optimizer:
        config = self.config
        named = [(name, p) for name, p in self.plain.named_parameters() if p.requires_grad]
        new = [p for name, p in named if name not in taken]
        apart = _COSAM if config.cosam_lr_factor != 1 else ()
        old = [p for name, p in named if name in taken and not name.startswith(apart)]
        cosam = [p for name, p in named if name in taken and name.startswith(apart)]
        groups = [
            {"params": old, "factor": 1.0},
            {"params": cosam, "factor": config.cosam_lr_factor},
            {"params": new, "factor": config.new_layers_lr_factor if taken else 1.0},
            {"params": list(self.plain_imitation.parameters()) if self.plain_imitation else [], "factor": 1.0},
        ]
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        return kind(
            [group for group in groups if group["params"]], lr=config.lr, weight_decay=config.weight_decay, fused=True
        )

    @contextmanager
    def _synchronised(self, now: bool) -> Iterator[None]:
        """Gradients are averaged over the processes only with the last batch of an update."""
        with ExitStack() as stack:
            if not now:
                for module in (self._model, self._imitation):
                    if module is not None:
                        stack.enter_context(self.accelerator.no_sync(module))
            yield

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        mean: Tensor = self.accelerator.reduce(values, "mean")
        return mean


def _rows(drawn: ClipBatch, rows: NDArray[np.int64]) -> ClipBatch:
    if len(rows) == len(drawn.frames):
        return drawn
    targets = drawn.targets[rows] if drawn.targets is not None else None
    return ClipBatch(drawn.frames[rows], drawn.whole[rows], drawn.silhouettes[rows], targets)
