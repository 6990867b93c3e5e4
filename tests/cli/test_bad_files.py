"""``predict`` as a process with what it cannot read: images, checkpoints; and its progress bar on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data

from tests.cli.test_predict import bad_files, lines
from tests.cli.test_processes import COMMAND, ENVIRONMENT, RANDOM, run


def test_bad_images(tmp_path: Path) -> None:
    Image.fromarray(data.cat()).save(tmp_path / "cat.png")
    files = [*bad_files(tmp_path), str(tmp_path / "cat.png")]
    result = run("predict", *files, *RANDOM, "--json")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert [record["path"] for record in lines(result.stdout)] == files
    assert [record["error"] is None for record in lines(result.stdout)] == [False] * 6 + [True]
    assert "6 of 7 files could not be read" in result.stderr


def bad_checkpoint(kind: str, folder: Path) -> str:
    path = folder / "file.pth"
    if kind == "missing":
        return str(path)
    state = {f"layer{i}.weight": torch.zeros(8, 8) for i in range(3)}
    torch.save(state, path)
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        path.write_text("no checkpoint")
    return str(path)


CHECKPOINTS = {
    "foreign": "checkpoint: unknown names (such as layer0.weight)",
    "missing": "checkpoint: there is no file",
    "truncated": "is no checkpoint, or is damaged",
    "text": "is no checkpoint, or",
}


@pytest.mark.parametrize("kind", ["foreign", *(pytest.param(k, marks=pytest.mark.slow) for k in CHECKPOINTS if k != "foreign")])  # fmt: skip
def test_bad_checkpoints(kind: str, tmp_path: Path) -> None:
    Image.fromarray(data.cat()).save(tmp_path / "cat.png")
    result = run(
        "predict", str(tmp_path / "cat.png"), "--model", "small", "--checkpoint", bad_checkpoint(kind, tmp_path)
    )
    assert result.returncode == 2
    assert CHECKPOINTS[kind] in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


@pytest.mark.slow
def test_a_progress_bar_where_somebody_looks_on(tmp_path: Path) -> None:
    """On stderr, if that is a terminal and the results go elsewhere."""
    paths = [str(tmp_path / f"{i}.png") for i in range(12)]
    for path in paths:
        Image.fromarray(data.cat()).save(path)
    master, slave = pty.openpty()
    environment = ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "100"}
    command = [*COMMAND, "predict", *paths, *RANDOM, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # the terminal is gone with the process
        pass
    output, _ = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0
    assert b"12/12" in shown
    assert len(lines(output.decode())) == 12
