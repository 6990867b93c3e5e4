"""What an executor does with CUDA graphs, on a recorder in their place; the graphs themselves have seen no GPU."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu_dispatch.graph_recorder import (
    CAPTURED,
    LARGE_CAPTURED,
    LARGE_REPLAYED,
    PLAIN,
    REPLAYED,
    WEIGHTS,
    Chain,
    Recorder,
    at_the_same_time,
    check,
    image,
    install,
)

pytest.importorskip("triton")

from mnv3_fast.gpu import executor, kept
from mnv3_fast.gpu.executor import Executor

SIZES = pytest.mark.parametrize("size", ["small", "large"])
"""Of input and output: small ones are copied to and from a graph's memory."""


def words_of(size: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """What a call that captures does, and one that replays."""
    if size == "small":
        return CAPTURED, REPLAYED
    monkeypatch.setattr(executor, "COPIED_BYTES", 2 * image().nbytes - 1)
    return LARGE_CAPTURED, LARGE_REPLAYED


@SIZES
def test_the_order_of_things(recorder: Recorder, chain: Executor, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    """The first call runs what the second captures, so that every kernel is loaded; a capture runs nothing."""
    captured, replayed = words_of(size, monkeypatch)
    for i, wanted in enumerate((PLAIN, captured, replayed, replayed)):
        check(chain, image(i))
        assert recorder.words() == wanted


def test_what_is_copied(recorder: Recorder, chain: Executor) -> None:
    """Before a replay the caller's input to the graph's, behind it the graph's output to the caller's."""
    for i in range(2):
        chain.run(image(i))
    recorder.words()
    x = image(2)
    output = chain.run(x)
    (_, into), (_, graph), (_, out) = recorder.events
    assert into[0] is x
    assert into[1] is graph.launches[0].arguments["input"]
    assert out[0] is graph.launches[-1].arguments["output"]
    assert out[1] is output


def test_the_first_replay_on_a_device_is_compared(monkeypatch: pytest.MonkeyPatch, chain: Executor) -> None:
    """With its launches, once for all engines; an output of NaN alone proves nothing."""
    recorder = install(monkeypatch, proved=False)
    nan = torch.full((2, 3, 4, 4), float("nan"))
    chain.run(nan)
    recorder.words()
    for _ in range(2):
        assert bool(chain.run(nan).isnan().all())
        assert recorder.words() == CAPTURED + REPLAYED
    check(chain, image())
    assert recorder.words() == CAPTURED + REPLAYED
    check(chain, image(1))
    assert recorder.words() == REPLAYED
    other = Executor(Chain(WEIGHTS))
    for wanted in (PLAIN, CAPTURED, REPLAYED):
        check(other, image())
        assert recorder.words() == wanted


@pytest.mark.parametrize("captures_in", [True, False])
def test_calls_in_and_out_of_inference_mode(
    monkeypatch: pytest.MonkeyPatch, chain: Executor, captures_in: bool
) -> None:
    recorder = install(monkeypatch, proved=False)
    for inside, wanted in (
        (not captures_in, PLAIN), (captures_in, CAPTURED + REPLAYED), (not captures_in, REPLAYED), (captures_in, REPLAYED),
    ):  # fmt: skip
        with torch.inference_mode(inside):
            check(chain, image())
        assert recorder.words() == wanted


@SIZES
def test_nobody_shares_memory_with_a_graph(
    recorder: Recorder, chain: Executor, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """Inputs are overwritten as soon as a call is back, outputs live on and are overwritten, too."""
    words_of(size, monkeypatch)
    outputs, expected, x = [], [], image()
    for seed in range(5):
        x.copy_(image(seed))
        expected.append(chain.network.expected(x))
        outputs.append(chain.run(x))
        x.fill_(float("nan"))
    for i, output in enumerate(outputs):
        assert torch.equal(output, expected[i])
        output.fill_(float("nan"))
    check(chain, image(9))
    graph = next(what for word, what in recorder.events if word == "replay")
    used = {value.data_ptr() for each in graph.launches for name, value in each.arguments.items() if name != "weight"}
    ((one,),) = chain._idle.values()
    own = {tensor.data_ptr() for tensor in (*one.arena.buffers.values(), *(one.copies or ()))}
    assert used == own
    assert own.isdisjoint(tensor.data_ptr() for tensor in (x, *outputs))
    assert (one.copies is None) == (size == "large")


def test_each_kind_of_input_has_its_own(recorder: Recorder, chain: Executor) -> None:
    kinds = [
        image(), image(0, 3, 3, 4, 4), image(0, 2, 3, 4, 5), image().contiguous(memory_format=torch.channels_last),
        image().mul(50).to(torch.uint8), torch.empty(97)[1:].view(2, 3, 4, 4).copy_(image()),
    ]  # fmt: skip
    for wanted in (PLAIN, CAPTURED, REPLAYED):
        for x in kinds:
            check(chain, x)
            assert recorder.words() == wanted
    assert recorder.graphs == len(kinds) <= executor.KEPT_PASSES
    chain.run(image(0, 0, 3, 4, 4))
    assert recorder.words() == []


@pytest.mark.parametrize("x", [image(0, 2, 3, 4, 9)[..., 2:6], image(0, 1, 3, 4, 4).expand(2, 3, 4, 4)])
def test_strides_that_a_copy_would_not_have(recorder: Recorder, chain: Executor, x: Tensor) -> None:
    """Launches have been told the input's."""
    for wanted in (PLAIN, LARGE_CAPTURED, LARGE_REPLAYED):
        check(chain, x)
        assert recorder.words() == wanted


@pytest.mark.parametrize("setting", ["fp32_precision", "choice"])
def test_a_setting_that_launches_follow_from(
    recorder: Recorder, chain: Executor, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    for _ in range(2):
        chain.run(image())
    recorder.words()
    if setting == "choice":
        monkeypatch.setattr(executor.choice, "state", lambda: "another")
    else:
        monkeypatch.setattr(executor, "dot_precision", lambda dtype: "tf32")
    chain.run(image())
    assert recorder.words() == PLAIN


def test_the_oldest_goes(recorder: Recorder, chain: Executor) -> None:
    """With its graph, at once."""
    gone: list[weakref.ref] = []
    gc.disable()
    try:
        for size in range(1, executor.KEPT_PASSES + 3):
            for _ in range(2):
                check(chain, image(0, size, 3, 4, 4))
            gone.append(weakref.ref(recorder.events[-2][1]))
            recorder.words()
        assert [each() is None for each in gone] == [True] * 2 + [False] * executor.KEPT_PASSES
    finally:
        gc.enable()
    check(chain, image(0, 1, 3, 4, 4))
    assert recorder.words() == PLAIN


def test_two_calls_at_the_same_time(recorder: Recorder, chain: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one stream, by one engine: each call has a pass and a graph of its own."""
    monkeypatch.setattr(executor, "_stream", lambda x: 0)
    meeting = threading.Barrier(2, timeout=60)
    take = Executor._take

    def meet(self: Executor, key: Any) -> Any:
        found = take(self, key)
        meeting.wait()  # the other call has taken its pass, too
        return found

    monkeypatch.setattr(Executor, "_take", meet)

    def work(seed: int) -> None:
        for call in range(5):
            check(chain, image(10 * seed + call))

    at_the_same_time(lambda: work(1), lambda: work(2))
    (passes,) = chain._idle.values()
    assert len(passes) == len({id(each.graph) for each in passes} - {id(None)}) == 2
    first, second = [{buffer.data_ptr() for buffer in each.arena.buffers.values()} for each in passes]
    assert first.isdisjoint(second)


def test_two_streams(recorder: Recorder, chain: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in (PLAIN, CAPTURED, REPLAYED):
        for stream in (7, 8):
            monkeypatch.setattr(executor, "_stream", lambda x, stream=stream: stream)
            check(chain, image())
            assert recorder.words() == wanted


@pytest.mark.parametrize("change", ["write", "forget", "drop"])
def test_a_graph_goes_with_what_it_was_made_of(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(kept, "_kept", {})
    weights = WEIGHTS.clone()

    def found(weights: Tensor) -> Executor:
        return kept.find([weights], ("chain",), lambda: Executor(Chain(weights)))

    for _ in range(2):
        check(found(weights), image())
    graph = weakref.ref(recorder.events[-2][1])
    recorder.words()
    if change == "drop":
        del weights
    else:
        if change == "write":
            weights.mul_(2)
        else:
            weights.data.mul_(2)
            kept.forget([weights])
        assert torch.equal(found(weights).run(image()), Chain(WEIGHTS * 2).expected(image()))
        assert recorder.words() == PLAIN
    assert graph() is None


def test_shapes_are_remembered_within_bounds(chain: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that give an empty map, too."""
    monkeypatch.setattr(executor, "KNOWN_SHAPES", 3)
    asked: list[int] = []
    monkeypatch.setattr(chain.network, "shapes", lambda shape: asked.append(shape[2]) or [shape], raising=False)
    for size in (4, 4, 5, 0, 4, 6, 4):
        assert chain.output_shape((1, 3, size, 4)) == ((1, 3, size, 4) if size else None)
        assert len(chain._shapes) <= 3
    assert asked == [4, 5, 0, 6, 4]


def test_too_few_launches(recorder: Recorder) -> None:
    """A graph of two would be no faster."""
    chain = Executor(Chain(WEIGHTS[:4]))
    for _ in range(4):
        check(chain, image())
        assert recorder.words() == PLAIN[:4]
