"""From text to concepts: as in training, whatever the input comes in."""

import gc
import json
import math
from contextlib import contextmanager, suppress
from copy import copy
from itertools import chain
from threading import Thread
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForMultipleChoice,
    BertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from hf_kfc.errors import DataError, HfKfcError
from hf_kfc.ranking import (
    CandidateCollator,
    CnnConfig,
    CnnForMultipleChoice,
    EntityLinker,
    encode_candidates,
)
from hf_kfc.ranking.corpora.clinical_notes import ClinicalNotes
from hf_kfc.ranking.encoding import CandidateEncoder
from hf_kfc.ranking.formats.documents import Document, Span
from hf_kfc.ranking.linker import LinkerSettings, as_document, with_answers
from hf_kfc.ranking.ontologies import Ontology, write_concepts
from hf_kfc.ranking.retrieval import RETRIEVERS
from hf_kfc.ranking.schema import Concept, Mention

TEXT = "The doctor found {} in March, and none of the others. Later there was {} too."


def note(first, second, id_="n"):
    text = TEXT.format(first, second)
    at = text.index(first), text.index(second, text.index(first) + len(first))
    spans = [(at[0], at[0] + len(first)), (at[1], at[1] + len(second))]
    return {"id": id_, "text": text, "spans": [{"start": s, "end": e} for s, e in spans]}


@contextmanager
def fed_to(model):
    """The batches that a model gets meanwhile."""
    batches = []
    hook = model.register_forward_pre_hook(
        lambda _, args, batch: batches.append(batch), with_kwargs=True
    )
    yield batches
    hook.remove()


def pairs_of(batch):
    """The ids and types of each pair of a batch, without padding."""
    mask = batch["attention_mask"].flatten(0, 1).bool()
    names = ("input_ids", "token_type_ids")
    columns = (
        [own[m].tolist() for own, m in zip(batch[name].flatten(0, 1), mask, strict=True)]
        for name in names
    )
    return zip(*columns, strict=True)


def assert_same(found, expected):
    """But for rounding: sums of floats depend on the batch."""
    for mine, theirs in zip(chain(*found), chain(*expected), strict=True):
        assert mine.concept == theirs.concept
        assert mine.probability == pytest.approx(theirs.probability, abs=1e-6)


def test_mentions_get_concepts_names_and_probabilities(linker):
    own = note("knee pain", "lung cancer")
    first, second = linker(own["text"], [(s["start"], s["end"]) for s in own["spans"]])
    assert (first.text, first.concept, first.name) == ("knee pain", "K20", "pain of the knee")
    assert (second.concept, own["text"][second.start : second.end]) == ("L32", "lung cancer")
    probabilities = [candidate.probability for candidate in first.candidates]
    assert probabilities == sorted(probabilities, reverse=True)
    assert first.probability == probabilities[0] and 0 < sum(probabilities) <= 1 + 1e-12
    assert all(linker.ontology.position(c.id) is not None for c in first.candidates)


def test_every_form_of_input_says_the_same(linker):
    own = note("skin wound", "jaw swelling")
    spans = [(span["start"], span["end"]) for span in own["spans"]]
    entities = [SimpleNamespace(start_char=s, end_char=e) for s, e in spans]
    expected = linker(own["text"], spans)
    for source in (
        own,
        {"text": own["text"], "mentions": spans},
        SimpleNamespace(text=own["text"], ents=entities),  # as spaCy's
        Document("d", own["text"], [Span((s,), own["text"][slice(*s)]) for s in spans]),
    ):
        assert linker(source) == expected
        assert linker([source, source]) == [expected, expected]
    pieces = [{"pieces": [span]} for span in spans]
    assert linker(own["text"], pieces) == expected
    assert linker(own["text"], np.array(spans)) == expected


def test_a_document_of_spacy_is_linked(linker):
    spacy = pytest.importorskip("spacy")
    doc = spacy.blank("en")("The doctor found knee pain in March")
    doc.ents = [doc.char_span(17, 26, label="DISEASE")]
    assert linker(doc)[0].concept == "K20"


