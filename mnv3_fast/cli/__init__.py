"""The command line, one file a verb."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer

import mnv3_fast
from mnv3_fast.cli import bench, convert, demo, explain, info, predict, test, train, tune, verify
from mnv3_fast.cli.common import INTERRUPTED, errors, fail
from mnv3_fast.data.loading import WorkerDied
from mnv3_fast.data.processes import ProcessesLost

_OUT_OF_MEMORY = ("can't allocate memory", "Storage size calculation overflowed")


def guarded(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that ends with status 130 on Ctrl-C, and without a traceback where memory or another process is gone."""

    @functools.wraps(verb)
    def run(*args: Any, **keywords: Any) -> None:
        try:
            verb(*args, **keywords)
        except KeyboardInterrupt:
            errors.print("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (WorkerDied, ProcessesLost) as error:
            fail(str(error))
        except (MemoryError, torch.OutOfMemoryError):
            fail("there is not enough memory for this")
        except RuntimeError as error:
            if not any(words in str(error) for words in _OUT_OF_MEMORY):
                raise
            fail("there is not enough memory for this")

    return run


app = typer.Typer(
    name="mnv3-fast",
    help="MobileNetV3 at hardware speed, checked for equality and speed against torchvision.",
    epilog=(
        "Status: 0 fine, 1 a result is not as it should be, 2 bad arguments or input, 3 output could not be written, "
        "130 after Ctrl-C."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _verb in (info, predict, test, train, convert, explain, verify, bench, tune, demo):
    _name = _verb.__name__.rpartition(".")[2]
    app.command(_name, epilog=_verb.EPILOG)(guarded(getattr(_verb, _name)))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(mnv3_fast.__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the ``mnv3-fast`` script."""
    for stream in (sys.stdout, sys.stderr):  # names of files that are no UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdout else "backslashreplace")
    try:
        app()
    except SystemExit as end:
        _give_up_stdout()
        raise end from None


def _give_up_stdout() -> None:
    """What could not be written to stdout must not be tried again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
