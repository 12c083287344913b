import gc
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
from recipe_runs import SMALL_CNN, TINY, Recipes

torch.set_num_threads(1)  # tiny tensors only: threads cost more than they gain


@pytest.fixture(scope="package", autouse=True)
def quick_collections() -> Iterator[None]:
    """Every training ends with a garbage collection; the imported libraries need none."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Recipes:
    """Starts recipes; examples are built anew for every test session."""
    datasets.disable_progress_bars()
    return Recipes(tmp_path_factory.mktemp("examples"), tmp_path_factory.mktemp("temporary"))


@pytest.fixture(scope="session")
def tier1(recipes: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``accelerate launch recipes/tier1.py`` leaves."""
    directory = tmp_path_factory.mktemp("launched") / "runs" / "tier1"
    result = recipes.launch("tier1", *TINY, *SMALL_CNN, "--output_dir", directory)
    assert result.status == 0, result.err
    assert f"saved in {directory}" in result.out
    return directory
