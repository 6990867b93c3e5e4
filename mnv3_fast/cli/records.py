"""Where ``predict`` writes: text, JSON lines or CSV, to the terminal or to a file that can be gone on with."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any

from mnv3_fast.cli.common import fail, writing
from mnv3_fast.prediction import Prediction
from mnv3_fast.whole_files import replacing

RECORD = {"path", "predictions", "warnings", "error"}
ENCODE_ERRORS = "surrogateescape"  # names of files that are no UTF-8 stay what they are
COLUMNS = ("path", "rank", "label", "class", "score", "error")


class Records:
    """Writes predictions; ``done`` are the paths that the file already has.

    Every record is flushed as it is complete, so that what stands in the file is whole whenever the run ends; at most
    its last record is cut, and is written again. Records of files that could not be read are tried again.
    """

    def __init__(
        self, path: Path | None, style: str, top: int, resume: bool, overwrite: bool, inputs: Iterable[str] = ()
    ) -> None:
        self.style, self.top, self.path, self.inputs = style, top, path, set(inputs)
        self.done: set[str] = set()
        self._file: FileIO | None = None
        head = csv_line(COLUMNS) if style == "csv" else ""
        if path is None:
            self._put(head)
            return
        if path.is_dir():
            fail(f"--output {path} is a folder, a file is wanted")
        if path.exists() and not resume and not overwrite:
            fail(f"--output {path} exists: --resume goes on with it, --overwrite begins anew")
        if path.exists() and any(os.path.exists(name) and os.path.samefile(path, name) for name in self.inputs):
            fail(f"--output {path} is one of the images")
        if path.exists() and resume:
            if not path.is_file():
                fail(f"--output {path} is no file that --resume can go on with")
            head = self._kept(path) or head
            with writing(path):
                self._replace(Path(os.path.realpath(path)), head)
                self._file = path.open("ab", buffering=0)
            return
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)  # what cannot be written must not wait in a buffer
        self._put(head)

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        """Whatever happens, the old file or the new one is there."""
        with replacing(path) as beside:
            beside.write_bytes(text.encode("utf-8", ENCODE_ERRORS))
            shutil.copymode(path, beside)

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
            text = path.read_bytes().decode("utf-8", ENCODE_ERRORS)
        whole = text[: text.rfind("\n") + 1]
        try:
            if text and not text.startswith("path,rank" if self.style == "csv" else '{"path": '):
                raise ValueError("none of ours")
            return self._kept_csv(whole) if self.style == "csv" else self._kept_json(whole)
        except (ValueError, KeyError, TypeError, RecursionError, csv.Error):
            fail(f"--output {path} is no {self.style.upper()} output of predict, --resume cannot go on with it")
        return ""

    def _kept_json(self, text: str) -> str:
        kept = []
        for line in text.split("\n")[:-1]:
            record = json.loads(line)
            if set(record) != RECORD:
                raise ValueError("other records")
            if record["error"] is None and record["predictions"]:
                self.done.add(record["path"])
            elif record["path"] in self.inputs:
                continue  # tried again
            kept.append(line + "\n")
        return "".join(kept)

    def _kept_csv(self, text: str) -> str:
        csv.field_size_limit(sys.maxsize)
        rows = list(csv.reader(io.StringIO(text, newline="")))
        if not rows:
            return ""
        if tuple(rows[0]) != COLUMNS:
            raise ValueError("other columns")
        if any(len(row) != len(COLUMNS) for row in rows[1:-1]):
            raise ValueError("rows of other lengths")
        by_path: dict[str, list[list[str]]] = {}
        for row in rows[1:]:
            if len(row) == len(COLUMNS):  # else the last one, cut inside of a name with a line break
                by_path.setdefault(row[0], []).append(row)
        whole = {path: found for path, found in by_path.items() if len(found) == self.top and not found[0][5]}
        self.done.update(whole)
        whole |= {path: found for path, found in by_path.items() if found[0][5] and path not in self.inputs}
        return csv_line(COLUMNS) + "".join(csv_line(row) for found in whole.values() for row in found)


def record_of(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON has it."""
    return {
        "path": prediction.path,
        "predictions": [{"label": g.label, "class": g.name, "score": g.score} for g in prediction.guesses],
        "warnings": prediction.warnings,
        "error": prediction.error,
    }


def json_line(prediction: Prediction) -> str:
    """A prediction as a line of JSON."""
    return json.dumps(record_of(prediction)) + "\n"


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
    # Before Python 3.13 the writer leaves a carriage return unquoted, and a reader takes it for the end of the row.
    quoting = csv.QUOTE_ALL if any("\r" in str(value) for value in values) else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\n", quoting=quoting).writerow(values)
    return text.getvalue()
