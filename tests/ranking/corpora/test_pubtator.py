import re
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pubtator_text import block

from hf_kfc.errors import DataError
from hf_kfc.ranking.corpora.documents import overlapping_spans
from hf_kfc.ranking.corpora.pubtator import Pubtator, _read_ids
from hf_kfc.ranking.formats.documents import Span
from hf_kfc.ranking.problems import Problems

ONTOLOGY = "D1\tNaloxone\nD2\tClonidine\nD3\tHypertension\nD4\tDelirium\n"
TRAIN = block(
    "1",
    "Naloxone and high BP.",
    "Ear pain or delusions, then rest.",
    ("Naloxone", "D1", "Chemical"),
    ("high BP", "D3", "T047,T184"),
    ("BP", "D4"),
    ("Ear", "D1|D9"),
    ("pain", "D1,D9"),
    ("or", "D1+D9"),
    ("ear pain".capitalize(), "D1 ; D9"),
    ("delusions", "-1"),
    ("delusion", ""),
    ("rest", "D2"),
    ("rest", "D4"),
    ("Naloxone and", "D1|D1"),
    ("then", "C77"),
)
DEV = block("2", "Catapres given.", "No more.", ("Catapres", "D2", "Chemical"))
TEST = block("3", "Some confusion.", "High BP.", ("confusion", "D4"), ("High BP", "D3", "T047"))
OTHER = block("4", "More pain.", "None.", ("pain", "D1"), ("None", "-1"))
SEPARATE = {"train": TRAIN, "validation": DEV, "test": TEST}
RELEASE = {
    "corpus": TEST + OTHER + TRAIN + DEV,
    "train_ids": "1\n",
    "validation_ids": "2\n",
    "test_ids": "3\n",
}

Make = Callable[..., Pubtator]


@pytest.fixture
def corpus(tmp_path) -> Make:
    datasets.disable_progress_bars()

    def make(contents: dict[str, str], **config) -> Pubtator:
        files = {}
        for key, content in ({"ontology": ONTOLOGY} | contents).items():
            files[key] = tmp_path / f"{key}.txt"
            files[key].write_text(content)
        # train mentions would give C77, which the ontology has not, a name
        config = {"num_candidates": 2, "names_from": [], **config}
        return Pubtator(data_files=files, cache_dir=str(tmp_path / "cache"), **config)

    return make


def prepared(builder: Pubtator) -> datasets.DatasetDict:
    builder.download_and_prepare()
    return builder.as_dataset()


def test_mentions_without_one_concept_are_dropped_and_unusual_ones_remarked(corpus):
    builder = corpus(SEPARATE)
    rows = prepared(builder)["train"].to_list()
    counts = builder.counts.splits["train"]
    assert counts.dropped == {
        "no concept": 2,
        "composite mention": 4,
        "span marked for several concepts": 2,
        "gold concept not in the ontology": 1,
    }
    assert counts.remarks == {"CID relation passed over": 1, "overlaps another mention": 4}
    assert (counts.read, counts.linked, counts.kept) == (13, 5, 4)
    right = "Ear pain or delusions, then rest."
    assert [(row["id"], row["left"], row["mention"], row["right"]) for row in rows] == [
        ("1:0-8", "", "Naloxone", f"and high BP. {right}"),
        ("1:13-20", "Naloxone and", "high BP", f". {right}"),
        ("1:18-20", "Naloxone and high", "BP", f". {right}"),
        ("1:0-12", "", "Naloxone and", f"high BP. {right}"),
    ]
    golds = [row["candidate_ids"][row["label"]] for row in rows]
    assert golds == ["D1", "D3", "D4", "D1"]


def test_lists_of_documents_make_the_same_splits_as_files(corpus):
    separate = corpus(SEPARATE)
    expected = {split: data.to_list() for split, data in prepared(separate).items()}
    release = corpus(RELEASE)
    assert {split: data.to_list() for split, data in prepared(release).items()} == expected
    train, *others = release.counts.splits.values()
    assert train.dropped.pop("document in no list") == 2
    train.read -= 2
    assert [train, *others] == list(separate.counts.splits.values())


def test_only_the_types_asked_for_are_kept(corpus):
    builder = corpus(SEPARATE, types=["T047", "Chemical"])
    data = prepared(builder)
    assert data["train"]["mention"][:] == ["Naloxone", "high BP"]
    assert data["test"]["mention"][:] == ["High BP"]
    assert builder.counts.splits["test"].dropped == {"semantic type not asked for": 1}
    # "BP" within "high BP" is left out, so that nothing overlaps
    assert "overlaps another mention" not in builder.counts.splits["train"].remarks