@pytest.mark.parametrize(("width", "mentions"), [(8, 64), (128, 32), (384, 10), (9_000, 1)])
def test_the_wider_a_ranker_the_fewer_mentions_a_batch(
    tokenizer, ontology, tmp_path, width, mentions
):
    config = CnnConfig(vocab_size=len(tokenizer), hidden_size=8)
    model = CnnForMultipleChoice(config)
    model.config.hidden_size = width
    linker = EntityLinker(model, tokenizer, ontology, cache_dir=tmp_path, num_candidates=2)
    with fed_to(model) as batches:
        linker([note("knee pain", "ear wound", str(n)) for n in range(50)])
    assert max(len(batch["input_ids"]) for batch in batches) == 2 * mentions


def test_the_order_and_the_batches_change_nothing(linker):
    notes = [note(f"{part} pain", "ear wound") for part in ("knee", "hip", "eye", "liver")]
    notes.append({"text": "ear " * 30 + "ear pain", "spans": [{"start": 120, "end": 128}]})
    one = [linker(own) for own in notes]
    for batch_size in (1, 3, 64):
        assert_same(linker(notes, batch_size=batch_size), one)
    assert_same(linker(notes[::-1])[::-1], one)
    assert_same(linker(notes, num_proc=2), one)
    assert linker([]) == [] and linker("nothing", []) == []


def test_candidates_are_encoded_as_the_examples_were(model, tokenizer, ontology, tmp_path):
    """The builder's examples and what the linker feeds the ranker are the same tokens."""
    notes = [note("knee pain", "ear\nwound", "a"), note("x [SEP] eye cancer", "lung wound", "b")]
    codes = ("K20", "E63"), ("E92", "L33")
    for own, gold in zip(notes, codes, strict=True):
        for span, code in zip(own["spans"], gold, strict=True):
            span["code"] = code
    for split in ("train", "validation", "test"):
        rows = [json.dumps(own | {"id": f"{split}{own['id']}"}) for own in notes]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    write_concepts(
        (Concept(c.id, c.name, c.synonyms, ("Disease",)) for c in ontology), tmp_path / "o.jsonl"
    )
    files = {split: tmp_path / f"{split}.jsonl" for split in ("train", "validation", "test")}
    shown = {"num_candidates": 5, "context_words": 3, "show_types": True, "retrieval": "tfidf"}
    builder = ClinicalNotes(
        data_files={**files, "ontology": tmp_path / "o.jsonl"},
        cache_dir=str(tmp_path / "cache"),
        ontology_format="json",
        **shown,
    )
    builder.download_and_prepare()
    linker = EntityLinker(
        model,
        tokenizer,
        builder.ontology,
        cache_dir=tmp_path,
        max_length=40,
        max_name_length=8,
        **shown,
    )
    with fed_to(model) as batches:
        linker([own | {"id": f"test{own['id']}"} for own in notes])
    examples = encode_candidates(builder.as_dataset()["test"], tokenizer, 40, 8)
    assert len(examples) == 4
    pairs = sorted(chain(*map(pairs_of, batches)))
    expected = [zip(row["input_ids"], row["token_type_ids"], strict=True) for row in examples]
    assert pairs == sorted(chain(*expected))
    separators = [ids.count(tokenizer.sep_token_id) for ids, _ in pairs]
    assert set(separators) == {4}  # "[SEP]" in the note is text


def test_probabilities_are_the_softmax_of_the_rankers_scores(linker, model, tokenizer):
    linker.settings = LinkerSettings(
        num_candidates=6, max_length=40, max_name_length=12, temperature=2.0
    )
    mention = Mention("d", "hip wound", "The doctor found", "in March", "")
    (found,) = linker.link_mentions([mention])
    hits = linker.retriever.search(["hip wound"], 6)[0]
    row = {
        "id": "x",
        "document": "d",
        "mention": "hip wound",
        "left": "The doctor found",
        "right": "in March",
        "candidate_ids": [linker.ontology[h.position].id for h in hits],
        "candidate_names": [linker.ontology[h.position].name for h in hits],
        "label": 0,
    }
    batch = CandidateCollator(tokenizer)(
        encode_candidates(datasets.Dataset.from_list([row]), tokenizer, 40, 12).to_list()
    )
    batch.pop("candidate_mask")
    with torch.no_grad():
        shares = (model(**batch).logits[0].double() / 2).softmax(-1)
    expected = dict(zip(row["candidate_ids"], shares.tolist(), strict=True))
    assert {c.id: pytest.approx(c.probability) for c in found.candidates} == {
        c.id: expected[c.id] for c in found.candidates
    }


