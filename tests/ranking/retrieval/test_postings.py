"""The pruned search against one that scores everything."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from hf_kfc.ranking.retrieval import postings
from hf_kfc.ranking.retrieval.postings import Postings

# Multiples of 1/8 add up exactly in any order, and make many ties.
EIGHTHS = st.integers(1, 4).map(lambda n: n / 8)


@st.composite
def indexes(draw, weights=EIGHTHS):
    """Weights [names, features] with no empty row or column, and the concept of each name."""
    num_names, num_features = draw(st.integers(1, 25)), draw(st.integers(1, 6))
    cell = st.one_of(st.just(0.0), weights)
    row = st.lists(cell, min_size=num_features, max_size=num_features).filter(any)
    matrix = np.array(draw(st.lists(row, min_size=num_names, max_size=num_names)))
    matrix = np.vstack([matrix, np.ones(num_features)])
    gaps = draw(st.lists(st.integers(0, 1), min_size=num_names + 1, max_size=num_names + 1))
    return matrix, np.cumsum(gaps).astype(np.int32)


def queries(matrix, weights=EIGHTHS):
    """The weight of each feature in a query, at least one of them not 0."""
    size = matrix.shape[1]
    cell = st.one_of(st.just(0.0), weights)
    return st.lists(cell, min_size=size, max_size=size).filter(any).map(np.array)


def search(matrix, owners, query, k, first=1, growth=1):
    """Search with pruning after ``first`` postings; check that the work room is left clean."""
    features = np.flatnonzero(query)
    room = np.zeros(len(matrix))
    with (
        mock.patch.object(postings, "_FIRST_POSTINGS", first),
        mock.patch.object(postings, "_GROWTH", growth),
        mock.patch.object(postings, "_SAMPLE", first),
    ):
        index = Postings.from_matrix(csr_matrix(matrix), owners)
        concepts, scores = index.best(features, query[features], k, room)
    assert not room.any()
    return list(zip(concepts.tolist(), scores.tolist(), strict=True))


def brute_force(matrix, owners, query, k):
    best = {}
    for concept, score in zip(owners.tolist(), (matrix @ query).tolist(), strict=True):
        best[concept] = max(best.get(concept, 0.0), score)
    matches = [(concept, score) for concept, score in best.items() if score > 0]
    return sorted(matches, key=lambda pair: (-pair[1], pair[0]))[:k]


@given(st.data(), indexes(), st.integers(1, 12), st.integers(1, 40), st.integers(1, 3))
def test_pruning_changes_nothing_ties_included(data, index, k, first, growth):
    matrix, owners = index
    query = data.draw(queries(matrix))
    expected = brute_force(matrix, owners, query, k)
    assert search(matrix, owners, query, k, first, growth) == expected


@given(st.data(), indexes(st.floats(0.01, 20)), st.integers(1, 12))
def test_scores_of_any_weights(data, index, k):
    matrix, owners = index
    query = data.draw(queries(matrix, st.floats(0.01, 20)))
    found = search(matrix, owners, query, k)
    expected = brute_force(matrix, owners, query, k)
    assert [score for _, score in found] == pytest.approx([s for _, s in expected], abs=1e-8)
    best = dict(brute_force(matrix, owners, query, len(matrix)))
    assert [best[concept] for concept, _ in found] == pytest.approx([s for _, s in found], abs=1e-8)


def test_postings_of_a_common_feature_are_not_read():
    """One name has the rare feature, all have the common one, which weighs less."""
    matrix = np.column_stack([np.zeros(1000), np.ones(1000)])
    matrix[:, 1] = 0.1
    matrix[[3, 500], 0] = 1.0
    with mock.patch.object(Postings, "_weights_in", autospec=True) as lookup:
        lookup.side_effect = lambda self, feature, names: np.full(len(names), 0.1)
        found = search(matrix, np.arange(1000, dtype=np.int32), np.array([1.0, 1.0]), 2)
    assert found == [(3, 1.1), (500, 1.1)]
    (_, feature, names), _ = lookup.call_args
    assert (feature, names.tolist()) == (1, [3, 500])


def test_a_name_that_only_ties_with_the_last_result_is_not_passed_over():
    matrix = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert search(matrix, np.arange(2, dtype=np.int32), np.ones(2), 1) == [(0, 1.0)]


def test_rounding_does_not_decide_the_order():
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1."""
    matrix = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.0, 0.0, 0.6]])
    found = search(matrix, np.arange(3, dtype=np.int32), np.ones(3), 3)
    assert found == [(0, 0.6), (1, 0.6), (2, 0.6)]


def test_a_match_keeps_a_score_when_it_rounds_to_nothing():
    matrix = np.array([[1e-12], [1e-12]])
    found = search(matrix, np.arange(2, dtype=np.int32), np.ones(1), 2)
    assert found == [(0, 1e-9), (1, 1e-9)]


def test_many_good_names_of_one_concept_leave_room_for_others():
    matrix = np.vstack([np.full((500, 1), 2.0), [[1.0]], [[1.5]]])
    owners = np.array([0] * 500 + [1, 2], dtype=np.int32)
    assert search(matrix, owners, np.ones(1), 3) == [(0, 2.0), (2, 1.5), (1, 1.0)]
