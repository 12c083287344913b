import json
import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from hf_kfc.errors import DataError
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.corpora.builder import COUNTS_FILE, CandidateRankingBuilder
from hf_kfc.ranking.corpora.config import stable_fraction
from hf_kfc.ranking.corpora.counts import Counts
from hf_kfc.ranking.schema import Concept, Mention

ONTOLOGY = [Concept(f"C{index}", f"word{index} disease") for index in range(40)]


class Toy(CandidateRankingBuilder):
    """Reads lines ``split document text concept``; ``-`` stands for nothing."""

    FILES = ("mentions",)
    OPTIONAL_FILES = ("ontology",)
    ontology = ONTOLOGY

    def _concepts(self, problems):
        return self.ontology

    def _mentions(self, split, counts, problems):
        path = Path(self._file("mentions"))
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            where = f"{path.name}:{number}"
            try:
                its_split, document, text, concept = line.split()
            except ValueError:
                if split == "train":
                    problems("not four fields", where, f"{line!r} has not four fields; correct it")
                continue
            if its_split != split:
                continue
            if concept == "none":
                counts.drop("no concept")
                continue
            text = text.replace("_", " ").replace("-", " ")
            yield Mention(document, text, "l1 l2\n l3  l4 ", " r1 r2 r3 r4", concept, where=where)


def lines(per_split: int = 60) -> list[str]:
    return [
        f"{split} {split}{index // 3} word{index % 40} C{index % 40}"
        for split in ("train", "validation", "test")
        for index in range(per_split)
    ]


@pytest.fixture
def toy(tmp_path):
    datasets.disable_progress_bars()

    def make(content: list[str] | None = None, cls=Toy, **config) -> Toy:
        path = tmp_path / "a [folder]" / "mentions.txt"
        path.parent.mkdir(exist_ok=True)
        text = "\n".join(lines() if content is None else content)
        if not path.exists() or path.read_text() != text:  # a new time stamp is a new cache key
            path.write_text(text)
        config = {"names_from": [], **config}  # the names are the ontology's alone
        return cls(data_files={"mentions": path}, cache_dir=str(tmp_path / "cache"), **config)

    return make


def prepared(builder: Toy) -> datasets.DatasetDict:
    builder.download_and_prepare()
    return builder.as_dataset()


def test_every_example_holds_its_gold_among_distinct_candidates(toy):
    missed = [f"train t{index} unrelated C{index}" for index in range(40)]
    builder = toy(lines() + missed)
    data = prepared(builder)
    assert set(data) == {"train", "validation", "test"}
    for split, examples in data.items():
        assert check_examples(examples) == builder.counts.splits[split].kept
        assert {len(example["candidate_ids"]) for example in examples} == {10}
    names = {concept.id: concept.name for concept in ONTOLOGY}
    for example in data["train"]:
        number = example["document"][1:] if example["mention"] == "unrelated" else None
        gold = f"C{number or example['mention'].removeprefix('word')}"
        assert example["candidate_ids"][example["label"]] == gold
        assert example["candidate_names"] == [names[id_] for id_ in example["candidate_ids"]]


def test_a_missed_gold_takes_the_place_of_the_worst_candidate(toy):
    content = [*lines(6), *(f"train t{index} word30 C{index}" for index in range(8))]
    for row in prepared(toy(content, num_candidates=2))["train"]:
        if row["mention"] == "word30":
            assert set(row["candidate_ids"]) == {"C30", f"C{row['document'][1:]}"}


def test_neither_the_label_nor_the_order_gives_the_gold_away(toy):
    data = prepared(toy(lines(400), num_candidates=4))
    labels = Counter(data["train"]["label"])
    assert set(labels) == {0, 1, 2, 3}
    assert max(labels.values()) < 2 * min(labels.values())


def test_context_is_cut_to_the_words_next_to_the_mention(toy):
    row = prepared(toy(context_words=2))["train"][0]
    assert (row["left"], row["right"]) == ("l3 l4", "r1 r2")
    row = prepared(toy(context_words=0))["train"][0]
    assert (row["left"], row["right"]) == ("", "")
    row = prepared(toy(context_words=9))["train"][0]
    assert (row["left"], row["right"]) == ("l1 l2 l3 l4", "r1 r2 r3 r4")