def test_pairs_of_like_length_go_together_and_nothing_is_padded_that_need_not(linker, model):
    """Mentions in short and in long contexts, candidates with short and long names."""
    notes = [note(f"{part} pain", "ear wound") for part in ("knee", "hip", "eye", "liver")]
    notes += [
        {"text": f"{part} pain", "spans": [{"start": 0, "end": 8}]} for part in ("knee", "lung")
    ]
    with fed_to(model) as batches:
        linker(notes, batch_size=1)
    assert sum(len(batch["input_ids"]) for batch in batches) == 10 * 6
    longest = [int(batch["attention_mask"].sum(-1).max()) for batch in batches]
    shortest = [int(batch["attention_mask"].sum(-1).min()) for batch in batches]
    assert all(after >= before for before, after in zip(longest, shortest[1:], strict=False))


def test_a_convolution_reads_each_text_and_each_name_once(linker, model, monkeypatch):
    """And says of their pairs what it says of whole ones."""
    notes = [note(f"{part} pain", "ear wound", part) for part in ("knee", "hip", "eye", "knee")]
    notes.append({"text": "ear pain", "spans": [{"start": 0, "end": 8}]})
    with fed_to(model) as batches:
        expected = linker(notes)
    read, plain = [], model.read
    monkeypatch.setattr(
        model, "read", lambda ids, ends, **which: read.append(len(ids)) or plain(ids, ends, **which)
    )
    assert_same(linker(notes, batch_size=2), expected)
    names = {name for own in linker.ontology for name in own.names[:1]}
    assert batches and sum(read) <= 9 + len(names) < 9 * 6


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig, XLMRobertaConfig])
@pytest.mark.parametrize("way", ["plain", "chunks", "hooks"])
def test_the_last_layer_works_out_the_token_that_decides_and_no_other(
    tokenizer, ontology, tmp_path, monkeypatch, kind, way
):
    """But where it goes by chunks, or somebody watches."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"num_hidden_layers": 1, "chunk_size_feed_forward": int(way == "chunks")}
    bert = AutoModelForMultipleChoice.from_config(kind(vocab_size=len(tokenizer), **sizes)).eval()
    lengths, layer = set(), bert.base_model.encoder.layer[0]
    plain = type(layer).forward

    def forward(self, *args, **more):
        states = plain(self, *args, **more)
        lengths.add(states.shape[1])
        return states

    monkeypatch.setattr(type(layer), "forward", forward)
    if way == "hooks":
        layer.register_forward_hook(lambda *_: None)
    linker = EntityLinker(bert, tokenizer, ontology, num_candidates=6, cache_dir=tmp_path)
    found = linker([note("knee pain", "ear wound")])
    assert (lengths == {1}) == (way == "plain")
    lengths.clear()
    monkeypatch.setattr("hf_kfc.ranking.linker.ranker._BY_FIRST_TOKEN", ())
    assert_same(linker([note("knee pain", "ear wound")]), found)
    assert min(lengths) > 1


def test_another_thread_gets_all_tokens_while_a_linker_ranks(tokenizer, ontology, tmp_path):
    """It may train on the same model, or look at what its last layer says."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **sizes)
    bert = AutoModelForMultipleChoice.from_config(config).eval()
    layer, others, seen = bert.base_model.encoder.layer[0], [], []
    plain = layer.forward

    def run():
        seen.append(bert.base_model(torch.ones(1, 5, dtype=torch.long)).last_hidden_state.shape)

    def forward(*args, **more):
        if not others:
            others.append(Thread(target=run))
            others[0].start()
            others[0].join()
        return plain(*args, **more)

    layer.forward = forward
    linker = EntityLinker(bert, tokenizer, ontology, num_candidates=6, cache_dir=tmp_path)
    linker([note("knee pain", "ear wound")])
    assert seen == [(1, 5, 16)]


