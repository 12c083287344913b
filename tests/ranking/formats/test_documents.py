import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.formats.documents import pieces_text, same_words, span_text
from hf_kfc.ranking.problems import Problems

TEXT = "no chest\n pain"


@pytest.mark.parametrize("written", [None, "chest pain", "chest  \t pain "])
def test_white_space_alone_is_no_difference(written):
    found = span_text(TEXT, ((3, 14),), "a:1", Problems(), written)
    assert found == "chest\n pain"
    assert span_text(TEXT, ((3, 8), (10, 14)), "a:1", Problems(), written) == "chest pain"


@pytest.mark.parametrize("written", ["chestpain", "chest pai", "Chest pain", ""])
def test_another_text_is_a_problem(written):
    with pytest.raises(DataError, match=r"^a:1: mention '.*' is not the text at 3 14, which is "):
        span_text(TEXT, ((3, 14),), "a:1", Problems(), written)
    problems = Problems("count")
    assert span_text(TEXT, ((3, 14),), "a:1", problems, written) is None
    assert problems.counts == {"mention differs from the text": 1}


@given(st.text(max_size=9), st.tuples(st.integers(-3, 12), st.integers(-3, 12)))
def test_a_piece_is_inside_of_the_text_or_a_problem(text, piece):
    problems = Problems("count")
    found = span_text(text, (piece,), "a:1", problems)
    if 0 <= piece[0] < piece[1] <= len(text):
        assert found == pieces_text(text, (piece,)) == text[piece[0] : piece[1]]
        assert same_words(found, f" {found}\n")
        assert not problems.counts
    else:
        assert found is None
        assert problems.counts == {"offset outside the text": 1}
