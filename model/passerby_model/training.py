"""The training loop: cross-entropy with label smoothing + batch-hard triplet, P x K batches, exact resume.

Source: the reference's `main_video_person_reid.py` (InnovArul/vidreid_cosegmentation): both losses with weight 1, Adam,
step schedule. Order of chance: batches depend on (seed, epoch), clips on (seed, iteration), weights on the seed, so a
run that was interrupted goes on exactly as if it had not been.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from passerby.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
from torch import Tensor, nn

from passerby_model import checkpoint, clips, distillation, losses, validation, warm_start
from passerby_model.backbones import Backbone
from passerby_model.embed import normalised
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder
from passerby_model.sampler import IdentitySampler
from passerby_model.schedule import learning_rate
from passerby_model.train_config import RUN_CONFIG, TrainConfig
from passerby_model.training_data import TrainingData, gather, mask_finder

LAST, BEST, FINAL, LOG = "last.pt", "best.pt", "final.pt", "log.jsonl"
_GIB = 1024**3


@dataclass(frozen=True)
class Step:
    """What one iteration did; the parts of the loss without their weights.

    iteration counts from 1: how many have been done; epoch from 0. accuracy: share of the clips whose identity the
    classifier got right, in [0, 1]. seconds: of wall clock since the last iteration, wait_seconds of them spent
    waiting for clips.
    """

    iteration: int
    epoch: int
    lr: float
    loss: float
    cross_entropy: float
    triplet: float
    distillation: float
    accuracy: float
    clips: int
    seconds: float
    wait_seconds: float


class Reporter(Protocol):
    """Where progress goes."""

    def message(self, text: str) -> None:
        """Something worth a line of its own."""

    def step(self, step: Step, total: int) -> None:
        """After every iteration."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: iterations done, whether that is all of them, the file to use, the last validation."""

    iterations: int
    finished: bool
    checkpoint: Path
    validation: validation.Validation | None


@dataclass(frozen=True)
class _Batch:
    epoch: int
    iteration: int
    members: NDArray[np.int64]
    ends_epoch: bool