def test_a_ranker_that_compares_candidates_gets_them_together(linker, model):
    """As its own attribute says: pairs alone would tell it something else."""

    class Comparing(type(model)):
        takes_candidate_mask = True

        def forward(self, *args, candidate_mask, **batch):
            found = super().forward(*args, **batch)
            found.logits = found.logits - found.logits.mean(1, keepdim=True) * candidate_mask
            return found

    notes = [note(f"{part} pain", "ear wound") for part in ("knee", "hip", "eye")]
    expected = linker(notes)
    own = copy(model)
    own.__class__ = Comparing
    comparing = EntityLinker(
        own, linker.tokenizer, linker.ontology, max_length=40, max_name_length=12, num_candidates=6
    )
    with fed_to(own) as batches:
        assert_same(comparing(notes, batch_size=4), expected)  # a softmax knows no common part
    assert [tuple(batch["candidate_mask"].shape) for batch in batches] == [(4, 6), (2, 6)]


def test_names_are_read_once(linker, monkeypatch):
    read = []
    ids = CandidateEncoder._ids
    monkeypatch.setattr(CandidateEncoder, "_ids", lambda self, t: read.append(t) or ids(self, t))
    first = linker(note("knee pain", "ear wound"))
    assert len(read[-1]) > 6  # the names come last
    assert linker(note("knee pain", "ear wound")) == first
    assert read[-1] == []


def test_garbage_is_collected_again_afterwards(linker, monkeypatch):
    mention = Mention("d", "hip wound", "The doctor found", "in March", "")
    during = []
    hook = linker.model.register_forward_pre_hook(lambda *_: during.append(gc.isenabled()))
    for call in (
        lambda: linker(note("knee pain", "ear wound")),
        lambda: linker.link_mentions([mention]),
        lambda: linker.calibrate([mention]),
    ):
        with suppress(DataError):
            call()
        assert gc.isenabled()
    hook.remove()
    assert set(during) == {False}
    monkeypatch.setattr(linker, "_ranker", SimpleNamespace(batch_size=8))
    with pytest.raises(TypeError):
        linker.link_mentions([mention])
    assert gc.isenabled()


def test_what_chance_put_among_the_candidates_is_not_offered(linker):
    (found,) = linker("Something gruesome", [(0, 9)])
    assert found.concept is None and found.candidates == () and found.probability == 0.0


def test_several_answers_are_several_concepts():
    mentions = [{"start": 0, "end": 4, key: ["C1", "C2"]} for key in ("code", "concept")]
    read = as_document("gout", mentions)
    assert [span.concepts for span in read.spans] == [("C1", "C2")] * 2
    assert list(with_answers([read])) == []


def test_below_the_threshold_there_is_no_concept(linker):
    text = "He has knee pain"
    (sure,) = linker(text, [(7, 16)])
    linker.settings = LinkerSettings(
        num_candidates=6,
        max_length=40,
        max_name_length=12,
        nil_threshold=math.nextafter(sure.probability, 1),
    )
    (unsure,) = linker(text, [(7, 16)])
    assert (unsure.concept, unsure.name) == (None, None)
    assert unsure.candidates == sure.candidates


