"""The table of results: counts by arithmetic are those of the networks, and the docs have the table as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.gpu import docs
from mnv3_fast.cli import app
from mnv3_fast.models import table
from mnv3_fast.models.families.torchvision import scaled
from mnv3_fast.models.variants import VARIANTS, find_variant
from tests.models.test_variants import counted, on_meta

COMMAND = "python -m mnv3_fast.models.table"


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_are_those_of_the_network(name: str) -> None:
    found = table.count(VARIANTS[name], 65)
    assert (found.parameters, found.macs) == counted(on_meta(VARIANTS[name]), 65)
    assert table.count(VARIANTS[name]).size == VARIANTS[name].preprocessing.crop


@pytest.mark.parametrize("options", [{"width": 0.35}, {"width": 1.25}, {"reduced_tail": True}, {"dilated": True}])
def test_counts_of_torchvisions_options(options: dict[str, Any]) -> None:
    variant = scaled(find_variant("small"), **options)
    found = table.count(variant, 65)
    assert (found.parameters, found.macs) == counted(on_meta(variant), 65)


def test_the_docs_have_todays_table() -> None:
    blocks = docs.blocks(docs.MODELS.read_text(encoding="utf-8"))
    assert list(blocks) == [COMMAND]
    assert blocks[COMMAND] == docs.printed(COMMAND), "python -m benchmarks.gpu.docs mnv3_fast.models writes it anew"


def test_info_models() -> None:
    result = CliRunner().invoke(app, ["info", "--models"])
    assert result.exit_code == 0, result.output
    head, *lines, rule = result.stdout.splitlines()
    assert head.split("\t") == list(table.HEAD)
    assert rule == table.RULE
    assert {line.split("\t")[0] for line in lines} == set(VARIANTS)
    row = next(line for line in lines if "IMAGENET1K_V2" in line)
    cells = ["mobilenet_v3_large", "torchvision", "5,483,032", "0.217 G", "216.6", "224", "IMAGENET1K_V2", "75.274"]
    assert row.split("\t") == [*cells, "92.566", "224", "torchvision's weights' meta"]
    test_size = next(line for line in lines if "\t81.832\t" in line)
    assert test_size.split("\t")[5:10] == ["256", "ra4_e3600_r256_in1k", "81.832", "95.878", "320"]


def test_info_models_as_json() -> None:
    result = CliRunner().invoke(app, ["info", "--models", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["rule"] == table.RULE
    records = {record["name"]: record for record in found["models"]}
    assert list(records) == list(VARIANTS)
    deep = records["mobilenetv3_large_150d"]
    assert (deep["parameters"], deep["size"], deep["published_flops"]) == (14_622_320, 256, None)
    assert [result["resize"] for result in deep["weights"][0]["results"]] == [269, 320]
    assert deep["weights"][0]["url"].startswith("https://huggingface.co/timm/mobilenetv3_large_150d.ra4")
    assert records["mobilenet-v3-large_8xb128_in1k"]["published_flops"] == "0.23 G"
