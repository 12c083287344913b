import logging

import pytest

from hf_kfc.errors import DataError
from hf_kfc.ranking.problems import Problems


def test_the_first_problem_is_raised_with_its_place():
    problems = Problems()
    with pytest.raises(DataError, match=r"^a\.txt:7: not UTF-8; convert the file$"):
        problems("not UTF-8", "a.txt:7", "not UTF-8; convert the file")
    assert problems.counts == {}


def test_problems_are_counted_by_reason_and_each_reason_is_logged_once(caplog):
    problems = Problems("count")
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            problems("empty", f"a.txt:{number}", f"line {number} is empty; remove it")
        problems("twice", "a.txt:9", "comes twice; remove one")
    assert problems.counts == {"empty": 3, "twice": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "a.txt:0: line 0 is empty; remove it; it and others like it are left out",
        "a.txt:9: comes twice; remove one; it and others like it are left out",
    ]


def test_another_way_is_refused():
    with pytest.raises(DataError, match=r"^on_error is 'ignore'; give 'raise' or 'count'$"):
        Problems("ignore")