@pytest.mark.parametrize(
    ("inputs", "mentions", "message"),
    [
        ("text", None, "a text is given without mentions"),
        (["a", "b"], None, "a text is given without mentions"),
        ("text", [(0, 9)], "text, mention 0: offsets 0 to 9"),
        ("text", [(2, 2)], "text, mention 0: offsets 2 to 2"),
        ("te  xt", [(0, 2), (2, 4)], "text, mention 1: there are no words"),
        ("text", "0-4", "its mentions are '0-4'"),
        ("text", [0, 4], "text, mention 0: 0 is no span"),
        ("text", [(0.0, 4.0)], "text, mention 0: (0.0, 4.0) is no span"),
        ("text", [{"start": 0}], "text, mention 0: {'start': 0} is no span"),
        ("text", [{"start": 0, "end": 2, "text": "xt"}], "mention 'xt' is not the text"),
        ({"id": "a"}, None, "note 'a' has no text"),
        ({"text": "a"}, None, "text: its mentions are None"),
        (3, [], "int cannot be linked"),
        ("half \ud83d", [(0, 4)], "text: its text is no Unicode ("),
    ],
)
def test_wrong_input_is_one_sentence(linker, inputs, mentions, message):
    with pytest.raises(DataError) as caught:
        linker(inputs, mentions)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_candidates": 1}, "num_candidates is 1"),
        ({"num_candidates": 2.0}, "num_candidates is 2.0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"nil_threshold": 1.5}, "nil_threshold is 1.5"),
        ({"retrieval_weight": -1}, "retrieval_weight is -1"),
        ({"retrieval": "dense"}, "retrieval is 'dense'"),
        ({"show_types": 1}, "show_types is 1"),
        ({"treshold": 1}, "a linker has no setting 'treshold'"),
        ({"max_length": 10}, "max_length is 10"),
    ],
)
def test_wrong_settings_are_refused(model, tokenizer, ontology, tmp_path, settings, message):
    with pytest.raises(DataError, match=message):
        EntityLinker(model, tokenizer, ontology, cache_dir=tmp_path, **settings)
    with pytest.raises(DataError, match="1 concept"):
        EntityLinker(model, tokenizer, [Concept("C1", "one")], cache_dir=tmp_path)
    with pytest.raises(HfKfcError, match="batch_size is 0"):
        EntityLinker(model, tokenizer, ontology, cache_dir=tmp_path)("a b", [(0, 1)], batch_size=0)


@pytest.mark.parametrize("retrieval", RETRIEVERS)
def test_a_thousand_new_concepts_are_linked_without_training(
    model, tokenizer, ontology, tmp_path, retrieval
):
    linker = EntityLinker(
        model, tokenizer, ontology, cache_dir=tmp_path, retrieval=retrieval, num_candidates=4
    )
    assert linker("U07 variant 7", [(0, 13)])[0].concept is None
    names = {f"U{n}": [f"variant{n} fever{n}", f"strain{n}x"] for n in range(1000)}
    linker.add_concepts(names)
    assert len(linker.ontology) == len(ontology) + 1000
    text = " ".join(f"strain{n}x" for n in range(1000))
    spans, start = [], 0
    for word in text.split():
        spans.append((start, start + len(word)))
        start += len(word) + 1
    linker.settings = LinkerSettings(retrieval=retrieval, num_candidates=2)
    found = linker(text, spans)
    offered = [{c.id for c in own.candidates} for own in found]
    assert all(f"U{n}" in own for n, own in enumerate(offered))
    if retrieval == "bm25":  # a word of its own has one concept
        assert [own.concept for own in found] == list(names)
    fresh = EntityLinker(
        model,
        tokenizer,
        Ontology(list(linker.ontology)),
        cache_dir=tmp_path,
        retrieval=retrieval,
        num_candidates=2,
    )
    assert fresh(text, spans) == found


def test_a_known_concept_gets_more_names(linker):
    assert linker("He has gonalgia", [(7, 15)])[0].concept is None
    linker.add_concepts({" K20 ": ["gonalgia", "knee pain"]})
    assert linker("He has gonalgia", [(7, 15)])[0].concept == "K20"
    assert len(linker.ontology) == 40
    assert linker.ontology[linker.ontology.position("K20")].names == (
        "pain of the knee",
        "knee pain",
        "gonalgia",
    )


@pytest.mark.parametrize(
    "names", [{"NIL": ["a"]}, {"C1": []}, {"C1": [" "]}, {"C1": "fever"}, {"C2": ["a"], "": ["b"]}]
)
def test_wrong_new_concepts_change_nothing(linker, names):
    before = linker.ontology
    with pytest.raises(DataError):
        linker.add_concepts(names)
    assert linker.ontology is before
