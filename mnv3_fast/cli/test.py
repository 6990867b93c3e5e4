"""``mnv3-fast test``: top-1 and top-5 accuracy of a checkpoint over a labelled set of images."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE
from rich.table import Table

from mnv3_fast.cli.common import (
    BAD_INPUT,
    MISS,
    check_choices,
    check_positive,
    compiling,
    errors,
    fail,
    print_json,
    show,
)
from mnv3_fast.cli.evaluation_run import EvaluationRun
from mnv3_fast.data.evaluation import Accuracy, evaluate
from mnv3_fast.data.loading import WorkerDied
from mnv3_fast.data.processes import Processes, ProcessesLost
from mnv3_fast.data.subject import Subject, load_subject

EPILOG = """Examples:

mnv3-fast test mobilenet-v3-small_8xb128_in1k small.pth

mnv3-fast test configs/mobilenet_v3/mobilenet-v3-small_8xb128_in1k.py small.pth --data data/imagenet --output seen.jsonl

torchrun --nproc-per-node 8 -m mnv3_fast.cli test mobilenet-v3-large_8xb128_in1k large.pth --device cuda --amp

Ends with status 0; 1 if an image could not be read or outputs were not finite (both count as wrong); 2 for bad
arguments or input, or if another process was killed; 3 if a file cannot be written; 130 after Ctrl-C. The same
command again goes on where the last one ended."""

AMP_DTYPES = ("float16", "bfloat16")
MOST_WORKERS = 16  # more than these no disk and no engine follows


def test(
    config: Annotated[str, typer.Argument(help="a model's name, or a path of mmpretrain's config (not read)")],
    checkpoint: Annotated[str, typer.Argument(help="a file or a URL")],
    data: Annotated[Path, typer.Option(help="holds SPLIT/CLASS/*.JPEG, or SPLIT/ and meta/SPLIT.txt")] = Path(
        "data/imagenet"
    ),
    split: Annotated[str, typer.Option(help="the folder below --data")] = "val",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    amp: Annotated[bool, typer.Option("--amp", help="autocast; on the CPU that is torch's own code")] = False,
    amp_dtype: Annotated[str | None, typer.Option(help="float16 (else on a GPU) or bfloat16 (else on the CPU)")] = None,
    batch: Annotated[int, typer.Option(help="images a call, in each process")] = 64,
    workers: Annotated[
        int | None, typer.Option(help="processes that decode, for each process; else one a CPU, 0 for none")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="write a line of JSON an image there")] = None,
    state: Annotated[
        Path | None, typer.Option(help="what an interrupted run goes on from, else mnv3-fast-test/NAME.json")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="begin --state and --output anew")] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure accuracy on class folders or files of labels; goes on where an interrupted run ended."""
    check_positive("--batch", [batch])
    if workers is not None and workers != 0:
        check_positive("--workers", [workers])
    if device.partition(":")[0] not in ("cpu", "cuda"):
        fail(f"--device must be cpu, cuda or cuda:N, got {device!r}")
    if amp_dtype is not None and not amp:
        fail("--amp-dtype is for --amp")
    check_choices("--amp-dtype", [] if amp_dtype is None else [amp_dtype], AMP_DTYPES)
    try:
        group = Processes.from_environment()
    except ValueError as error:
        fail(str(error))
    with group as processes:
        dtype = getattr(torch, amp_dtype) if amp_dtype else torch.get_autocast_dtype(device.partition(":")[0])
        subject = _subject(processes, config, checkpoint, (data, split), device, dtype if amp else None)
        count = cpus_for(processes) if workers is None else workers
        run = EvaluationRun(subject, state, output, overwrite)
        _together(processes, run.begin)
        for warning in subject.warnings if processes.is_first else ():
            errors.print(warning, style="yellow", markup=False, soft_wrap=True)
        accuracy = _evaluated(run, processes, batch, count)
        if processes.is_first:
            facts = facts_of(subject, run, accuracy, processes.world, batch, count)
            print_json(facts) if json else show(table_of(facts))
        if accuracy.unreadable or accuracy.not_finite:
            raise typer.Exit(MISS)


