"""``python -m mnv3_fast.cli``."""

from mnv3_fast.cli import main

main()
