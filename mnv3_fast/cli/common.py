"""What the verbs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

console = Console()

NETS = ("large", "small")


def fail(message: str) -> None:
    """Say what is wrong and end with status 2."""
    Console(stderr=True).print(f"[red]mnv3-fast:[/red] {message}")
    raise typer.Exit(2)


def check_choices(option: str, values: list[str], choices: tuple[str, ...]) -> None:
    """End if an option has a value that does not exist."""
    for value in values:
        if value not in choices:
            fail(f"{option} must be one of {', '.join(choices)}, got {value!r}")


def check_positive(option: str, values: list[int]) -> None:
    """End if a number is below 1."""
    for value in values:
        if value < 1:
            fail(f"{option} must be at least 1, got {value}")


def write_json(path: Path, value: Any) -> None:
    """Write a report, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def machine_line(facts: dict[str, Any]) -> str:
    """One line that names the machine."""
    return (
        f"{facts['cpu']}, {facts['instruction_set'] or 'no kernels'}, torch {facts['torch']}, "
        f"torchvision {facts['torchvision']}, {facts['date']}"
    )
