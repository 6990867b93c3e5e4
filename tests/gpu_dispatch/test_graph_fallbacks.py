"""When an executor starts its launches one by one, though it could capture them in a CUDA graph, and what comes then."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.gpu_dispatch.graph_recorder import (
    CAPTURED,
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

from mnv3_fast.gpu import executor, first_use, graphs, launch
from mnv3_fast.gpu.executor import Executor


def test_while_another_of_ours_is_captured(
    recorder: Recorder, chain: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another thread, by another engine: launches run one by one for this call, and the next one captures."""
    monkeypatch.setattr(executor, "_stream", lambda x: 0)
    other = Executor(Chain(WEIGHTS + 1))
    check(other, image())
    check(chain, image())
    seen: list[list[str]] = []

    def meanwhile() -> None:
        recorder.words()
        at_the_same_time(lambda: check(other, image(1)))
        seen.append(recorder.words())

    recorder.during = meanwhile
    check(chain, image(1))
    assert seen == [PLAIN]
    assert recorder.words() == ["end"]
    recorder.during = lambda: None
    check(other, image(2))
    assert recorder.words() == CAPTURED


def test_it_is_captured_as_soon_as_nobody_else_is(
    recorder: Recorder, chain: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(chain, image())
    recorder.words()
    with graphs.turn():
        check(chain, image(1))
        assert recorder.words() == PLAIN
    check(chain, image(2))
    assert recorder.words() == CAPTURED


def test_while_a_graph_of_the_users_is_captured_elsewhere(recorder: Recorder, chain: Executor) -> None:
    """torch tells of it; a graph that exists is replayed meanwhile."""

    class Theirs:
        """Stands for a ``torch.cuda.CUDAGraph``."""

    if not hasattr(torch.cuda.graphs, "_global_capture_start_hooks"):
        pytest.skip("this torch does not tell of captures")
    theirs = Theirs()
    check(chain, image())
    for hook in torch.cuda.graphs._global_capture_start_hooks.values():
        hook(theirs)
    recorder.words()
    check(chain, image(1))
    assert recorder.words() == PLAIN
    for hook in torch.cuda.graphs._global_capture_end_hooks.values():
        hook(theirs)
    check(chain, image(2))
    assert recorder.words() == CAPTURED
    for hook in torch.cuda.graphs._global_capture_start_hooks.values():
        hook(theirs)
    check(chain, image(3))
    assert recorder.words() == REPLAYED
    check(chain, image(0, 1, 3, 4, 4))
    del theirs  # its capture failed, nobody said that it ended
    recorder.words()
    check(chain, image(0, 1, 3, 4, 4))
    assert recorder.words() == CAPTURED


def test_inside_a_capture_of_the_users(recorder: Recorder, chain: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches join the user's graph, on memory that no other call will have."""
    for seed in range(3):
        check(chain, image(seed))
    kept_passes = [id(each) for passes in chain._idle.values() for each in passes]
    recorder.words()
    monkeypatch.setattr(executor, "_capturing", lambda x: True)
    before = {
        value.data_ptr() for passes in chain._idle.values() for each in passes for value in each.arena.buffers.values()
    }
    check(chain, image(4))
    written = {what.arguments["output"].data_ptr() for _, what in recorder.events}
    assert recorder.words() == PLAIN
    assert written.isdisjoint(before)
    assert [id(each) for passes in chain._idle.values() for each in passes] == kept_passes


@pytest.mark.parametrize("when", ["traced", "observed", "switched off"])
def test_when_launches_run_one_by_one(
    recorder: Recorder, chain: Executor, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Before there is a graph, and where there is one."""
    for wanted in (CAPTURED, REPLAYED):
        seen: list[str] = []
        with monkeypatch.context() as patch:
            if when == "traced":
                patch.setattr(first_use, "recording", lambda: True)
                for _ in range(2):
                    check(chain, image())
            elif when == "observed":
                with launch.observe(lambda each: bool(seen.append(f"run {each.kernel.__name__}"))):
                    for _ in range(2):
                        check(chain, image())
                assert seen == PLAIN * 2
            else:
                with graphs.switched_off():
                    with graphs.switched_off():
                        pass
                    check(chain, image())
                    assert graphs.missing_reason(torch.device("cuda")) == "CUDA graphs are switched off"
                with graphs.switched_off():
                    check(chain, image())
        assert recorder.words() == PLAIN * 2
        check(chain, image(1))
        assert recorder.words() == wanted


def test_a_capture_that_fails(recorder: Recorder, chain: Executor, caplog: pytest.LogCaptureFixture) -> None:
    """Costs one warning and no result; that kind of input is not captured any more, others are tried."""

    def fail() -> None:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nadvice")

    caplog.set_level(logging.WARNING, "mnv3_fast")
    recorder.during = fail
    for wanted in (PLAIN, CAPTURED, PLAIN):
        check(chain, image())
        assert recorder.words() == wanted
    assert [record.getMessage() for record in caplog.records] == [
        "a pass could not run as a CUDA graph on cpu, its kernels are started one by one from now on: "
        "RuntimeError: CUDA error: operation failed due to a previous error during capture advice"
    ]
    for wanted in (PLAIN, CAPTURED):
        check(chain, image(0, 1, 3, 4, 4))
        assert recorder.words() == wanted
    assert len(caplog.records) == 1
    recorder.during = lambda: None
    check(chain, image())
    assert recorder.words() == PLAIN
    for wanted in (PLAIN, CAPTURED):
        check(chain, image(0, 3, 3, 4, 4))
        assert recorder.words() == wanted


def test_an_interrupt_leaves_all_as_it_was(recorder: Recorder, chain: Executor) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    check(chain, image())
    recorder.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        chain.run(image())
    recorder.during = lambda: None
    recorder.words()
    for wanted in (PLAIN, CAPTURED):
        check(chain, image())
        assert recorder.words() == wanted


def test_without_memory_for_copies(
    recorder: Recorder, chain: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(chain, "_copies", fail)
    for _ in range(3):
        check(chain, image())
        assert recorder.words() == PLAIN
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["no memory"]


@pytest.mark.parametrize("forgotten", [1, 4, 5])
def test_a_replay_that_errs_is_the_last(
    monkeypatch: pytest.MonkeyPatch, chain: Executor, caplog: pytest.LogCaptureFixture, forgotten: int
) -> None:
    """One warning, and the caller gets what the launches gave. The same image, so that what was there is right."""
    recorder = install(monkeypatch, proved=False)
    recorder.forgets = forgotten
    for wanted in (PLAIN, CAPTURED + REPLAYED, PLAIN, PLAIN):
        check(chain, image())
        assert recorder.words() == wanted
    assert [record.getMessage() for record in caplog.records] == [
        "CUDA graphs are not used: a replay on cpu gave another result than its launches"
    ]
    assert [each.graph for passes in chain._idle.values() for each in passes] == [None]
    other = Executor(Chain(WEIGHTS))
    for _ in range(3):
        check(other, image())
        assert recorder.words() == PLAIN


def test_a_first_replay_that_raises(
    monkeypatch: pytest.MonkeyPatch, chain: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    """Costs that pass its graph; of another kind of input it is tried again."""
    recorder = install(monkeypatch, proved=False)

    def fail(graph: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(recorder, "replay", fail)
        for wanted in (PLAIN, [*CAPTURED, "copy"], PLAIN):
            check(chain, image())
            assert recorder.words() == wanted
    (record,) = caplog.records
    assert record.getMessage().endswith("one by one from now on: RuntimeError: CUDA error: out of memory")
    for wanted in (PLAIN, CAPTURED + REPLAYED, REPLAYED):
        check(chain, image(0, 1, 3, 4, 4))
        assert recorder.words() == wanted
