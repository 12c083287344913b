"""Where the real corpora are, for the tests that read them."""

import os
from pathlib import Path

import pytest

DATA = Path(
    os.environ.get("HF_KFC_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)

needs_data = pytest.mark.skipif(
    not (DATA / "bc5cdr").is_dir(),
    reason=f"the real corpora are not in {DATA}; set HF_KFC_DATA to their folder",
)
