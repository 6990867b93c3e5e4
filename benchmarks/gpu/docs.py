"""``python -m benchmarks.gpu.docs``: writes the generated tables of docs/gpu.md and docs/models.md anew.

A block stands between ``<!-- generated: python -m MODULE OPTIONS -->`` and ``<!-- end -->``, and is what that command
prints. ``python -m benchmarks.gpu.docs WORD`` writes only the blocks whose command has the word in it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"
FILE = DOCS / "gpu.md"
MODELS = DOCS / "models.md"
BLOCK = re.compile(r"(<!-- generated: (python -m [^>]+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def blocks(text: str) -> dict[str, str]:
    """The generated blocks of a text, by command."""
    return {found.group(2): found.group(3) for found in BLOCK.finditer(text)}


def printed(command: str) -> str:
    """What a command prints, run in this process, with empty lines around it."""
    module, *options = command.removeprefix("python -m ").split()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        importlib.import_module(module).main(options)
    return f"\n{output.getvalue().strip()}\n\n"


def renewed(text: str, word: str = "") -> str:
    """A text with its blocks written anew."""
    return BLOCK.sub(
        lambda found: found.group(1) + printed(found.group(2)) + found.group(4) if word in found.group(2) else found[0],
        text,
    )


def main(arguments: list[str]) -> None:
    """Write the files."""
    for file in (FILE, MODELS):
        file.write_text(renewed(file.read_text(encoding="utf-8"), *arguments[:1]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
