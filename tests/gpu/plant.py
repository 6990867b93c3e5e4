"""Faults that a check has to find: damaged PTX, and a size that is one too large."""

from __future__ import annotations

import re
from collections.abc import Callable

_FRAGMENT = re.compile(r"(mma\.sync\.\S+\s*\{[^}]*\},\s*)\{([^}]*)\}")
_WAIT = re.compile(r"cp\.async\.wait_(group\s+\S+|all);")


class NothingToDamage(Exception):
    """A kernel has nothing of the kind that a fault damages."""


def barrier(text: str) -> str:
    """Without its barriers."""
    return _changed("barrier", text, re.sub(r"bar\.sync\s+0;", "", text))


def wait(text: str) -> str:
    """Without its waits for asynchronous copies."""
    return _changed("wait for a copy", text, _WAIT.sub("", text))


def mma(text: str) -> str:
    """With two registers of the left fragment of each matrix product swapped."""

    def swap(match: re.Match) -> str:
        registers = match.group(2).split(",")
        registers[1], registers[-2] = registers[-2], registers[1]
        if len(registers) == 2:
            registers.reverse()
        return f"{match.group(1)}{{{','.join(registers)}}}"

    return _changed("matrix product", text, _FRAGMENT.sub(swap, text))


def unknown(text: str) -> str:
    """With an opcode that does not exist in place of the last store."""
    head, _, tail = text.rpartition("st.global")
    return _changed("store", text, f"{head}st.elsewhere{tail}")


def _changed(what: str, before: str, after: str) -> str:
    if before == after:
        raise NothingToDamage(f"the compiled kernel has no {what}")
    return after


PTX: dict[str, Callable[[str], str]] = {"barrier": barrier, "wait": wait, "mma": mma, "unknown": unknown}