def test_counts_add_up_and_outlive_the_build(toy, caplog):
    extra = ["train d1 word1 none", "train d1 word1 X9", "train d1 word1 X9", "train d2 zzz C1"]
    builder = toy(lines() + extra, max_examples={"train": 50})
    with caplog.at_level(logging.INFO, logger="hf_kfc.ranking.corpora.builder"):
        data = prepared(builder)
    counts = builder.counts.splits["train"]
    assert counts.dropped == {"no concept": 1, "gold concept not in the ontology": 2}
    assert (counts.read, counts.linked, counts.named) == (64, 63, 61)
    assert (counts.kept, counts.not_drawn) == (50, 11)
    assert len(data["train"]) == 50
    assert "50 kept, 11 not drawn, 3 dropped (no concept: 1, gold concept not" in caplog.text
    assert (builder.counts.concepts, builder.counts.names) == (40, 40)

    cached = toy(lines() + extra, max_examples={"train": 50})
    assert cached.counts == builder.counts
    stored = json.loads((Path(builder.cache_dir) / COUNTS_FILE).read_text())
    assert stored["splits"]["train"]["recall"] == counts.recall() == 1


def test_recall_is_measured_before_the_gold_is_put_in(toy):
    missed = [f"test q{index} zzz C{index}" for index in range(40)]
    second = ["test r word1_word1 C2", "test r word1_word1 C1", "test r word1 X9"]
    builder = toy([*lines(6), *missed, *second], num_candidates=30)
    rows = {row["id"]: row for row in prepared(builder)["test"]}
    assert builder.counts.splits["train"].recall() == 1.0
    test = builder.counts.splits["test"]
    # 30 of the missed ones are among the pseudo-random candidates, which are not retrieved.
    assert (test.linked, test.kept, sum(test.gold_at)) == (49, 48, 7)
    assert test.gold_at[0] == 7
    assert (test.recall(1), test.recall_of_linked()) == (7 / 48, 7 / 49)
    assert (rows["r:0"]["gold_rank"], rows["r:1"]["gold_rank"]) == (-1, 0)
    assert (rows["r:1"]["num_retrieved"], rows["q0:0"]["num_retrieved"]) == (1, 0)
    # Without its gold put in, an example has one candidate more that is random.
    assert test.filled == 7 * 29 + 41 * 29 - 1


def test_candidates_of_one_name_are_marked_and_types_can_tell_them_apart(toy):
    builder = toy(cls=Colds, num_candidates=3)
    row = prepared(builder)["train"][0]
    colds = [i for i, name in enumerate(row["candidate_names"]) if name.lower() == "word0"]
    assert row["same_name"] == sorted(colds)
    assert len(colds) == 2
    counts = builder.counts.splits["train"]
    golds = sum(row["label"] in row["same_name"] for row in builder.as_dataset()["train"])
    assert (counts.same_name, counts.gold_same_name) == (60, golds)
    assert 0 < golds < 60

    row = prepared(toy(cls=Colds, num_candidates=3, show_types=True))["train"][0]
    assert {"Word0 [Disease]", "word0 [Weather]"} < set(row["candidate_names"])
    assert row["same_name"] == []


def test_malformed_records_raise_or_are_counted(toy):
    content = [*lines(6), "train d word1", "test only"]
    with pytest.raises(DataError, match=r"^mentions.txt:19: 'train d word1' has not four fields"):
        toy(content).download_and_prepare()
    builder = toy(content, on_error="count")
    assert len(prepared(builder)["train"]) == 6
    train = builder.counts.splits["train"]
    assert train.malformed == {"not four fields": 2}
    assert "malformed records: not four fields: 2" in str(train)


