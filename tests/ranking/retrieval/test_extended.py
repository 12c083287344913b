"""An index that is extended is the index of the larger ontology, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.ontologies.ontology import widened
from hf_kfc.ranking.retrieval import RETRIEVERS, get_retriever
from hf_kfc.ranking.schema import Concept

WORDS = st.lists(
    st.sampled_from(["knee", "pain", "of", "the", "ear", "Ähre", "x", "-", "痛み"]),
    min_size=1,
    max_size=4,
)
NAMES = st.lists(WORDS.map(" ".join), min_size=1, max_size=3)


def same(one, other):
    assert one._num_concepts == other._num_concepts
    assert list(one._counter.vocabulary) == list(other._counter.vocabulary)
    pairs = [
        (getattr(one._postings, n), getattr(other._postings, n))
        for n in ("owners", "offsets", "names", "weights", "peaks")
    ]
    for mine, theirs in [
        *pairs,
        (one._counts, other._counts),
        (one._feature_weights, other._feature_weights),
    ]:
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("kind", RETRIEVERS)
@settings(max_examples=50)
@given(
    first=st.lists(NAMES, min_size=1, max_size=4),
    more=st.dictionaries(st.integers(0, 8), NAMES, max_size=5),
)
def test_extended_is_rebuilt(kind, first, more):
    ontology = Ontology(
        Concept(f"C{n}", f"base {names[0]}", tuple(names[1:])) for n, names in enumerate(first)
    )
    retriever = RETRIEVERS[kind](ontology)
    names = {f"C{n}": own for n, own in more.items()}
    known = {ontology.position(id_) for id_ in names} - {None}
    larger = Ontology(widened(ontology, names))
    extended = retriever.extended(larger, known)
    rebuilt = RETRIEVERS[kind](larger)
    same(extended, rebuilt)
    same(retriever, RETRIEVERS[kind](ontology))  # it stays as it is
    queries = ["knee pain", "ähre", "痛み", "x"]
    assert extended.search(queries, 3) == rebuilt.search(queries, 3)


@pytest.mark.parametrize("kind", RETRIEVERS)
def test_a_mapped_index_is_extended_and_saved_like_any_other(kind, tmp_path):
    ontology = Ontology([Concept("C1", "knee pain"), Concept("C2", "ear pain")])
    mapped = get_retriever(kind, ontology, tmp_path)
    larger = Ontology([*ontology, Concept("C3", "eye pain pain")])
    extended = mapped.extended(larger, set())
    (tmp_path / "saved").mkdir()
    extended.save(tmp_path / "saved")
    same(RETRIEVERS[kind].load(tmp_path / "saved"), RETRIEVERS[kind](larger))
