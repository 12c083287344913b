import json
import math
import re
from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import pytest
from ranking.made_up_answers import draw
from scipy.stats import binom
from transformers import EvalPrediction

from hf_kfc.errors import DataError
from hf_kfc.ranking import Concept, compute_metrics
from hf_kfc.ranking.formats.documents import Candidate, Document, Span
from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.scoring import (
    Answers,
    answers_of_documents,
    answers_of_scores,
    concept_counts,
    find_regressions,
    score_answers,
)

TEXT = "cold flu rash fever"
PLACES = {"cold": (0, 4), "flu": (5, 8), "rash": (9, 13), "fever": (14, 19)}


def span(word: str, *ids: str, **more: object) -> Span:
    return Span((PLACES[word],), word, ids, **more)


def ranked(word: str, *candidates: tuple[str, float], threshold: float = 0) -> Span:
    found = tuple(Candidate(id_, f"name of {id_}", chance) for id_, chance in candidates)
    best = [found[0].id] if found[0].probability >= threshold else []
    return span(word, *best, candidates=found)


def answers(predictions: list[Span], gold: list[Span], ontology: Ontology | None = None) -> Answers:
    return answers_of_documents(
        [Document("n", TEXT, predictions)], [Document("n", TEXT, gold)], ontology
    )


def test_measures_by_hand():
    said = [
        ranked("cold", ("D1", 0.9), ("D2", 0.1)),
        ranked("flu", ("D2", 0.6), ("D1", 0.4)),
        ranked("rash", ("D3", 0.3), ("D1", 0.2), threshold=0.5),
        ranked("fever", ("D1", 0.4), ("D4", 0.3), threshold=0.5),
    ]
    gold = [span("cold", "D1"), span("flu", "D1"), span("rash", "-1"), span("fever", "D4")]
    found = score_answers(answers(said, gold), Counter(D1=3))
    overall = {name: own.value for name, own in found.overall.items()}
    assert overall == {
        "accuracy": pytest.approx(1 / 3),
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 2) / 3),
        "recall@1": pytest.approx(1 / 3),
        "recall@2": 1,
        "nil_precision": 1 / 2,
        "nil_recall": 1,
        # bins of 1/15: every mention is alone in its bin
        "calibration_error": pytest.approx((0.1 + 0.6 + 0.3 + 0.4) / 4),
    }
    assert {name: own[0::3] for name, own in found.by_frequency.items()} == {
        "unseen": (0, 1),
        "seen": (0.5, 2),
        "1 to 9": (0.5, 2),
        "10 or more": (None, 0),
    }
    assert found.confusions == [
        ("D1", "name of D1", "D2", "name of D2", 1),
        ("D4", "name of D4", "", "", 1),
    ]
    assert re.search(r"D4 +name of D4 +no concept +1$", found.report().text, re.M)


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        ("MESH:D003924", "D003924", True),
        ("e11.9", "E119", True),
        ("CUI-less", "-1", True),
        ("D1", "D2", False),
    ],
)
def test_concepts_are_compared_as_everywhere(said, right, expected):
    (row,) = answers([span("cold", said)], [span("cold", right)]).rows
    assert row.correct is expected


def test_retired_identifiers_lead_to_the_main_one_where_the_ontology_is_given():
    said, gold = [span("cold", "C1")], [span("cold", "C9")]
    assert not answers(said, gold).rows[0].correct
    found = answers(said, gold, Ontology([Concept("C1", "cold", alternatives=("C9",))]))
    assert found.rows[0].correct
    assert found.names == {"C1": "cold"}
    document = Document("n", TEXT, [span("cold", "C9"), span("flu", "C1")])
    ontology = Ontology([Concept("C1", "cold", alternatives=("C9",))])
    assert concept_counts([document], ontology) == {"C1": 2}


