"""Blocks are assigned evenly, and the same on every process."""

from __future__ import annotations

import pytest

from hf_kfc.training.processes import assign


@pytest.mark.parametrize(
    ("costs", "processes", "owners"),
    [
        ([5, 1, 4], 1, [0, 0, 0]),
        ([1, 5, 4, 2], 2, [0, 0, 1, 1]),
        ([3, 3, 3], 2, [0, 1, 0]),
        ([7], 3, [0]),
        ([], 2, []),
    ],
)
def test_the_dearest_first_to_the_least_busy(
    costs: list[int], processes: int, owners: list[int]
) -> None:
    assert assign(costs, processes) == owners


def test_loads_of_a_bert_differ_little() -> None:
    layer = [384 * 384 * 769] * 4 + [1536 * 385 * 1921, 384 * 1537 * 1921]
    costs = [30522 * 384 * 384, *layer * 3]
    owners = assign(costs, 2)
    loads = [sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in (0, 1)]
    assert max(loads) < 1.05 * sum(costs) / 2
