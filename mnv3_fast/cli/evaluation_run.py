"""One run of ``test``: its state, the file of predictions, the bar, and what it says meanwhile."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mnv3_fast.cli.common import errors, fail, writing
from mnv3_fast.cli.predict import say
from mnv3_fast.cli.records import ENCODE_ERRORS, record_of
from mnv3_fast.data.evaluation import Accuracy, Outcome
from mnv3_fast.data.state import State
from mnv3_fast.data.subject import Subject
from mnv3_fast.prediction import Guess, Prediction

FOLDER = Path("mnv3-fast-test")


class EvaluationRun:
    """What the first process keeps of an evaluation.

    Attributes:
        subject: what is evaluated.
        state: how far it is.
        output: the file of predictions.
        resumed_from: how many images an earlier run had done.
    """

    def __init__(self, subject: Subject, state: Path | None, output: Path | None, overwrite: bool) -> None:
        wanted = str(output.resolve()) if output is not None else None
        about, total = subject.about | {"output": wanted}, len(subject.split.samples)
        self.state = State(state or FOLDER / f"{subject.name}.json", about, total)
        self.subject, self.output, self.overwrite = subject, output, overwrite
        self.resumed_from = 0
        self._bar = Progress(
            TextColumn("images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:.0f}/s"),
            TimeRemainingColumn(), console=errors, redirect_stdout=False,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total, rate=0.0)

    def begin(self) -> None:
        """Find out where to go on, and that the files can be written; or end the program."""
        if not self.overwrite:
            try:
                resumed = self.state.read()
            except ValueError as error:
                fail(f"{error}; --overwrite begins anew, --state names another file")
            except OSError as error:
                fail(f"{self.state.path} cannot be read: {error.strerror or error}")
            if resumed:
                self.resumed_from = self.state.known.images
                errors.print(
                    f"goes on with {self.state.path}: {self.resumed_from} of {len(self.subject.split.samples)} images "
                    "are done",
                    markup=False, soft_wrap=True,
                )  # fmt: skip
        if self.output is not None:
            self._begin_output(self.output)
        with writing(self.state.path):
            self.state.path.parent.mkdir(parents=True, exist_ok=True)
            self.state.save(self.state.known, self.state.written, now=True)

    def _begin_output(self, output: Path) -> None:
        """The file of predictions with those of the images that are done, and no other."""
        with writing(output):
            if output.is_dir():
                fail(f"--output {output} is a folder, a file is wanted")
            there = output.exists()
            self._check_inputs(output)
        if there and not self.resumed_from and not self.overwrite:
            fail(f"--output {output} exists; --overwrite begins it anew")
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            with output.open("ab") as file:
                if file.tell() < self.state.written:
                    fail(f"--output {output} lacks lines of the images that are done; --overwrite begins anew")
                file.truncate(self.state.written)

    def _check_inputs(self, output: Path) -> None:
        """What is read, --overwrite must not begin anew either."""
        for what, path in (("the checkpoint", self.subject.checkpoint), ("--state", self.state.path)):
            if os.path.realpath(path) == os.path.realpath(output):
                fail(f"--output {output} is {what}, another file is wanted")
        images = (path for path, _ in self.subject.split.samples)
        if output.exists() and any(os.path.exists(path) and os.path.samefile(path, output) for path in images):
            fail(f"--output {output} is one of the images, another file is wanted")

    def add(self, known: Accuracy, outcomes: list[Outcome]) -> None:
        """Keep, say and show what came since the last call."""
        for path, why in known.unreadable[len(self.state.known.unreadable) :]:
            say(f"{path}: {why}", "red")
        written = self.state.written
        if self.output is not None:
            lines = "".join(self._line(outcome) for outcome in outcomes).encode("utf-8", ENCODE_ERRORS)
            with writing(self.output), self.output.open("ab") as file:
                file.write(lines)
            written += len(lines)
        with writing(self.state.path):
            self.state.save(known, written)
        self._bar.update(self._task, completed=known.images, rate=known.images_per_second)

    def _line(self, outcome: Outcome) -> str:
        path, label = self.subject.split.samples[outcome.place]
        names = self.subject.classes
        pairs = zip(outcome.labels, outcome.scores, strict=True)
        guesses = [Guess(guess, names[guess], score) for guess, score in pairs]
        record = record_of(Prediction(path, guesses, error=outcome.error))
        return json.dumps(record | {"label": label, "class": names[label]}) + "\n"

    @contextmanager
    def shown(self, here: bool) -> Iterator[None]:
        """With a bar, where somebody looks on."""
        if not (here and errors.is_terminal):
            yield
            return
        with self._bar:
            yield

    def stop(self, here: bool) -> None:
        """The run did not come to its end: keep what is known."""
        if here:
            with writing(self.state.path):
                self.state.save(self.state.known, self.state.written, now=True)
            done = f"{self.state.known.images} of {len(self.subject.split.samples)} images are done"
            errors.print(f"{done}; the same command goes on from there", markup=False, soft_wrap=True)

    def end(self) -> None:
        """The run is complete, and the next one begins anew."""
        self.state.remove()
        if self.state.path.parent == FOLDER:
            with suppress(OSError):  # there are states of other models
                os.rmdir(FOLDER)
        known = self.state.known
        if known.unreadable:
            say(f"{len(known.unreadable)} of {known.images} images could not be read; they count as wrong", "red")
        if known.not_finite:
            say(f"the outputs of {known.not_finite} images are not finite; they count as wrong", "red")