def test_what_is_left_out_and_what_is_missing_is_told():
    gold = [span("cold", "D1", "D2"), span("flu", "D1"), span("flu", "D2"), span("rash", "D3")]
    gold += [span("fever", "NIL")]
    found = answers([span("rash", "D3"), span("cold", "D1"), Span(((0, 8),), TEXT[:8])], gold)
    assert found.notes == {
        "left out: several concepts": 3,
        "wrong: not in the predictions": 1,
        "left out: not in the gold": 1,
    }
    assert [row.correct for row in found.rows] == [True, False]  # also where none is right


def test_pieces_and_context():
    said = [Span(((0, 4), (9, 13)), "cold rash", ("D1",))]
    (row,) = answers(said, [replace(said[0], types=("Sign",))]).rows
    assert (row.key, row.left, row.right, row.types) == ("0-4;9-13", "", " fever", ("Sign",))


def test_files_that_do_not_belong_together_are_refused():
    one, other = Document("n", TEXT, [span("cold", "D1")]), Document("n", "another text")
    with pytest.raises(DataError, match="'n' has another text"):
        answers_of_documents([other], [one])
    with pytest.raises(DataError, match="no mention in common"):
        answers_of_documents([replace(one, id="m")], [one])
    with pytest.raises(DataError, match="no mention of the gold has one concept"):
        score_answers(answers([span("cold", "D1")], [span("cold", "-1")]))


