"""Where ``predict`` writes: text, JSON lines or CSV, to the terminal or to a file that can be gone on with."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from io import FileIO
from pathlib import Path

from mnv3_fast.cli.common import fail, writing
from mnv3_fast.prediction import Prediction

ENCODE_ERRORS = "surrogateescape"  # names of files that are no UTF-8 stay what they are
COLUMNS = ("path", "rank", "label", "class", "score", "error")


class Records:
    """Writes predictions; ``done`` are the paths that the file already has.

    Every record is flushed as it is complete, so that what stands in the file is whole whenever the run ends; at most
    its last record is cut, and is written again. Records of files that could not be read are tried again.
    """

    def __init__(self, path: Path | None, style: str, top: int, resume: bool, overwrite: bool) -> None:
        self.style, self.top, self.path = style, top, path
        self.done: set[str] = set()
        self._file: FileIO | None = None
        if path is None:
            if style == "csv":
                self._put(csv_line(COLUMNS))
            return
        if path.is_dir():
            fail(f"--output {path} is a folder, a file is wanted")
        if path.exists() and not resume and not overwrite:
            fail(f"--output {path} exists: --resume goes on with it, --overwrite begins anew")
        head = csv_line(COLUMNS) if style == "csv" else ""
        if path.exists() and resume:
            head = self._kept(path) or head
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() or not path.exists():  # whatever happens, the old file or the new one is there
                beside = path.with_name(f".{path.name}.part")
                beside.write_text(head, encoding="utf-8", errors=ENCODE_ERRORS)
                os.replace(beside, path)
            self._file = path.open("ab", buffering=0)  # what cannot be written must not wait in a buffer

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, prediction: Prediction) -> None:
        """One prediction, flushed."""
        if self.style == "json":
            self._put(json_line(prediction))
        elif self.style == "csv":
            self._put(csv_lines(prediction))
        elif prediction.error is None:
            guesses = "  ".join(f"{guess.name} {guess.score:.1%}" for guess in prediction.guesses)
            self._put(f"{prediction.path}\t{guesses}\n")

    def _put(self, text: str) -> None:
        if self._file is None:
            with writing("the output"):
                sys.stdout.write(text)
                sys.stdout.flush()
            return
        with writing(self.path):
            rest = memoryview(text.encode("utf-8", ENCODE_ERRORS))
            while rest:
                rest = rest[self._file.write(rest) :]

    def _kept(self, path: Path) -> str:
        """The whole records of good files in an output; ``done`` gets their paths."""
        with writing(path):
            text = path.read_text(encoding="utf-8", errors=ENCODE_ERRORS)
        whole = text[: text.rfind("\n") + 1]
        try:
            if not whole and not _could_begin(text, csv_line(COLUMNS) if self.style == "csv" else '{"path": '):
                raise ValueError("its first record is cut, and none of ours")
            return self._kept_csv(whole) if self.style == "csv" else self._kept_json(whole)
        except (ValueError, KeyError, TypeError, csv.Error):
            fail(f"--output {path} is no {self.style.upper()} output of predict, --resume cannot go on with it")
        return ""

    def _kept_json(self, text: str) -> str:
        kept = []
        for line in text.splitlines():
            record = json.loads(line)
            if record["error"] is None and record["predictions"]:
                self.done.add(record["path"])
                kept.append(line + "\n")
        return "".join(kept)

    def _kept_csv(self, text: str) -> str:
        rows = list(csv.reader(io.StringIO(text)))
        if not rows:
            return ""
        if tuple(rows[0]) != COLUMNS:
            raise ValueError("other columns")
        by_path: dict[str, list[list[str]]] = {}
        for row in rows[1:]:
            by_path.setdefault(row[0], []).append(row)
        whole = {path: found for path, found in by_path.items() if len(found) == self.top and not found[0][5]}
        self.done.update(whole)
        return csv_line(COLUMNS) + "".join(csv_line(row) for found in whole.values() for row in found)


def _could_begin(text: str, start: str) -> bool:
    return text.startswith(start) or start.startswith(text)


def json_line(prediction: Prediction) -> str:
    """A prediction as a line of JSON."""
    record = {
        "path": prediction.path,
        "predictions": [{"label": g.label, "class": g.name, "score": g.score} for g in prediction.guesses],
        "warnings": prediction.warnings,
        "error": prediction.error,
    }
    return json.dumps(record) + "\n"


def csv_lines(prediction: Prediction) -> str:
    """A prediction as rows of CSV: one a class, or one with the error."""
    if prediction.error is not None:
        return csv_line((prediction.path, "", "", "", "", prediction.error))
    return "".join(
        csv_line((prediction.path, rank, guess.label, guess.name, f"{guess.score:.6f}", ""))
        for rank, guess in enumerate(prediction.guesses, 1)
    )


def csv_line(values: tuple | list) -> str:
    """One row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
