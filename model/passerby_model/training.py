"""The training loop: cross-entropy with label smoothing + batch-hard triplet, P x K batches, exact resume.

    training_data (who) -> sampler (which tracklets) -> clips (decoded ahead, in threads) -> learner (one update)
        -> run_log, checkpoints, validation

Source: the reference's `main_video_person_reid.py` (InnovArul/vidreid_cosegmentation): both losses with weight 1, Adam,
step schedule. Order of chance: batches depend on (seed, epoch), clips and whatever the network draws on (seed,
iteration, process), weights on the seed, so a run that was interrupted goes on exactly as if it had not been.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from passerby.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
from torch import Tensor

from passerby_model import checkpoint, clips, distillation, environment, validation, warm_start
from passerby_model.encoder import Architecture, Classifier, TrackletEncoder
from passerby_model.learner import Learner, make_accelerator
from passerby_model.progress import Reporter, Silent, Step, WaitWatch
from passerby_model.run_log import LOG, RunLog
from passerby_model.sampler import IdentitySampler
from passerby_model.schedule import learning_rate
from passerby_model.train_config import RUN_CONFIG, TrainConfig
from passerby_model.training_data import TrainingData, gather, mask_finder

__all__ = ["BEST", "FINAL", "LAST", "LOG", "SESSIONS", "Reporter", "Step", "TrainResult", "train"]

LAST, BEST, FINAL, SESSIONS = "last.pt", "best.pt", "final.pt", "sessions.json"
_GIB = 1024**3


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: iterations done, whether that is all of them, the file to use, the last validation.

    main_process: False in the processes beside the main one, which write nothing and validate nothing.
    """

    iterations: int
    finished: bool
    checkpoint: Path
    validation: validation.Validation | None
    main_process: bool = True


