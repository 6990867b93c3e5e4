"""``mnv3-fast predict``: the best classes of image files, by the thousand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mnv3_fast.cli.common import MISS, check_positive, errors, fail
from mnv3_fast.cli.records import Records
from mnv3_fast.prediction import Classifier, Prediction, find_images, predict_files

EPILOG = """Examples:

mnv3-fast predict cat.jpg --weights DEFAULT

mnv3-fast predict photos/ 'more/**/*.png' --weights DEFAULT --csv --output classes.csv

mnv3-fast predict photos/ --model mobilenet-v3-small-050_8xb128_in1k --checkpoint small-050.pth --json

Ends with status 0; 1 if a file could not be read (it is named and skipped); 2 for bad arguments; 3 if the output
cannot be written; 130 after Ctrl-C (what was written stays, --resume goes on)."""


def predict(
    images: Annotated[list[str], typer.Argument(help="files, folders and globs", metavar="IMAGE|FOLDER|GLOB...")],
    model: Annotated[
        str | None,
        typer.Option(help="a name that `mnv3-fast info --models` lists; else what --checkpoint is of, or large"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="DEFAULT or a tag of the model's weights, downloaded; or random, for a trial")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="a file or a URL")] = None,
    top: Annotated[int, typer.Option(help="classes an image")] = 5,
    json: Annotated[bool, typer.Option("--json", help="a line of JSON an image")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="a row a class")] = False,
    output: Annotated[Path | None, typer.Option(help="write there, as --json (the default) or --csv says")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="skip what --output already has, of whatever model")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="begin --output anew")] = False,
    batch: Annotated[int, typer.Option(help="images a call of the engine")] = 8,
    threads: Annotated[int | None, typer.Option(help="threads of the engine, else torch's number")] = None,
    workers: Annotated[int, typer.Option(help="threads that decode images")] = 2,
) -> None:
    """Classify images. Decoding runs beside the engine, a bad file is named and skipped, memory stays flat."""
    check_positive("--top", [top])
    check_positive("--batch", [batch])
    check_positive("--workers", [workers])
    if threads is not None:
        check_positive("--threads", [threads])
        torch.set_num_threads(threads)
    if json and csv:
        fail("--json and --csv exclude each other")
    if (resume or overwrite) and output is None:
        fail("--resume and --overwrite need --output")
    if resume and overwrite:
        fail("--resume and --overwrite exclude each other")
    files = list(find_images(images))
    if not files:
        fail(f"no images in {', '.join(images)}")
    csv = csv or (not json and output is not None and output.suffix == ".csv")
    style = "csv" if csv else "json" if json or output is not None else "text"
    classifier = load_classifier(model, weights, checkpoint)
    with Records(output, style, min(top, len(classifier.classes)), resume, overwrite, files) as records:
        left = [path for path in files if path not in records.done]
        failed = run(classifier, left, records, top, batch, workers)
    if failed:
        errors.print(f"{failed} of {len(left)} files could not be read")
        raise typer.Exit(MISS)


def run(classifier: Classifier, files: list[str], records: Records, top: int, batch: int, workers: int) -> int:
    """Classify and write; the number of files that could not be read."""
    failed = 0
    with closing(predict_files(classifier, files, top, batch, workers)) as predictions:
        for prediction in shown(predictions, len(files)):
            records.write(prediction)
            if prediction.error is not None:
                failed += 1
                say(f"{prediction.path}: {prediction.error}", "red")
            for warning in prediction.warnings[len(classifier.warnings) :]:  # those of all images were said once
                say(f"{prediction.path}: {warning}", "yellow")
    return failed


def say(text: str, style: str) -> None:
    """A line on stderr as it is, whatever a file is called."""
    errors.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def shown(predictions: Iterator[Prediction], count: int) -> Iterator[Prediction]:
    """The same, with a progress bar if somebody looks on and the results go elsewhere."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield from predictions
        return
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, redirect_stdout=False) as progress:  # the results go where they go
        yield from progress.track(predictions, total=count)


def load_classifier(model: str | None, weights: str | None, checkpoint: str | None) -> Classifier:
    """The engine of a model's name, or the end of the program with the reason why there is none."""
    from mnv3_fast.cli.models import classifier_of

    if weights is not None and checkpoint is not None:
        fail("--weights and --checkpoint exclude each other")
    if weights is None and checkpoint is None:
        fail(
            "predict needs trained weights: --weights DEFAULT downloads the model's, --checkpoint names a file "
            "(--weights random is for a trial: its classes mean nothing)"
        )
    try:
        found = classifier_of(model, weights, checkpoint)
    except (ValueError, OSError) as error:
        fail(str(error))
    for warning in found.warnings:
        errors.print(warning, style="yellow")
    return found
