"""The command line, one file a verb."""

from __future__ import annotations

import typer

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


def main() -> None:
    """Entry point of the ``mnv3-fast`` script."""
    app()


if __name__ == "__main__":
    main()
