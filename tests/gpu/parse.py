"""PTX text as a list of instructions. Reads what Triton's compiler writes; anything else is an error that quotes it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

WIDTHS = {"pred": 1, "b16": 16, "b32": 32, "b64": 64}
"""Registers by the types that they are declared with."""


class UnknownPtx(Exception):
    """PTX that the emulator has no words for."""


@dataclass(frozen=True)
class Instruction:
    """``@predicate opcode operands``; an operand in braces is a tuple, an address a string in brackets."""

    opcode: str
    operands: tuple[str | tuple[str, ...], ...]
    predicate: str | None
    negated: bool
    line: int
    source: str

    def __str__(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.predicate} " if self.predicate else ""
        words = [f"{{{', '.join(o)}}}" if isinstance(o, tuple) else o for o in self.operands]
        place = f", {self.source}" if self.source else ""
        return f"`{guard}{self.opcode} {', '.join(words)}` (PTX line {self.line}{place})"


@dataclass
class Program:
    """One kernel."""

    name: str
    parameters: list[tuple[str, str]]
    threads: int
    registers: dict[str, int]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_HEADER = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)\s*((?:\.\w+\s+[\d, ]+\s*)*)\{", re.S)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+\.global\s+\.align\s+\d+\s+)?(\w+)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+)<(\d+)>")
_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"(?:.*/)?([^/"]+)"', re.M)
_LABEL = re.compile(r"(\$\w+):")


def parse(text: str) -> Program:
    """The only kernel of a module.

    Raises:
        UnknownPtx: for text that is none of parameters, registers, labels and instructions.
    """
    headers = list(_HEADER.finditer(text))
    if len(headers) != 1 or re.search(r"^\s*(\.visible\s+)?\.func\b", text, re.M):
        raise UnknownPtx(f"wanted one kernel and no functions, got {len(headers)} kernels")
    header = headers[0]
    threads = re.search(r"\.reqntid\s+(\d+)", header.group(3))
    if not threads or re.search(r"\.reqntid\s+\d+\s*,\s*(?!1\b)", header.group(3)):
        raise UnknownPtx(f"wanted .reqntid with one dimension, got {header.group(3).strip()!r}")
    parameters = [(name, kind) for kind, name in _PARAMETER.findall(header.group(2))]
    program = Program(header.group(1), parameters, int(threads.group(1)), {})
    end = re.search(r"^\$L__func_end\d+:|^\}", text[header.end() :], re.M)
    assert end
    files = dict(_FILE.findall(text))
    _read_body(text[header.end() : header.end() + end.start()], text.count("\n", 0, header.end()) + 1, files, program)
    return program


def _read_body(body: str, line: int, files: dict[str, str], program: Program) -> None:
    """Statements end in ``;``, labels in ``:``; directives are lines."""
    source, pending = "", ""
    for number, raw in enumerate(body.split("\n"), line):
        text = raw.split("//")[0].strip()
        if location := _LOCATION.match(text):
            source = f"{files.get(location.group(1), '?')}:{location.group(2)}"
            continue
        if registers := _REGISTERS.match(text):
            kind, stem, count = registers.groups()
            if kind not in WIDTHS:
                raise UnknownPtx(f"registers of type .{kind} (PTX line {number})")
            program.registers.update({f"{stem}{i}": WIDTHS[kind] for i in range(int(count))})
            continue
        if text.startswith(".pragma"):
            continue
        while label := _LABEL.match(text):
            program.labels[label.group(1)] = len(program.instructions)
            text = text[label.end() :].strip()
        pending = f"{pending} {text}".strip()
        *whole, pending = _statements(pending)
        for statement in whole:
            program.instructions.append(_read_statement(statement, number, source))
    if pending:
        raise UnknownPtx(f"cannot read {pending!r} at the end of the kernel")


def _statements(text: str) -> list[str]:
    """The statements of some text, and what is left after the last ``;``."""
    return [part.strip() for part in text.split(";")]


def _read_statement(text: str, line: int, source: str) -> Instruction:
    match = _STATEMENT.fullmatch(text)
    if not match:
        raise UnknownPtx(f"cannot read {text!r} (PTX line {line})")
    negated, predicate, opcode, rest = match.groups()
    return Instruction(opcode, _operands(rest), predicate, negated == "!", line, source)


def _operands(text: str) -> tuple[str | tuple[str, ...], ...]:
    found: list[str | tuple[str, ...]] = []
    for piece in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", text):
        if piece[0] == "{":
            found.append(tuple(word.strip() for word in piece[1:-1].split(",")))
        else:
            found.append("".join(piece.split()))
    return tuple(found)
