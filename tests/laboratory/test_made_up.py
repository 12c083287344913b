"""The synthetic corpora: reproducible, of any size, and in conflict with each other."""

import hashlib
import os
import random
import subprocess
import sys
from collections import defaultdict
from itertools import combinations, islice

import pytest

from hf_kfc.errors import DataError
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.corpora.config import SPLITS
from hf_kfc.ranking.tasks import prepare_task
from laboratory.made_up.corpora import (
    CORPORA,
    SyntheticMedical,
    make_entries,
    make_mentions,
    make_ontology,
)
from laboratory.made_up.lexicon import MODIFIERS, SYSTEMS, make_groups, misspell, named_meanings

SIZES = {"train": 40, "validation": 20, "test": 30}
PAIRS = list(combinations(CORPORA, 2))
DIGEST = """
import hashlib
from laboratory.made_up.corpora import CORPORA, make_mentions, make_ontology
for corpus in CORPORA:
    data = repr(make_ontology(corpus, 3)) + repr(list(make_mentions(corpus, "train", 200, 3)))
    print(hashlib.sha256(data.encode()).hexdigest())
"""


def readings(corpus, size=3000):
    """The meanings, without modifier, that each spoken form has in a corpus."""
    meanings = {entry.concept.id: entry.meaning.bare for entry in make_entries(corpus)}
    found = defaultdict(set)
    for mention in make_mentions(corpus, "train", size):
        found[mention.text.lower()].add(meanings[mention.concept])
    return found


def test_another_process_makes_the_same_corpora():
    expected = []
    for corpus in CORPORA:
        data = repr(make_ontology(corpus, 3)) + repr(list(make_mentions(corpus, "train", 200, 3)))
        expected.append(hashlib.sha256(data.encode()).hexdigest())
    output = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split() == expected


def test_the_default_corpus_stays_as_it_is():
    # What was measured on the corpora holds only for these very corpora.
    mentions = [m for corpus in CORPORA for m in make_mentions(corpus, "test", 50)]
    data = "".join(f"{m.document}|{m.text}|{m.left}|{m.right}|{m.concept}" for m in mentions)
    assert hashlib.sha256(data.encode()).hexdigest()[:16] == "17d0104a27e572f6"


@pytest.mark.parametrize("corpus", CORPORA)
def test_seed_changes_ontology_and_mentions(corpus):
    assert make_ontology(corpus, 0) != make_ontology(corpus, 1)
    assert list(make_mentions(corpus, "test", 20, 0)) != list(make_mentions(corpus, "test", 20, 1))


@pytest.mark.parametrize("corpus", CORPORA)
def test_any_size_and_larger_ones_begin_with_smaller_ones(corpus):
    few, many = (list(make_mentions(corpus, "train", size)) for size in (7, 500))
    assert (len(few), len(many)) == (7, 500)
    assert many[:7] == few
    assert make_ontology(corpus, size=2000)[:300] == make_ontology(corpus, size=300)
    endless = make_mentions(corpus, "train", 10**9)
    assert len(list(islice(endless, 10))) == 10


@pytest.mark.parametrize("corpus", CORPORA)
def test_ontology_ids_and_preferred_names_are_unique(corpus):
    concepts = make_ontology(corpus, size=4000)
    assert len(concepts) == 4000
    assert len({concept.id for concept in concepts}) == 4000
    assert len({concept.name.lower() for concept in concepts}) == 4000
    assert all(name.strip() == name != "" for concept in concepts for name in concept.names)


@pytest.mark.parametrize("corpus", CORPORA)
def test_mentions_are_consistent(corpus):
    ids = {concept.id for concept in make_ontology(corpus)}
    documents = {split: defaultdict(list) for split in SPLITS}
    for split in SPLITS:
        for mention in make_mentions(corpus, split, 600):
            documents[split][mention.document].append(mention)
    for first, second in combinations(SPLITS, 2):
        assert not documents[first].keys() & documents[second].keys()
    for mentions in (m for split in SPLITS for m in documents[split].values()):
        assert len({mention.left + mention.text + mention.right for mention in mentions}) == 1
        assert len({mention.key for mention in mentions}) == len(mentions)
        for mention in mentions:
            text = mention.left + mention.text + mention.right
            start, end = map(int, mention.key.split("-"))
            assert mention.text == text[start:end] == text[start:end].strip() != ""
            assert not mention.left or mention.left.endswith(" ")
            assert mention.right.startswith(" ")
            assert not {"{", "}"} & set(text)
            assert mention.concept in ids
    sizes = [len(mentions) for mentions in documents["train"].values()]
    assert sum(sizes) / len(sizes) > 2


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_corpora_overlap(first, second):
    one, other = make_entries(first), make_entries(second)
    shared = {e.meaning.bare for e in one} & {e.meaning.bare for e in other}
    assert len(shared) > 0.5 * len({e.meaning.bare for e in one})
    words = [{w for text in readings(corpus) for w in text.split()} for corpus in (first, second)]
    assert len(words[0] & words[1]) > 100


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_corpora_conflict(first, second):
    one, other = readings(first), readings(second)
    assert sum(one[form].isdisjoint(other[form]) for form in one.keys() & other.keys()) > 5
    # The same meaning seldom has the same preferred name.
    names = [
        {e.meaning.key: e.concept.name.lower() for e in make_entries(c)} for c in (first, second)
    ]
    shared = names[0].keys() & names[1].keys()
    assert sum(names[0][key] == names[1][key] for key in shared) < 0.2 * len(shared)


