"""CUDA graphs: launches that were captured once are all started by one call.

A capture records what is started on a stream and runs nothing. What is captured here reads and writes memory of the
pass alone, so it needs no memory of torch's pools and no order with any stream: a replay has that of its own stream.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from mnv3_fast.gpu.launch import AnyLaunch

logger = logging.getLogger("mnv3_fast")

LEAST_LAUNCHES = 3
"""So many must lie between those that read a pass's input and those that write its output. A block has at most two:
copies would be half as many launches again on the GPU, and a graph of two saves the CPU little."""
NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING of CUDA's driver: a stream that has nothing to do with the legacy default stream, which
otherwise nobody could use during a capture (CUDA C++ programming guide, "Cross-stream Dependencies and Events")."""

_lock, _count = threading.Lock(), threading.Lock()
_captures: weakref.WeakSet[object] = weakref.WeakSet()
"""Graphs of torch's, ours among them, that are being captured. One whose capture failed stays until it is dropped."""
_off = 0
_right: dict[torch.device, bool] = {}
"""Devices on which a replay has been compared with its launches, and whether it gave the same."""


class Graph:
    """Some launches in a CUDA graph. All that is said to CUDA about graphs is said here; tests put a recorder in place.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream_of(torch.cuda.current_device() if device.index is None else device.index)
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, start: Callable[[], None]) -> None:
        """Record the kernels that ``start`` starts on the current stream, without running them.

        The mode is "relaxed" since nothing but kernels is started here: what another thread does, or Python when it
        frees an object meanwhile (cudaFree, cuModuleUnload), is no fault, as it would be in mode "global", and what
        this thread does in "thread_local".

        Raises:
            Exception: what ``start`` raises, and RuntimeError with CUDA's words. There is no graph then.
        """
        with torch.cuda.stream(self._stream):
            self._graph.capture_begin(capture_error_mode="relaxed")
            try:
                start()
            except BaseException:
                with suppress(Exception):  # the stream must be left as it was; the first error says more
                    self._graph.capture_end()
                raise
            self._graph.capture_end()

    def replay(self) -> None:
        """Start the kernels on the current stream of their device."""
        self._graph.replay()


def missing_reason(device: torch.device) -> str | None:
    """Why nothing is captured on a device; None if it is."""
    if not _has_graphs(device):
        return "CUDA graphs are for NVIDIA's GPUs"
    if not _TELLS:
        return (
            f"torch {torch.__version__} lets no other thread draw random numbers on the GPU during a capture, "
            "torch 2.15 does"
        )
    if not _right.get(device, True):
        return f"a replay on {device} gave another result than its launches"
    return "CUDA graphs are switched off" if _off else None


def is_proved(device: torch.device) -> bool:
    """Whether a replay has given the result of its launches on a device, in this process."""
    return _right.get(device, False)


def prove(replayed: Tensor, wanted: Tensor) -> bool:
    """Compare what a device's first replay gave with what its launches did; one that errs is the device's last.

    Waits for the device. NaN and infinities alone prove nothing, and are no error. Returns :func:`is_proved`.
    """
    same = torch.allclose(replayed, wanted, rtol=0, atol=0, equal_nan=True)
    if not same or bool(wanted.isfinite().any()):
        _right[wanted.device] = same
    if not same:
        logger.warning("CUDA graphs are not used: %s", missing_reason(wanted.device))
    return is_proved(wanted.device)


@contextmanager
def switched_off() -> Iterator[None]:
    """Inside of the ``with`` block nothing is captured or replayed (process-wide): each kernel is started by itself."""
    global _off
    with _count:
        _off += 1
    try:
        yield
    finally:
        with _count:
            _off -= 1


@contextmanager
def turn() -> Iterator[bool]:
    """Whether we may capture inside of the ``with`` block: nobody else captures then, in any thread.

    Neither we nor anyone who captures with torch: instantiating a graph allocates memory, which another's capture may
    not bear. Who starts one after that does not meet with ours, since its mode is relaxed.
    """
    if len(_captures) or not _lock.acquire(blocking=False):
        yield False
        return
    try:
        yield True
    finally:
        _lock.release()


def captured(launches: Sequence[AnyLaunch], device: torch.device) -> Graph:
    """A graph of some launches, whose kernels have been loaded by running them; in a :func:`turn`.

    Raises:
        Exception: what a launch raises, and RuntimeError with CUDA's words.
    """
    graph = Graph(device)
    graph.capture(lambda: _start(launches))  # no observer may take a launch out of it
    return graph


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.cuda is not None


def _start(launches: Sequence[AnyLaunch]) -> None:
    for each in launches:
        each.run()


@functools.cache
def _stream_of(index: int) -> torch.cuda.Stream:
    """A device's stream for captures, which nobody else has: a stream of torch's pool may be given to others as well,
    and what they start on it during a capture would become part of the graph.
    """
    torch.cuda.current_stream(index).query()  # makes the device's context this thread's
    handle = ctypes.c_void_p()
    with torch.cuda.device(index):
        status = ctypes.CDLL("libcuda.so.1").cuStreamCreate(ctypes.byref(handle), NON_BLOCKING)
    if status or handle.value is None:
        raise RuntimeError(f"mnv3_fast: cuStreamCreate returned CUDA's error {status}")
    return torch.cuda.ExternalStream(handle.value, device=index)


def _watch() -> bool:
    """Have torch tell of all captures; False where it cannot.

    A torch that can also has a state of random numbers for each capture. Those before it mark a device's generator as
    captured while any thread captures, so that drawing from it fails in all others, for good if the capture fails.
    """
    register = getattr(torch.cuda.graphs, "register_graph_capture_start_hook", None)
    if register is None:
        return False
    register(_captures.add)
    torch.cuda.graphs.register_graph_capture_end_hook(_captures.discard)
    return True


_TELLS = _watch()
