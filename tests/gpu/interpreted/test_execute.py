"""Plans and blocks as a GPU runs them, on CPU tensors in the interpreter: results, memory that passes share, caches."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.tolerance import assert_close_enough, assert_net_equal

pytest.importorskip("triton")

from mnv3_fast.gpu import execute, executor, first_use
from mnv3_fast.gpu.launch import Launch, observe
from mnv3_fast.models.description import describe_block
from mnv3_fast.ops.inverted_residual.op import PACKED

SIZE = 32


@pytest.fixture(autouse=True)
def _all_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the first use is tested elsewhere."""
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: True)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A parity model, four stages of which take less time than the whole."""
    return parity_model("small", seed=5, size=SIZE).features[:4].eval()


def test_an_engines_plan(model: nn.Module) -> None:
    engine = mnv3_fast.freeze(model)
    images = parity_images(4, SIZE)
    with torch.no_grad():
        expected = model(images)
    first = execute.run_plan(images[:2], engine.plan, engine.geometry)
    again = execute.run_plan(images[2:], engine.plan, engine.geometry)  # the same pass, bound to other memory
    assert_net_equal(torch.cat([first, again]), expected)
    _, channels, height, width = first.shape
    assert first.stride() == (height * width * channels, 1, width * channels, channels)
    assert testing.relative_error(first, again) > 0.1
    kept = execute.plan_executor(engine.plan, torch.float32)
    assert [len(passes) for passes in kept._idle.values()] == [1]


def test_layouts_and_bytes(model: nn.Module) -> None:
    scale, shift = [0.02, 0.01, 0.03], [-2.0, -1.0, -3.0]
    engine = mnv3_fast.freeze(model, scale=scale, shift=shift)
    images = (parity_images(1, SIZE) * 60 + 128).clamp(0, 255).to(torch.uint8)
    expected = engine(images)
    wide = torch.zeros(1, 3, SIZE, SIZE + 5, dtype=torch.uint8)
    wide[..., 2 : 2 + SIZE] = images
    for given in (images, images.contiguous(memory_format=torch.channels_last), wide[..., 2 : 2 + SIZE]):
        assert_net_equal(execute.run_plan(given, engine.plan, engine.geometry), expected)


def test_half_precision(model: nn.Module) -> None:
    engine = mnv3_fast.freeze(model)
    geometry = [engine.geometry[0] + 2, *engine.geometry[1:]]  # float16
    images = parity_images(1, SIZE).half()
    output = execute.run_plan(images, engine.plan, geometry)
    assert output.dtype is torch.float16
    half = parity_model("small", seed=5, size=SIZE).features[:4].half()
    with torch.no_grad():
        exact = parity_model("small", seed=5, size=SIZE).features[:4].double()(images.double())
        assert_close_enough(output, half(images), exact, dtype=torch.float16)


def test_passes_in_two_threads_share_no_memory(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run here: what two passes under way at the same time would write to is compared."""
    engine = mnv3_fast.freeze(model)
    monkeypatch.setattr(executor, "_stream", lambda x: 0)  # both on one stream, where their launches would alternate
    execute.run_plan(parity_images(1, SIZE), engine.plan, engine.geometry)  # leaves memory for one pass
    both = threading.Barrier(2, timeout=60)
    written: dict[int, set[int]] = {}

    def record(launch: Launch) -> bool:
        thread = threading.get_ident()
        if thread not in written:
            written[thread] = set()
            both.wait()
        written[thread] |= {value.data_ptr() for name, value in launch.arguments.items() if name in ("output", "sums")}
        return True

    def work(image: Tensor) -> None:
        execute.run_plan(image, engine.plan, engine.geometry)
        both.wait()  # outputs live until here

    with observe(record):
        threads = [threading.Thread(target=work, args=(parity_images(1, SIZE),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    first, second = written.values()
    assert len(first) > 2
    assert first.isdisjoint(second)


def test_a_block_follows_its_tensors(model: nn.Module) -> None:
    block = model[1]
    tensors, spec, constants = describe_block(block).flatten()
    tensors = [tensor.detach().clone() for tensor in tensors]
    x = torch.randn(1, 16, 9, 7)  # contiguous: copied to the kernels' layout

    run = PACKED._on_gpu
    reference = torch.ops.mnv3_fast.inverted_residual
    with torch.no_grad():
        assert_net_equal(run(x, tensors, spec, constants), reference(x, tensors, spec, constants))
        tensors[0].mul_(3)
        assert_net_equal(run(x, tensors, spec, constants), reference(x, tensors, spec, constants))
        assert run(x[:0], tensors, spec, constants).shape == reference(x[:0], tensors, spec, constants).shape


def test_no_kernel_no_launch(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a kernel is switched off, the whole plan is the reference's."""
    engine = mnv3_fast.freeze(model)
    images = parity_images(1, SIZE)
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: kernel != "depthwise_conv")
    with observe(lambda launch: pytest.fail("launched")):
        output = execute.run_plan(images, engine.plan, engine.geometry)
    assert_net_equal(output, engine(images))
