"""Each verb as a process of its own: what a shell sees."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from skimage import data
from typer.testing import CliRunner

import mnv3_fast
from mnv3_fast.cli import app
from tests.ops import harness

COMMAND = [sys.executable, "-m", "mnv3_fast.cli"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(mnv3_fast.__file__).parent.parent)}  # from whatever folder
RANDOM = ["--model", "small", "--weights", "random"]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=300, env=ENVIRONMENT, **options
    )  # type: ignore[call-overload]


def links(photo: str, folder: Path, count: int) -> list[str]:
    """The same photo under many names."""
    paths = [str(folder / f"{i:05}.png") for i in range(count)]
    for path in paths:
        os.link(photo, path)
    return paths


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.fromarray(data.cat()).save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


def test_info_is_plain_when_piped() -> None:
    result = run("info")
    assert result.returncode == 0
    rows = dict(line.split("\t") for line in result.stdout.splitlines())
    assert rows["torch"]
    assert result.stdout.isascii()
    assert json.loads(CliRunner().invoke(app, ["info", "--json"]).stdout)["torch"] == rows["torch"]


@pytest.mark.parametrize("verb", ["info", "predict", "test", "train", "explain", "verify", "bench", "demo"])
def test_help_has_examples(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"mnv3-fast {verb}" in result.stdout
    assert "Ends with status 0" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        *(
            pytest.param(arguments, marks=pytest.mark.slow)
            for arguments in (
                ["unknown"],
                ["info", "--nope"],
                ["bench", "--batch", "many"],
                ["explain", "--model", "huge"],
                ["explain", "--size", "0"],
                ["demo", "--threads", "0"],
                ["verify", "x"],
            )
        ),
    ],
)
def test_bad_arguments(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr
    assert not result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_completion() -> None:
    environment = os.environ | {
        "_MNV3_FAST_COMPLETE": "complete_bash",
        "COMP_WORDS": "mnv3-fast pre",
        "COMP_CWORD": "1",
    }
    script = Path(sys.executable).with_name("mnv3-fast")
    command = (
        [str(script)]
        if script.exists()
        else [sys.executable, "-c", "import sys; sys.argv[0] = 'mnv3-fast'; from mnv3_fast.cli import main; main()"]
    )
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert result.stdout.split() == ["predict"], result


@pytest.mark.slow
def test_bench_json(tmp_path: Path) -> None:
    result = run("bench", "--net", "small", "--size", "32", "--seconds", "0.1", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "mnv3-fast-bench" / "bench.json").read_text())


@pytest.mark.slow
@harness.needs_kernels
def test_explain_json() -> None:
    result = run("explain", "--model", "small", "--size", "64", "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert len(rows) == 16
    assert sum(row["percent_of_call"] or 0 for row in rows) > 50
    result = run("explain", "--model", "mobilenet-v3-small-050_8xb128_in1k", "--size", "64", "--accelerated")
    assert result.returncode == 0, result.stderr
    assert "14 on fused kernels, 0 on torch" in result.stdout


@pytest.mark.slow
def test_demo_json(tmp_path: Path, photo: str) -> None:
    result = run("demo", photo, "--seconds", "0.1", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["rows"]


@pytest.mark.slow
def test_verify_json() -> None:
    result = run("verify", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["passed"]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["bench", "demo"])
@pytest.mark.parametrize("place", ["file/below", "/proc/mnv3-fast"])
def test_a_report_that_cannot_be_written_is_said_before_the_work(verb: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    start = time.monotonic()
    result = run(verb, "--seconds", "1000", "--output", place, cwd=tmp_path)
    assert result.returncode == 3
    assert f"{place} cannot be written" in result.stderr
    assert time.monotonic() - start < 200


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/proc/mnv3-fast/out.csv", "file/out.csv"])
def test_predict_to_a_place_that_cannot_be_written(place: str, photo: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("predict", photo, *RANDOM, "--output", place, cwd=tmp_path)
    assert result.returncode == 3
    assert f"{place} cannot be written" in result.stderr


def test_a_full_disk(photo: str) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*COMMAND, "predict", photo, *RANDOM], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300
        )
    assert result.returncode == 3
    assert "the output cannot be written: No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_quota(photo: str, tmp_path: Path) -> None:
    """The output stops at what may be written, is whole up to the cut, and can be gone on with."""
    photos = links(photo, tmp_path, 20)
    output = tmp_path / "out.jsonl"
    command = ["predict", *photos, *RANDOM, "--output", str(output)]
    limit = (3000, 3000)
    result = run(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert result.returncode == 3
    assert f"{output} cannot be written: File too large" in result.stderr
    assert output.stat().st_size <= 3000
    assert run(*command, "--resume").returncode == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["path"] for record in records] == photos


def test_ctrl_c_leaves_whole_records(photo: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    folder = tmp_path / "many"
    folder.mkdir()
    links(photo, folder, 2000)
    process = subprocess.Popen(
        [*COMMAND, "predict", str(folder), *RANDOM, "--output", str(output)], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's "&" has it ignored
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (output.exists() and output.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert 0 < len(records) < 2000


@pytest.mark.slow
def test_a_reader_that_goes_away(photo: str, tmp_path: Path) -> None:
    photos = links(photo, tmp_path, 300)
    process = subprocess.Popen(
        [*COMMAND, "predict", *photos, *RANDOM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in said