def test_a_prefix_of_identifiers_is_taken_off(corpus):
    expected = [examples.to_list() for examples in prepared(corpus(SEPARATE)).values()]
    contents = {key: re.sub(r"\bD([0-9])", r"CTD:D\1", SEPARATE[key]) for key in SEPARATE}
    data = prepared(corpus(contents, prefix="CTD:"))
    assert [examples.to_list() for examples in data.values()] == expected
    with pytest.raises(DataError, match=r"/train: no usable mention .*not in the ontology: 5\)"):
        prepared(corpus(contents))


def malformed(text: str) -> str:
    return text.replace("\tBP\t", "\tBQ\t")


@pytest.mark.parametrize(
    ("contents", "place"), [(SEPARATE, "train.txt:5"), (RELEASE, "corpus.txt:17")]
)
def test_malformed_annotations_raise_or_are_counted_once(corpus, contents, place):
    contents = {key: malformed(text) for key, text in contents.items()}
    with pytest.raises(DataError, match=rf"{place}: mention 'BQ' is not the text at 18 20, which"):
        prepared(corpus(contents))
    builder = corpus(contents, on_error="count")
    assert len(prepared(builder)["train"]) == 3
    assert [split.malformed for split in builder.counts.splits.values()] == [
        {"mention differs from the text": 1},
        {},
        {},
    ]


@pytest.mark.parametrize(
    ("key", "content", "reason", "message"),
    [
        (
            "test_ids",
            "3\n\n7\n",
            "listed document not in the corpus",
            r"test_ids.txt:3: document '7' is not in the corpus; correct or remove the line$",
        ),
        (
            "validation_ids",
            "2\n2\n",
            "document listed twice",
            r"validation_ids.txt:2: document '2' is listed twice; remove the repeated line$",
        ),
        (
            "train_ids",
            "1\n3 4\n",
            "line is not one identifier",
            r"train_ids.txt:2: expected one identifier, got '3 4'; put each on a line of its own$",
        ),
    ],
)
def test_malformed_lists_raise_or_are_counted(corpus, key, content, reason, message):
    contents = RELEASE | {key: content}
    with pytest.raises(DataError, match=message):
        prepared(corpus(contents))
    builder = corpus(contents, on_error="count")
    prepared(builder)
    malformed = {split: own.malformed for split, own in builder.counts.splits.items()}
    assert malformed.pop(key.removesuffix("_ids")) == {reason: 1}
    assert list(malformed.values()) == [{}, {}]


def test_a_document_in_two_lists_is_refused(corpus):
    with pytest.raises(DataError, match=r"^document '3' is in the splits train and test; keep ea"):
        prepared(corpus(RELEASE | {"train_ids": "1\n3\n"}))


def test_read_ids(tmp_path):
    file = tmp_path / "ids"
    file.write_text(" 12 \r\n\nPMC3\n")
    assert _read_ids(file, Problems()) == {"12": f"{file}:1", "PMC3": f"{file}:3"}
    problems = Problems("count")
    file.write_bytes(b"1\n\xff\n1\n")
    assert list(_read_ids(file, problems)) == ["1"]
    assert problems.counts == {"not UTF-8": 1, "document listed twice": 1}


@pytest.mark.parametrize(
    "keys",
    [
        ["train", "test"],
        ["corpus", "train_ids", "test_ids"],
        ["train", "validation", "test", "corpus"],
        [],
    ],
)
def test_neither_set_of_files_is_given_in_full(tmp_path, keys):
    (tmp_path / "file").write_text(ONTOLOGY)
    files = dict.fromkeys(["ontology", *keys], Path(tmp_path / "file"))
    message = (
        rf"^Pubtator was given the files {', '.join(files)}; give train, validation, test, "
        "or corpus, train_ids, validation_ids, test_ids$"
    )
    with pytest.raises(DataError, match=message):
        Pubtator(data_files=files)


@pytest.mark.parametrize("types", ["T047", []])
def test_types_are_a_list(corpus, types):
    with pytest.raises(DataError, match=r"; give a list of semantic types, or none$"):
        corpus(SEPARATE, types=types)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8)), max_size=8))
def test_overlapping_spans_are_those_that_share_a_character(spans):
    annotations = [
        Span(((start, start + length),), "", where=f"{number}")
        for number, (start, length) in enumerate(spans)
    ]
    covered = [set(range(start, start + length)) for start, length in spans]
    assert overlapping_spans(annotations) == {
        f"{i}"
        for i, own in enumerate(covered)
        if any(own & other for j, other in enumerate(covered) if j != i)
    }
