"""What the verbs share: where they print, how they refuse, how they write."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

console = Console()
errors = Console(stderr=True)

NETS = ("large", "small")
MOST_THREADS = 1024
"""Of ``--workers``, too: a mistyped number must not start processes until the machine stands still."""
MISS, BAD_INPUT, NOT_WRITTEN, INTERRUPTED = 1, 2, 3, 130
"""Exit statuses other than 0: a result is not as it should be; bad arguments or input; output not written; Ctrl-C."""


def fail(message: str, status: int = BAD_INPUT) -> NoReturn:
    """Say what is wrong and end."""
    errors.print(Text.assemble(("mnv3-fast: ", "red"), message), soft_wrap=True)
    raise typer.Exit(status)


def check_choices(option: str, values: list[str], choices: tuple[str, ...]) -> None:
    """End if an option has a value that does not exist."""
    for value in values:
        if value not in choices:
            fail(f"{option} must be one of {', '.join(choices)}, got {value!r}")


def check_positive(option: str, values: list[int]) -> None:
    """End if a number is below 1, or beyond what torch takes (of threads and workers: what a system gives)."""
    most = MOST_THREADS if option in ("--threads", "--workers") else 2**31 - 1
    for value in values:
        if value < 1:
            fail(f"{option} must be at least 1, got {value}")
        if value > most:
            fail(f"{option} must be at most {most}, got {value}")


def show(table: Table) -> None:
    """A table for the terminal; through a pipe its title, heads and rows as plain lines, cells apart by tabs."""
    if console.is_terminal:
        console.print(table)
        return
    columns = [list(column.cells) for column in table.columns]
    lines = [str(table.title)] if table.title else []
    if table.show_header:
        lines.append("\t".join(str(column.header).replace("\n", " ") for column in table.columns))
    lines += ["\t".join(Text.from_markup(str(cell)).plain for cell in row) for row in zip(*columns, strict=True)]
    lines += [str(table.caption)] if table.caption else []
    sys.stdout.write("\n".join(lines) + "\n")


def print_json(value: Any) -> None:
    """What ``--json`` prints, and nothing else goes to stdout then."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Around what writes a file: a full disk, a folder that may not be written and the like end with status 3."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror or error}", NOT_WRITTEN)


@contextmanager
def downloading(url: str) -> Iterator[None]:
    """Around what may download: torch says so on stdout, where a program reads our results.

    Raises:
        OSError: naming the address, where it cannot be had.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except OSError as error:
        raise OSError(f"{url} could not be downloaded: {getattr(error, 'reason', error)}") from error


@contextmanager
def compiling() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr for kernels that are compiled ahead: gives what is told how many are done and of how many."""
    columns = TextColumn("compiling kernels"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=errors, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", visible=False)
        yield lambda done, of: bar.update(task, completed=done, total=of, visible=done < of)


def write_json(path: Path, value: Any) -> None:
    """Write a report, making its folder."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_output(folder: Path) -> None:
    """Make the folder of a report before the work for it begins, and see that it can be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".mnv3-fast"
        probe.write_bytes(b"")
        probe.unlink()


def machine_line(facts: dict[str, Any]) -> str:
    """One line that names the machine."""
    return (
        f"{facts['cpu']}, {facts['instruction_set'] or 'no kernels'}, torch {facts['torch']}, "
        f"torchvision {facts['torchvision']}, {facts['date']}"
    )
