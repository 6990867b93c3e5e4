"""Kernels that no GPU of this kind has run yet are compared with the reference before they are used.

Each kernel is run on small inputs that cover tails, in each dtype, and compared with its reference in fp64 by the
library's one tolerance rule. A miss or an exception switches that kernel and dtype off with one warning, and torch's
own operators run instead. What came of it is kept for the process, and in a file for the next (see outcomes.py).

Nothing is checked while CUDA captures a graph or torch traces one: a kernel that is not known yet then counts as not
usable, for that call alone. Accelerate, freeze or call :func:`check_device` before.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _python_dispatch

from mnv3_fast import _library
from mnv3_fast._version import __version__
from mnv3_fast.gpu import DTYPES, choice, cuda_library, keyed_file, launch, outcomes
from mnv3_fast.gpu.forced_run import run_kernel
from mnv3_fast.gpu.outcomes import Outcome, name_of

logger = logging.getLogger("mnv3_fast")

KERNELS = ("stem_conv", "pointwise_conv", "depthwise_conv", "squeeze_excite_gate", "squeeze_excite")
"""Triton's."""
CUDA_KERNELS = {"depthwise_conv_cuda": DTYPES, "inverted_residual_cuda": (torch.float16, torch.bfloat16)}
"""The library's, checked where there is one, and the dtypes of each."""
Runner = Callable[[str, tuple, torch.device], Any]
"""Name of a raw op, its arguments on the CPU, the device -> its output or outputs, wherever they are."""


