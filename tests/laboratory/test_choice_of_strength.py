import pytest

from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking import Outcome
from laboratory.points import choose_strength

PLAIN = Outcome("none", [], None, 0.5, 0.70)


def kfc(strength: float, old: float | None, new: float) -> Outcome:
    return Outcome("kfc", [strength], 0.1, old, new)


def test_chosen_is_the_highest_old_accuracy_among_those_that_keep_the_new_task():
    candidates = [kfc(1, 0.5, 0.70), kfc(10, 0.6, 0.695), kfc(100, 0.9, 0.68)]
    assert choose_strength(candidates, PLAIN) is candidates[1]


def test_a_point_of_the_new_task_is_not_too_much():
    candidates = [kfc(1, 0.5, 0.70), kfc(10, 0.9, 0.6901), kfc(100, 1.0, 0.6899)]
    assert choose_strength(candidates, PLAIN) is candidates[1]


def test_of_equal_old_accuracies_the_smaller_strength_is_chosen():
    candidates = [kfc(10, 0.6, 0.72), kfc(1, 0.6, 0.7), kfc(3, 0.6, 0.71), kfc(0.5, 0.5, 0.8)]
    assert choose_strength(candidates, PLAIN) is candidates[1]


def test_if_none_keeps_the_new_task_the_one_that_loses_least_is_chosen():
    candidates = [kfc(1, 0.5, 0.60), kfc(10, 0.6, 0.65), kfc(100, 0.9, 0.3)]
    assert choose_strength(candidates, PLAIN) is candidates[1]
    tie = [kfc(10, 0.9, 0.6), kfc(1, 0.5, 0.6)]
    assert choose_strength(tie, PLAIN) is tie[1]


def test_an_old_task_that_was_not_measured_counts_as_forgotten():
    candidates = [kfc(1, None, 0.7), kfc(10, 0.1, 0.7)]
    assert choose_strength(candidates, PLAIN) is candidates[1]


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(ConsolidationError, match="no strength to choose from"):
        choose_strength([], PLAIN)
