"""Probes of a ranker, made of an ontology."""

from itertools import pairwise

import datasets
import pytest
import torch
from tiny import models

from hf_kfc.errors import DataError
from hf_kfc.ranking import (
    CandidateCollator,
    Concept,
    ProbeArguments,
    candidates_of,
    contexts_of,
    ontology_examples,
    probes_from_ontology,
    ranking_forward,
    train_tokenizer,
)
from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.retrieval import TfidfRetriever

PARTS = ["upper arm", "lower arm", "left knee", "right knee", "small toe", "big toe"]
CONCEPTS = [Concept(f"C{n}", f"pain of {part}", (f"{part} ache",)) for n, part in enumerate(PARTS)]
ONTOLOGY = Ontology(CONCEPTS)
CONTEXT = ("since monday", "at night")


@pytest.fixture(scope="module")
def tokenizer():
    datasets.disable_progress_bars()
    names = [name for _, name in ONTOLOGY.names()]
    return train_tokenizer([*names, *CONTEXT, "pains"], vocab_size=90)


def made(tokenizer, **how):
    how = {"max_probes": 40, "retrieval": TfidfRetriever(ONTOLOGY), "num_candidates": 3} | how
    return ontology_examples(ONTOLOGY, tokenizer, **how)[0]


def texts(tokenizer, example):
    """Left context, mention, right context, and the names of the candidates."""
    pairs = [tokenizer.convert_ids_to_tokens(ids) for ids in example["input_ids"]]
    split = [" ".join(pair).replace(" ##", "").split("[SEP]") for pair in pairs]
    (text,) = {tuple(part.strip() for part in own[:3]) for own in split}
    return *text, [own[3].strip() for own in split]


def test_a_mention_is_a_name_that_lacks_at_most_one_word(tokenizer):
    names = {name for _, name in ONTOLOGY.names()}
    shorter = {
        " ".join(words[:i] + words[i + 1 :])
        for words in map(str.split, names)
        for i in range(len(words))
    }
    whole = made(tokenizer, drop_share=0.0)
    assert {texts(tokenizer, e)[1] for e in whole} <= names
    assert {texts(tokenizer, e)[1] for e in made(tokenizer, drop_share=1.0)} <= shorter
    mixed = {texts(tokenizer, e)[1] for e in made(tokenizer)}
    assert mixed & names
    assert mixed & shorter


def test_the_candidates_are_what_retrieval_finds_in_another_order(tokenizer):
    retriever, shown = TfidfRetriever(ONTOLOGY), [concept.name for concept in ONTOLOGY]
    orders = set()
    for example in made(tokenizer):
        left, mention, right, names = texts(tokenizer, example)
        assert not left.removeprefix("[CLS]")
        assert not right
        (hits,) = retriever.search([mention], 3)
        assert sorted(names) == sorted(shown[hit.position] for hit in hits)
        orders.add(names.index(shown[hits[0].position]))
    assert orders == {0, 1, 2}


def test_examples_have_no_labels_and_follow_from_the_seed(tokenizer):
    first = made(tokenizer, seed=1)
    assert set(first[0]) == {"input_ids", "token_type_ids"}
    assert first == made(tokenizer, seed=1)
    assert first != made(tokenizer, seed=2)


def test_only_concepts_with_a_weight_are_mentioned(tokenizer):
    found = made(tokenizer, weights={"C2": 3, "C4": 1, "C5": 0, "elsewhere": 9}, drop_share=0.0)
    mentions = [texts(tokenizer, e)[1] for e in found]
    known = {name: own.id for own in CONCEPTS for name in own.names}
    counts = [sum(known[m] == id_ for m in mentions) for id_ in ("C2", "C4")]
    assert sum(counts) == len(mentions)
    assert counts[0] > counts[1] > 0


def test_contexts_stand_around_the_mentions(tokenizer):
    for example in made(tokenizer, contexts=[CONTEXT]):
        left, _, right, _ = texts(tokenizer, example)
        assert (left.removeprefix("[CLS] "), right) == CONTEXT


