import csv
import io

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.corpora.mednorm import MedNorm, _read_mednorm
from hf_kfc.ranking.problems import Problems

COLUMNS = [
    *("original_dataset", "instance_id", "phrase", "meddra_code", "sct_id", "umls_cui"),
    *("mapped_meddra_codes", "mapped_sct_ids"),
    *("single_mapped_meddra_codes", "single_mapped_sct_ids"),
]
MEANINGS = [("10001", "20001"), ("10002", "20002"), ("10003", "20003")]
WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1)


def row(dataset: str, instance: str, phrase: str, meddra: str = "10001", sct: str = "20001"):
    return [dataset, instance, phrase, "", "", "C1", f"{meddra} 10009", sct, meddra, sct]


def rows(count: int = 80) -> list[list[str]]:
    return [
        row("CADEC", f"DRUG.{i // 2}.ann_TT{i % 2 + 1}", f"woe {i}", *MEANINGS[i % 3])
        for i in range(count)
    ]


def written(table: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(table)
    return text.getvalue()


@pytest.fixture
def corpus(tmp_path):
    datasets.disable_progress_bars()

    def make(table: list[list[str]], **config: object) -> MedNorm:
        path = tmp_path / "mednorm_full.tsv"
        path.write_text(written([COLUMNS, *table]))
        files = {"mentions": path}
        if "ontology" in config:
            files["ontology"] = tmp_path / "names.tsv"
            files["ontology"].write_text(str(config.pop("ontology")))
        cache = str(tmp_path / "cache")
        return MedNorm(data_files=files, cache_dir=cache, num_candidates=3, **config)

    return make


@pytest.mark.parametrize(("vocabulary", "gold"), [("meddra", "10002"), ("snomed", "20002")])
def test_the_vocabulary_says_which_codes_are_the_concepts(corpus, vocabulary, gold):
    builder = corpus(rows(), vocabulary=vocabulary)
    builder.download_and_prepare()
    examples = [row for split in builder.as_dataset().values() for row in split]
    (found,) = (example for example in examples if example["mention"] == "woe 1")
    assert found["candidate_ids"][found["label"]] == gold
    assert (found["id"], found["left"], found["right"]) == ("CADEC:DRUG.0:TT2", "", "")
    assert len(examples) == 80


def test_an_ontology_names_the_codes_and_adds_others(corpus):
    names = "10001\tHeadache\n10005\tNausea\n"
    builder = corpus(rows(), ontology=names, names_from=[])
    builder.download_and_prepare()
    assert builder.counts.concepts == 2
    for counts in builder.counts.splits.values():
        assert counts.dropped["gold concept not in the ontology"] == counts.linked - counts.named
    assert sum(counts.kept for counts in builder.counts.splits.values()) == 27


@pytest.mark.parametrize(
    ("dataset", "instance", "document", "key"),
    [
        ("CADEC", "DRUG.12.ann_TT4", "CADEC:DRUG.12", "TT4"),
        ("TwiMed-PubMed", "PMC77_4.ann_T1", "TwiMed-PubMed:PMC77", "4.ann_T1"),
        ("TwADR-L", "fold-0.train.txt_3", "TwADR-L:fold-0.train.txt_3", "phrase"),
        ("SMM4H2017-train", "31", "SMM4H2017-train:31", "phrase"),
    ],
)
def test_documents_are_told_from_the_ids(tmp_path, dataset, instance, document, key):
    path = tmp_path / "table"
    path.write_text(written([COLUMNS, row(dataset, instance, "woe")]))
    (found,) = _read_mednorm(path, "meddra", Problems())
    assert (found.id, found.spans[0].key, found.spans[0].where) == (document, key, f"{path}:2")


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        ("CADEC\tx\n", "malformed row", r"tsv:82: expected 10 fields, got 2; corr"),
        (
            'C\tx\t"open\t\t\t\t\t\t1\t2\n',
            "malformed row",
            r"tsv:82: not a row of the table \(unexpected end of data\); correct or remove it",
        ),
        (
            written([row("CADEC", "X.1.ann_TT1", "woe", "n/a")]),
            "row without an id, or code not a number",
            r"tsv:82: row 'X.1.ann_TT1' of 'CADEC' has code 'n/a'; correct or remove it$",
        ),
        (
            written([row("CADEC", "", "woe")]),
            "row without an id, or code not a number",
            r"tsv:82: row '' of 'CADEC' has code '10001'; correct or remove it$",
        ),
        (
            written([row("CADEC", "DRUG.0.ann_TT1", "woe")]),
            "mention comes twice",
            r"tsv:82: mention 'CADEC:DRUG.0:TT1' comes twice; remove the repeated record$",
        ),
    ],
)
def test_malformed_rows_raise_or_are_counted(corpus, bad, reason, message):
    def damaged(**config: str) -> MedNorm:
        builder = corpus(rows(), **config)
        with open(builder.config.data_files["mentions"][0], "a") as file:  # noqa: PTH123
            file.write(bad)
        return builder

    with pytest.raises(DataError, match=message):
        damaged().download_and_prepare()
    builder = damaged(on_error="count")
    builder.download_and_prepare()
    malformed = [counts.malformed for counts in builder.counts.splits.values()]
    assert [found for found in malformed if found] == [{reason: 1}]
    assert sum(counts.read for counts in builder.counts.splits.values()) == 80


def test_codes_that_are_none_or_several_are_counted(corpus):
    none, several = row("CADEC", "X.1.ann_TT1", "a", ""), row("CADEC", "X.1.ann_TT2", "b", "10 11")
    builder = corpus([*rows(), none, several])
    builder.download_and_prepare()
    dropped = [counts.dropped for counts in builder.counts.splits.values() if counts.dropped]
    assert dropped == [{"no concept": 1, "several concepts": 1}]


def test_bad_configuration_and_header(corpus, tmp_path):
    with pytest.raises(DataError, match="vocabulary is 'icd'; give 'meddra' or 'snomed'"):
        corpus(rows(), vocabulary="icd")
    path = tmp_path / "table"
    path.write_text("original_dataset\tphrase\n")
    with pytest.raises(DataError, match=r"table:1: no column instance_id, single_mapped_meddra_co"):
        list(_read_mednorm(path, "meddra", Problems("count")))


@given(st.lists(st.tuples(WORDS, st.sampled_from(MEANINGS)), max_size=5), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read_and_a_cut_file_gives_only_whole_rows(tmp_path, phrases, data):
    table = [row("A", f"D.{i}.ann_T1", text, *codes) for i, (text, codes) in enumerate(phrases)]
    content = written([COLUMNS, *table]).encode()
    path = tmp_path / "table"
    path.write_bytes(content)
    whole = list(_read_mednorm(path, "meddra", Problems()))
    assert [(d.text, d.spans[0].concepts) for d in whole] == [
        (text, (meddra,)) for text, (meddra, _) in phrases
    ]
    header = len("\t".join(COLUMNS)) + 1
    path.write_bytes(content[: data.draw(st.integers(header, len(content)))])
    cut = list(_read_mednorm(path, "meddra", Problems("count")))
    assert cut == whole[: len(cut)]