def test_scores_are_the_trainers_metrics():
    draw = np.random.default_rng(0)
    sizes = draw.integers(2, 6, 60)
    logits = np.full((60, 5), -100.0)
    rows = []
    for number, size in enumerate(sizes):
        logits[number, :size] = draw.normal(size=size)
        ids = [f"C{i}" for i in draw.permutation(9)[:size]]
        row = {"id": str(number), "document": str(number // 3), "mention": "m", "left": "l"}
        row |= {"right": "r", "candidate_ids": ids, "candidate_names": ids}
        rows.append(row | {"label": int(draw.integers(size))})
    labels = np.array([row["label"] for row in rows])
    own = answers_of_scores(datasets.Dataset.from_list(rows), logits)
    metrics = compute_metrics(EvalPrediction(logits, labels))
    found = score_answers(own).overall
    assert found["accuracy"].value == metrics["accuracy"]
    ranks = [(logits[i] > logits[i, labels[i]]).sum() for i in range(60)]
    assert found["mrr"].value == pytest.approx(np.mean([1 / (1 + rank) for rank in ranks]))
    first = np.exp(logits[0, : sizes[0]])
    assert own.rows[0].probability == pytest.approx(first.max() / first.sum())
    with pytest.raises(DataError, match="are not of 59 examples"):
        answers_of_scores(rows[1:], logits)
    with pytest.raises(DataError, match="candidates, 1 scores"):
        answers_of_scores(rows, logits[:, :1])


def test_intervals_are_those_of_drawing_documents():
    found = draw(1)
    told = score_answers(found, resamples=400, seed=3)
    assert told == score_answers(found, resamples=400, seed=3)
    assert told != score_answers(found, resamples=400, seed=4)
    # By another way: draw documents, make the answers of the draw, and measure those.
    random = np.random.default_rng(0)
    names = sorted({row.document for row in found.rows})
    by_name = {name: [row for row in found.rows if row.document == name] for name in names}
    drawn = {"accuracy": [], "mrr": [], "recall@4": [], "nil_recall": [], "calibration_error": []}
    for _ in range(400):
        rows = [row for name in random.choice(names, len(names)) for row in by_name[name]]
        once = score_answers(Answers(rows), resamples=1).overall
        for name, values in drawn.items():
            values.append(once[name].value)
    for name, values in drawn.items():
        low, high = np.quantile(values, [0.025, 0.975])
        own = told.overall[name]
        if name == "calibration_error":
            low, high = 2 * own.value - high, 2 * own.value - low
        assert (own.low, own.high) == pytest.approx((max(low, 0), high), abs=0.03), name
        assert own.low <= own.high


def test_mentions_of_one_document_are_no_independent_evidence():
    rows = [
        replace(row, document=str(n // 20), gold="C1", predicted=f"C{1 + n // 20 % 2}")
        for n, row in enumerate(draw(1).rows)
    ]
    found = score_answers(Answers(rows)).overall["accuracy"]
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx((0.2, 0.8), abs=0.05)  # of 10, not of 200


def test_calibrated_probabilities_have_little_error_and_others_much():
    def told(probability):
        random = np.random.default_rng(0)
        found = draw(1, 4000, 400)
        right = random.random(4000)
        rows = [
            replace(
                row,
                gold="C1",
                candidates=("C1" if r < row.probability else "C2",),
                probability=probability(row.probability),
            )
            for row, r in zip(found.rows, right, strict=True)
        ]
        return score_answers(Answers(rows)).overall["calibration_error"]

    calibrated, sure = told(lambda p: p), told(lambda p: (1 + p) / 2)
    assert calibrated.value < 0.04
    assert calibrated.low < 0.01
    assert sure.value == pytest.approx(0.25, abs=0.03)
    assert sure.low < sure.value < sure.high


def test_accuracy_by_type_is_that_of_each_type_alone():
    found = draw(2)
    told = score_answers(found).by_type
    assert list(told) == sorted(told, key=lambda name: -told[name].mentions)
    for name, own in told.items():
        alone = [row for row in found.rows if name in row.types]
        assert own.value == pytest.approx(score_answers(Answers(alone)).overall["accuracy"].value)


def test_flips_and_mcnemars_test():
    old, new = draw(1), draw(2, right=0.5)
    found = find_regressions(old, new)
    pairs = Counter((a.correct, b.correct) for a, b in zip(old.rows, new.rows, strict=True))
    lost, won = pairs[True, False], pairs[False, True]
    assert (len(found.lost), len(found.won)) == (lost, won)
    tail = binom.cdf(min(lost, won), lost + won, 0.5)
    assert found.p_value == pytest.approx(min(1, 2 * tail))
    assert found.difference.value == pytest.approx(found.new.value - found.old.value)
    assert found.difference.value == pytest.approx((won - lost) / 200)
    assert found.difference.low < found.difference.value < found.difference.high
    for name, change in found.by_type.items():
        own = [pair for pair in zip(old.rows, new.rows, strict=True) if name in pair[0].types]
        assert change.lost == sum(a.correct and not b.correct for a, b in own)
        assert change.mentions == len(own)
    assert sum(own.lost for own in found.by_concept.values()) == sum(
        f.old.gold != "" for f in found.lost
    )
    back = find_regressions(new, old)
    assert (back.lost, back.won) == ([f[::-1] for f in found.won], [f[::-1] for f in found.lost])
    assert back.p_value == found.p_value


def test_nothing_changed_is_no_evidence():
    found = find_regressions(draw(1), draw(1))
    assert (found.p_value, found.lost, found.won, found.by_concept) == (1, [], [], {})
    assert found.difference[:3] == (0, 0, 0)
    assert "0 were right and now are wrong" in found.report().text


def test_answers_about_other_mentions_are_refused():
    old = draw(1)
    for rows in (old.rows[1:], [replace(old.rows[0], gold="C9"), *old.rows[1:]]):
        with pytest.raises(DataError, match="not of the same mentions"):
            find_regressions(old, Answers(rows))


@pytest.mark.parametrize(
    "make",
    [
        lambda: score_answers(draw(1), Counter(C1=20, C2=3)),
        lambda: find_regressions(draw(1), draw(2)),
    ],
)
def test_what_is_told_is_strict_json_and_one_table(make):
    report = make().report()
    again = json.loads(json.dumps(report.values, allow_nan=False))
    assert again["mentions"] == 200
    assert "200 mentions in 20 documents" in report.text
    assert "one <b>" in report.text
    assert not math.isnan(again.get("p_value", 0))
