"""Verbs that download trained weights: their results stay alone on stdout, and what fails is said."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from mnv3_fast.checkpoints import downloads
from mnv3_fast.cli import app
from mnv3_fast.cli.common import downloading
from mnv3_fast.testing import parity_model

runner = CliRunner()
OPTIONS = ["--model", "small", "--weights", "DEFAULT", "--json"]


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.fromarray(data.cat()).save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


def test_weights_are_downloaded_once_and_said_nothing_of(
    photo: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    urls: list[str] = []

    def fetch(url: str, path: Path) -> None:
        urls.append(url)
        torch.save(parity_model("small").state_dict(), path)

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(downloads, "_fetch", fetch)
    for _ in range(2):
        result = runner.invoke(app, ["predict", photo, *OPTIONS])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["path"] == photo
        assert found["warnings"] == []
    assert urls == [torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.url]


def test_what_torch_says_of_a_download_is_on_stderr(capsys: pytest.CaptureFixture) -> None:
    with downloading("https://host/file.pth"):
        print("Downloading ...")
    assert capsys.readouterr() == ("", "Downloading ...\n")


def test_a_download_that_fails_names_the_address(photo: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torchvision.models, "get_model", fail)
    monkeypatch.setattr(downloads, "_fetch", fail)
    weights = torchvision.models.MobileNet_V3_Small_Weights, torchvision.models.MobileNet_V3_Large_Weights
    verbs = ["predict", photo, *OPTIONS], ["demo", photo, "--weights", "DEFAULT"]
    for verb, known in zip(verbs, weights, strict=True):
        result = runner.invoke(app, verb)
        assert result.exit_code == 2
        assert f"{known.DEFAULT.url} could not be downloaded: " in result.stderr
        assert "no network" in result.stderr
