import pytest

from hf_kfc.errors import DataError
from hf_kfc.ranking.checks import check_examples

GOOD = {
    "id": "a",
    "mention": "m",
    "candidate_ids": ["A", "B"],
    "candidate_names": ["a", "b"],
    "label": 1,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mention": " "}, "example 'a': the mention is empty; remove it or correct its span"),
        ({"label": 2}, "example 'a': gold absent from candidates: label 2 of 2; put the gold in"),
        ({"label": -1}, "example 'a': gold absent from candidates: label -1 of 2; put the gold in"),
        (
            {"candidate_names": ["a"]},
            "example 'a': 2 candidate ids but 1 names; give each candidate both",
        ),
        (
            {"candidate_ids": ["A"], "candidate_names": ["a"], "label": 0},
            "example 'a': 1 candidate(s); ranking needs at least 2",
        ),
        (
            {"candidate_ids": ["A", "A"]},
            "example 'a': a candidate comes twice; make the candidates distinct",
        ),
    ],
)
def test_check_examples_names_the_example(change, message):
    assert check_examples([GOOD]) == 1
    with pytest.raises(DataError) as raised:
        check_examples([{**GOOD, "id": "other"}, GOOD | change])
    assert str(raised.value) == message


def test_check_examples_refuses_repeated_ids_and_no_examples():
    with pytest.raises(DataError, match=r"^example 'a': its id comes twice; make ids unique$"):
        check_examples([GOOD, GOOD])
    with pytest.raises(DataError, match=r"^the split has no example"):
        check_examples([])
