"""The whole gradient right before the optimizer step equals a dense reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from consolidation_worker import CASES
from launching import launch_two
from tiny.cases import TRAINS_SHARDED, Case, check_run, run

NEEDS_SHARDED_TRAINING = pytest.mark.skipif(
    not TRAINS_SHARDED,
    reason=f"the Trainer of transformers {transformers.__version__} wraps a sharded model in DDP",
)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return launch_two("training/consolidation_worker", tmp_path_factory.mktemp("two_processes"))


def test_every_case_has_its_own_result() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=NEEDS_SHARDED_TRAINING if case.sharded else ()) for case in CASES],
    ids=str,
)
def test_two_processes(case: Case, two_processes: dict[str, list[Any]]) -> None:
    ranks = two_processes[str(case)]
    assert len(ranks) == 2
    for rank in ranks:
        assert not isinstance(rank, str), rank
        assert rank["world_size"] == 2
        assert all(rank["sharded"]) if case.sharded else not any(rank["sharded"])
        assert case.sharded or rank["wrapper"] == "DistributedDataParallel"
    check_run(case, ranks)
    owned = [rank["own_blocks"][0] for rank in ranks]
    blocks = ranks[0]["own_blocks"][1]
    assert sum(owned) == blocks and min(owned) > 0


@pytest.mark.parametrize("model", ["bert", "cnn"])
@pytest.mark.parametrize(("accumulation", "batch_size"), [(1, 1), (1, 4), (4, 1), (4, 3)])
def test_one_process(model: str, accumulation: int, batch_size: int, tmp_path: Path) -> None:
    case = Case(model, accumulation=accumulation, batch_size=batch_size)
    check_run(case, [run(case, tmp_path)])


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("change", [("penalty_every", 2), ("max_grad_norm", 0.1)], ids=str)
def test_one_process_with(change: tuple[str, Any], accumulation: int, tmp_path: Path) -> None:
    case = Case("cnn", accumulation=accumulation, batch_size=1, arguments=(change,))
    check_run(case, [run(case, tmp_path)])
