import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi
from sklearn.feature_extraction.text import TfidfVectorizer

from hf_kfc.errors import DataError
from hf_kfc.ranking.retrieval import Bm25Retriever, TfidfRetriever
from hf_kfc.ranking.schema import Concept


def named(*names: str) -> list[Concept]:
    return [Concept(f"C{index}", name) for index, name in enumerate(names)]


def ids(hits) -> list[str]:
    return [hit.concept.id for hit in hits]


def test_scores_are_those_of_rank_bm25():
    names = [
        "acute renal failure",
        "renal cell carcinoma",
        "heart failure",
        "cough",
        "acute cough",
        "failure to thrive",
        "pain of heart",
    ]
    retriever = Bm25Retriever(named(*names))
    reference = BM25Okapi([name.split() for name in names]).get_scores(["acute", "failure"])

    hits = retriever.search("Acute FAILURE", 5)

    assert reference.min() == 0.0
    expected = np.sort(reference)[::-1][:5]
    np.testing.assert_allclose([hit.score for hit in hits], expected, rtol=1e-12)
    assert ids(hits)[0] == "C0"


def test_a_concept_scores_as_its_best_name_and_comes_once():
    retriever = Bm25Retriever(
        [
            Concept("flu", "influenza", ("grippe", "flu infection", "the flu")),
            Concept("cold", "common cold", ("flu like nose infection",)),
            Concept("leg", "broken leg"),
            Concept("arm", "broken arm"),
        ]
    )
    hits = retriever.search("flu infection", 2)
    assert ids(hits) == ["flu", "cold"]
    alone = Bm25Retriever([Concept("flu", "influenza", ("Grippe", "grippe", "GRIPPE!"))])
    assert alone.num_names == 2


@pytest.mark.parametrize("names", [("knee pain", "pain knee"), ("pain knee", "knee pain")])
def test_ties_keep_the_order_of_the_ontology(names):
    retriever = Bm25Retriever(named(*names, "cough", "fever", "rash"))
    hits = retriever.search("knee pain", 2)
    assert hits[0].score == hits[1].score
    assert ids(hits) == ["C0", "C1"]


@pytest.mark.parametrize("names", [["pain"], ["pain", "fever"], ["knee pain", "pain", "pain leg"]])
def test_in_a_tiny_ontology_a_match_scores_above_a_non_match(names):
    """Okapi's own idf of "pain" is zero or negative in each of these."""
    own = BM25Okapi([name.split() for name in names])
    assert own.idf["pain"] <= own.average_idf * own.epsilon or own.idf["pain"] <= 0
    hits = Bm25Retriever(named(*names)).search("pain", len(names))
    for hit in hits:
        assert (hit.score > 0) == ("pain" in hit.concept.name)
    assert [hit.score > 0 for hit in hits] == sorted((hit.score > 0 for hit in hits), reverse=True)


def test_a_second_matching_word_never_lowers_a_score():
    hits = Bm25Retriever(named("pain", "leg pain")).search("leg pain", 2)
    assert ids(hits)[0] == "C1"


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text("ab -", max_size=6).filter(lambda name: name.strip(" -")), min_size=1),
    st.text("abc -", max_size=8),
    st.integers(1, 12),
)
def test_k_distinct_candidates_whenever_the_ontology_has_them(names, query, k):
    hits = Bm25Retriever(named(*names)).search(query, k)
    assert len(set(ids(hits))) == len(hits) == min(k, len(names))
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_filling_depends_on_the_query_alone():
    ontology = named(*(f"name{index}" for index in range(200)))
    filled = ids(Bm25Retriever(ontology).search("no match", 10))
    assert filled == ids(Bm25Retriever(ontology).search("No-Match", 10))
    assert filled != ids(Bm25Retriever(ontology).search("other words", 10))
    # Seeded by the text and not by `hash`, which differs from process to process.
    assert filled[:3] == ["C136", "C165", "C9"]


def test_errors():
    with pytest.raises(DataError, match=r"^the ontology is empty; give it at least one concept$"):
        Bm25Retriever([])
    with pytest.raises(DataError, match=r"^concept 'A' is in the ontology twice; merge"):
        Bm25Retriever([Concept("A", "a"), Concept("A", "b")])
    with pytest.raises(DataError, match=r"^no name of the ontology's 1 concept\(s\) has a letter"):
        Bm25Retriever([Concept("A", "--")])


def test_tfidf_scores_are_the_cosines_of_trigram_vectors():
    names = ("renal failure", "renal stones", "cough")
    hits = TfidfRetriever(named(*names)).search("Renal Failures", 3)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3)).fit(names)
    expected = (vectorizer.transform(["renal failures"]) @ vectorizer.transform(names).T).toarray()
    assert [hit.concept.name for hit in hits[:2]] == ["renal failure", "renal stones"]
    assert [hit.score for hit in hits[:2]] == pytest.approx(expected[0, :2], abs=1e-8)
    assert hits[2].score == 0.0


def test_tfidf_finds_a_misspelt_name_by_a_synonym():
    ontology = [Concept("A", "varicella", ("chickenpox",)), Concept("B", "measles")]
    assert TfidfRetriever(ontology).search("chikenpox", 1)[0].concept.id == "A"


def test_tfidf_breaks_ties_in_the_ontologys_order():
    ontology = [Concept(str(i), "pain") for i in range(6)]
    assert ids(TfidfRetriever(ontology).search("pain", 4)) == ["0", "1", "2", "3"]


def test_tfidf_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(DataError, match=r"pip install hf_kfc\[corpora\]"):
        TfidfRetriever(named("pain"))
