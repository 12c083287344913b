from pathlib import Path

import pytest
from tiny.priors import prior


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved prior."""
    prior().save_pretrained(tmp_path / "prior")
    return tmp_path / "prior"
