"""The training loop: alone, or as one of several processes that torchrun started."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnv3_fast._version import __version__
from mnv3_fast.data.evaluation import Accuracy
from mnv3_fast.data.loading import watched
from mnv3_fast.data.processes import Processes, connected
from mnv3_fast.training.averaging import mean_of_checkpoints
from mnv3_fast.training.log import Log
from mnv3_fast.training.networks import training_mode
from mnv3_fast.training.samples import Order, TrainingImages, load
from mnv3_fast.training.seeds import seed_generators, seed_of
from mnv3_fast.training.settings import Settings
from mnv3_fast.training.state import build_state, check_resumable
from mnv3_fast.training.stopping import StopRequest
from mnv3_fast.training.transforms import batch_transform, training_transform
from mnv3_fast.training.validation import Sets, accuracy_of, read_sets
from mnv3_fast.training.work_dir import WorkDir, write_checkpoint

Report = Callable[[dict[str, Any]], None]


class Diverged(RuntimeError):
    """The loss or a weight is no longer a finite number."""


@dataclass(frozen=True)
class Trained:
    """How a training ended: epochs that are done, the best top-1 with its epoch, the averaged checkpoint's accuracy."""

    epochs: int
    best: float | None
    best_epoch: int | None
    averaged: Accuracy | None


def train(settings: Settings, processes: Processes | None = None, report: Report = lambda record: None) -> Trained:
    """Train as the settings say; ``report`` gets each record of the log in the first process.

    Raises:
        FileNotFoundError, ValueError: for data, weights, a work-dir or settings that do not do; the message says why.
        NotWritten: if the work-dir cannot be written.
        WorkerDied, ProcessesLost: if a process that decodes, or another that trains, was killed.
        Diverged: naming epoch, iteration and learning rate; the last checkpoint is from before.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the checkpoint of the last finished iteration is written.
    """
    processes = processes or Processes()
    device = processes.device(settings.device)
    sets = read_sets(settings)
    folder = WorkDir(settings.work_dir) if processes.is_first else nullcontext()
    with folder as work_dir, StopRequest(insistent=processes.world == 1) as stop, watched(), connected():
        if any(other != sets.identity for other in processes.gather(sets.identity)):
            raise ValueError(f"train: not every process has the same images in {settings.data}")
        saved = processes.broadcast(None if work_dir is None else work_dir.begin(settings.resume))
        trainer = Trainer(settings, sets, processes, device, work_dir, report)
        trainer.start(saved)
        return trainer.run(stop)


