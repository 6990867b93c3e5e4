"""Virtual environments of the engines, each beside the others and none in the project's own.

They see the project's packages behind their own, through a ``.pth`` file: an engine that works with the torch that is
there does not install another.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import torchvision

REQUIREMENTS = Path(__file__).parent / "requirements"


class Missing(Exception):
    """An engine that cannot take part; the message says why."""


def python(folder: Path, name: str | None) -> Path:
    """The interpreter of an environment; that of the project for None."""
    return Path(sys.executable) if name is None else folder / name / "bin" / "python"


def digest() -> str:
    """Of all requirements and the torch that exports: models made by other versions are made again."""
    text = "".join(path.read_text() for path in sorted(REQUIREMENTS.glob("*.txt")))
    return hashlib.sha256(f"{text}{_base()}".encode()).hexdigest()[:8]


def set_up(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Make the environments that are not there as their requirements want them; returns why some could not be made."""
    missing = {}
    for name in names:
        try:
            _make(folder / name, REQUIREMENTS / f"{name}.txt")
        except Missing as reason:
            missing[name] = str(reason)
    return missing


def _make(environment: Path, requirements: Path) -> None:
    stamp, wanted = environment / "made-from.txt", requirements.read_text() + _base()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {requirements.stem}", flush=True)
    _call([sys.executable, "-m", "venv", "--clear", "--without-pip", str(environment)])
    own_packages = next(environment.glob("lib/python*/site-packages"))
    (own_packages / "project.pth").write_text(f"{_packages()}\n")
    interpreter = environment / "bin" / "python"
    _call([str(interpreter), "-m", "pip", "install", "--quiet", "-r", str(requirements)])
    stamp.write_text(wanted)


def _packages() -> Path:
    """Where the project's torch lies."""
    return Path(torch.__file__).parent.parent


def _base() -> str:
    return (
        f"# Python {sys.version}, torch {torch.__version__}, torchvision {torchvision.__version__} in {_packages()}\n"
    )


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise Missing(f"{' '.join(command[2:4])} failed: {' '.join(lines[-2:]) or done.returncode}")