def test_contexts_have_no_word_and_no_pair_of_fewer_documents(caplog):
    """A rare word stays out, and so do pairs; what one document says often counts once."""
    common = [{"document": n, "left": "seen on monday", "right": "by night"} for n in range(3)]
    rare = [{"document": 9, "left": "monday Smith seen", "right": "monday seen"}] * 5
    found = contexts_of([*common, *rare], count=40, min_documents=3, words=6)
    assert len(found) == 40
    assert sum(own == ("", "") for own in found) == 20
    sides = [side.split() for own in found for side in own]
    assert {word for side in sides for word in side} == {"seen", "on", "monday", "by", "night"}
    assert max(map(len, sides)) == 6
    assert {b for side in sides for a, b in pairwise(side) if a == "seen"} == {"on"}
    assert found == contexts_of([*common, *rare], count=40, min_documents=3, words=6)
    assert not caplog.messages
    assert contexts_of([*common, *rare], count=40, min_documents=5) == []
    said = "No word around a mention stands in 5 of 4 documents: probes are names alone."
    assert caplog.messages == [said]


def test_a_recipes_probes_have_contexts(tokenizer):
    """Half of them, of words that ten documents have; and the trainer sees them so."""
    names = {concept.id: concept.name for concept in CONCEPTS}
    examples = datasets.Dataset.from_list(
        [
            {"left": "since monday", "right": "at night"}
            | {"candidate_ids": list(names), "candidate_names": list(names.values())}
        ]
        * 12
    )
    arguments = ProbeArguments(max_probes=20, min_probe_examples=1)
    found = arguments.candidates(examples)
    assert len(found.contexts) == 20
    assert sum(own != ("", "") for own in found.contexts) == 10
    model = models.cnn(seed=0, vocab_size=len(tokenizer), hidden_size=16).eval()
    probes = arguments.probes(model, found, CandidateCollator(tokenizer), 40)
    assert probes.provenance.settings["contexts"] == 20
    texts = [tokenizer.decode(ids) for row in probes.rows for ids in row["input_ids"]]
    words = {"since", "monday", "at", "night"}
    assert any(words & set(text.split()) for text in texts)
    assert ProbeArguments(max_probes=0).candidates(examples) is None


@pytest.mark.parametrize("weights", [{}, {"C1": 0}, {"elsewhere": 1}])
def test_weights_of_no_concept_are_refused(tokenizer, weights):
    with pytest.raises(DataError, match="no concept of the ontology has a weight"):
        made(tokenizer, weights=weights)


def test_candidates_that_stand_in_enough_lists_are_collected():
    lists = [["C0", "C1"], ["C1", "C2"], ["C1", "C2"]]
    examples = [
        {"candidate_ids": ids, "candidate_names": [CONCEPTS[int(i[1])].name for i in ids]}
        for ids in lists
    ]
    ontology, counts, most, contexts = candidates_of(examples, min_examples=2)
    assert (most, contexts) == (2, ())
    assert counts == {"C1": 3, "C2": 2}
    assert [concept.names for concept in ontology] == [(c.name,) for c in CONCEPTS[1:3]]
    with pytest.raises(DataError, match="1 concepts stand among the candidates of 3 examples"):
        candidates_of(examples, min_examples=3)


def test_probes_are_of_the_model_and_say_how_they_were_made(tokenizer):
    model = models.cnn(seed=0, vocab_size=len(tokenizer), hidden_size=16).eval()
    collator = CandidateCollator(tokenizer)
    how = {"max_probes": 12, "retrieval": TfidfRetriever(ONTOLOGY), "num_candidates": 3}
    probes = probes_from_ontology(model, ONTOLOGY, collator, weights={"C1": 1}, **how)
    found = probes.loss(model, range(12), collator, forward=ranking_forward)
    assert float(found.each.abs().max()) < 1e-6
    assert not found.changed.any()
    assert probes.provenance.name == "ontology"
    assert probes.provenance.settings["ontology"] == ONTOLOGY.fingerprint
    assert probes.provenance.counts["concepts mentioned"] == 1
    with torch.no_grad():
        model.classifier.weight.mul_(-3)
        moved = probes.loss(model, range(12), collator, forward=ranking_forward)
    assert float(moved.loss) > 1e-4