def test_several_processes_make_the_same_examples_and_counts(toy, monkeypatch):
    monkeypatch.setattr("hf_kfc.ranking.corpora.builder._CHUNK", 7)
    one = toy()
    expected = {split: data.to_list() for split, data in prepared(one).items()}
    two = toy()
    two.download_and_prepare(download_mode="force_redownload", num_proc=2)
    assert {split: data.to_list() for split, data in two.as_dataset().items()} == expected
    assert two.counts == one.counts


def test_streaming_gives_the_same_examples(toy):
    expected = prepared(toy())["test"].to_list()
    assert list(toy().as_streaming_dataset(split="test")) == expected


def test_train_mentions_lend_their_words_to_concepts(tmp_path):
    names = tmp_path / "names.tsv"
    names.write_text("C1\tfever\nC2\trash\n")
    mentions = tmp_path / "mentions.txt"
    content = ["train a pyrexia C1", "train a itch C3", "validation b itch C3", "test c pyrexia C1"]
    mentions.write_text("\n".join(content))

    def ranks(**config) -> tuple[int, Counts]:
        files = {"mentions": mentions, "ontology": names}
        builder = FromFile(data_files=files, cache_dir=str(tmp_path / "cache"), **config)
        return prepared(builder)["test"][0]["gold_rank"], builder.counts

    rank, counts = ranks()
    assert (rank, counts.concepts, counts.names, counts.named_by_mentions) == (0, 3, 4, 1)
    mentions.write_text("\n".join([*content, "validation b fever C1", "train a rash C2"]))
    rank, counts = ranks(names_from=[])
    assert (rank, counts.concepts) == (-1, 2)
    assert counts.splits["train"].dropped == {"gold concept not in the ontology": 1}


