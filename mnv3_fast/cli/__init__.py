"""The command line, one file a verb."""

from __future__ import annotations

from typing import Annotated

import typer

import mnv3_fast
from mnv3_fast.cli import bench, demo, info, verify

app = typer.Typer(
    name="mnv3-fast",
    help="MobileNetV3 at hardware speed, checked for equality and speed against torchvision.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("info")(info.info)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("demo")(demo.demo)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(mnv3_fast.__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the ``mnv3-fast`` script."""
    app()


if __name__ == "__main__":
    main()
