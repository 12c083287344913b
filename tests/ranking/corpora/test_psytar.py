import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_data import DATA, needs_data

from hf_kfc.errors import DataError
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.corpora.psytar import PsyTar, _read_psytar, _read_psytar_workbook
from hf_kfc.ranking.formats.documents import Document
from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.ontologies.ontology import widened
from hf_kfc.ranking.problems import Problems

HEADER = "review\tsheet\tsentence_index\tmention\tcuis\tcui_names\tsentence"
MEANINGS = [("C1", "Alopecia"), ("C2", "Insomnia"), ("C3", "Weight Gain")]
WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1)
NAMES = st.from_regex(r"[A-Za-z][A-Za-z ,()-]*", fullmatch=True)


def row(review: str, mention: str, cui: str, name: str, sentence: str = "") -> str:
    return "\t".join([review, "ADR", "1", mention, cui, name, sentence or f"I had {mention} ."])


def rows(reviews: int = 60) -> list[str]:
    return [row(f"drug.{i}", f"words{i} of mine", *MEANINGS[i % 3]) for i in range(reviews)]


@pytest.fixture
def corpus(tmp_path):
    datasets.disable_progress_bars()

    def make(content: list[str], ontology: Path | None = None, **config: object) -> PsyTar:
        path = tmp_path / "mentions.tsv"
        path.write_text("\n".join(content) + "\n")
        files = {"mentions": path} | ({"ontology": ontology} if ontology else {})
        cache = str(tmp_path / "cache")
        return PsyTar(data_files=files, cache_dir=cache, num_candidates=3, **config)

    return make


def prepared(builder: PsyTar) -> datasets.DatasetDict:
    builder.download_and_prepare()
    return builder.as_dataset()


def names_of(builder: PsyTar) -> dict[str, tuple[str, ...]]:
    """The names of the concepts, without the words of train mentions."""
    concepts = list(builder._concepts(Problems()))
    ontology = Ontology(concepts) if concepts else None
    return {c.id: c.names for c in widened(ontology, builder._names(Problems()))}


def facts(document: Document) -> tuple:
    (span,) = document.spans
    return document.id, span.text, tuple(zip(span.concepts, span.names, strict=True)), span.key


def total(builder: PsyTar, kind: str) -> Counter[str]:
    return sum((Counter(getattr(c, kind)) for c in builder.counts.splits.values()), Counter())


def test_reviews_are_split_whole_and_for_good(corpus):
    extra = [row(f"drug.{i}", f"again{i}", *MEANINGS[0]) for i in range(60)]
    data = prepared(corpus([HEADER, *rows(), *extra]))
    reviews = {split: set(examples["document"]) for split, examples in data.items()}
    assert len(set.union(*reviews.values())) == sum(map(len, reviews.values())) == 60
    assert all(len(data[split]) == 2 * len(reviews[split]) for split in data)
    smaller = prepared(corpus([HEADER, *rows(50)]))
    for split, examples in smaller.items():
        assert set(examples["document"]) <= reviews[split]


@pytest.mark.parametrize("names_from", [["train"], []])
def test_only_train_mentions_become_names(corpus, names_from):
    builder = corpus([HEADER, *rows()], names_from=names_from)
    data = prepared(builder)
    own = sum(len(names) for names in names_of(builder).values())
    lent = {text.lower() for text in data["train"]["mention"]} if names_from else set()
    assert builder.counts.names == own + len(lent)


def test_names_are_the_most_frequent_first_after_those_of_an_ontology(corpus, tmp_path):
    extra = [row("drug.1", f"x{i}", "C2", "Agrypnia") for i in range(40)]
    builder = corpus([HEADER, *rows(), *extra])
    prepared(builder)
    assert names_of(builder) == {
        "C1": ("Alopecia",),
        "C2": ("Agrypnia", "Insomnia"),
        "C3": ("Weight Gain",),
    }
    more = tmp_path / "names.tsv"
    more.write_text("C2\tSleeplessness\nC9\tNot annotated\n")
    builder = corpus([HEADER, *rows(), *extra], more)
    prepared(builder)
    assert names_of(builder) == {
        "C2": ("Sleeplessness", "Agrypnia", "Insomnia"),
        "C9": ("Not annotated",),
        "C1": ("Alopecia",),
        "C3": ("Weight Gain",),
    }


