"""``mnv3-fast verify --checkpoint``: each fault is found where it was planted, and healthy files are silent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mnv3_fast.checkpoints.diagnosis import CODES
from mnv3_fast.checkpoints.facts import metadata_of
from mnv3_fast.checkpoints.fitting import from_torchvision, recognise
from mnv3_fast.checkpoints.matching import variant_named
from mnv3_fast.cli import app
from mnv3_fast.models.variants import build
from mnv3_fast.testing.parity import randomize_

HEALTHY = {
    "mobilenet_v3_small": "torchvision",
    "mobilenet_v3_small (width_mult=0.35)": "torchvision",
    "mobilenetv3_small_075": "timm",
    "tf_mobilenetv3_small_minimal_100": "timm",
    "mobilenet-v3-small-050_8xb128_in1k": "mmpretrain",
    "mobilenet-v3-small_8xb16_cifar10": "mmpretrain",
}
State = dict[str, torch.Tensor]


def verify(path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["verify", "--checkpoint", str(path), "--json", *options], catch_exceptions=False)
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, json.loads(result.stdout)


def state_of(name: str, family: str) -> State:
    state = randomize_(build(variant_named(name)), 3, 64).state_dict()
    return from_torchvision(state, recognise(state), family)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_models_are_silent(name: str, tmp_path: Path) -> None:
    """Bare weights, with metadata, and with the name given."""
    state = state_of(name, HEALTHY[name])
    torch.save(state, tmp_path / "bare.pth")
    metadata = {f"mnv3_fast.{key}": value for key, value in metadata_of(variant_named(name), None).items()}
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "file.safetensors", metadata)
    for options in ((), ("--model", name)):
        for file in ("bare.pth", "file.safetensors"):
            status, found = verify(tmp_path / file, *options)
            assert (status, found["findings"], found["passed"]) == (0, [], True)
            assert found["family"] == HEALTHY[name]
            assert found["variant"] == name


@pytest.fixture(scope="module")
def timm_state() -> State:
    return state_of("mobilenetv3_small_075", "timm")


def said(**facts: Any) -> Callable[[Path, State], Path]:
    """A file with metadata of mobilenetv3_small_075, and others in them."""

    def write(folder: Path, state: State) -> Path:
        metadata = metadata_of(variant_named("mobilenetv3_small_075"), None)
        metadata |= {key: json.dumps(value) for key, value in facts.items()}
        tensors = {key: value.contiguous() for key, value in state.items()}
        save_file(tensors, folder / "file.safetensors", {f"mnv3_fast.{key}": v for key, v in metadata.items()})
        return folder / "file.safetensors"

    return write


def beside(**content: Any) -> Callable[[Path, State], Path]:
    def write(folder: Path, state: State) -> Path:
        torch.save({"state_dict": state, **content}, folder / "file.pth")
        return folder / "file.pth"

    return write


def changed(key: str, change: Callable[[torch.Tensor], object]) -> Callable[[Path, State], Path]:
    def write(folder: Path, state: State) -> Path:
        state = {name: value.clone() for name, value in state.items()}
        change(state[key])
        torch.save(state, folder / "file.pth")
        return folder / "file.pth"

    return write


def untouched(folder: Path, state: State) -> Path:
    state = {name: value.clone() for name, value in state.items()}
    state["blocks.2.1.bn2.running_mean"].zero_()
    state["blocks.2.1.bn2.running_var"].fill_(1)
    torch.save(state, folder / "file.pth")
    return folder / "file.pth"


def first_to(value: float) -> Callable[[torch.Tensor], object]:
    return lambda tensor: tensor.view(-1)[0].fill_(value)


CONFIG = "model = dict(backbone=dict(arch='small_075', norm_cfg=dict(type='BN', eps=0.001)), data_preprocessor=dict(mean=[0, 0, 0]))"
# The first layer in which the scalings differ has 72 or 56 hidden channels; the first in which the widths do, 40 or 32.
PLANTED: dict[str, tuple[Callable[[Path, State], Path], tuple[str, ...], list[tuple[str, str, str, str]]]] = {
    "eps": (said(bn_eps=1e-3), (), [("eps", "", "0.001 (its metadata)", "1e-05 (mobilenetv3_small_075)")]),
    "padding": (said(padding="same"), (), [("padding", "", "same (its metadata)", "symmetric (mobilenetv3_small_075)")]),
    "slope": (said(gate_slope=0.2), (), [("gate-slope", "", "0.2 (its metadata)", "0.166667 (mobilenetv3_small_075)")]),
    "mean": (said(mean=[127.5] * 3), (), [("mean-std", "", "127.5, 127.5, 127.5 (its metadata)", "123.675, 116.28, 103.53 (mobilenetv3_small_075)")]),
    "std": (said(std=[255.0] * 3), (), [("mean-std", "", "255, 255, 255 (its metadata)", "58.395, 57.12, 57.375 (mobilenetv3_small_075)")]),
    "pretrained_cfg": (
        beside(pretrained_cfg={"architecture": "mobilenetv3_small_075", "mean": (0.5, 0.5, 0.5)}), (),
        [("mean-std", "", "127.5, 127.5, 127.5 (the arguments or pretrained_cfg of timm)", "123.675, 116.28, 103.53 (mobilenetv3_small_075)")],
    ),
    "mmengine's configuration": (
        beside(meta={"cfg": CONFIG}), (),
        [("mean-std", "", "0, 0, 0 (mmengine's configuration)", "123.675, 116.28, 103.53 (mobilenet-v3-small-075_8xb128_in1k)"),
         ("eps", "", "0.001 (mmengine's configuration)", "1e-05 (mobilenet-v3-small-075_8xb128_in1k)")],
    ),
    "another one was meant": (
        beside(arch="tf_mobilenetv3_small_075"), ("--model", "mobilenetv3_small_075"),
        [("mean-std", "", "127.5, 127.5, 127.5 (tf_mobilenetv3_small_075, by the arguments or pretrained_cfg of timm)", "58.395, 57.12, 57.375 (mobilenetv3_small_075)"),
         ("mean-std", "", "127.5, 127.5, 127.5 (tf_mobilenetv3_small_075, by the arguments or pretrained_cfg of timm)", "123.675, 116.28, 103.53 (mobilenetv3_small_075)"),
         ("padding", "", "same (tf_mobilenetv3_small_075, by the arguments or pretrained_cfg of timm)", "symmetric (mobilenetv3_small_075)"),
         ("eps", "", "0.001 (tf_mobilenetv3_small_075, by the arguments or pretrained_cfg of timm)", "1e-05 (mobilenetv3_small_075)")],
    ),
    "scaling": (
        beside(), ("--model", "mobilenet_v3_small (width_mult=0.75)"),
        [("scaling", "blocks.1.0.conv_pw.weight", "mobilenetv3_small_075 (timm's, hidden channels scaled by ratio)",
          "mobilenet_v3_small (width_mult=0.75) (torchvision's, hidden channels scaled by expansion)")],
    ),
    "scaling of metadata": (
        said(variant="mobilenet_v3_small (width_mult=0.75)"), (),
        [("scaling", "blocks.1.0.conv_pw.weight", "mobilenetv3_small_075 (timm's, hidden channels scaled by ratio)",
          "mobilenet_v3_small (width_mult=0.75) (torchvision's, hidden channels scaled by expansion)")],
    ),
    "shapes": (
        beside(), ("--model", "mobilenetv3_small_100"),
        [("shapes", "blocks.2.0.conv_pwl.weight", "mobilenetv3_small_075 (timm's, hidden channels scaled by ratio)", "mobilenetv3_small_100 (timm's)")],
    ),
    "untouched": (untouched, (), [("untouched-batch-norm", "blocks.2.1.bn2", "running mean 0 and variance 1", "statistics of a training")]),
    "dead": (changed("blocks.1.0.bn1.weight", lambda t: t[:3].zero_()), (), [("dead-batch-norm", "blocks.1.0.bn1", "weight 0 in 3 of 72 channels", "none of them 0")]),
    "no variance": (changed("bn1.running_var", first_to(0)), (), [("dead-batch-norm", "bn1", "variance 0 in 1 of 16 channels", "above 0")]),
    "negative": (changed("bn1.running_var", first_to(-1)), (), [("negative-variance", "bn1", "1 of 16 variances below 0", "0 or above")]),
    "NaN": (changed("conv_head.weight", first_to(float("nan"))), (), [("not-finite", "conv_head.weight", "1 of 442368 values are NaN or infinite", "finite values")]),
    "infinite": (changed("blocks.4.1.se.conv_expand.bias", first_to(float("inf"))), (), [("not-finite", "blocks.4.1.se.conv_expand.bias", "1 of 432 values are NaN or infinite", "finite values")]),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(fault: str, timm_state: State, tmp_path: Path) -> None:
    write, options, wanted = PLANTED[fault]
    status, found = verify(write(tmp_path, timm_state), *options)
    assert (status, found["passed"]) == (1, False)
    assert sorted(tuple(finding.values()) for finding in found["findings"]) == sorted(wanted)
    assert all(finding["code"] in CODES for finding in found["findings"])


def test_entries_that_are_none(timm_state: State, tmp_path: Path) -> None:
    state = {
        **timm_state,
        "extra": torch.zeros(1),
        "bn1.bias": torch.zeros(16, dtype=torch.int64),
        "bn1.weight": Path("x"),
    }
    torch.save(state, tmp_path / "file.pth")
    status, found = verify(tmp_path / "file.pth")
    assert status == 1
    assert {(finding["code"], finding["layer"]) for finding in found["findings"]} >= {
        ("unexpected", "extra"), ("no-tensor", "bn1.bias"), ("no-tensor", "bn1.weight"),
    }  # fmt: skip


def test_what_it_prints(timm_state: State, tmp_path: Path) -> None:
    path = PLANTED["eps"][0](tmp_path, timm_state)
    result = CliRunner().invoke(app, ["verify", "--checkpoint", str(path)])
    assert result.exit_code == 1
    assert "taken for mobilenetv3_small_075, by its metadata" in result.stdout
    assert "eps\t\t0.001 (its metadata)\t1e-05 (mobilenetv3_small_075)" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--checkpoint", "none.pth"), "checkpoint: there is no file none.pth"),
        (("--checkpoint", "none.pth", "--device", "cuda"), "--checkpoint goes without --device and --dtype"),
        (("--model", "mobilenetv3_small_075"), "--model goes with --checkpoint"),
    ],
)
def test_refused(options: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["verify", *options])
    assert result.exit_code == 2 and message in " ".join(result.output.split())


def test_unknown_names(timm_state: State, tmp_path: Path) -> None:
    torch.save(timm_state, tmp_path / "file.pth")
    result = CliRunner().invoke(app, ["verify", "--checkpoint", str(tmp_path / "file.pth"), "--model", "mobilenet"])
    assert result.exit_code == 2 and "unknown model 'mobilenet'" in result.output
