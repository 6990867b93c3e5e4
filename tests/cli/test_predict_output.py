"""``predict --output``: what is in the file is whole, can be gone on with, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from mnv3_fast.cli import app

runner = CliRunner()
RANDOM = ["--model", "small", "--weights", "random"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "cat"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("style", ["--json", "--csv"])
def test_resume_goes_on_after_a_cut(style: str, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    missing = str(tmp_path / "later.png")
    command = ["predict", str(photos), missing, *RANDOM, style, "--top", "2", "--output", str(output)]
    assert runner.invoke(app, command).exit_code == 1
    whole = output.read_text()
    again = runner.invoke(app, command)
    assert again.exit_code == 2
    assert "exists: --resume goes on with it, --overwrite begins anew" in " ".join(again.stderr.split())
    assert output.read_text() == whole
    good = "".join(line for line in whole.splitlines(keepends=True) if missing not in line)
    for cut in (0, 10, len(good) // 2, len(good) - 5, len(good)):
        output.write_text(good[:cut])
        assert runner.invoke(app, [*command, "--resume"]).exit_code == 1
        assert output.read_text() == whole, cut
    Image.fromarray(data.cat()).save(missing)
    assert runner.invoke(app, [*command, "--resume"]).exit_code == 0
    assert missing in output.read_text()
    assert runner.invoke(app, [*command, "--overwrite"]).exit_code == 0


def test_resume_refuses_a_foreign_file(photos: Path, tmp_path: Path) -> None:
    foreign = b'{"path": "a", "error": "x", "mine": 1}\n'
    for content in (b"my notes\n", b"\xff\xfe\x00", b'{"a": 1}\n', b"[1, 2]\n", b"{", b"p", foreign):
        output = tmp_path / "notes"
        output.write_bytes(content)
        for style in ("--json", "--csv"):
            result = runner.invoke(app, ["predict", str(photos), *RANDOM, style, "--output", str(output), "--resume"])
            assert result.exit_code == 2, result.output
            assert "output of predict, --resume cannot go on with it" in " ".join(result.stderr.split())
            assert output.read_bytes() == content


def test_names_with_line_breaks_commas_and_quotes_can_be_gone_on_with(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a\nb.png", "a\rb.png", "c\r\nd.png", 'e,"f".png', ":cat:[red].png"):
        (folder / name).write_bytes((photos / "cat.png").read_bytes())
    for style in ("--json", "--csv"):
        output = tmp_path / f"out{style}"
        command = ["predict", str(folder), *RANDOM, style, "--top", "1", "--output", str(output)]
        assert runner.invoke(app, command).exit_code == 0
        whole = output.read_bytes()
        for cut in range(len(whole) - 1, len(whole) - 160, -40):
            output.write_bytes(whole[:cut])
            result = runner.invoke(app, [*command, "--resume"])
            assert result.exit_code == 0, (cut, result.output)
            assert output.read_bytes() == whole


def test_output_through_a_link_and_beside_files_of_the_user(photos: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    command = ["predict", str(photos / "cat.png"), *RANDOM, "--output", str(link)]
    assert runner.invoke(app, [*command, "--overwrite"]).exit_code == 0
    assert runner.invoke(app, [*command, "--resume"]).exit_code == 0
    assert link.is_symlink()
    assert len(target.read_text().splitlines()) == 1
    assert target.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.jsonl", "target.jsonl"]


def test_output_that_is_an_input(photos: Path, tmp_path: Path) -> None:
    image = tmp_path / "cat.png"
    image.write_bytes((photos / "cat.png").read_bytes())
    result = runner.invoke(app, ["predict", str(image), *RANDOM, "--output", str(image), "--overwrite"])
    assert result.exit_code == 2
    assert "is one of the images" in " ".join(result.stderr.split())
    assert image.read_bytes() == (photos / "cat.png").read_bytes()