def test_mentions_with_several_concepts_are_dropped_and_counted(corpus):
    builder = corpus([HEADER, *rows(), row("drug.1", "both", "C1|C7", "Alopecia|Baldness")])
    data = prepared(builder)
    assert total(builder, "dropped") == {"several concepts": 1}
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
    remarks = {"mention not found in its sentence": 1} if mention == "loss of hair" else {}
    assert total(builder, "remarks") == remarks


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ("a\tb", "malformed row", r"tsv:62: expected 7 fields, got 2; correct or remove the row"),
        (
            row("r", "m", "C1|C2", "Alopecia"),
            "concepts and names do not pair up",
            r"mentions.tsv:62: concepts 'C1\|C2' and names 'Alopecia' do not pair up; give one",
        ),
        (
            row("r", "m", "", ""),
            "concepts and names do not pair up",
            r"mentions.tsv:62: concepts '' and names '' do not pair",
        ),
        (row("r", " ", "C1", "A"), "empty mention", r"tsv:62: empty mention 'r:line62'; remove"),
    ],
)
def test_malformed_rows_raise_or_are_counted(corpus, line, reason, message):
    with pytest.raises(DataError, match=message):
        corpus([HEADER, *rows(), line]).download_and_prepare()
    builder = corpus([HEADER, *rows(), line], on_error="count")
    assert sum(map(len, prepared(builder).values())) == 60
    assert total(builder, "malformed") == {reason: 1}


def test_another_header_is_refused(corpus):
    with pytest.raises(DataError, match=r"mentions.tsv:1: no column review, mention, cuis, cui_n"):
        corpus(rows(), on_error="count").download_and_prepare()


SENTENCES = [
    ("id", "comment_id", "drug_id", "sentence_index", "sentences"),
    (1, 1, "drug.1", 1, "No sleep  at all."),
    (2, 1, "drug.1", 1, "And cannot sit still."),
    (None, None, None, None, 17),
]
TITLES = ("id", "drug_id", "sentence_id", "ADRs", "UMLS1", "SNOMED-CT", "UMLS2", "SNOMED-CT")
SHEETS = ["ADR_Mapped", "WD-Mapped ", "SSI_Mapped", "DI_Mapped"]


def workbook(path: Path, adr: list[tuple], titles: tuple = TITLES) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    contents = {"Sentence_Labeling": SENTENCES} | {sheet: [TITLES] for sheet in SHEETS}
    contents["ADR_Mapped"] = [titles, *adr]
    for title, cells in contents.items():
        sheet = book.create_sheet(title)
        for line in cells:
            sheet.append(line)
    book.save(path)
    return path


def test_the_workbook_gives_the_mentions_of_its_sheets(tmp_path):
    mapped = [
        (1, "drug.1", 1, " No sleep ", "c0000001/Sleepless/finding", None, "No code", None),
        (2, "drug.1", 1, "sit still", "C0000002 / Akathisia  / Finding", None, "C0000003] Unrest"),
        (None,) * 8,
        (3, "drug.2", 9, "zaps", "brain shivers"),
    ]
    path = workbook(tmp_path / "book.xlsx", mapped)
    found = list(_read_psytar_workbook(path, Problems()))
    assert [facts(document) for document in found] == [
        ("drug.1", "No sleep", (("C0000001", "Sleepless"),), "ADR_Mapped:2"),
        (
            "drug.1",
            "sit still",
            (("C0000002", "Akathisia"), ("C0000003", "Unrest")),
            "ADR_Mapped:3",
        ),
        ("drug.2", "zaps", (), "ADR_Mapped:5"),
    ]
    assert {a.text for a in found[:2]} == {"No sleep at all. And cannot sit still."}
    assert found[2].spans[0].remarks == ("mention not found in its sentence",)
    builder = PsyTar(data_files={"mentions": path}, cache_dir=str(tmp_path / "cache"))
    builder.files = {"mentions": [str(path)]}
    assert list(builder._all_documents(Problems())) == found


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ((1, None, 1, "zaps", "C0000001/Zap/x"), "row without review or mention"),
        ((1, "drug.1", 1, " ", "C0000001/Zap/x"), "row without review or mention"),
        ((1, "drug.1", 1, "zaps", "c000001/Zap/x"), "cell is not 'CUI / name / type'"),
        ((1, "drug.1", 1, "zaps", "No code", None, "C0000001"), "cell is not 'CUI / name / type'"),
    ],
)
def test_malformed_rows_of_the_workbook_raise_or_are_counted(tmp_path, cells, reason):
    path = workbook(tmp_path / "book.xlsx", [cells])
    with pytest.raises(DataError, match=r"book.xlsx:ADR_Mapped:2: .*; (complete|correct)"):
        list(_read_psytar_workbook(path, Problems()))
    problems = Problems("count")
    assert list(_read_psytar_workbook(path, problems)) == []
    assert problems.counts == {reason: 1}


