"""Strengths are chosen on development splits, and tier 3 searches as the paper does."""

import pytest

from hf_kfc.errors import ConsolidationError
from laboratory.points import Choices, Point, tier3_strengths

TASKS = ("a", "b", "c")


def runs(*rows):
    """Records of (tasks, method, strengths, development accuracy of each task)."""
    return {
        Point(seed, tuple(tasks), method, strengths): {
            "validation": dict(zip(tasks, accuracies, strict=True)),
            "test": dict.fromkeys(tasks, 0.0),  # must not matter
        }
        for seed, tasks, method, strengths, accuracies in rows
    }


def test_the_highest_old_accuracy_that_keeps_the_new_task_is_chosen():
    choices = Choices(
        runs(
            (0, "ab", "none", (), (0.2, 0.500)),
            (0, "ab", "kfc", (1.0,), (0.3, 0.505)),
            (0, "ab", "kfc", (10.0,), (0.4, 0.491)),
            (0, "ab", "kfc", (100.0,), (0.5, 0.489)),  # costs more than a point
            (0, "ab", "ewc", (7.0,), (0.9, 0.600)),  # another method
            (1, "ab", "kfc", (1000.0,), (0.9, 0.600)),  # another seed
            (0, "ba", "kfc", (5.0,), (0.9, 0.600)),  # another order
        ),
        seed=0,
    )
    assert choices.chosen("ab", "kfc") == Point(0, ("a", "b"), "kfc", (10.0,))


def test_of_two_old_tasks_the_mean_counts():
    choices = Choices(
        runs(
            (0, "abc", "none", (), (0.1, 0.1, 0.5)),
            (0, "abc", "kfc", (1.0, 1.0), (0.6, 0.1, 0.5)),
            (0, "abc", "kfc", (1.0, 9.0), (0.4, 0.4, 0.5)),
        ),
        seed=0,
    )
    assert choices.chosen("abc", "kfc").strengths == (1.0, 9.0)


def test_nothing_is_chosen_of_nothing():
    choices = Choices(runs((0, "ab", "none", (), (0.1, 0.1))), seed=0)
    with pytest.raises(ConsolidationError, match="no strength to choose from"):
        choices.chosen("ab", "kfc")
    with pytest.raises(ConsolidationError, match="no run of seed 0: a > b, none to choose against"):
        Choices(runs((0, "ab", "kfc", (1.0,), (0.1, 0.1))), seed=0).chosen("ab", "kfc")


def test_tier_3_keeps_the_first_strength_and_searches_around_the_mean_of_the_second():
    plain = [(0, a + b, "none", (), (0.1, 0.1)) for a in TASKS for b in TASKS if a != b]
    chosen = {"ab": 3.0, "ba": 2.0, "bc": 8.0, "ac": 1.0, "ca": 1.0, "cb": 1.0}
    rows = [(0, tasks, "kfc", (s,), (0.1, 0.1)) for tasks, s in chosen.items()]
    tried = list(tier3_strengths(Choices(runs(*plain, *rows), 0), TASKS, ("a", "b", "c"), "kfc"))
    # After a, b: of a's prior the strength of a > b; of b's the mean of b > a and b > c.
    assert [point.tasks for point in tried] == [("a", "b", "c")] * 3
    assert [point.strengths[0] for point in tried] == [3.0] * 3
    assert [point.strengths[1] for point in tried] == pytest.approx([0.04, 4.0, 400.0])
