"""The plan format: the executor against its reference, and plans that are not valid."""

from __future__ import annotations

import pytest
import torch

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.engine import plan as plan_format
from mnv3_fast.engine.plan import (
    BLOCK,
    LINEAR,
    POOL,
    STEM,
    PlanBuilder,
    pack_panels,
    pack_pointwise,
    pointwise_floats,
    read_plan,
    unpack_panels,
    unpack_pointwise,
)
from mnv3_fast.engine.reference import run_plan
from mnv3_fast.ops.elements import SAME
from tests.models.common import cached_parity_model

OP = torch.ops.mnv3_fast.run_plan


@pytest.fixture(scope="module")
def engine() -> mnv3_fast.Engine:
    return mnv3_fast.freeze(cached_parity_model("small"))


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_executor_equals_its_reference(engine: mnv3_fast.Engine, batch: int, instruction_set: str) -> None:
    x = testing.parity_images(batch, 65, 47, seed=1)
    exact = run_plan(x, engine.plan, engine.geometry, torch.float64)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        testing.assert_close_enough(
            OP(x, engine.plan, engine.geometry), run_plan(x, engine.plan, engine.geometry), exact
        )
    if instruction_set != "reference":
        assert mnv3_fast._library.take_variant("inverted_residual") == instruction_set


