"""``python tests/run_from.py FOLDER [pytest arguments]``: the tests against the package in FOLDER, not the one here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

folder = Path(sys.argv[1]).resolve()
sys.path.insert(0, str(folder))

import mnv3_fast  # noqa: E402

if Path(mnv3_fast.__file__).resolve().parent.parent != folder:
    sys.exit(f"mnv3_fast comes from {mnv3_fast.__file__}, not from {folder}")
sys.exit(pytest.main(sys.argv[2:]))