@dataclass(frozen=True)
class _Batch:
    """What one process contributes to an iteration; members: int64 (accumulate * P * K,) tracklets."""

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

    Under `accelerate launch` (or torchrun) every process runs this; each takes batches of its own, the gradients are
    averaged, and the main process alone validates, reports and writes.

    Args:
        config: what to compute.
        out: folder for checkpoints, `log.jsonl`, `config.json`, `sessions.json` and TensorBoard's files; made if
            need be.
        reporter: told about every step, in the main process.
        resume: go on from `last.pt` in `out`.
        stop: asked before every iteration; true, in any process, ends the run with a saved checkpoint.

    Raises:
        AlreadyExistsError: `out` holds a run and `resume` was not asked for.
        FailedPreconditionError: nothing to resume, or another run; the loss is no longer finite; what the
            configuration asks for (TensorBoard, a compiler) is not installed.
        InvalidArgumentError, NotFoundError: data or weights are not as the configuration says.
    """
    if (out / LAST).exists() and not resume:
        raise AlreadyExistsError(f"{out} holds a training run; --resume goes on with it, or choose another folder")
    if resume and not (out / LAST).exists():
        raise FailedPreconditionError(f"{out / LAST}: nothing to resume; start without --resume")
    if config.threads:
        torch.set_num_threads(config.threads)
    accelerator = make_accelerator()
    reporter = reporter if accelerator.is_main_process else Silent()
    data = gather(config)
    reporter.message(str(data))
    run = _Run(config, data, out, reporter, accelerator)
    if resume:
        run.resume()
    else:
        run.start()
    result = run.loop(stop)
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
        accelerator.end_training()
    return result


class _Run:
    """State of one run between iterations."""

    def __init__(
        self, config: TrainConfig, data: TrainingData, out: Path, reporter: Reporter, accelerator: Accelerator
    ) -> None:
        self.config, self.data, self.out, self.reporter, self.accelerator = config, data, out, reporter, accelerator
        self.architecture = Architecture.parse(
            config.architecture, snippet_length=config.snippet_length, height=config.height, width=config.width
        )
        self.sampler = IdentitySampler(
            data.labels, config.identities_per_batch, config.tracklets_per_identity, config.seed, data.repeats
        )
        self.share = config.accumulate * accelerator.num_processes  # batches of one iteration
        steps_per_epoch = self.sampler.batches_per_epoch // self.share
        if not steps_per_epoch:
            raise InvalidArgumentError(
                f"an epoch has {self.sampler.batches_per_epoch} batches, one step takes {self.share} "
                f"({accelerator.num_processes} processes x accumulate {config.accumulate}); lower one of them"
            )
        self.total = config.iterations or config.epochs * steps_per_epoch
        self.iteration = 0
        self.best: float | None = None
        self.last_validation: validation.Validation | None = None
        self.validated_at = -1
        self.log: RunLog | None = None

    def start(self) -> None:
        """Fresh weights, or those that the configuration names."""
        torch.manual_seed(self.config.seed)
        model = self._fresh_model()
        taken: set[str] = set()
        if self.config.pretrained:
            state = warm_start.imagenet_state(self.architecture.backbone, self.config.pretrained)
            taken |= self._take(model, state, f"ImageNet weights {self.config.pretrained}")
        if self.config.init:
            begin = warm_start.checkpoint_start(self.config.init, self.data.names)
            taken |= self._take(model, begin.state, str(self.config.init))
        self._prepare(model, taken)
        if self.config.init and self.learner.plain_imitation is not None and begin.imitation is not None:
            warm_start.take_fitting(self.learner.plain_imitation, begin.imitation)
        self._open_records()

    def resume(self) -> None:
        """Weights, optimiser and place in the schedule of `last.pt`."""
        saved = checkpoint.load(self.out / LAST)
        if saved.training is None or saved.metadata.get("identities") != list(self.data.names):
            raise FailedPreconditionError(
                f"{self.out / LAST} was trained on other identities; resume with the data of that run"
            )
        if saved.architecture != self.architecture:
            raise FailedPreconditionError(f"{self.out / LAST} is a {saved.architecture.name}; resume with that")
        self._report_changes(saved.metadata)
        model = self._fresh_model()
        checkpoint.check_state(saved.state, model, self.architecture)
        model.load_state_dict(saved.state)
        self._prepare(model, set(saved.training["taken"]))
        self.learner.load_state(saved.training)
        self.iteration, self.best = saved.metadata["iteration"], saved.metadata["best"]
        if saved.metadata["validation"] is not None:
            self.last_validation = validation.Validation(**saved.metadata["validation"])
            self.validated_at = saved.metadata.get("validated_at", -1)
        self._open_records()
        self.reporter.message(f"resumed at iteration {self.iteration} of {self.total}")

    def loop(self, stop: Callable[[], bool]) -> TrainResult:
        """Iterate until the end, or until `stop` says so."""
        self.learner.set_mode()
        watch = WaitWatch(self.config.workers, self.config.cache_gib)
        saved_at = began = time.monotonic()
        try:
            for batch, drawn in clips.prefetched(self._plan(), self._load, self.config.workers):
                if self.learner.agree(stop()):
                    break
                step = self._step(batch, drawn, began, time.monotonic() - began)
                self._tell(step, watch.advice(step))
                self._end_epoch(batch)
                if time.monotonic() - saved_at > 60 * self.config.save_minutes:
                    self._save(LAST)
                    saved_at = time.monotonic()
                began = time.monotonic()
            self._save(LAST)
            return self._finish()
        finally:
            if self.log is not None:
                self.log.close()

    def _finish(self) -> TrainResult:
        finished = self.iteration >= self.total
        if finished:
            if self.data.validation and self.validated_at != self.iteration:
                self._validate()
                self._save(LAST)
            self._save(FINAL)
        path = self.out / (FINAL if finished else LAST)
        return TrainResult(self.iteration, finished, path, self.last_validation, self.accelerator.is_main_process)

    def _plan(self) -> Iterator[_Batch]:
        """Batches from the current iteration on; those before are drawn and passed over."""
        iteration, epoch, done = 0, 0, self.iteration
        own = self.config.accumulate
        first = self.accelerator.process_index * own
        while iteration < self.total:
            groups = self.sampler.epoch(epoch)
            places = range(0, len(groups) - self.share + 1, self.share)
            for place in places:
                if done <= iteration < self.total:
                    members = np.concatenate(groups[place + first : place + first + own])
                    yield _Batch(epoch, iteration, members, place == places[-1])
                iteration += 1
            epoch += 1

    def _load(self, batch: _Batch) -> clips.ClipBatch:
        return self.builder.batch(batch.members, batch.iteration, self.accelerator.process_index)

    def _step(self, batch: _Batch, drawn: clips.ClipBatch, began: float, waited: float) -> Step:
        rate = learning_rate(self.config, batch.iteration, batch.epoch, self.total)
        draws = np.random.SeedSequence([self.config.seed, batch.iteration, self.accelerator.process_index])
        torch.manual_seed(int(draws.generate_state(1, np.uint64)[0]))  # for dropout, if the network has any
        try:
            figures = self.learner.update(drawn, self.data.labels[batch.members], rate)
        except FailedPreconditionError as error:
            saved = f". {self.out / LAST} holds the last saved state" if (self.out / LAST).exists() else ""
            raise FailedPreconditionError(f"iteration {batch.iteration}: {error.message}{saved}") from error
        self.iteration = batch.iteration + 1
        return Step(
            iteration=self.iteration,
            epoch=batch.epoch,
            lr=rate,
            **asdict(figures),
            clips=len(drawn.frames) * self.accelerator.num_processes,
            seconds=time.monotonic() - began,
            wait_seconds=waited,
        )

    def _tell(self, step: Step, advice: str | None) -> None:
        if self.log is not None:
            self.log.step(step)
        self.reporter.step(step, self.total)
        if advice:
            self.reporter.message(advice)

    def _end_epoch(self, batch: _Batch) -> None:
        """Validate when an epoch that asks for it has just ended."""
        if batch.ends_epoch and (batch.epoch + 1) % self.config.val_every == 0:
            self._validate()

    def _validate(self) -> None:
        if not self.data.validation or self.log is None:
            return
        encoder = self.learner.plain.encoder.eval()
        result = validation.validate(
            encoder, self.data.validation, self.config.val_snippets, self.store.get, self.accelerator.device
        )
        self.learner.set_mode()
        self.last_validation, self.validated_at = result, self.iteration
        self.log.validation(self.iteration, asdict(result))
        self.reporter.message(f"iteration {self.iteration}: validation {result}")
        if self.best is None or result.mean_average_precision > self.best:
            self.best = result.mean_average_precision
            self._save(BEST)

    def _fresh_model(self) -> Classifier:
        return Classifier(TrackletEncoder(self.architecture), len(self.data.names), neck=self.config.neck)

    def _prepare(self, model: Classifier, taken: set[str]) -> None:
        """The learner, and who builds its clips."""
        config = self.config
        teacher = distillation.Teacher(config.teacher, config.teacher_precision) if config.teacher else None
        imitation = None
        if teacher is not None:
            imitation = distillation.Imitation(model.encoder.descriptor_size, teacher.descriptor_size)
        self.taken = taken
        self.learner = Learner(config, self.accelerator, model, taken, imitation)
        self.builder = self._clip_builder(teacher)

    def _clip_builder(self, teacher: distillation.Teacher | None) -> clips.ClipBuilder | distillation.TaughtClipBuilder:
        config = self.config
        size, cache = (config.height, config.width), int(config.cache_gib * _GIB)
        # Frames are kept as large as anybody needs them.
        largest = size if teacher is None else (max(size[0], teacher.size[0]), max(size[1], teacher.size[1]))
        self.store = clips.FrameStore(*largest, cache)
        builder = clips.ClipBuilder(
            self.data.tracklets,
            self.store,
            config.augmentation,
            config.snippet_length,
            size,
            config.seed,
            mask_finder(config),
        )
        if teacher is None:
            return builder
        plain = config.teacher_sees == "plain"
        return distillation.TaughtClipBuilder(builder, teacher, config.teacher_views, cache, plain=plain)

    def _take(self, model: Classifier, state: dict[str, Tensor], source: str) -> set[str]:
        try:
            report = warm_start.take_matching(model, state)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{source}: {error.message}") from error
        self.reporter.message(f"{source}: {report}")
        return set(report.taken)

    def _open_records(self) -> None:
        """What is computed, on what, and the log; in the main process alone."""
        if not self.accelerator.is_main_process:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = RunLog(self.out, iteration=self.iteration, tensorboard=self.config.tensorboard)
        _write(self.out / RUN_CONFIG, self.config.model_dump_json(indent=2))
        sessions = json.loads((self.out / SESSIONS).read_text(encoding="utf-8")) if self._has_sessions() else []
        device = self.accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        sessions.append({"iteration": self.iteration, **environment.describe(name, self.accelerator.num_processes)})
        _write(self.out / SESSIONS, json.dumps(sessions, indent=2))

    def _has_sessions(self) -> bool:
        return self.iteration > 0 and (self.out / SESSIONS).exists()

    def _save(self, name: str) -> None:
        if not self.accelerator.is_main_process:
            return
        metadata = {
            "config": self.config.model_dump(mode="json"),
            "iteration": self.iteration,
            "processes": self.accelerator.num_processes,
            "best": self.best,
            "identities": list(self.data.names),
            "data": self.data.summary(),
            "validation": asdict(self.last_validation) if self.last_validation else None,
            "validated_at": self.validated_at,
        }
        # Contiguous copies: channels-last strides are this process's business, not the file's.
        state = {key: value.detach().cpu().contiguous() for key, value in self.learner.plain.state_dict().items()}
        training = {**self.learner.state(), "taken": sorted(self.taken)} if name == LAST else None
        saved = checkpoint.Checkpoint(self.architecture, len(self.data.names), state, metadata, training)
        checkpoint.save(self.out / name, saved)

    def _report_changes(self, metadata: dict[str, Any]) -> None:
        """Settings that are not those of the run so far; keys that the run did not know count as at their defaults."""
        before = {key: field.get_default(call_default_factory=True) for key, field in TrainConfig.model_fields.items()}
        before |= metadata["config"]
        now = self.config.model_dump(mode="json")
        changed = [key for key, value in now.items() if before.get(key) != value]
        if metadata.get("processes", 1) != self.accelerator.num_processes:
            changed.append("number of processes")
        if changed:
            self.reporter.message(f"differs from the run so far: {', '.join(changed)}")


def _write(path: Path, text: str) -> None:
    """Whole or not at all, even when the process is killed."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(f"{text}\n", encoding="utf-8")
    os.replace(partial, path)
