"""``mnv3-fast train``: train or fine-tune a variant by a recipe; alone, or one of several processes under torchrun."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE
from rich.table import Table

from mnv3_fast import training
from mnv3_fast.cli.common import (
    MISS,
    MOST_THREADS,
    NOT_WRITTEN,
    check_choices,
    check_positive,
    errors,
    fail,
    print_json,
    show,
)
from mnv3_fast.cli.test import AMP_DTYPES, cpus_for
from mnv3_fast.data.processes import Processes
from mnv3_fast.models.variants import Variant, variant_of
from mnv3_fast.training import Diverged, NotWritten, Recipe, Settings, Trained, default_recipe, read_recipe

EPILOG = """Examples:

mnv3-fast train configs/mobilenet_v3/mobilenet-v3-small_8xb128_in1k.py --amp

torchrun --nproc-per-node 8 -m mnv3_fast.cli train mobilenet-v3-large_8xb128_in1k --data data/imagenet --amp

mnv3-fast train mobilenet-v3-small_8xb128_in1k --data flowers --checkpoint small.pth --freeze-backbone --epochs 10

After Ctrl-C the last finished iteration is in the work-dir, and --resume goes on with it, to the same bits on a CPU.
Ends with status 0; 1 if the loss is no longer a number; 2 for bad arguments or input; 3 if the work-dir cannot be
written; 130 after Ctrl-C."""


def train(
    config: Annotated[
        str,
        typer.Argument(
            help="a model's name, mmpretrain's config, or a recipe.toml with a model", metavar="CONFIG_OR_NAME"
        ),
    ],
    recipe: Annotated[str | None, typer.Option(help="a recipe's name or .toml file, else the family's own")] = None,
    data: Annotated[Path, typer.Option(help="the folder with train and val")] = Path("data/imagenet"),
    work_dir: Annotated[Path | None, typer.Option(help="for checkpoints and the log, else work_dirs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with what the work-dir has, if anything")] = False,
    checkpoint: Annotated[str | None, typer.Option(help="weights to start from, a file or a URL")] = None,
    freeze_backbone: Annotated[bool, typer.Option("--freeze-backbone", help="train the classifier alone")] = False,
    epochs: Annotated[int | None, typer.Option(help="else the recipe's")] = None,
    batch: Annotated[int | None, typer.Option(help="images a process and iteration, else the recipe's")] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate, else the recipe's")] = None,
    auto_scale_lr: Annotated[
        bool, typer.Option("--auto-scale-lr", help="scale it by the batch over the one that the recipe is for")
    ] = False,
    average: Annotated[int | None, typer.Option(help="average so many of the last checkpoints that were best")] = None,
    sync_bn: Annotated[bool, typer.Option("--sync-bn", help="BatchNorm over all processes' batch")] = False,
    amp: Annotated[bool, typer.Option("--amp", help="mixed precision: float16 on GPUs, bfloat16 on the CPU")] = False,
    amp_dtype: Annotated[str | None, typer.Option(help="float16 or bfloat16, instead")] = None,
    workers: Annotated[
        int | None, typer.Option(help="processes that read images, for each process; else one a CPU, 0 for none")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, else cuda where there is one")] = None,
    seed: Annotated[int, typer.Option(help="of all that is drawn")] = 0,
    no_validate: Annotated[bool, typer.Option("--no-validate", help="train without val")] = False,
    log_interval: Annotated[int, typer.Option(help="iterations a line of the log")] = 100,
    checkpoint_interval: Annotated[int, typer.Option(help="iterations a checkpoint; 0: one an epoch")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print how it ended as JSON")] = False,
) -> None:
    """Train or fine-tune a network; validate after each epoch, keep the best weights, go on after an end."""
    check_numbers(
        {"--epochs": epochs, "--batch": batch, "--log-interval": log_interval},
        {"--workers": workers, "--seed": seed, "--checkpoint-interval": checkpoint_interval},
    )
    where = device_of(device)
    changes: dict[str, Any] = {"epochs": epochs, "batch": batch, "average": average, "sync_batch_norm": sync_bn or None}
    try:
        variant, chosen = variant_and_recipe(config, recipe, changes, lr)
        group = Processes.from_environment()
        name = variant.name if recipe is None else f"{variant.name}-{Path(recipe).stem}"
        paths: dict[str, Any] = {
            "data": data,
            "work_dir": work_dir or Path("work_dirs", name),
            "checkpoint": checkpoint,
        }
        how: dict[str, Any] = {
            "resume": resume,
            "freeze_backbone": freeze_backbone,
            "auto_scale_lr": auto_scale_lr,
            "seed": seed,
        }
        how |= {"amp": autocast_dtype(amp, amp_dtype, where), "device": where, "validate": not no_validate}
        how |= {"log_interval": log_interval, "checkpoint_interval": checkpoint_interval}
        count = cpus_for(group) if workers is None else workers
        settings = Settings(variant, chosen, **paths, **how, workers=count)
    except (ValueError, OSError) as error:
        fail(str(error))
    with group as processes:
        trained = run(settings, processes)
        if processes.is_first:
            facts = facts_of(settings, trained, processes.world)
            print_json(facts) if json else show(table_of(facts))


def check_numbers(positive: dict[str, int | None], others: dict[str, int | None]) -> None:
    """End if an option is below 1, or one of the others below 0, or beyond what torch or a system takes."""
    for option, value in positive.items():
        check_positive(option, [] if value is None else [value])
    for option, value in others.items():
        most = MOST_THREADS if option == "--workers" else 2**31 - 1
        if value is not None and not 0 <= value <= most:
            fail(f"{option} must be from 0 to {most}, got {value}")


def device_of(device: str | None) -> str:
    """What ``--device`` says; without it a GPU where there is one."""
    if device is not None and device.partition(":")[0] not in ("cpu", "cuda"):
        fail(f"--device must be cpu, cuda or cuda:N, got {device!r}")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def autocast_dtype(amp: bool, name: str | None, device: str) -> torch.dtype | None:
    """What ``--amp`` and ``--amp-dtype`` stand for on a device; None without them."""
    if name is not None and not amp:
        fail("--amp-dtype is for --amp")
    check_choices("--amp-dtype", [] if name is None else [name], AMP_DTYPES)
    if not amp:
        return None
    kind = device.partition(":")[0]
    if kind == "cpu" and name == "float16":
        fail("--amp-dtype float16 is for GPUs, on the CPU it is bfloat16")
    return getattr(torch, name) if name else torch.get_autocast_dtype(kind)


def variant_and_recipe(
    config: str, recipe: str | None, changes: dict[str, Any], lr: float | None
) -> tuple[Variant, Recipe]:
    """The variant and the recipe that the arguments name, with what the options change.

    Raises:
        ValueError, FileNotFoundError: for unknown names and bad recipes; or two models or recipes at once.
    """
    if config.endswith(".toml"):
        if recipe is not None:
            raise ValueError(f"train: {config} is a recipe, --recipe is another")
        chosen = read_recipe(config)
        if chosen.model is None:
            raise ValueError(f"train: {config} names no model; give one, and this as --recipe")
        variant = variant_of(chosen.model, "train")
    else:
        variant = variant_of(config, "train")
        chosen = read_recipe(default_recipe(variant) if recipe is None else recipe)
        if chosen.model is not None and variant_of(chosen.model, "train") != variant:
            raise ValueError(f"train: --recipe {recipe} is for {chosen.model}, not for {variant.name}")
    changes = {name: value for name, value in changes.items() if value is not None}
    if lr is not None:
        changes["optimizer"] = dataclasses.replace(chosen.optimizer, lr=lr)
    return variant, dataclasses.replace(chosen, **changes)


def run(settings: Settings, processes: Processes) -> Trained:
    """Train, and tell on stderr how it goes; errors end the program."""
    try:
        return training.train(settings, processes, tell)
    except Diverged as error:
        fail(str(error), MISS)
    except NotWritten as error:
        fail(str(error), NOT_WRITTEN)
    except (ValueError, OSError) as error:
        fail(str(error))


def tell(record: dict[str, Any]) -> None:
    """A record of the log for eyes."""
    if "loss" in record:
        text = (
            f"epoch {record['epoch']}, iteration {record['iter']}: loss {record['loss']:.4f}, lr {record['lr']:.4g}, "
            f"{record['time']:.3f} s an iteration, {record['data_time']:.3f} of it reading"
        )
    else:
        text = f"epoch {record['step']}: top-1 {record['accuracy/top1']:.3f}%, top-5 {record['accuracy/top5']:.3f}%"
    errors.print(text, highlight=False, soft_wrap=True)


def facts_of(settings: Settings, trained: Trained, processes: int) -> dict[str, Any]:
    """What ``--json`` prints."""
    best, averaged = trained.best_epoch, trained.averaged
    return {
        "model": settings.variant.name,
        "work_dir": str(settings.work_dir),
        "epochs": trained.epochs,
        "best_epoch": best,
        "best_top1": trained.best,
        "best_checkpoint": None if best is None else str(settings.work_dir / f"best_epoch_{best}.pth"),
        "averaged_top1": None if averaged is None else averaged.top1,
        "averaged_checkpoint": None if averaged is None else str(settings.work_dir / "averaged.pth"),
        "last_checkpoint": str(settings.work_dir / "last.pth"),
        "device": settings.device,
        "processes": processes,
    }


def table_of(facts: dict[str, Any]) -> Table:
    """The same for eyes."""
    table = Table("", "", title=f"{facts['model']}, {facts['epochs']} epochs", box=SIMPLE, show_header=False)
    for name in ("best", "averaged"):
        if facts[f"{name}_top1"] is not None:
            table.add_row(f"{name} top-1", f"{facts[f'{name}_top1']:.3f}%  {facts[f'{name}_checkpoint']}")
    table.add_row("last", facts["last_checkpoint"])
    return table
