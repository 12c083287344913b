import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retrieval_cases import named, positions
from sklearn.feature_extraction.text import TfidfVectorizer

from hf_kfc.errors import DataError
from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.retrieval import TfidfRetriever
from hf_kfc.ranking.schema import Concept

TEXT = st.text("abcd é", min_size=1, max_size=12)


@given(st.lists(TEXT.filter(str.strip), min_size=1, max_size=12), TEXT, st.integers(1, 8))
def test_scores_are_the_cosines_of_trigram_vectors(names, query, k):
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3)).fit(names)
    cosines = (vectorizer.transform(names) @ vectorizer.transform([query]).T).toarray().ravel()
    hits = TfidfRetriever(named(*names)).search([query], k)[0]
    found = [hit for hit in hits if hit.score > 0]
    assert len(found) == min(k, np.count_nonzero(cosines))
    assert [hit.score for hit in found] == pytest.approx(cosines[positions(found)], abs=1e-8)
    best = np.sort(cosines)[::-1][: len(found)]
    assert [hit.score for hit in found] == pytest.approx(best, abs=1e-8)
    # Equal scores in the ontology's order.
    assert found == sorted(found, key=lambda hit: (-hit.score, hit.position))


def test_finds_a_misspelt_name_by_a_synonym():
    ontology = Ontology([Concept("A", "measles"), Concept("B", "varicella", ("chickenpox",))])
    assert positions(TfidfRetriever(ontology).search(["Chikenpox"], 1)[0]) == [1]


def test_breaks_ties_in_the_ontologys_order():
    ontology = named(*["pain"] * 6)
    assert positions(TfidfRetriever(ontology).search(["pain"], 4)[0]) == [0, 1, 2, 3]


@given(st.lists(TEXT, max_size=6))
def test_batches_are_singles(queries):
    retriever = TfidfRetriever(named("abc", "abcd bcd", "dada", "é a"))
    assert retriever.search(queries, 3) == [retriever.search([q], 3)[0] for q in queries]


def test_case_and_space_do_not_count():
    retriever = TfidfRetriever(named("Renal  Failure", "renal failure", "cough"))
    upper, spaced = retriever.search(["RENAL FAILURE", " renal\tfailure\n"], 2)
    assert upper == spaced
    assert [hit.score for hit in upper] == pytest.approx([1.0, 1.0])


def test_blank_names_are_refused():
    with pytest.raises(DataError, match=r"^no name of the ontology's 2 concept\(s\)"):
        TfidfRetriever(named(" ", "\t"))