@dataclass(frozen=True)
class Report:
    """What is known of the kernels on a device: the file's key (device and versions) and an outcome each.

    Both are empty where the kernels are switched off, and of a device that is not there.
    """

    device: torch.device
    key: dict[str, str]
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether every kernel may be used in every dtype that was asked for."""
        return bool(self.outcomes) and all(outcome.passed for outcome in self.outcomes)


def describe(device: torch.device) -> tuple[str, str]:
    """Name and compute capability (of AMD's, architecture) of a GPU."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:  # elsewhere torch gives the name under this name, too
        return properties.name, properties.gcnArchName
    return properties.name, f"{properties.major}.{properties.minor}"


def key_of(name: str, capability: str) -> dict[str, str]:
    """What is kept of a kind of device is kept for this: the device, all versions, and the text of the kernels."""
    values = name, capability, torch.__version__, triton_version()[0], __version__, _sources(), cuda_library.hash_of()
    return dict(zip(keyed_file.KEY_FIELDS, map(str, values), strict=True))


class Checker:
    """The check and its memory.

    Args:
        run: what runs a kernel.
        describe: gives name and compute capability of a device.
        folder: where outcomes are kept; None for nowhere.
    """

    def __init__(
        self,
        run: Runner = run_kernel,
        describe: Callable[[torch.device], tuple[str, str]] = describe,
        folder: Path | None = None,
    ) -> None:
        self._run, self._describe, self._folder = run, describe, folder
        self._answers: dict[tuple[str, torch.device, torch.dtype], bool] = {}
        self._outcomes: dict[tuple[str, ...], dict[tuple[str, str], Outcome]] = {}
        self._keys: dict[torch.device, dict[str, str]] = {}
        self._told: set[tuple[Any, ...]] = set()
        self._broken: set[torch.device] = set()
        self._lock = threading.RLock()

    def usable(self, kernel: str, device: torch.device, dtype: torch.dtype) -> bool:
        """As the function of this name."""
        if _library.backend() == "reference":
            return False
        device = launch.with_index(device)
        answer = self._answers.get((kernel, device, dtype))
        if answer is not None:
            return answer
        with self._lock:
            outcome = self._find(kernel, device, dtype) if self._exists(device) else None
        if outcome is None:
            logger.debug("%s is not checked while a graph is made; %s", kernel, _instead(kernel))
            return False
        return outcome.passed

    def check(self, device: torch.device, dtypes: Sequence[torch.dtype] = DTYPES, again: bool = False) -> Report:
        """As :func:`check_device`."""
        device = launch.with_index(device)
        if _library.backend() == "reference":
            return Report(device, {}, ())
        with self._lock:
            if not self._exists(device):
                return Report(device, {}, ())
            if again and not recording():
                self._forget(device)
            wanted = [(kernel, dtype) for dtype in dtypes for kernel in self.kernels(device, dtype)]
            found = [self._find(kernel, device, dtype) for kernel, dtype in wanted]
            return Report(device, self._key(device), tuple(outcome for outcome in found if outcome is not None))

    def kernels(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        """As :func:`kernels_of`."""
        found = list(KERNELS)
        if cuda_library.unusable_reason() is not None:
            return found
        if cuda_library.unusable_reason(self._key(launch.with_index(device))["capability"]) is None:
            found += [kernel for kernel, dtypes in CUDA_KERNELS.items() if dtype in dtypes]
        return found

    def _exists(self, device: torch.device) -> bool:
        """Not so of a device that is only thought of while a graph is made, as by FakeTensorMode."""
        return device in self._keys or not recording() or torch.cuda.is_available()

    def _find(self, kernel: str, device: torch.device, dtype: torch.dtype) -> Outcome | None:
        """What is known, or found now; None while a graph is made. Tells the user once what is switched off."""
        known, name = self._known(device), (kernel, name_of(dtype))
        outcome = known.get(name)
        if outcome is None:
            if recording():
                return None
            outcome = known[name] = self._check(kernel, device, dtype)
            self._save(device)
        self._tell(outcome, device)
        self._answers[kernel, device, dtype] = outcome.passed
        return outcome

    def _check(self, kernel: str, device: torch.device, dtype: torch.dtype) -> Outcome:
        missing, name = triton_version()[1], name_of(dtype)
        if missing is not None:
            return Outcome(kernel, name, False, reason=f"Triton cannot be imported: {missing}")
        if device in self._broken:
            return Outcome(kernel, name, False, reason="a kernel before it has left the device in an error")
        if torch.cuda.is_initialized():
            torch.cuda.synchronize(device)  # an error that is not ours is raised here, and not blamed on a kernel
        from mnv3_fast.testing.on_device import first_use_outcome  # cases and tolerance rule, which tests share

        try:
            with choice.only(kernel):
                return first_use_outcome(kernel, dtype, lambda op, args: self._run(op, args, device))
        except Exception as error:
            if isinstance(error, torch.AcceleratorError):
                self._broken.add(device)
            return Outcome(kernel, name, False, reason=outcomes.one_line(error))

    def _tell(self, outcome: Outcome, device: torch.device) -> None:
        """One warning for a kernel, dtype and device; for all dtypes where they have the reason in common."""
        if outcome.passed:
            return
        common = outcome.reason is not None and outcome.reason.startswith("Triton cannot be imported")
        where = (outcome.kernel, device) if common else (outcome.kernel, device, outcome.dtype)
        if where in self._told:
            return
        self._told.add(where)
        logger.warning(
            "%s is switched off on %s (%s), %s instead: %s",
            outcome.kernel if common else f"{outcome.kernel} in {outcome.dtype}",
            self._key(device)["device"],
            device,
            _instead("" if common else outcome.kernel),
            outcome.reason,
        )

    def _key(self, device: torch.device) -> dict[str, str]:
        if device not in self._keys:
            self._keys[device] = key_of(*self._describe(device))
        return self._keys[device]

    def _known(self, device: torch.device) -> dict[tuple[str, str], Outcome]:
        """Outcomes by kernel and dtype, of all devices of one kind; read from the file when first asked for."""
        key = self._key(device)
        whole = tuple(key.values())
        if whole not in self._outcomes:
            found: list[Outcome] = []
            if self._is_kept(key):
                found = outcomes.read(self._path(key), key, (*KERNELS, *CUDA_KERNELS), tuple(map(name_of, DTYPES)))
            self._outcomes[whole] = {(outcome.kernel, outcome.dtype): outcome for outcome in found}
        return self._outcomes[whole]

    def _save(self, device: torch.device) -> None:
        key = self._key(device)
        if self._is_kept(key):
            lasting = [outcome for outcome in self._known(device).values() if _lasts(outcome)]
            if not outcomes.write(self._path(key), key, lasting):
                self._folder = None  # one warning is enough

    def _is_kept(self, key: dict[str, str]) -> bool:
        return self._folder is not None and keyed_file.is_lasting(key)

    def _path(self, key: dict[str, str]) -> Path:
        assert self._folder is not None
        return outcomes.path_of(self._folder, key)

    def _forget(self, device: torch.device) -> None:
        self._outcomes[tuple(self._key(device).values())] = {}
        self._answers.clear()
        self._told = {where for where in self._told if device not in where}


@functools.cache
def checker() -> Checker:
    """The one that the library asks."""
    return Checker(folder=keyed_file.cache_folder())


def kernels_of(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The kernels there are for a device and dtype, of :data:`KERNELS` and :data:`CUDA_KERNELS`."""
    return checker().kernels(device, dtype)


def usable(kernel: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a kernel may run on a device in a dtype; checked now if that is not known yet.

    Never with ``MNV3_FAST_BACKEND=reference``. While CUDA captures a graph or torch traces one nothing is checked: what
    is not known yet is then not usable, for this call.

    Args:
        kernel: one of :data:`KERNELS` or :data:`CUDA_KERNELS`.
        device: a CUDA device (ROCm's are called so, too).
        dtype: of the arithmetic, one of :data:`DTYPES`.
    """
    return checker().usable(kernel, device, dtype)


def check_device(device: torch.device, dtypes: Sequence[torch.dtype] = DTYPES, again: bool = False) -> Report:
    """Check all kernels on a device that are not known yet, some seconds each, most of them spent compiling.

    Args:
        device: a CUDA device.
        dtypes: of :data:`DTYPES`.
        again: forget what is known of this kind of device, in the file too.

    Returns:
        An outcome for each kernel and dtype; none with ``MNV3_FAST_BACKEND=reference``, and while a graph is made only
        those that were known.
    """
    return checker().check(device, dtypes, again)


def recording() -> bool:
    """Whether CUDA captures a graph here, or torch traces one: nothing must be run on the side."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if _python_dispatch._get_current_dispatch_mode() is not None:  # FakeTensorMode, make_fx
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


@functools.cache
def triton_version() -> tuple[str, str | None]:
    """Triton's version, and why it cannot be imported; None if it can."""
    try:
        import triton
    except Exception as error:  # an installation may be broken in any way
        return "", outcomes.one_line(error)
    return triton.__version__, None


@functools.cache
def _sources() -> str:
    try:
        return outcomes.sources_hash()
    except OSError:  # an installation without sources: nothing is kept
        return ""


def _instead(kernel: str) -> str:
    return "Triton's kernels run" if kernel in CUDA_KERNELS else "torch's own operators run"


def _lasts(outcome: Outcome) -> bool:
    """Whether the next process would find the same: not where memory did not suffice, or another kernel is to blame."""
    passing = ("OutOfMemoryError", "Triton cannot be imported", "a kernel before it")
    return outcome.passed or not (outcome.reason or "").startswith(passing)