def cpus_for(processes: Processes) -> int:
    """The CPUs that this process has for its workers, which the processes of a machine share."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if processes.world > 1 else 1
    return max(1, min(MOST_WORKERS, cpus // here))


def _subject(
    processes: Processes, config: str, checkpoint: str, place: tuple[Path, str], device: str, amp: torch.dtype | None
) -> Subject:
    """The model and the images, the same in each process; or the end, with the reasons of those that have none."""
    subject, problem = None, None
    try:
        shown = processes.is_first and device != "cpu"
        with compiling() if shown else nullcontext() as progress:
            subject = load_subject(config, checkpoint, *place, processes.device(device), amp, progress)
    except (ValueError, OSError, RuntimeError) as error:
        problem = str(error)
    problems = processes.gather(problem)
    if subject is None or any(problems):
        _end(processes, "; ".join(dict.fromkeys(filter(None, problems))))
    about = processes.gather(subject.about)
    differ = [name for name in about[0] if any(one[name] != about[0][name] for one in about)]
    if differ:
        _end(processes, f"the processes have not the same {', '.join(differ)}")
    return subject


def _end(processes: Processes, message: str) -> None:
    if processes.is_first:
        fail(message)
    raise typer.Exit(BAD_INPUT)


def _together(processes: Processes, begin: Any) -> None:
    """Let the first process begin, and all end if it cannot."""
    status = 0
    try:
        if processes.is_first:
            begin()
    except typer.Exit as end:
        status = end.exit_code
    status = processes.broadcast(status)
    if status:
        raise typer.Exit(status)


def _evaluated(run: EvaluationRun, processes: Processes, batch: int, workers: int) -> Accuracy:
    """The accuracy; what is known when the program is interrupted is kept."""
    subject, start = run.subject, processes.broadcast(run.state.known)
    options: dict[str, Any] = {"batch": batch, "workers": workers, "processes": processes, "device": subject.device}
    options |= {"amp": subject.amp, "start": start, "progress": run.add, "keep": run.output is not None}
    try:
        with run.shown(processes.is_first):
            accuracy = evaluate(subject.runner.run, subject.split, subject.preprocessing, **options)
    except (WorkerDied, ProcessesLost) as error:
        run.stop(processes.is_first)
        fail(str(error))
    except (KeyboardInterrupt, MemoryError):
        run.stop(processes.is_first)
        raise
    if processes.is_first:
        run.end()
    return accuracy


def facts_of(
    subject: Subject, run: EvaluationRun, accuracy: Accuracy, processes: int, batch: int, workers: int
) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "model": subject.name,
        "checkpoint": subject.checkpoint,
        "data": subject.split.folder,
        "images": accuracy.images,
        "classes": len(subject.classes),
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "correct_top1": accuracy.correct_top1,
        "correct_top5": accuracy.correct_top5,
        "unreadable": [{"path": path, "error": why} for path, why in accuracy.unreadable],
        "not_finite": accuracy.not_finite,
        "images_per_second": accuracy.images_per_second,
        "seconds": accuracy.seconds,
        "resumed_from": run.resumed_from,
        "device": str(subject.device),
        "dtype": subject.about["dtype"],
        "runs": subject.runner.way,
        "processes": processes,
        "batch": batch,
        "workers": workers,
        "warnings": list(subject.warnings),
    }


def table_of(facts: dict[str, Any]) -> Table:
    """The same for eyes."""
    table = Table("", "", title=f"{facts['model']} on {facts['data']}", box=SIMPLE, show_header=False)
    for name in ("top1", "top5"):
        label = f"{name[:3]}-{name[3:]}"
        table.add_row(label, f"{facts[name]:.3f}% ({facts[f'correct_{name}']} of {facts['images']})")
    table.add_row("images/s", f"{facts['images_per_second']:.1f}")
    for label, count in (("unreadable", len(facts["unreadable"])), ("not finite", facts["not_finite"])):
        if count:
            table.add_row(label, f"{count}, counted as wrong")
    table.add_row("computed", f"{facts['runs']}, {facts['dtype']} on {facts['device']}")
    return table