class Trainer:
    """One run. ``work_dir`` is None in all processes but the first, which alone writes."""

    def __init__(
        self,
        settings: Settings,
        sets: Sets,
        processes: Processes,
        device: torch.device,
        work_dir: WorkDir | None,
        report: Report,
    ) -> None:
        self.settings, self.sets, self.recipe = settings, sets, settings.recipe
        self.processes, self.device = processes, device
        self.work_dir, self.report = work_dir, report
        how = self.recipe.augmentation
        self.order = Order(
            len(sets.train.samples), self.recipe.batch, settings.seed, processes.rank, processes.world, how.repetitions
        )
        self.images = TrainingImages(sets.train.samples, training_transform(how, settings.variant.preprocessing))
        self.mix = batch_transform(how, len(sets.classes))
        self.loss = nn.CrossEntropyLoss(label_smoothing=self.recipe.label_smoothing)
        self.state = build_state(settings, len(sets.classes), processes.world, device)
        self.model: nn.Module = self.state.network
        if processes.world > 1:
            self.model = DistributedDataParallel(self.model, device_ids=[device] if device.type == "cuda" else None)
        self.log: Log | None = None

    def start(self, saved: dict[str, Any] | None) -> None:
        """Begin, or go on from a checkpoint's contents; what was written after it goes away."""
        if saved is not None:
            check_resumable(saved, self._meta(), self.settings.work_dir / "last.pth")
            self.state.load(saved)
        if self.work_dir is not None:
            self.work_dir.keep_best(self.state.progress.best_epochs)
            self.log = Log(self.work_dir.log, self.state.progress.log_size)

    def run(self, stop: StopRequest) -> Trained:
        """Train the epochs that are left."""
        progress = self.state.progress
        while progress.epoch < self.recipe.epochs:
            self._epoch(stop)
            self._end_epoch()
            asked = self.processes.sum(torch.tensor([float(bool(stop))])).item()
            if asked and progress.epoch < self.recipe.epochs:
                raise KeyboardInterrupt
        averaged = self._average_best() if self.recipe.average else None
        best_epoch = progress.best_epochs[-1] if progress.best_epochs else None
        return Trained(progress.epoch, None if best_epoch is None else progress.best, best_epoch, averaged)

    def _epoch(self, stop: StopRequest) -> None:
        """The iterations that are left of an epoch."""
        progress, settings = self.state.progress, self.settings
        training_mode(self.state.network, settings.freeze_backbone)
        pin, interval = self.device.type == "cuda", settings.checkpoint_interval
        watch = _Watch()
        for batch in load(self.images, self.order, progress.epoch, progress.iteration, settings.workers, pin):
            if isinstance(batch, str):
                raise ValueError(f"train: {batch}")
            watch.data()
            stopping = self._step(*batch, stop=bool(stop))
            watch.iteration()
            progress.iteration += 1
            last = progress.iteration == self.order.iterations
            if last or progress.iteration % settings.log_interval == 0:
                self._log_training(watch)
                watch = _Watch()
            if last or stopping or (interval and progress.iteration % interval == 0):
                self._check_weights()
                if not last:
                    self._save()
            if not last and stopping:
                raise KeyboardInterrupt

    def _end_epoch(self) -> None:
        progress = self.state.progress
        self.state.schedule.step()
        progress.epoch, progress.iteration = progress.epoch + 1, 0
        if self.settings.validate:
            self._validate()
        self._save()

    def _step(self, images: Tensor, labels: Tensor, stop: bool) -> bool:
        """One iteration; whether any process was asked to stop."""
        state, settings, progress = self.state, self.settings, self.state.progress
        seed_generators(seed_of(settings.seed, progress.epoch, progress.iteration, self.processes.rank))
        images, labels = (value.to(self.device, non_blocking=True) for value in (images, labels))
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        with torch.autocast(self.device.type, settings.amp, enabled=settings.amp is not None):
            loss = self.loss(self.model(images), labels)
        # One sum tells every process the mean loss, whether it is finite anywhere, and whether anybody is to stop.
        total, stops = self.processes.sum(torch.tensor([loss.item(), float(stop)], dtype=torch.float64)).tolist()
        if not math.isfinite(total):
            raise self._diverged(f"the loss is {total}", progress.iteration + 1)
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        progress.loss_sum += total / self.processes.world
        progress.loss_count += 1
        how = self.recipe.moving_average
        if state.average is not None and how is not None and progress.iteration % how.steps == 0:
            state.average.update_parameters(state.network)
            if progress.epoch < self.recipe.schedule.warmup_epochs:
                state.average.n_averaged.fill_(0)  # until then it is a copy, as in torchvision's training script
        return stops > 0

    def _check_weights(self) -> None:
        """Nothing is written of weights that are not finite, which the next loss would show."""
        if not self.state.is_finite():
            raise self._diverged("a weight is not finite", self.state.progress.iteration)

    def _diverged(self, what: str, iteration: int) -> Diverged:
        place = f"epoch {self.state.progress.epoch + 1}, iteration {iteration}, learning rate {self.state.lr:g}"
        kept = self.settings.work_dir / "last.pth"
        return Diverged(f"train: {what} in {place}; the checkpoint from before, if it came to one, is {kept}")

    def _log_training(self, watch: _Watch) -> None:
        progress = self.state.progress
        step = progress.epoch * self.order.iterations + progress.iteration
        record: dict[str, Any] = {
            "lr": self.state.lr,
            "data_time": watch.data_seconds / watch.count,
            "loss": progress.loss_sum / progress.loss_count,
            "time": watch.seconds / watch.count,
            "epoch": progress.epoch + 1,
            "iter": step,
        }
        if self.device.type == "cuda":
            record["memory"] = torch.cuda.max_memory_allocated(self.device) // 2**20
        progress.loss_sum, progress.loss_count = 0.0, 0
        self._record(record | {"step": step})

    def _record(self, record: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write(record)
            self.state.progress.log_size = self.log.size
            self.report(record)

    def _validate(self) -> None:
        """The accuracy of what the training would give now; its weights are kept if that has risen."""
        progress = self.state.progress
        self._share_buffers()
        weights = self.state.trained()
        accuracy = accuracy_of(weights, self.settings, self.sets, self.processes, self.device)
        self._record({"accuracy/top1": accuracy.top1, "accuracy/top5": accuracy.top5, "step": progress.epoch})
        if accuracy.top1 > progress.best:
            progress.best = accuracy.top1
            progress.best_epochs = [*progress.best_epochs, progress.epoch][-max(self.recipe.average, 1) :]
            if self.work_dir is not None:
                contents = {"state_dict": weights, "meta": self._meta(accuracy)}
                write_checkpoint(self.work_dir.best(progress.epoch), contents)

    def _share_buffers(self) -> None:
        """Every process validates the norms' statistics of the first one, which are those that are saved."""
        if self.processes.world > 1:
            for module in (self.state.network, self.state.average):
                for buffer in () if module is None else module.buffers():
                    torch.distributed.broadcast(buffer, 0)

    def _average_best(self) -> Accuracy:
        """The mean of the last checkpoints that raised the accuracy, written with its own accuracy."""
        epochs, weights = self.state.progress.best_epochs, None
        if self.work_dir is not None:
            weights = mean_of_checkpoints([self.work_dir.best(epoch) for epoch in epochs])
        weights = self.processes.broadcast(weights)
        accuracy = accuracy_of(weights, self.settings, self.sets, self.processes, self.device)
        if self.work_dir is not None:
            meta = self._meta(accuracy) | {"averaged_epochs": epochs}
            write_checkpoint(self.work_dir.averaged, {"state_dict": weights, "meta": meta})
        return accuracy

    def _save(self) -> None:
        """Write what it takes to go on from here."""
        if self.work_dir is not None:
            write_checkpoint(self.work_dir.last, self.state.contents() | {"meta": self._meta()})
            self.work_dir.keep_best(self.state.progress.best_epochs)

    def _meta(self, accuracy: Accuracy | None = None) -> dict[str, Any]:
        progress = self.state.progress
        identity = self.settings.identity(self.processes.world) | self.sets.identity
        meta = {
            "variant": self.settings.variant.name,
            "CLASSES": list(self.sets.classes),  # mmpretrain's key
            "epoch": progress.epoch,
            "iter": progress.epoch * self.order.iterations + progress.iteration,
            "mnv3_fast_version": __version__,
            "identity": identity,
        }
        return meta if accuracy is None else meta | {"accuracy": {"top1": accuracy.top1, "top5": accuracy.top5}}


class _Watch:
    """Seconds of reading and of all, since it was made."""

    def __init__(self) -> None:
        self.seconds, self.data_seconds, self.count = 0.0, 0.0, 0
        self._last = time.perf_counter()

    def data(self) -> None:
        """A batch is there."""
        self.data_seconds += time.perf_counter() - self._last

    def iteration(self) -> None:
        """An iteration is done."""
        now = time.perf_counter()
        self.seconds, self.count, self._last = self.seconds + now - self._last, self.count + 1, now
