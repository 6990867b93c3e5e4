"""Plans and stages that do not fit: a kernel on a GPU would read and write what lies around, so nothing is launched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import mnv3_fast
from mnv3_fast.engine import reference
from mnv3_fast.engine.plan import HEADER_WORDS, NODE_WORDS
from mnv3_fast.models.description import describe_block, describe_net
from mnv3_fast.ops.inverted_residual.op import PACKED as BLOCK
from mnv3_fast.ops.network.layout import join
from mnv3_fast.ops.network.op import PACKED as NETWORK
from mnv3_fast.testing.parity import parity_model

pytest.importorskip("triton")

from mnv3_fast.gpu import execute, first_use, launch

NODE = HEADER_WORDS
BLOCK_NODE = NODE + NODE_WORDS


@pytest.fixture(autouse=True)
def _no_launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: True)
    with launch.observe(lambda each: pytest.fail("launched")), torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return parity_model("small").eval()


@pytest.fixture(scope="module")
def engine(model: torch.nn.Module) -> mnv3_fast.Engine:
    return mnv3_fast.freeze(model)


def spoiled(plan: Tensor, word: int, value: int) -> Tensor:
    plan = plan.clone()
    plan[8 * word : 8 * word + 8] = torch.tensor([value]).view(torch.uint8)
    return plan


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        (3, 0, "plan: its table of 0 nodes lies outside of it"),
        (3, 2**40, "plan: its table of 1099511627776 nodes lies outside of it"),
        (3, 7, "run_plan: the plan is not valid: its output is not what its header says"),
        (4, 4, "run_plan: the plan is not valid: node 0 wants another number of channels, 3 and not 4"),
        (5, 8, "run_plan: the plan is not valid: its output is not what its header says"),
        (NODE, 9, "run_plan: the plan is not valid: a node's kind is 9"),
        (NODE + 2, -16, "run_plan: the plan is not valid: a number of channels is -16"),
        (NODE + 2, 24, "run_plan: the plan is not valid: node 1 wants another number of channels, 16 and not 24"),
        (NODE + 3, 1000, "run_plan: the plan is not valid: a side of a kernel is 1000"),
        (NODE + 5, 0, "run_plan: the plan is not valid: a stride is 0"),
        (NODE + 7, -1, "run_plan: the plan is not valid: a padding is -1"),
        (NODE + 10, -2, "run_plan: the plan is not valid: a padding is -2"),
        (NODE + 13, 4, "run_plan: the plan is not valid: an activation is 4"),
        (NODE + 16, 7, "run_plan: the plan is not valid: a flag is 7"),
        (NODE + 14, 2**62, "run_plan: the plan is not valid: plan: 432 numbers from byte 4611686018427387904 on lie "),
        (NODE + 14, -64, "run_plan: the plan is not valid: plan: 432 numbers from byte -64 on lie outside of it"),
        (BLOCK_NODE + 19, 2, "run_plan: the plan is not valid: a gate is 2"),
        (BLOCK_NODE + 21, 1, "run_plan: the plan is not valid: a residual block changes the shape of its map"),
    ],
)
def test_a_spoiled_plan(engine: mnv3_fast.Engine, word: int, value: int, message: str) -> None:
    plan = spoiled(engine.plan, word, value)
    for run in (execute.run_plan, reference.run_plan):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            run(torch.zeros(1, 3, 64, 64), plan, engine.geometry)


IMAGE = torch.zeros(1, 24, 8, 8)


def block(model: torch.nn.Module) -> tuple[list[Tensor], list[int], list[float]]:
    """features[4]: an expansion to 96, 5x5 with stride 2, squeeze-excite; 24 channels become 40."""
    tensors, spec, constants = describe_block(model.features[4]).flatten()
    return [tensor.detach() for tensor in tensors], list(spec), list(constants)


@pytest.mark.parametrize(
    ("place", "change", "error", "message"),
    [
        (1, lambda t: t[:1], ValueError, "inverted_residual: expand weight must be [96], got [1]"),
        (7, lambda t: t[:95], ValueError, "inverted_residual: depthwise bias must be [96], got [95]"),
        (-1, lambda t: t[:1], ValueError, "inverted_residual: squeeze_excite does not fit the block, got [1]"),
        (-2, lambda t: t[:90], ValueError, "inverted_residual: squeeze_excite does not fit the block, got [90, 24, 1"),
        (0, lambda t: t.long(), TypeError, "inverted_residual: expand weight must be float32, got int64"),
        (5, lambda t: t.half(), TypeError, "inverted_residual: depthwise weight must be float32, got float16"),
        (4, lambda t: t.to("meta"), ValueError, "inverted_residual: expand var must be on the CPU as the input is, g"),
    ],
)
def test_a_tensor_of_a_block(model: Any, place: int, change: Any, error: type[Exception], message: str) -> None:
    tensors, spec, constants = block(model)
    tensors[place] = change(tensors[place])
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        BLOCK._on_gpu(IMAGE, tensors, spec, constants)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (2, 4, "an activation is 4"),
        (4, -1, "an activation is -1"),
        (5, 0, "a stride is 0"),
        (8, -1, "a padding is -1"),
        (12, 0, "a dilation is 0"),
        (15, 3, "a gate is 3"),
        (18, 1, "a residual block changes the shape of its map"),
    ],
)
def test_a_number_of_a_block(model: Any, place: int, value: int, message: str) -> None:
    tensors, spec, constants = block(model)
    spec[place] = value
    with pytest.raises(ValueError, match=f"^inverted_residual: its stages do not fit: {message}$"):
        BLOCK._on_gpu(IMAGE, tensors, spec, constants)


def test_dtypes_without_kernels(model: Any) -> None:
    tensors, spec, constants = block(model)
    message = "^inverted_residual: input must be float32, float16 or bfloat16, got float64$"
    with pytest.raises(TypeError, match=message):
        BLOCK._on_gpu(IMAGE.double(), [tensor.double() for tensor in tensors], spec, constants)
    with pytest.raises(TypeError, match="^inverted_residual: weights must be float32, float16 or bfloat16, got int64$"):
        BLOCK._on_gpu(IMAGE.byte(), [tensor.long() for tensor in tensors], spec, constants)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:2] + s[4:], "its stages do not fit: node 2 wants another number of channels, 24 and not 16"),
        (lambda s: s[:13] + s[14:], "its stages do not fit: node 13 does not fit the one before it"),
        (lambda s: s[:-2] + s[-3:], "its stages do not fit: node 14 does not fit the one before it"),
        (lambda s: s[:3] + s[:1] + s[3:], "its stages do not fit: a stem stands inside"),
        (lambda s: [], "tensors must hold the weights of at least one layer, got none"),
    ],
)
def test_stages_of_a_network(model: Any, change: Any, message: str) -> None:
    tensors, spec, constants = join(change(describe_net(model).stages()))
    with pytest.raises(ValueError, match=f"^network: {message}$"):
        NETWORK._on_gpu(torch.zeros(1, 3, 64, 64), tensors, spec, constants)


@pytest.mark.parametrize("batch", [0, 1])
def test_maps_that_would_be_empty(model: Any, batch: int) -> None:
    """Also where a later padding or the pool hides it, and whatever the batch."""
    tensors, spec, constants = describe_net(model).flatten()
    spec = list(spec)
    spec[5:9] = [0] * 4  # the stem's padding
    with pytest.raises(ValueError, match=r"^network: input \[\d, 3, 2, 9\] is too small, a map on the way would be em"):
        NETWORK._on_gpu(torch.zeros(batch, 3, 2, 9), tensors, spec, constants)
    with pytest.raises(ValueError, match=r"^network: input must have at least one pixel, got \[\d, 3, 0, 9\]$"):
        NETWORK._on_gpu(torch.zeros(batch, 3, 0, 9), tensors, spec, constants)