def small_plan(scaled: bool = True, same: bool = False) -> tuple[torch.Tensor, list[int]]:
    """A stem that normalises bytes, a block with another gate, a pool and two layers; padding may be SAME."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    builder, pads = PlanBuilder(3), [SAME] * 4 if same else []
    scale = (torch.rand(3, generator=generator) / 60, random(3)) if scaled else (None, None)
    builder.add_stem(random(20, 3, 3, 3), random(20), [3, 3, 2, 1, *(pads or [0, 1, 1, 0]), 1, 1], 1, *scale)
    tensors = [random(36, 20, 1, 1), random(36, 1, 5, 3), random(20, 36, 1, 1)]
    tensors += [random(7, 36, 1, 1), random(7), random(36, 7, 1, 1), random(36)]
    window = [1, 1, *(pads or [1, 1, 2, 2]), 1, 1]
    builder.add_block(tensors, [1, 0, 2, 0, 1, *window, 1, 2, 1, 0, 1, 1], [0.0, 0.0, 0.0, 0.2])
    builder.add_pointwise(random(50, 20), random(50), 2)
    builder.add_pool()
    builder.add_linear(random(33, 50), None, 2)
    builder.add_linear(random(9, 33), random(9), 0)
    return builder.build()


@pytest.mark.parametrize("bytes", [False, True])
@pytest.mark.parametrize("same", [False, True])
def test_every_kind_of_node(bytes: bool, same: bool, instruction_set: str) -> None:
    plan, geometry = small_plan(same=same)
    assert [node.kind for node in read_plan(plan)] == [STEM, BLOCK, plan_format.POINTWISE, POOL, LINEAR, LINEAR]
    x = torch.randint(0, 256, (3, 3, 19, 23), dtype=torch.uint8)
    x = x if bytes else x.float()
    exact = run_plan(x, plan, geometry, torch.float64)
    for y in (x, x.contiguous(memory_format=torch.channels_last), torch.nn.functional.pad(x, (1, 2))[..., 1:-2]):
        testing.assert_close_enough(OP(y, plan, geometry), run_plan(x, plan, geometry), exact)


@pytest.mark.parametrize("size", [(16, 24), (17, 9), (1, 1), (2, 31)])
def test_padding_that_follows_the_size(size: tuple[int, int], instruction_set: str) -> None:
    """The same plan at any size; the geometry gives the size of the map that comes out."""
    builder = PlanBuilder(3)
    builder.add_stem(torch.randn(16, 3, 3, 3), torch.randn(16), [3, 3, 2, 2, *[SAME] * 4, 1, 1], 2)
    tensors = [torch.randn(16, 1, 5, 5), torch.randn(24, 16, 1, 1)]
    builder.add_block(tensors, [0, 0, 0, 0, 1, 2, 3, *[SAME] * 4, 1, 1, 0, 0, 0, 0, 0, 0], [0.0] * 4)
    plan, geometry = builder.build()
    x = torch.randn(2, 3, *size)
    output = OP(x, plan, geometry)
    assert (
        output.shape == (2, 24, -(-size[0] // 4), -(-size[1] // 6)) == OP(x.to("meta"), plan.to("meta"), geometry).shape
    )
    testing.assert_close_enough(output, run_plan(x, plan, geometry), run_plan(x, plan, geometry, torch.float64))


def test_maps_come_out_dense() -> None:
    builder = PlanBuilder(6)
    builder.add_pointwise(torch.randn(10, 6), torch.randn(10), 0)
    plan, geometry = builder.build()
    x = torch.randn(2, 6, 5, 7)
    for y in (x, x.contiguous(memory_format=torch.channels_last), x[:, :, ::2]):
        output = OP(y, plan, geometry)
        assert output.stride() == (output.shape[2] * 70, 1, 70, 10)
        testing.assert_close_enough(output, run_plan(y, plan, geometry), run_plan(y, plan, geometry, torch.float64))


def test_registration(engine: mnv3_fast.Engine) -> None:
    x = testing.parity_images(2, 33)
    result = torch.library.opcheck(OP.default, (x, engine.plan, engine.geometry))
    assert set(result.values()) == {"SUCCESS"}


def test_packing_is_its_own_inverse() -> None:
    for n, k in ((1, 1), (16, 3), (17, 5), (40, 8)):
        weight = torch.randn(n, k)
        packed = pack_panels(weight)
        assert packed.shape == (-(-n // 16), k, 16)
        assert torch.equal(unpack_panels(packed.flatten(), n), weight)


def test_pairs_hold_two_inputs_side_by_side() -> None:
    weight = torch.arange(1.0, 16).view(5, 3)
    assert pack_pointwise(weight).view(2, 8, 2)[:, :5].tolist() == [
        [[1, 2], [4, 5], [7, 8], [10, 11], [13, 14]],
        [[3, 0], [6, 0], [9, 0], [12, 0], [15, 0]],
    ]
    for n, k in ((1, 1), (8, 2), (9, 3), (16, 3), (17, 5), (24, 7), (25, 4), (40, 8)):
        weight = torch.randn(n, k)
        packed = pack_pointwise(weight)
        assert packed.numel() == pointwise_floats(k, n)
        assert torch.equal(unpack_pointwise(packed, n, k), weight)


def spoiled(plan: torch.Tensor, word: int, value: int) -> torch.Tensor:
    plan = plan.clone()
    plan[8 * word : 8 * word + 8] = torch.tensor([value], dtype=torch.int64).view(torch.uint8)
    return plan


NODE = plan_format.HEADER_WORDS
BLOCK_NODE = NODE + plan_format.NODE_WORDS
SPOILS = {
    "magic": (0, 1, "it does not start with MNV3PLAN"),
    "version": (1, 1, "it has version 1, this build reads version 2"),
    "size": (2, 100, "it has another size than its header says"),
    "nodes": (3, 10**12, "the number of nodes is 1000000000000"),
    "more nodes": (3, 4000, "its table of nodes is cut off"),
    "kind": (NODE, 9, "a node's kind is 9"),
    "negative channels": (NODE + 2, -16, "the number of stem channels is -16"),
    "huge channels": (NODE + 2, 2**40, "the number of stem channels is"),
    "more channels": (NODE + 2, 36, "node 1 wants another number of channels"),
    "kernel": (NODE + 3, 1000, "a kernel height is 1000"),
    "stride": (NODE + 5, 0, "a stride is 0"),
    "one padding of four": (NODE + 7, -1, "a padding is -1"),
    "padding": (NODE + 10, -2, "a padding is -2"),
    "offset": (NODE + 14, 2**62, "the stem's weight lies outside of it"),
    "negative offset": (NODE + 14, -64, "the stem's weight lies outside of it"),
    "odd offset": (NODE + 14, 4097, "the stem's weight lies outside of it"),
    "activation": (NODE + 13, 3, "an activation is 3"),
    "residual": (BLOCK_NODE + 6, 2, "a residual block changes the shape of its map"),
    "squeeze": (BLOCK_NODE + 17, 10**5, "a squeeze weight lies outside of it"),
    "no expand": (BLOCK_NODE + 14, 0, "a block without expansion changes the number of channels"),
    "output": (5, 8, "its output is not what its header says"),
}


@pytest.mark.skipif(not mnv3_fast.instruction_sets(), reason="needs the compiled executor")
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_spoiled_plan_is_refused(spoil: str) -> None:
    plan, geometry = small_plan()
    word, value, message = SPOILS[spoil]
    with pytest.raises(RuntimeError, match=f"run_plan: the plan is not valid: {message}"):
        OP(torch.randn(1, 3, 16, 16), spoiled(plan, word, value), geometry)


SAME_SPOILS = {
    "three of four": (NODE + 8, 0, "a padding is -1"),
    "another negative": (BLOCK_NODE + 8, -2, "a padding is -[12]"),
    "residual": (BLOCK_NODE + 6, 2, "a residual block changes the shape of its map"),
}


@pytest.mark.parametrize("spoil", SAME_SPOILS)
def test_a_spoiled_padding_is_refused(spoil: str) -> None:
    """By the executor and by its reference."""
    plan, geometry = small_plan(same=True)
    word, value, message = SAME_SPOILS[spoil]
    runs = [run_plan] + [OP] * bool(mnv3_fast.instruction_sets())
    for run in runs:
        with pytest.raises((RuntimeError, ValueError), match=f"run_plan: the plan is not valid: {message}"):
            run(torch.randn(1, 3, 16, 16), spoiled(plan, word, value), geometry)


@pytest.mark.skipif(not mnv3_fast.instruction_sets(), reason="needs the compiled executor")
@pytest.mark.parametrize("same", [False, True])
def test_random_spoils_never_crash(same: bool) -> None:
    plan, geometry = small_plan(same=same)
    generator = torch.Generator().manual_seed(1)
    table = NODE + plan_format.NODE_WORDS * 6
    for _ in range(300):
        word = int(torch.randint(0, table, (1,), generator=generator))
        value = int(torch.randint(-(2**62), 2**62, (1,), generator=generator)) >> int(
            torch.randint(0, 62, (1,), generator=generator)
        )
        if word == NODE + plan_format.NODE_WORDS + 20:
            continue  # the slope: any number is one
        try:
            OP(torch.randn(1, 3, 16, 16), spoiled(plan, word, value), geometry)
        except RuntimeError as error:
            assert "run_plan:" in str(error)


def test_bad_input(engine: mnv3_fast.Engine) -> None:
    x = testing.parity_images(1, 32)
    with pytest.raises(RuntimeError, match="run_plan: .* is not differentiable .* use mnv3_fast.accelerate, or"):
        OP(x.clone().requires_grad_(), engine.plan, engine.geometry)
    if mnv3_fast.instruction_sets():
        for args, message in [
            ((x[:, :2], engine.plan, engine.geometry), r"run_plan: input must be \[N, 3, H, W\], got \[1, 2, 32, 32\]"),
            ((x.double(), engine.plan, engine.geometry), "run_plan: input must be float32 or uint8"),
            ((x, engine.plan.float(), engine.geometry), "run_plan: plan must be a dense uint8 vector"),
            ((x[:, :, :0], engine.plan, engine.geometry), "run_plan: input must not be empty"),
        ]:
            with pytest.raises(RuntimeError, match=message):
                OP(*args)
    with pytest.raises(ValueError, match="plan: expected a uint8 vector"):
        read_plan(torch.zeros(3))
    with pytest.raises(ValueError, match="plan: not a plan of version 2, or cut off"):
        read_plan(engine.plan[:-4])
