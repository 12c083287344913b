"""Texts are one where they differ in case, accents or form alone, and lose no letter otherwise."""

import re
from unicodedata import category, normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retrieval_cases import named, positions

from hf_kfc.errors import DataError
from hf_kfc.ranking.retrieval import RETRIEVERS
from hf_kfc.ranking.retrieval.base import folded

_NOT_KEPT = ("Mn", "Mc", "Me", "Cf")
HINDI, THAI, KANA = "बुखार", "ไข้หวัด", "ガン"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fiebre Tifoid\u00c9a", "fiebre tifoidea"),
        ("\uff26\uff2c\uff35 \ufb01brosis \u2122", "flu fibrosis tm"),
        ("\u0130stanbul \u0391\u0301\u03bb\u03c6\u03b1", "istanbul \u03b1\u03bb\u03c6\u03b1"),
        *((text, text) for text in (HINDI, THAI, KANA)),
        ("\ud55c\uae00", "\ud55c\uae00"),
        ("dia\u200bbe\u00adtes\ufeff \u2060mellitus", "diabetes mellitus"),
    ],
)
def test_what_is_one(text, expected):
    assert folded(text) == expected


@given(st.text(max_size=8))
def test_folding_twice_is_folding_once_and_loses_nothing_but_marks(text):
    once = folded(text)
    assert folded(once) == once
    letters = [c for c in normalize("NFKD", text) if category(c) not in _NOT_KEPT]
    assert len(letters) <= len(normalize("NFKD", once))


@pytest.mark.parametrize("kind", RETRIEVERS.values())
@pytest.mark.parametrize("word", [HINDI, THAI, KANA])
def test_a_word_of_any_script_is_searched_whole(kind, word):
    # Without its marks it would be the first name.
    bare = re.sub(r"[^\w]", "", word.replace("\u30ac", "\u30ab"))
    retriever = kind(named(bare, word, "fever"))
    hits = retriever.search([word], 3)[0]
    assert positions(hits)[0] == 1
    assert kind.normalised(word) == word


@pytest.mark.parametrize("kind", RETRIEVERS.values())
def test_one_text_in_the_place_of_a_list_is_refused(kind):
    with pytest.raises(DataError, match=r"queries is the text 'fever'; give a list, \['fever'\]"):
        kind(named("fever", "rash")).search("fever", 1)
