from collections import Counter
from pathlib import Path

import datasets
import pytest
from corpora import DATA, needs_data

from hf_kfc.errors import DataError
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.psytar import PsyTar, read_psytar

HEADER = "review\tsheet\tsentence_index\tmention\tcuis\tcui_names\tsentence"
MEANINGS = [("C1", "Alopecia"), ("C2", "Insomnia"), ("C3", "Weight Gain")]


def row(review: str, mention: str, cui: str, name: str, sentence: str = "") -> str:
    return "\t".join([review, "ADR", "1", mention, cui, name, sentence or f"I had {mention} ."])


def rows(reviews: int = 60) -> list[str]:
    return [row(f"drug.{i}", f"words{i} of mine", *MEANINGS[i % 3]) for i in range(reviews)]


@pytest.fixture
def corpus(tmp_path):
    datasets.disable_progress_bars()

    def make(content: list[str], **files: Path) -> PsyTar:
        path = tmp_path / "mentions.tsv"
        path.write_text("\n".join(content) + "\n")
        files = {"mentions": path, **files}
        return PsyTar(data_files=files, cache_dir=str(tmp_path / "cache"), num_candidates=3)

    return make


def prepared(builder: PsyTar) -> datasets.DatasetDict:
    builder.download_and_prepare()
    return builder.as_dataset()


def test_reviews_are_split_whole_and_for_good(corpus):
    extra = [row(f"drug.{i}", f"again{i}", *MEANINGS[0]) for i in range(60)]
    data = prepared(corpus([HEADER, *rows(), *extra]))
    reviews = {split: set(examples["document"]) for split, examples in data.items()}
    assert len(set.union(*reviews.values())) == sum(map(len, reviews.values())) == 60
    assert all(len(data[split]) == 2 * len(reviews[split]) for split in data)
    smaller = prepared(corpus([HEADER, *rows(50)]))
    for split, examples in smaller.items():
        assert set(examples["document"]) <= reviews[split]


def test_only_train_mentions_become_aliases(corpus):
    builder = corpus([HEADER, *rows()])
    data = prepared(builder)
    synonyms = {name for concept in builder._ontology() for name in concept.synonyms}
    assert synonyms == set(data["train"]["mention"])


def test_names_are_the_most_frequent_first_and_more_can_be_given(corpus, tmp_path):
    more = tmp_path / "names.tsv"
    more.write_text("C2\tSleeplessness\nC9\tNot annotated\n")
    extra = [row("drug.1", f"x{i}", "C2", "Agrypnia") for i in range(40)]
    builder = corpus([HEADER, *rows(), *extra], names=more)
    builder.download_and_prepare()
    concepts = {concept.id: concept for concept in builder._ontology()}
    assert set(concepts) == {"C1", "C2", "C3"}
    assert concepts["C2"].names[:3] == ("Agrypnia", "Insomnia", "Sleeplessness")


def test_mentions_with_several_concepts_are_dropped_and_counted(corpus):
    builder = corpus([HEADER, *rows(), row("drug.1", "both", "C1|C7", "Alopecia|Baldness")])
    data = prepared(builder)
    dropped = Counter()
    for counts in builder.counts.splits.values():
        dropped.update(counts.dropped)
    assert dropped == {"several concepts": 1}
    assert not any("both" in examples["mention"] for examples in data.values())
    assert builder.counts.concepts == 4


@pytest.mark.parametrize(
    ("mention", "sentence", "left", "right"),
    [
        ("hair loss", "Some HAIR LOSS, bad.", "Some", ", bad."),
        ("ache", "headache and an ache again", "headache and an", "again"),
        ("ach", "a headache", "a head", "e"),
        ("(pain)", "much (pain) here", "much", "here"),
        ("loss of hair", "hair is lost", "hair is lost", ""),
    ],
)
def test_context_is_what_surrounds_the_mention(corpus, mention, sentence, left, right):
    builder = corpus([HEADER, *rows(), row("extra", mention, *MEANINGS[0], sentence)])
    data = prepared(builder)
    (found,) = (r for rs in data.values() for r in rs if r["document"] == "extra")
    assert (found["left"], found["right"]) == (left, right)
    remarks = [counts.remarks for counts in builder.counts.splits.values() if counts.remarks]
    missing = mention == "loss of hair"
    assert remarks == ([{"mention not found in its sentence": 1}] if missing else [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rows(), r"mentions.tsv:1: expected the header review, sheet, sentence_index, mention, "),
        ([HEADER, "a\tb"], r"mentions.tsv:2: expected 7 fields between tabs, got 2; correct or re"),
        (
            [HEADER, *rows(), row("r", "m", "C1|C2", "Alopecia")],
            r"mentions.tsv:62: concepts 'C1\|C2' and names 'Alopecia' do not pair up; give one",
        ),
        ([HEADER, row("r", "m", "", "")], r"mentions.tsv:2: concepts '' and names '' do not pair"),
        ([HEADER, *rows(), row("r", " ", "C1", "Alopecia")], r": empty mention 'r:line62'; remove"),
    ],
)
def test_malformed_files(corpus, content, message):
    builder = corpus(content)
    with pytest.raises(DataError, match=message):
        builder.download_and_prepare()


@needs_data
def test_real_file(tmp_path):
    file = DATA / "psytar" / "psytar_mentions.tsv.gz"
    found = list(read_psytar(file))
    assert len(found) == 7280
    assert len({row.review for row in found}) == 850
    assert len({cui for row in found for cui in row.cuis}) == 833

    builder = PsyTar(data_files={"mentions": file}, cache_dir=str(tmp_path))
    data = prepared(builder)
    assert sum(counts.read for counts in builder.counts.splits.values()) == 7280
    dropped = sum(counts.dropped["several concepts"] for counts in builder.counts.splits.values())
    assert sum(map(check_examples, data.values())) == 7280 - dropped == 7280 - 706
    assert builder.counts.splits["test"].recall > 0.8
    assert 0.65 < len(data["train"]) / 6574 < 0.75
