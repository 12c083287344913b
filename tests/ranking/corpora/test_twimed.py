import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.corpora.twimed import TwiMed, _read_brat_names
from hf_kfc.ranking.problems import Problems

CONCEPTS = (
    "-1\tname:Name:Unknown Concept ID\n"
    "0\tname:Name:Disagreement in Concept ID\n"
    "5656\tname:Name:Venlafaxine\tname:Also known as:Effexor\n"
    "C0022107\tname:Name:Irritable Mood\n"
    "C0018681\tname:Name:Headache\n"
)
TEXT = "On effexor I am so cross and my head hurts __number__ times."
SPANS = [
    ("Drug", "effexor", "5656\tVenlafaxine"),
    ("Symptom", "so cross", "C0022107\tIrritable Mood"),
    ("Symptom", "head", "0\tDisagreement in Concept ID"),
    ("Symptom", "hurts", "-1\tUnknown Concept ID"),
]


def annotated(*extra: str) -> str:
    lines = []
    for i, (kind, words, concept) in enumerate(SPANS, start=1):
        start = TEXT.index(words)
        lines.append(f"T{i}\t{kind} {start} {start + len(words)}\t{words}")
        lines.append(f"A{i}\tPerson T{i} 1st")
        lines.append(f"N{i}\tReference T{i} Concepts:{concept}")
    lines.append("R1\tOutcome-negative Arg1:T1 Arg2:T2")
    return "\n".join([*lines, *extra]) + "\n"


@pytest.fixture
def corpus(tmp_path):
    datasets.disable_progress_bars()
    for folder in ("twitter", "pubmed"):
        (tmp_path / folder).mkdir()
    (tmp_path / "Concepts.txt").write_text(CONCEPTS)

    def make(*extra: str, **config: object) -> TwiMed:
        names = [f"twitter/{1000 + i}" for i in range(30)]
        names += [f"pubmed/PMC{i // 2}_{i}" for i in range(30)]
        for name in names:
            own = extra if name == "pubmed/PMC5_10" else ()
            (tmp_path / f"{name}.ann").write_text(annotated(*own))
            (tmp_path / f"{name}.txt").write_text(TEXT)
        files = {
            "annotations": [tmp_path / "twitter", tmp_path / "pubmed"],
            "concepts": tmp_path / "Concepts.txt",
        }
        return TwiMed(
            data_files=files, cache_dir=str(tmp_path / "cache"), num_candidates=3, **config
        )

    return make


def malformed(builder: TwiMed) -> list[dict[str, int]]:
    found = [counts.malformed for counts in builder.counts.splits.values()]
    return [reasons for reasons in found if reasons]


def test_spans_become_examples_and_articles_stay_whole(corpus):
    builder = corpus(names_from=[])
    builder.download_and_prepare()
    data = builder.as_dataset()
    assert sum(counts.dropped["no concept"] for counts in builder.counts.splits.values()) == 120
    documents = [set(examples["document"]) for examples in data.values()]
    assert len(set.union(*documents)) == sum(map(len, documents)) == 45
    assert sum(map(len, data.values())) == 120
    by_id = {row["id"]: row for examples in data.values() for row in examples}
    row = by_id["PMC5:10.T2"]
    assert (row["mention"], row["left"], row["right"][:11]) == (
        "so cross",
        "On effexor I am",
        "and my head",
    )
    assert row["candidate_ids"][row["label"]] == "C0022107"
    assert sorted(row["candidate_names"]) == ["Headache", "Irritable Mood", "Venlafaxine"]
    assert by_id["1000:T1"]["gold_rank"] == 0  # by its other name, Effexor


def test_several_concepts_are_dropped_and_repeated_ones_are_one(corpus):
    builder = corpus(
        "N8\tReference T1 Concepts:C0018681\tHeadache",
        "N9\tReference T2 Concepts:C0022107\tIrritable Mood",
    )
    builder.download_and_prepare()
    dropped = [
        counts.dropped.get("several concepts", 0) for counts in builder.counts.splits.values()
    ]
    assert sum(dropped) == 1
    assert sum(counts.kept for counts in builder.counts.splits.values()) == 119


def test_tweets_that_are_gone_raise_or_are_counted(corpus, tmp_path):
    corpus()
    (tmp_path / "twitter" / "1003.txt").unlink()

    def without_tweet(**config: str) -> TwiMed:
        files = {"annotations": [tmp_path / "twitter"], "concepts": tmp_path / "Concepts.txt"}
        cache = str(tmp_path / "cache")
        return TwiMed(data_files=files, cache_dir=cache, num_candidates=3, **config)

    with pytest.raises(DataError, match=r"1003.ann: there is no 1003.txt to it; add it or leave"):
        without_tweet().download_and_prepare()
    builder = without_tweet(on_error="count")
    builder.download_and_prepare()
    assert malformed(builder) == [{"file without its counterpart": 1}]
    assert sum(counts.kept for counts in builder.counts.splits.values()) == 58


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("T9\tDrug 1 200\tx", "offset outside the text"),
        ("T9\tDrug 0 2\tIn", "mention differs from the text"),
        ("N9\tReference T1", "truncated or malformed line"),
    ],
)
def test_malformed_lines_raise_or_are_counted(corpus, line, reason):
    with pytest.raises(DataError, match=r"PMC5_10.ann:14: .*; correct"):
        corpus(line).download_and_prepare()
    builder = corpus(line, on_error="count")
    builder.download_and_prepare()
    assert malformed(builder) == [{reason: 1}]
    assert sum(counts.kept for counts in builder.counts.splits.values()) == 120


@pytest.mark.parametrize("line", ["C1", "C1\tHeadache", "C1\tname:Name:", "\tname:Name:Headache"])
def test_malformed_names_raise_or_are_counted(tmp_path, line):
    path = tmp_path / "Concepts.txt"
    path.write_text(CONCEPTS + line)
    with pytest.raises(DataError, match=r"Concepts.txt:6: expected 'id<TAB>name:Name:...', got "):
        _read_brat_names(path, Problems())
    problems = Problems("count")
    assert len(_read_brat_names(path, problems)) == 5
    assert problems.counts == {"line is not 'id<TAB>name:Name:...'": 1}


WORD = st.from_regex(r"[A-Za-z0-9,:()\- ]*[A-Za-z0-9]", fullmatch=True).map(str.strip)


@given(st.dictionaries(WORD, st.lists(WORD, min_size=1, max_size=4), max_size=5))
@settings(deadline=None)
def test_names_that_are_written_are_read(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("names") / "Concepts.txt"
    rows = [[id_, *(f"name:Name:{name}" for name in own)] for id_, own in names.items()]
    path.write_text("".join("\t".join(fields) + "\n" for fields in rows))
    assert _read_brat_names(path, Problems()) == names
