"""Engines and networks whose passes are captured: the kernels run in the interpreter when a recorder replays them."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn

import mnv3_fast
from mnv3_fast.testing.parity import parity_images, parity_model
from tests.gpu_dispatch.graph_recorder import Recorder, install

pytest.importorskip("triton")

from mnv3_fast.gpu import execute, executor, first_use, graphs
from mnv3_fast.models.description import describe_net
from mnv3_fast.ops.network.layout import join
from mnv3_fast.ops.network.op import PACKED

SIZE = 32
DTYPES = {torch.float32: 0, torch.float16: 2}
"""And what stands for them in a geometry."""
OUTSIDE = ["run stem_conv_kernel", "replay", "run pointwise_conv_kernel"]
"""A replay, with the launches that read the input and write the output outside of the graph."""


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: True)
    return install(monkeypatch)


@pytest.fixture
def model() -> nn.Module:
    """Stem, a block with squeeze-excite, one without."""
    return parity_model("small", seed=5, size=SIZE).features[:3].eval()


def call(engine: nn.Module, images: Tensor) -> Tensor:
    geometry = [engine.geometry[0] + DTYPES[images.dtype], *engine.geometry[1:]]
    return execute.run_plan(images, engine.plan, geometry)


@pytest.mark.parametrize(("dtype", "copied"), [(torch.float32, 4 << 20), (torch.float16, 0)], ids=str)
def test_replays_give_the_same_bits(
    recorder: Recorder, model: nn.Module, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, copied: int
) -> None:
    """As launches one by one; in turn for two batches, while inputs and earlier outputs are overwritten."""
    monkeypatch.setattr(executor, "COPIED_BYTES", copied)
    engine = mnv3_fast.freeze(model)
    images = parity_images(6, SIZE).to(dtype)
    parts = (images[:1], images[1:3], images[3:4], images[4:6])
    with graphs.switched_off():
        expected = [call(engine, part) for part in parts]
    assert recorder.graphs == 0  # and each kind has run once
    outputs = []
    for part in parts * 2:
        given = part.clone()
        outputs.append(call(engine, given))
        given.fill_(float("nan"))
    assert recorder.graphs == 2
    words = recorder.words()
    assert words.count("replay") == 6
    assert ("copy" in words) == (copied > 0)
    for output, wanted in zip(outputs, expected * 2, strict=True):
        assert torch.equal(output, wanted)
        output.fill_(float("nan"))
    assert torch.equal(call(engine, images[:1]), expected[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_layouts(recorder: Recorder, layout: str) -> None:
    """Of images."""
    engine = mnv3_fast.freeze(parity_model("small", seed=5, size=16).features[:3].eval())
    images, wide = parity_images(2, 16), torch.zeros(2, 3, 16, 21)
    wide[..., 2:18] = images
    x = {
        "contiguous": images, "channels_last": images.contiguous(memory_format=torch.channels_last),
        "sliced": wide[..., 2:18], "expanded": images[:1].expand_as(images),
    }[layout]  # fmt: skip
    with graphs.switched_off():
        expected = call(engine, x)
    for _ in range(2):
        assert torch.equal(call(engine, x), expected)
    copied = layout in ("contiguous", "channels_last")  # a copy of the others would have other strides
    assert recorder.words()[-3:] == (["copy", "replay", "copy"] if copied else OUTSIDE)


def test_two_threads(recorder: Recorder, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine on one stream; each thread's passes are captured and give what they give alone."""
    monkeypatch.setattr(executor, "_stream", lambda x: 0)
    engine = mnv3_fast.freeze(model)
    images = parity_images(2, SIZE)
    with graphs.switched_off():
        expected = [call(engine, image[None]) for image in images]
    right: list[bool] = []

    def work(i: int) -> None:
        for _ in range(4):
            output = call(engine, images[i][None].clone())
            right.append(torch.equal(output, expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 8
    assert recorder.graphs in (1, 2)  # two where their calls met


def test_a_network_follows_its_tensors(recorder: Recorder, model: nn.Module) -> None:
    """An accelerated network is one op over its own tensors; a write drops the graph of what was packed before."""
    stages = describe_net(model).stages()
    images = parity_images(1, SIZE)
    with torch.no_grad():
        for tensor in (None, stages[1].tensors[0]):
            if tensor is not None:
                tensor.mul_(3)
            recorder.words()
            arguments = join(stages)
            with graphs.switched_off():
                expected = PACKED._on_gpu(images, *arguments)
            for _ in range(2):
                assert torch.equal(PACKED._on_gpu(images, *arguments), expected)
            assert recorder.words().count("capture") == 1


def test_an_engine_is_copied_and_saved_without_graphs(recorder: Recorder, model: nn.Module) -> None:
    engine = mnv3_fast.freeze(model)
    names, size = list(engine.state_dict()), len(pickle.dumps(engine))
    images = parity_images(1, SIZE)
    expected = call(engine, images)
    call(engine, images)
    recorder.words()
    file = io.BytesIO()
    torch.save(engine, file)
    file.seek(0)
    for other in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine)), torch.load(file, weights_only=False)):
        assert torch.equal(call(other, images), expected)
        assert "replay" not in recorder.words()
    assert list(engine.state_dict()) == names
    assert len(pickle.dumps(engine)) == size
    assert torch.equal(call(engine, images), expected)
    assert "replay" in recorder.words()
