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

from mnv3_fast.cli import app

runner = CliRunner()
OPTIONS = ["--model", "small", "--weights", "DEFAULT", "--json"]


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.fromarray(data.cat()).save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


def test_a_download_speaks_on_stderr(photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = torchvision.models.get_model

    def get_model(name: str, weights: Any) -> torch.nn.Module:
        print("Downloading ...")
        return build(name)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    result = runner.invoke(app, ["predict", photo, *OPTIONS])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["path"] == photo
    assert "Downloading ..." in result.stderr


def test_a_download_that_fails_names_the_address(photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_model(name: str, weights: Any) -> torch.nn.Module:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    weights = torchvision.models.MobileNet_V3_Small_Weights, torchvision.models.MobileNet_V3_Large_Weights
    verbs = ["predict", photo, *OPTIONS], ["demo", photo, "--weights", "DEFAULT"]
    for verb, known in zip(verbs, weights, strict=True):
        result = runner.invoke(app, verb)
        assert result.exit_code == 2
        assert f"mnv3-fast: {known.DEFAULT.url} could not be downloaded: no network" in result.stderr
