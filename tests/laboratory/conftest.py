import gc
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch

torch.set_num_threads(1)  # tiny tensors only: threads cost more than they gain


@pytest.fixture(scope="package", autouse=True)
def quick_collections() -> Iterator[None]:
    """Every training ends with a garbage collection; the imported libraries need none."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def examples_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, examples_cache: Path) -> None:
    """Examples are built anew for every test session."""
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", examples_cache)
