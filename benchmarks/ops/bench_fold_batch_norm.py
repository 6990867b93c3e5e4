"""fold_batch_norm on the widest 1x1 convolution of each network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mnv3_fast.testing.cases import Case, fold
from mnv3_fast.testing.compare import as_list, prepared, reference_of
from mnv3_fast.testing.layers import double
from mnv3_fast.testing.rivals import op_rivals
from mnv3_fast.testing.tolerance import relative_error


@pytest.mark.parametrize(("outputs", "inputs"), [(960, 160), (576, 96)])
@pytest.mark.parametrize("rival", ["eager", "mnv3_fast"])
def bench_fold_batch_norm(compete: Callable[..., None], outputs: int, inputs: int, rival: str) -> None:
    case = Case("fold_batch_norm", f"{inputs}-{outputs}", fold(outputs, inputs, 1, 1))
    exact = as_list(reference_of("fold_batch_norm")(*double(prepared(case))))[0]

    def check(which: str, output: Any) -> float:
        error = relative_error(as_list(output)[0], exact)
        assert error <= 1e-7, which
        return error

    compete(
        f"fold_batch_norm/{case.name}",
        rival,
        lambda: op_rivals(case),
        check,
        "mnv3_fast",
        outputs * inputs,
        8 * outputs * inputs,
    )
