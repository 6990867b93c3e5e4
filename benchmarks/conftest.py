"""One interleaved run a group, shared by its entries; parity before any number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mnv3_fast.testing.measure import Timing, fma_peak, interleave, machine_facts, pinned

GROUPS: dict[str, tuple[dict[str, Callable[[], Any]], dict[str, Timing], float | None]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=1.0, help="time of each interleaved run")


@pytest.fixture
def compete(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """compete(group, rival, make, check, ours, macs, bytes, threads): one entry of a group.

    ``make()`` gives the rivals of the group, ``check(name, output)`` returns a rival's error or raises. The ratio in
    ``extra_info`` comes from one interleaved run over the whole group; claims use only that.
    """

    def run(
        group: str,
        rival: str,
        make: Callable[[], dict[str, Callable[[], Any]]],
        check: Callable[[str, Any], float],
        ours: str,
        macs: int,
        bytes_moved: int,
        threads: int = 1,
    ) -> None:
        with pinned(threads), torch.inference_mode():
            if group not in GROUPS:
                GROUPS.clear()
                runs = make()
                for name, call in runs.items():
                    check(name, call())
                seconds = request.config.getoption("--seconds")
                GROUPS[group] = runs, interleave(runs, seconds, rounds=7), fma_peak()
            runs, timings, peak = GROUPS[group]
            if rival not in runs:
                pytest.skip(f"{rival} does not take part in {group}")
            timing, best = timings[rival], timings[ours]
            benchmark.group = group
            gmacs = macs / timing.median * 1e-9
            benchmark.extra_info.update(
                rival=rival,
                median_us=round(timing.median * 1e6, 2),
                spread=round(timing.spread, 4),
                ours_is_faster_by=round(best.ratio_to(timing), 3),
                macs=macs,
                bytes=bytes_moved,
                gmacs=round(gmacs, 2),
                percent_of_peak=None if peak is None else round(100 * gmacs / (peak * threads), 1),
                error=check(rival, runs[rival]()),
                **machine_facts(),
            )
            benchmark.pedantic(runs[rival], rounds=10, iterations=1, warmup_rounds=1)

    return run
