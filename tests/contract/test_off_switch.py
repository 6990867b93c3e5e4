"""Row "eager fallback": the off switch, by variable and in code, and the report of what runs where."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mnv3_fast
from mnv3_fast import testing
from tests.contract.common import PARTS, ROWS, X, accelerated, fallbacks, fresh
from tests.models.common import count_ops

PROGRAM = """
import torch, mnv3_fast
from mnv3_fast import testing
x = testing.parity_images(1, 64)
stock = testing.parity_model("small", size=64)
fast, engine = mnv3_fast.accelerate(stock), mnv3_fast.freeze(stock)
with torch.no_grad():
    print(mnv3_fast.backend(), torch.equal(fast(x), stock(x)), mnv3_fast.explain(fast, x).fused,
          float(testing.relative_error(engine(x), stock(x))) <= 2e-5)
"""


def run_with(value: str | None) -> subprocess.CompletedProcess[str]:
    environment = {key: text for key, text in os.environ.items() if key != "MNV3_FAST_BACKEND"}
    environment["PYTHONPATH"] = str(Path(mnv3_fast.__file__).parent.parent)
    if value is not None:
        environment["MNV3_FAST_BACKEND"] = value
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("value", "words"),
    [("reference", "reference True 0 True"), ("", f"auto False {ROWS} True"), ("auto", f"auto False {ROWS} True")],
)
def test_the_variable(value: str, words: str) -> None:
    result = run_with(value)
    assert result.stdout.strip() == words, result.stderr


@pytest.mark.slow
def test_an_impossible_value_raises_and_lists_what_exists() -> None:
    result = run_with("off")
    assert result.returncode != 0
    assert "ValueError: MNV3_FAST_BACKEND: backend 'off' does not exist, available: auto, reference" in result.stderr


@torch.no_grad()
def test_an_engine_obeys() -> None:
    engine = mnv3_fast.freeze(fresh())
    expected = engine(X)
    runs, _ = mnv3_fast._library.extension().last_run()
    with mnv3_fast.force_backend("reference"):
        output = engine(X)
    assert mnv3_fast._library.extension().last_run()[0] == runs, "the kernels ran"
    assert testing.relative_error(output, expected) <= testing.NET_LIMIT
    engine(X)
    assert mnv3_fast._library.extension().last_run()[0] == runs + 1


@torch.no_grad()
@pytest.mark.parametrize("ran_before", [False, True])
def test_the_context_manager(ran_before: bool) -> None:
    model, stock = accelerated(), fresh()
    if ran_before:
        model(X)
    with mnv3_fast.force_backend("reference"):
        assert torch.equal(model(X), stock(X))
        counts = count_ops(lambda: model(X))
        assert not [name for name in counts if name.startswith("mnv3_fast::")]
        rows = mnv3_fast.explain(model, X)
        assert rows.fused == 0
        assert {row.reason for row in rows.rows} == {"the kernels are switched off (backend reference)"}
    mnv3_fast.refresh(model)
    assert count_ops(lambda: model(X))["mnv3_fast::run_plan"] == PARTS
    assert fallbacks(model) == []


def test_it_ends_with_an_exception_too() -> None:
    with pytest.raises(KeyError), mnv3_fast.force_backend("reference"):
        raise KeyError
    assert mnv3_fast.backend() == os.environ.get("MNV3_FAST_BACKEND", "auto")


def test_gradients_with_the_switch_off() -> None:
    grads = []
    for model in (accelerated(), fresh()):
        with mnv3_fast.force_backend("reference"):
            model(X).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_an_engine_runs_on_the_reference() -> None:
    engine, stock = mnv3_fast.freeze(fresh()), fresh()
    with mnv3_fast.force_backend("reference"):
        assert testing.relative_error(engine(X), stock(X)) <= testing.NET_LIMIT


def test_the_report_names_every_block_and_why() -> None:
    model = accelerated()
    model.features[5].block[0][0].register_forward_hook(lambda *_: None)
    text = str(mnv3_fast.explain(model, X))
    assert "13 on fused kernels, 1 on torch" in text
    (line,) = [line for line in text.splitlines() if "torch: " in line]
    assert line.startswith("features.5")
    assert "a module inside has a hook" in line