@pytest.mark.parametrize("corpus", CORPORA)
def test_abbreviations_are_ambiguous_within_a_corpus(corpus):
    found = readings(corpus)
    assert any(len(found[form]) > 1 for form in ("ms", "ra", "pe", "ad", "dm"))


@pytest.mark.parametrize("corpus", CORPORA)
def test_small_dataset(corpus, tmp_path):
    builder = SyntheticMedical(
        config_name=corpus,
        cache_dir=str(tmp_path),
        max_examples={"train": 300, "validation": 50, "test": 100},
        concepts=600,
        seed=5,
    )
    builder.download_and_prepare()
    data = builder.as_dataset()
    assert {split: len(data[split]) for split in SPLITS} == {
        "train": 300,
        "validation": 50,
        "test": 100,
    }
    candidates = 25 if corpus == "notes" else 10
    names = {concept.id: concept.name for concept in make_ontology(corpus, 5, 600)}
    mentions = list(make_mentions(corpus, "train", 300, 5, 600))
    for mention, row in zip(mentions, data["train"], strict=True):
        assert row["mention"] == mention.text
        assert row["candidate_ids"][row["label"]] == mention.concept
        assert row["candidate_names"] == [names[id_] for id_ in row["candidate_ids"]]
        assert len(row["candidate_ids"]) == candidates
    assert builder.counts.concepts == 600
    assert 0.5 < builder.counts.splits["train"].recall() < 0.95


def test_what_is_asked_for_must_exist():
    with pytest.raises(DataError, match="no synthetic corpus 'tweets'"):
        make_ontology("tweets")
    with pytest.raises(DataError, match="no split 'dev'"):
        make_mentions("notes", "dev", 10)
    with pytest.raises(DataError, match="ask for fewer"):
        make_ontology("notes", size=10**6)
    with pytest.raises(DataError, match="at least 2"):
        make_ontology("notes", size=1)


def test_lexicon_composes_each_meaning_once():
    meanings = [m for group in make_groups(0, tuple(MODIFIERS)) for m in group]
    meanings += named_meanings()
    assert len({meaning.key for meaning in meanings}) == len(meanings)
    assert len({meaning.code for meaning in meanings}) == len(meanings)
    assert {meaning.system for meaning in meanings} == set(SYSTEMS)
    assert len({system.letter for system in SYSTEMS.values()}) == len(SYSTEMS)
    formal = {meaning.key: meaning.names["formal"] for meaning in meanings}
    assert formal["kidney/inflammation"] == ("nephritis", "renal inflammation")
    assert formal["heart/inflammation/chronic"] == (
        "chronic carditis",
        "chronic cardiac inflammation",
    )
    assert "kidney/removal/acute" not in formal


def test_misspelling_keeps_short_words_and_changes_one_long_one():
    rng = random.Random(0)
    assert misspell("MS", rng) == "MS"
    for _ in range(200):
        words = misspell("my kidney hurts", rng).split()
        assert words[0] == "my"
        assert sum(a != b for a, b in zip(words, ["my", "kidney", "hurts"], strict=True)) == 1


@pytest.mark.parametrize(
    ("name", "num_candidates", "context_words"),
    [("articles", 10, 10), ("notes", 25, 20), ("patients", 10, 10)],
)
def test_generated_tasks_have_the_widths_of_the_paper(
    tmp_path, name, num_candidates, context_words
):
    data = prepare_task(name, max_examples=SIZES, cache_dir=tmp_path).as_dataset()
    assert {split: check_examples(examples) for split, examples in data.items()} == SIZES
    for row in data["train"]:
        assert len(row["candidate_ids"]) == num_candidates
        assert max(len(row["left"].split()), len(row["right"].split())) <= context_words
    widest = max(len(row["left"].split()) for row in data["train"])
    assert widest == context_words
