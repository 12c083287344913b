import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi
from retrieval_cases import named, positions

from hf_kfc.errors import DataError
from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.retrieval import Bm25Retriever
from hf_kfc.ranking.schema import Concept

SMALL = st.lists(st.sampled_from("abcde"), min_size=1, max_size=5)
LARGE = st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=5)
QUERY = st.lists(st.sampled_from("abcdez"), max_size=5)


def check_against(reference, documents, query, k):
    """Compare the hits with ``rank_bm25``: scores, and so the ranking up to ties."""
    expected = reference.get_scores(query).tolist()
    matching = [i for i, words in enumerate(documents) if set(words) & set(query)]
    ontology = named(*(" ".join(words) for words in documents))
    hits = Bm25Retriever(ontology).search([" ".join(query)], k)[0]

    found = [hit for hit in hits if hit.score > 0]
    assert len(found) == min(k, len(matching))
    assert {hit.position for hit in found} <= set(matching)
    assert [hit.score for hit in found] == pytest.approx(
        [expected[hit.position] for hit in found], abs=1e-6
    )
    best = sorted((expected[i] for i in matching), reverse=True)[:k]
    assert [hit.score for hit in found] == pytest.approx(best, abs=1e-6)


@given(st.lists(LARGE, min_size=1, max_size=15), QUERY, st.integers(1, 8))
def test_equals_rank_bm25(documents, query, k):
    reference = BM25Okapi(documents)
    assume(min(reference.idf.values()) >= 0)
    check_against(reference, documents, query, k)


@given(st.lists(SMALL, min_size=1, max_size=12), QUERY, st.integers(1, 8))
def test_equals_rank_bm25_but_for_the_floor_of_the_idf(documents, query, k):
    """With words in more than half of the names; below it, a match would be worth nothing."""
    reference = BM25Okapi(documents)
    reference.idf = {word: max(idf, 1e-7) for word, idf in reference.idf.items()}
    check_against(reference, documents, query, k)


def test_a_word_in_most_names_has_the_reference_s_floor():
    documents = [["pain", word] for word in "abcdefgh"] + [["cough"]]
    reference = BM25Okapi(documents)
    assert reference.idf["pain"] == reference.epsilon * reference.average_idf > 0
    check_against(reference, documents, ["pain", "a"], 9)


def test_a_concept_scores_as_its_best_name_and_comes_once():
    ontology = Ontology(
        [
            Concept("flu", "influenza", ("grippe", "flu infection", "the flu")),
            Concept("cold", "common cold", ("flu like nose infection",)),
            Concept("leg", "broken leg"),
            Concept("arm", "broken arm"),
        ]
    )
    assert positions(Bm25Retriever(ontology).search(["flu infection"], 2)[0]) == [0, 1]


def test_names_of_one_concept_with_the_same_words_count_once():
    alone = Bm25Retriever(Ontology([Concept("flu", "influenza", ("Grippe", "grippe", "GRIPPE!"))]))
    assert alone.num_names == 2
    assert Bm25Retriever(named("grippe", "Grippe", "--")).num_names == 2


@pytest.mark.parametrize("names", [("knee pain", "pain knee"), ("pain knee", "knee pain")])
def test_ties_keep_the_order_of_the_ontology(names):
    hits = Bm25Retriever(named(*names, "cough", "fever", "rash")).search(["knee pain"], 2)[0]
    assert hits[0].score == hits[1].score
    assert positions(hits) == [0, 1]


@pytest.mark.parametrize("names", [["pain"], ["pain", "fever"], ["knee pain", "pain", "pain leg"]])
def test_in_a_tiny_ontology_a_match_scores_above_a_non_match(names):
    """Okapi's own idf of "pain" is zero or negative in each of these."""
    assert BM25Okapi([name.split() for name in names]).idf["pain"] <= 0
    hits = Bm25Retriever(named(*names)).search(["pain"], len(names))[0]
    for hit in hits:
        assert (hit.score > 0) == ("pain" in names[hit.position])
    assert [hit.score > 0 for hit in hits] == sorted((hit.score > 0 for hit in hits), reverse=True)


def test_a_second_matching_word_never_lowers_a_score():
    assert positions(Bm25Retriever(named("pain", "leg pain")).search(["leg pain"], 2)[0])[0] == 1


@given(
    st.lists(st.text("abİß -", max_size=6).filter(lambda name: name.strip(" -")), min_size=1),
    st.lists(st.text("abcİß -", max_size=8), max_size=5),
    st.integers(1, 12),
)
def test_batches_are_singles_and_have_k_candidates(names, queries, k):
    retriever = Bm25Retriever(named(*names))
    found = retriever.search(queries, k)
    assert found == [retriever.search([query], k)[0] for query in queries]
    for hits in found:
        assert len(set(positions(hits))) == len(hits) == min(k, len(names))
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)


def test_filling_depends_on_the_query_alone():
    retriever = Bm25Retriever(named(*(f"name{index}" for index in range(200))))
    first, same, other, unknown = retriever.search(["no match", "No-Match", "other words", ""], 10)
    assert first == same
    assert positions(first) != positions(other)
    assert {hit.score for hit in (*first, *other, *unknown)} == {0.0}
    # Seeded by the text and not by `hash`, which differs from process to process.
    assert positions(first)[:3] == [136, 165, 9]


def test_words_of_any_script():
    retriever = Bm25Retriever(named("Diabète de type 2", "糖尿病", "Straße_3", "fever"))
    hits = retriever.search(["DIABÈTE", "糖尿病", "straße"], 1)
    assert [positions(own)[0] for own in hits] == [0, 1, 2]
    assert all(own[0].score > 0 for own in hits)


def test_errors():
    with pytest.raises(DataError, match=r"^no name of the ontology's 1 concept\(s\) has a letter"):
        Bm25Retriever(named("--"))
    with pytest.raises(DataError, match=r"^k is 0; ask for at least 1 concept$"):
        Bm25Retriever(named("pain")).search(["pain"], 0)
