"""Temperature and threshold, against searches of everything."""

import numpy as np
import pytest

from hf_kfc.errors import DataError
from hf_kfc.ranking.linker import calibration_error
from hf_kfc.ranking.linker.calibration import (
    best_probabilities,
    best_temperature,
    best_threshold,
    best_weight,
    calibrated,
)
from hf_kfc.ranking.schema import Mention


def test_calibration_error_of_hand_made_bins():
    assert calibration_error([1.0, 1.0, 0.0], [True, True, False]) == 0.0
    assert calibration_error([0.9, 0.9], [True, False]) == pytest.approx(0.4)
    # two bins of two: |0.81 - 0.5| and |0.11 - 0|
    error = calibration_error([0.81, 0.81, 0.11, 0.11], [True, False, False, False])
    assert error == pytest.approx(0.5 * 0.31 + 0.5 * 0.11)
    with pytest.raises(DataError):
        calibration_error([], [])


@pytest.mark.parametrize("true", [0.25, 1.0, 4.0])
def test_the_temperature_that_made_the_answers_is_found(true):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (20_000, 5))
    logits[::3, 3:] = -np.inf  # shorter lists
    best = logits.argmax(1)
    right = rng.random(len(best)) < best_probabilities(logits, best, true)
    found = best_temperature(logits, best, right)
    assert found == pytest.approx(true, rel=0.1)
    p = best_probabilities(logits, best, found)
    assert calibration_error(p, right) < 0.02
    if true != 1.0:
        assert calibration_error(best_probabilities(logits, best, 1.0), right) > 0.05


@pytest.mark.parametrize("true", [0.0, 0.5, 3.0])
def test_the_weight_that_made_the_answers_is_found(true):
    rng = np.random.default_rng(1)
    logits, similarity = rng.normal(0, 2, (2, 20_000, 6))
    logits[::3, 4:], similarity[::3, 4:] = -np.inf, 0.0
    noise = rng.gumbel(size=logits.shape)
    gold = (logits + true * similarity + noise).argmax(axis=1)
    assert best_weight(logits, similarity, gold) == pytest.approx(true, abs=0.05)


def test_where_retrieval_knows_better_it_is_listened_to():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 1, (500, 4))
    similarity = np.tile([0.9, 0.5, 0.4, 0.0], (500, 1))
    right = np.zeros((500, 4), bool)
    right[:450, 0] = right[450:, 1] = True
    measured = calibrated(logits, similarity, right, np.ones(500, bool), None)
    assert measured.accuracy > 0.85
    assert measured.accuracy_before < 0.5
    assert measured.error_after < 0.05 < measured.error_before


def scores_at(threshold, p, right, linkable):
    given = p >= threshold
    precision = (right & given).sum() / max(1, given.sum())
    recall = (right & given).sum() / linkable.sum()
    return precision, recall, 2 * precision * recall / max(1e-12, precision + recall)


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    p = rng.choice([0.0, 0.2, 0.5, 0.7, 0.9], 40)
    linkable = rng.random(40) < 0.8
    right = linkable & (rng.random(40) < p)
    every = [scores_at(t, p, right, linkable) for t in np.unique(p[p > 0])]
    chosen = best_threshold(p, right, linkable, None)
    assert scores_at(chosen, p, right, linkable)[2] == pytest.approx(max(f for *_, f in every))
    for wanted in (0.5, 0.8):
        reaching = [r for precision, r, _ in every if precision >= wanted]
        if reaching:
            t = best_threshold(p, right, linkable, wanted)
            precision, recall, _ = scores_at(t, p, right, linkable)
            assert precision >= wanted and recall == pytest.approx(max(reaching))
        else:
            with pytest.raises(DataError, match="no threshold reaches"):
                best_threshold(p, right, linkable, wanted)


def test_the_threshold_gives_what_it_was_chosen_by_whatever_rounding_does():
    p, right = np.array([0.9, 0.6, 0.3]), np.array([True, True, False])
    chosen = best_threshold(p, right, right, None)
    assert list(p - 1e-6 >= chosen) == list(p + 1e-6 >= chosen) == [True, True, False]
    p[2] = p[1] - 1e-6  # many mentions are as near to each other, and apart still
    assert p[2] < best_threshold(p, right, right, None) < p[1]


def gold(ontology):
    """Mentions by their names; every fourth is of something that the ontology does not have."""
    for n, concept in enumerate(ontology):
        yield Mention("d", concept.synonyms[0], "The doctor found", "in March", concept.id)
        if n % 4 == 0:
            nil = ("", "NIL", "D999999")[n % 3]
            yield Mention("d", f"{concept.synonyms[0].split()[0]} fever", "It was", "", nil)


def test_what_is_measured_is_what_the_linker_then_does(linker, ontology):
    mentions = list(gold(ontology))
    measured = linker.calibrate(mentions)
    assert linker.calibration is measured
    assert (measured.num_mentions, measured.num_nil) == (50, 10)
    found = linker.link_mentions(mentions)
    golds = [ontology.position(m.concept) if m.concept else None for m in mentions]
    links = [None if own.concept is None else ontology.position(own.concept) for own in found]
    pairs = list(zip(links, golds, strict=True))
    right = sum(link == own for link, own in pairs if link is not None)
    nil = [(link, own) for link, own in pairs if link is None]
    assert measured.precision == pytest.approx(right / (50 - len(nil)))
    assert measured.recall == pytest.approx(right / 40)
    truly = sum(own is None for _, own in nil)
    assert measured.nil_precision == pytest.approx(truly / len(nil) if nil else 0)
    assert measured.nil_recall == pytest.approx(truly / 10)
    best = [ontology.position(own.candidates[0].id) for own in found]
    hits = [mine == own for mine, own in zip(best, golds, strict=True)]
    assert measured.accuracy == pytest.approx(sum(hits) / 40)
    assert measured.error_after == pytest.approx(
        calibration_error([own.probability for own in found], hits)
    )
    strict = linker.calibrate(mentions, least_precision=1.0)
    assert strict.precision == 1.0 and strict.recall <= measured.recall


def test_documents_calibrate_as_their_mentions_do(linker, ontology):
    concepts = list(ontology)[::3]
    text = " and ".join(concept.synonyms[0] for concept in concepts)
    spans, at = [], 0
    for n, concept in enumerate(concepts):
        end = at + len(concept.synonyms[0])
        spans.append({"start": at, "end": end, "code": concept.id if n % 5 else "CUI-less"})
        at = end + len(" and ")
    measured = linker.calibrate([{"id": "n", "text": text, "spans": spans}])
    assert (measured.num_mentions, measured.num_nil) == (len(spans), len(range(0, len(spans), 5)))


def test_too_few_mentions_are_told_of(linker, ontology, caplog):
    mentions = [*gold(ontology), *gold(ontology)]
    linker.calibrate(mentions[:100])
    assert not caplog.text
    linker.calibrate(mentions[:99])
    assert "99 development mentions are few to choose" in caplog.text
    assert "give 100 or more" in caplog.text


def test_nothing_to_measure_is_said(linker):
    with pytest.raises(DataError, match="none of the 0 development mentions"):
        linker.calibrate([])
    with pytest.raises(DataError, match="none of the 1 development mentions"):
        linker.calibrate([Mention("d", "knee", "", "", "NIL")])
    with pytest.raises(DataError, match="retrieval found the concept of none of 1"):
        linker.calibrate([Mention("d", "zzz", "", "", "K20")])
    with pytest.raises(DataError, match="development is the text"):
        linker.calibrate("knee pain")