def test_the_ontology_can_be_read_again_with_words_of_enough_documents(tmp_path):
    names = tmp_path / "names.tsv"
    names.write_text("C1\tfever\nC2\trash\n")
    mentions = tmp_path / "mentions.txt"
    content = ["train a pyrexia C1", "train b Pyrexia C1", "train b itch C3", "train b itch C3"]
    mentions.write_text("\n".join([*content, "validation c chill C1", "test d heat C1"]))
    files = {"mentions": mentions, "ontology": names}
    builder = FromFile(data_files=files, cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()

    def found(least: int | None) -> dict[str, tuple[str, ...]]:
        return {concept.id: concept.names for concept in builder.read_ontology(least)}

    own = {"C1": ("fever",), "C2": ("rash",)}
    assert found(None) == own
    assert found(2) == own | {"C1": ("fever", "pyrexia")}
    assert found(1) == own | {"C1": ("fever", "pyrexia"), "C3": ("itch",)}


def test_an_ontology_of_another_vocabulary_is_told_of(toy, caplog):
    unnamed = [f"test other{i} word{i} X{i}" for i in range(70)]
    prepared(toy(lines() + unnamed))
    assert "/test: only 60 of 130 mentions are of a concept that has a name; che" in caplog.text
    assert "/train: only" not in caplog.text


def test_an_ontology_that_has_few_of_the_golds_is_told_of(tmp_path, caplog):
    """Words of train mentions name them all, which would hide it."""
    mentions = tmp_path / "mentions.txt"
    rows = [
        f"{split} {split}{i} word{i} C{i}"
        for split in ("train", "validation", "test")
        for i in range(5)
    ]
    mentions.write_text("\n".join(rows) + "\n")
    for known, told in ((3, False), (2, True)):
        ontology = tmp_path / f"{known}.tsv"
        ontology.write_text("".join(f"C{i}\tname{i}\n" for i in [*range(known), 98, 99]))
        files = {"mentions": str(mentions), "ontology": str(ontology)}
        caplog.clear()
        prepared(FromFile(data_files=files, cache_dir=str(tmp_path / "cache"), num_candidates=2))
        assert ("only 2 of 5 concepts of the mentions are in the ontology" in caplog.text) is told


def test_mentions_that_are_halves_of_words_are_told_of(toy, caplog):
    prepared(toy(cls=Halves, seed=3))
    assert "/test: 40 of 60 mentions begin or end inside of a word; check that offs" in caplog.text
    caplog.clear()
    prepared(toy(cls=Halves, seed=4, context_words=3))  # of other scripts nobody knows
    assert not caplog.records


class Halves(Toy):
    def _mentions(self, split, counts, problems):
        left, right = ("so", "ly") if self.config.context_words == 10 else ("ปวด", "ท้อง")
        for index, mention in enumerate(super()._mentions(split, counts, problems)):
            text = mention.text + "x" * (index % 3 == 1)
            own = {"left": left} if index % 3 == 0 else {"right": right}
            yield replace(mention, text=text, **{"left": "it ", "right": " was"} | own)


def test_one_text_in_train_and_test_is_told_of(toy, caplog):
    prepared(toy())
    assert not caplog.records
    prepared(toy(cls=Repeated, seed=1))
    assert ": 60 of 60 mentions of test stand in train too, with the same" in caplog.text
    caplog.clear()
    prepared(toy(cls=Sentences, seed=2))  # one in six is a sentence of train
    assert ": 10 of 60 mentions of test stand in train too, with the same" in caplog.text


class Repeated(Toy):
    def _mentions(self, split, counts, problems):
        for index, mention in enumerate(super()._mentions(split, counts, problems)):
            yield replace(mention, left=f"{index} a b c d", right="e f g h i j")


class Sentences(Toy):
    def _mentions(self, split, counts, problems):
        for index, mention in enumerate(super()._mentions(split, counts, problems)):
            place = index if index % 6 == 0 else f"{split} {index}"
            yield replace(mention, left=f"{place} had", right="again.")


def test_max_examples_is_a_seeded_draw_in_the_order_of_the_corpus(toy):
    drawn = prepared(toy(max_examples={"train": 20, "test": 1000}))
    everything = prepared(toy())
    order = {id_: position for position, id_ in enumerate(everything["train"]["id"])}
    positions = [order[id_] for id_ in drawn["train"]["id"]]
    assert len(positions) == 20
    assert positions == sorted(positions) != list(range(20))
    assert (len(drawn["validation"]), len(drawn["test"])) == (60, 60)
    other = prepared(toy(max_examples={"train": 20, "test": 1000}, seed=1))
    assert other["train"]["id"] != drawn["train"]["id"]


def test_a_second_build_gives_the_same_examples(toy):
    first = prepared(toy()).data
    builder = toy()
    builder.download_and_prepare(download_mode="force_redownload")
    assert {split: table.to_pylist() for split, table in first.items()} == {
        split: examples.to_list() for split, examples in builder.as_dataset().items()
    }


def test_values_and_files_are_part_of_the_cache_key(toy, tmp_path):
    paths = {toy().cache_dir, toy(num_candidates=5).cache_dir, toy(seed=3).cache_dir}
    paths |= {toy(context_words=5).cache_dir, toy(max_examples={"train": 5}).cache_dir}
    assert len(paths) == 5
    before = toy()
    file = Path(before.config.data_files["mentions"][0])
    os.utime(file, (1, 1))
    after = Toy(data_files={"mentions": file}, cache_dir=str(tmp_path / "cache"), names_from=[])
    assert after.cache_dir != before.cache_dir


@pytest.mark.parametrize(
    ("content", "config", "message"),
    [
        (
            [*lines(), "train d - C1"],
            {},
            "mentions.txt:181: empty mention 'd:0'; remove the annotation",
        ),
        (
            [*lines(), "test train3 word1 C1"],
            {},
            "document 'train3' is in the splits train and test; keep each document in one split",
        ),
        (
            [*lines(), "train d word1 X9"],
            {"on_unknown_concept": "raise"},
            "mentions.txt:181: concept 'X9' of mention 'd:0' is not in the ontology; add it",
        ),
        (lines(0), {}, "toy/train: no usable mention (0 mentions read"),
    ],
)
def test_what_is_wrong_in_a_corpus_is_said_and_leaves_no_cache(toy, content, config, message):
    builder = toy(content, dataset_name="toy", **config)
    with pytest.raises(DataError) as raised:
        builder.download_and_prepare()
    assert str(raised.value).startswith(message)
    assert not Path(builder.cache_dir).exists()
    assert not list(Path(builder.cache_dir).parent.glob("*.incomplete"))
    with pytest.raises(DataError, match=r"counts.json: no such file; prepare the dataset first$"):
        toy(content, **config).counts  # noqa: B018 - the property raises


class Keyed(Toy):
    def _mentions(self, split, counts, problems):
        for mention in super()._mentions(split, counts, problems):
            yield Mention(mention.document, mention.text, "", "", mention.concept, key=mention.text)


def test_a_repeated_mention_is_refused(toy):
    with pytest.raises(DataError, match=r"/train: mention 'd:word1' comes twice; remove the repea"):
        toy(["train d word1 C1", "train d word1 C1"], Keyed).download_and_prepare()


class Colds(Toy):
    ontology = (
        Concept("C0", "Word0", types=("Disease",)),
        Concept("C1", "word1"),
        Concept("C2", "word0", types=("Weather",)),
        *(Concept(f"C{number}", f"other{number}") for number in range(3, 40)),
    )

    def _mentions(self, split, counts, problems):
        for index in range(60):
            yield Mention(split, "word0", "", "", f"C{index % 3}")


class FromFile(Toy):
    FILES = ("mentions", "ontology")

    _concepts = CandidateRankingBuilder._concepts


class TinyOntology(Toy):
    ontology = (ONTOLOGY[0],)


class RepeatedOntology(Toy):
    ontology = (ONTOLOGY[0], ONTOLOGY[0])


class FewConcepts(Toy):
    ontology = ONTOLOGY[:3]


def test_small_and_broken_ontologies(toy):
    with pytest.raises(DataError, match=r"has 1 concept; ranking needs at least 2$"):
        toy(cls=TinyOntology).download_and_prepare()
    with pytest.raises(DataError, match=r"^concept 'C0' is in the ontology twice"):
        toy(cls=RepeatedOntology).download_and_prepare()
    data = prepared(toy(cls=FewConcepts))
    assert {len(example["candidate_ids"]) for example in data["train"]} == {3}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_candidates": 1}, "num_candidates is 1; give at least 2"),
        ({"context_words": -1}, "context_words is -1; give 0 or more"),
        ({"on_unknown_concept": "keep"}, "on_unknown_concept is 'keep'; give 'count' or"),
        ({"names_from": ["test"]}, "a split in names_from is 'test'; give 'train' or 'validation'"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; give 'raise' or 'count'"),
        ({"retrieval": "dense"}, "retrieval is 'dense'; give 'bm25' or 'tfidf'"),
        ({"data_dir": "x"}, "data_dir is cached by name alone; pass data_files instead"),
        (
            {"max_examples": {"dev": 5}},
            "a split in max_examples is 'dev'; give 'train' or ",
        ),
        ({"max_examples": {"test": 0}}, "max_examples['test'] is 0; give at least 1"),
    ],
)
def test_values_out_of_range(toy, config, message):
    with pytest.raises(DataError) as raised:
        toy(**config)
    assert str(raised.value).startswith(message)


def test_files_are_checked_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match=r"^Toy was given no file 'mentions'; pass data_files with"):
        Toy()
    with pytest.raises(
        DataError, match=r"^Toy reads no file 'dev'; data_files may name mentions, "
    ):
        Toy(data_files={"dev": tmp_path})
    with pytest.raises(DataError, match=r"absent\.txt: no such file; check the path"):
        Toy(data_files={"mentions": tmp_path / "absent.txt"})


def test_stable_fraction_does_not_change_between_versions():
    assert stable_fraction("lexapro.1") == pytest.approx(0.2622, abs=1e-4)
    fractions = [stable_fraction(str(number)) for number in range(2000)]
    assert 0 <= min(fractions) <= max(fractions) < 1
    assert sum(fractions) / 2000 == pytest.approx(0.5, abs=0.03)