def train(
    config: TrainConfig,
    out: Path,
    *,
    reporter: Reporter,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train and leave `final.pt` (and `best.pt` with validation) in `out`.

    Args:
        config: what to compute.
        out: folder for checkpoints, `log.jsonl` and `config.json`; made if need be.
        reporter: told about every step.
        resume: go on from `last.pt` in `out`.
        stop: asked before every iteration; true ends the run with a saved checkpoint.

    Raises:
        AlreadyExistsError: `out` holds a run and `resume` was not asked for.
        FailedPreconditionError: nothing to resume, or another run; the loss is no longer finite.
        InvalidArgumentError, NotFoundError: data or weights are not as the configuration says.
    """
    if (out / LAST).exists() and not resume:
        raise AlreadyExistsError(f"{out} holds a training run; --resume goes on with it, or choose another folder")
    if resume and not (out / LAST).exists():
        raise FailedPreconditionError(f"{out / LAST}: nothing to resume; start without --resume")
    if config.threads:
        torch.set_num_threads(config.threads)
    data = gather(config)
    reporter.message(str(data))
    run = _Run(config, data, out, reporter)
    if resume:
        run.resume()
    else:
        run.start()
    return run.loop(stop)


class _Run:
    """State of one run between iterations."""

    def __init__(self, config: TrainConfig, data: TrainingData, out: Path, reporter: Reporter) -> None:
        self.config, self.data, self.out, self.reporter = config, data, out, reporter
        # Mixed precision is kept out of accelerate's hands: its setting is global, one for the life of the process.
        self.accelerator = Accelerator()
        self.scaler = torch.amp.GradScaler(self.accelerator.device.type, enabled=config.amp == "fp16")
        self.architecture = Architecture.parse(
            config.architecture, snippet_length=config.snippet_length, height=config.height, width=config.width
        )
        self.sampler = IdentitySampler(
            data.labels, config.identities_per_batch, config.tracklets_per_identity, config.seed, data.repeats
        )
        self.total = config.iterations or config.epochs * self.sampler.batches_per_epoch
        self.iteration = 0
        self.best: float | None = None
        self.last_validation: validation.Validation | None = None
        self._validated_at = -1

    def start(self) -> None:
        """Fresh weights, or those that the configuration names."""
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.config.seed)
        model = Classifier(TrackletEncoder(self.architecture), len(self.data.names))
        taken: set[str] = set()
        if self.config.pretrained:
            state = warm_start.imagenet_state(self.architecture.backbone, self.config.pretrained)
            taken |= self._take(model, state, f"ImageNet weights {self.config.pretrained}")
        if self.config.init:
            begin = warm_start.checkpoint_start(self.config.init, self.data.names)
            taken |= self._take(model, begin.state, str(self.config.init))
        self._prepare(model, taken)
        if self.config.init and self.imitation is not None and begin.imitation is not None:
            warm_start.take_fitting(self.accelerator.unwrap_model(self.imitation), begin.imitation)
        if self.accelerator.is_main_process:
            (self.out / RUN_CONFIG).write_text(self.config.model_dump_json(indent=2) + "\n")
            (self.out / LOG).write_text("")

    def resume(self) -> None:
        """Weights, optimiser and place in the schedule of `last.pt`."""
        saved = checkpoint.load(self.out / LAST)
        if saved.training is None or saved.metadata.get("identities") != list(self.data.names):
            raise FailedPreconditionError(
                f"{self.out / LAST} was trained on other identities; resume with the data of that run"
            )
        if saved.architecture != self.architecture:
            raise FailedPreconditionError(f"{self.out / LAST} is a {saved.architecture.name}; resume with that")
        self._report_changes(saved.metadata["config"])
        model = Classifier(TrackletEncoder(self.architecture), len(self.data.names))
        checkpoint.check_state(saved.state, model, self.architecture)
        model.load_state_dict(saved.state)
        self._prepare(model, set(saved.training["taken"]))
        if self.imitation is not None:
            self.accelerator.unwrap_model(self.imitation).load_state_dict(saved.training["imitation"])
        self.optimizer.load_state_dict(saved.training["optimizer"])
        if saved.training["scaler"]:
            self.scaler.load_state_dict(saved.training["scaler"])
        self.iteration, self.best = saved.metadata["iteration"], saved.metadata["best"]
        self._cut_log()
        self.reporter.message(f"resumed at iteration {self.iteration} of {self.total}")

    def loop(self, stop: Callable[[], bool]) -> TrainResult:
        """Iterate until the end, or until `stop` says so."""
        self._set_mode()
        saved_at = began = time.monotonic()
        for batch, drawn in clips.prefetched(self._plan(), self._load, self.config.workers):
            if stop():
                break
            waited = time.monotonic() - began
            step = self._step(batch, drawn, began, waited)
            self._log(asdict(step))
            self.reporter.step(step, self.total)
            self._end_epoch(batch)
            if time.monotonic() - saved_at > 60 * self.config.save_minutes:
                self._save(LAST)
                saved_at = time.monotonic()
            began = time.monotonic()
        self._save(LAST)
        finished = self.iteration >= self.total
        if finished:
            if self._validated_at != self.iteration:
                self._validate()
            self._save(FINAL)
        return TrainResult(self.iteration, finished, self.out / (FINAL if finished else LAST), self.last_validation)

    def _plan(self) -> Iterator[_Batch]:
        """Batches from the current iteration on; those before are drawn and passed over."""
        iteration, epoch, done = 0, 0, self.iteration
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        while iteration < self.total:
            groups = self.sampler.epoch(epoch)
            places = range(0, len(groups) - processes + 1, processes)
            for place in places:
                if done <= iteration < self.total:
                    yield _Batch(epoch, iteration, groups[place + rank], place == places[-1])
                iteration += 1
            epoch += 1

    def _load(self, batch: _Batch) -> clips.ClipBatch:
        return self.builder.batch(batch.members, batch.iteration, self.accelerator.process_index)

    def _step(self, batch: _Batch, drawn: clips.ClipBatch, began: float, waited: float) -> Step:
        config = self.config
        rate = learning_rate(config, batch.iteration, batch.epoch, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        device = self.accelerator.device
        whole = torch.from_numpy(drawn.whole).to(device)
        labels = torch.from_numpy(self.data.labels[batch.members]).to(device)[whole]
        half = torch.float16 if config.amp == "fp16" else torch.bfloat16
        with torch.autocast(device.type, half, enabled=config.amp != "none"):
            descriptors, logits = self.model(normalised(torch.from_numpy(drawn.frames).to(device)))
        descriptors, logits = descriptors.float(), logits.float()[whole]
        entropy = triplet = descriptors.new_zeros(())
        if len(labels):  # every clip of the batch may have been joined of two people
            entropy = losses.cross_entropy(logits, labels, config.label_smoothing)
            triplet = losses.batch_hard_triplet(descriptors[whole], labels, config.margin)
        loss = entropy + config.triplet_weight * triplet
        imitation = descriptors.new_zeros(())
        if self.imitation is not None and drawn.targets is not None:
            targets = torch.from_numpy(drawn.targets).to(device)
            imitation = self.imitation(descriptors, targets)
            relation = distillation.distance_relation(descriptors, targets)
            loss = loss + config.teacher_weight * imitation + config.teacher_relation_weight * relation
        self._check_finite(loss, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(self.scaler.scale(loss))
        if config.gradient_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.iteration = batch.iteration + 1
        accuracy = (logits.argmax(dim=1) == labels).float().mean().item() if len(labels) else 0.0
        return Step(
            iteration=self.iteration,
            epoch=batch.epoch,
            lr=rate,
            loss=loss.item(),
            cross_entropy=entropy.item(),
            triplet=triplet.item(),
            distillation=imitation.item(),
            accuracy=accuracy,
            clips=len(drawn.frames),
            seconds=time.monotonic() - began,
            wait_seconds=waited,
        )

    def _check_finite(self, loss: Tensor, batch: _Batch) -> None:
        if not math.isfinite(loss.item()):
            raise FailedPreconditionError(
                f"the loss is {loss.item()} at iteration {batch.iteration}; lower lr, add warmup_iterations or set "
                f"gradient_clip. {self.out / LAST} holds the last good state"
            )

    def _end_epoch(self, batch: _Batch) -> None:
        """Validate when an epoch that asks for it has just ended."""
        if batch.ends_epoch and (batch.epoch + 1) % self.config.val_every == 0:
            self._validate()

    def _validate(self) -> None:
        if not self.data.validation or not self.accelerator.is_main_process:
            return
        encoder = self._plain().encoder.eval()
        result = validation.validate(
            encoder, self.data.validation, self.config.val_snippets, self.store.get, self.accelerator.device
        )
        self._set_mode()
        self.last_validation, self._validated_at = result, self.iteration
        self._log({"iteration": self.iteration, "validation": asdict(result)})
        self.reporter.message(f"iteration {self.iteration}: validation {result}")
        if self.best is None or result.mean_average_precision > self.best:
            self.best = result.mean_average_precision
            self._save(BEST)

    def _prepare(self, model: Classifier, taken: set[str]) -> None:
        """Freeze, group the parameters, and hand model and optimiser to the device."""
        config = self.config
        for stage in config.freeze:
            getattr(model.encoder.backbone, stage).requires_grad_(False)
        self.model: nn.Module = self.accelerator.prepare(model.to(memory_format=torch.channels_last))
        named = [(name, p) for name, p in self._plain().named_parameters() if p.requires_grad]
        old = [p for name, p in named if name in taken]
        new = [p for name, p in named if name not in taken]
        groups = [
            {"params": old, "factor": 1.0},
            {"params": new, "factor": config.new_layers_lr_factor if old else 1.0},
        ]
        teacher = distillation.Teacher(config.teacher, config.teacher_precision) if config.teacher else None
        self.imitation: nn.Module | None = None
        if teacher is not None:
            size = self._plain().encoder.descriptor_size
            self.imitation = self.accelerator.prepare(distillation.Imitation(size, teacher.descriptor_size))
            groups.append({"params": list(self.imitation.parameters()), "factor": 1.0})
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(
            [group for group in groups if group["params"]], lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.taken = taken
        self.builder = self._clip_builder(teacher)

    def _clip_builder(self, teacher: distillation.Teacher | None) -> clips.ClipBuilder | distillation.TaughtClipBuilder:
        config = self.config
        size, cache = (config.height, config.width), int(config.cache_gib * _GIB)
        # Frames are kept as large as anybody needs them.
        largest = size if teacher is None else (max(size[0], teacher.size[0]), max(size[1], teacher.size[1]))
        self.store = clips.FrameStore(*largest, cache)
        masks = mask_finder(config)
        builder = clips.ClipBuilder(
            self.data.tracklets, self.store, config.augmentation, config.snippet_length, size, config.seed, masks
        )
        if teacher is None:
            return builder
        return distillation.TaughtClipBuilder(builder, teacher, config.teacher_views, cache)

    def _set_mode(self) -> None:
        """Train mode, but for frozen stages, whose batch statistics stay as they are."""
        self.model.train()
        backbone: Backbone = self._plain().encoder.backbone
        for stage in self.config.freeze:
            getattr(backbone, stage).eval()

    def _plain(self) -> Classifier:
        model: Classifier = self.accelerator.unwrap_model(self.model)
        return model

    def _take(self, model: Classifier, state: dict[str, Tensor], source: str) -> set[str]:
        try:
            report = warm_start.take_matching(model, state)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{source}: {error.message}") from error
        self.reporter.message(f"{source}: {report}")
        return set(report.taken)

    def _save(self, name: str) -> None:
        if not self.accelerator.is_main_process:
            return
        training = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "taken": sorted(self.taken),
            "imitation": self.accelerator.unwrap_model(self.imitation).state_dict() if self.imitation else None,
        }
        metadata = {
            "config": self.config.model_dump(mode="json"),
            "iteration": self.iteration,
            "best": self.best,
            "identities": list(self.data.names),
            "data": self.data.summary(),
            "validation": asdict(self.last_validation) if self.last_validation else None,
        }
        # Contiguous copies: channels-last strides are this process's business, not the file's.
        state = {key: value.detach().cpu().contiguous() for key, value in self._plain().state_dict().items()}
        saved = checkpoint.Checkpoint(
            self.architecture, len(self.data.names), state, metadata, training if name == LAST else None
        )
        checkpoint.save(self.out / name, saved)

    def _log(self, values: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.out / LOG).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(values) + "\n")

    def _cut_log(self) -> None:
        """Forget what was logged after the checkpoint: these iterations come again."""
        path = self.out / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["iteration"] <= self.iteration]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _report_changes(self, before: dict[str, Any]) -> None:
        now = self.config.model_dump(mode="json")
        changed = [key for key, value in now.items() if before.get(key) != value]
        if changed:
            self.reporter.message(f"differs from the run so far: {', '.join(changed)}")