def test_other_workbooks_and_none_are_refused(tmp_path, monkeypatch):
    path = workbook(tmp_path / "book.xlsx", [], titles=("id", "review"))
    with pytest.raises(DataError, match=r"no sheet 'ADR_Mapped' with drug_id, UMLS1, UMLS2; add"):
        list(_read_psytar_workbook(path, Problems()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=r"book.xlsx: not a readable workbook \(.*\); fetch it agai"
    ):
        list(_read_psytar_workbook(path, Problems("count")))
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"a workbook needs openpyxl; install hf_kfc\[ranking\]$"):
        list(_read_psytar_workbook(path, Problems()))


@given(
    st.lists(st.tuples(WORDS, st.lists(st.tuples(NAMES, NAMES), min_size=1)), max_size=5), st.data()
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read_and_a_cut_file_gives_no_wrong_mention(tmp_path, mentions, data):
    lines = [
        row("drug.1", mention, "|".join(c for c, _ in concepts), "|".join(n for _, n in concepts))
        for mention, concepts in mentions
    ]
    content = "\n".join([HEADER, *lines]).encode()
    path = tmp_path / "table"
    path.write_bytes(content)
    whole = list(_read_psytar(path, Problems()))
    expected = [(mention, tuple(concepts)) for mention, concepts in mentions]
    assert [facts(document)[1:3] for document in whole] == expected
    path.write_bytes(content[: data.draw(st.integers(len(HEADER), len(content)))])
    cut = list(_read_psytar(path, Problems("count")))
    # The sentence stands last: the last mention may have lost words of its context.
    assert [facts(document)[1:3] for document in cut] == expected[: len(cut)]


def place(document: Document) -> tuple:
    (span,) = document.spans
    return document.id, " ".join(span.text.split()), span.concepts


@needs_data
def test_real_workbook_has_the_mentions_of_the_real_table():
    pytest.importorskip("openpyxl")
    table = list(_read_psytar(DATA / "psytar" / "psytar_mentions.tsv.gz", Problems()))
    assert len(table) == 7280
    assert len({document.id for document in table}) == 850
    assert len({cui for document in table for cui in document.spans[0].concepts}) == 833

    problems = Problems("count")
    workbook = list(_read_psytar_workbook(DATA / "psytar" / "PsyTAR_dataset.xlsx", problems))
    assert problems.counts == {
        "row without review or mention": 1,
        "cell is not 'CUI / name / type'": 2,
    }
    assert len(workbook) == 7411
    linked = Counter(place(document) for document in workbook if document.spans[0].concepts)
    # The table gives the row without a review to one called "nan".
    named = Counter(place(document) for document in table if document.id != "nan")
    assert linked == named
    assert linked.total() == 7279


@needs_data
def test_real_table(tmp_path):
    datasets.disable_progress_bars()
    file = DATA / "psytar" / "psytar_mentions.tsv.gz"
    builder = PsyTar(data_files={"mentions": file}, cache_dir=str(tmp_path), retrieval="tfidf")
    data = prepared(builder)
    assert sum(counts.read for counts in builder.counts.splits.values()) == 7280
    assert total(builder, "dropped") == {"several concepts": 706}
    assert sum(map(check_examples, data.values())) == 6574
    assert builder.counts.splits["test"].recall() > 0.8
    assert 0.65 < len(data["train"]) / 6574 < 0.75
