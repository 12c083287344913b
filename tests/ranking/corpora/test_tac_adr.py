from pathlib import Path
from xml.sax.saxutils import quoteattr

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.corpora.tac_adr import TacAdr, _read_drug_label
from hf_kfc.ranking.formats.documents import pieces_text
from hf_kfc.ranking.problems import Problems

TEXT = "  Dry\nmouth &amp; rashes, red or itchy, were seen. No DRY MOUTH in children."
PLAIN = TEXT.replace("&amp;", "&")
TERMS = {"dry mouth": [("10013781", "Dry mouth")], "rashes": [("10037844", "Rash")]}


def mention(number: int, start: str, length: str, words: str, **changes: str) -> str:
    attributes = {
        "id": f"M{number}",
        "section": "S1",
        "type": "AdverseReaction",
        "start": start,
        "len": length,
        "str": words,
    } | changes
    return f"<Mention {' '.join(f'{k}={quoteattr(v)}' for k, v in attributes.items())} />"


def spot(number: int, words: str) -> str:
    return mention(number, str(PLAIN.index(words)), str(len(words)), " ".join(words.split()))


MENTIONS = [
    spot(1, "Dry\nmouth"),
    spot(2, "rashes"),
    spot(3, "DRY MOUTH"),
    mention(4, f"{PLAIN.index('rashes')},{PLAIN.index('itchy')}", "6,5", "rashes itchy"),
    mention(5, str(PLAIN.index("No")), "2", "No", type="Negation"),
]


def normalized(words: str, terms: list[tuple[str, str]]) -> str:
    inner = "".join(
        f'<Normalization id="R.N{i}" meddra_pt="{name}" meddra_pt_id="{code}" />'
        for i, (code, name) in enumerate(terms)
    )
    return f'<Reaction id="R" str="{words}">{inner}</Reaction>'


def label(drug: str, mentions: list[str] = MENTIONS, extra: str = "") -> str:
    reactions = "\n".join(normalized(*item) for item in TERMS.items())
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Label drug="{drug}" track="TAC2017_ADR">\n'
        f'<Text><Section id="S1" name="adverse reactions">{TEXT}</Section></Text>\n'
        "<Mentions>\n" + "\n".join(mentions) + f"\n</Mentions>\n<Relations />\n"
        f"<Reactions>{extra}\n{reactions}</Reactions>\n</Label>\n"
    )


@pytest.fixture
def corpus(tmp_path):
    datasets.disable_progress_bars()

    def make(extra: str | None = None, **config: object) -> TacAdr:
        for split, count in (("train", 40), ("test", 3)):
            (tmp_path / split).mkdir(exist_ok=True)
            for i in range(count):
                (tmp_path / split / f"{split}{i}.xml").write_text(label(f"{split}{i}"))
        if extra is not None:
            (tmp_path / "train" / "extra.xml").write_text(extra)
        files = {split: tmp_path / split for split in ("train", "test")}
        cache = str(tmp_path / "cache")
        return TacAdr(data_files=files, cache_dir=cache, num_candidates=2, **config)

    return make


def read(path: Path, content: str, problems: Problems | None = None) -> list:
    path.write_text(content)
    return [
        (document, *document.spans) for document in _read_drug_label(path, problems or Problems())
    ]


def test_mentions_are_linked_by_their_words(tmp_path):
    path = tmp_path / "label.xml"
    (document, dry), (_, rashes), (_, again), (_, both) = read(path, label("Nulol"))
    assert dry.concepts == again.concepts == ("10013781",)
    assert dry.names == ("Dry mouth",)
    assert (document.id, document.text, dry.text, dry.key) == ("Nulol", PLAIN, "Dry mouth", "M1")
    assert rashes.where == f"{path}:7"
    assert [PLAIN[start:end] for start, end in both.pieces] == ["rashes", "itchy"]
    assert both.concepts == ()


def test_official_test_labels_stay_and_validation_comes_from_train(corpus):
    builder = corpus()
    builder.download_and_prepare()
    data = builder.as_dataset()
    documents = {split: set(examples["document"]) for split, examples in data.items()}
    assert documents["test"] == {"test0", "test1", "test2"}
    assert len(documents["train"]) + len(documents["validation"]) == 40
    assert 0 < len(documents["validation"]) < 15
    assert builder.counts.splits["test"].dropped == {"no concept": 3}
    assert (builder.counts.concepts, builder.counts.splits["test"].read) == (2, 12)
    first = data["test"][0]
    assert (first["mention"], first["left"]) == ("Dry mouth", "")
    assert first["right"] == "& rashes, red or itchy, were seen. No DRY MOUTH"


def test_several_unmapped_and_malformed_normalizations(tmp_path):
    unmapped = (
        '<Reaction id="R" str="rashes itchy"><Normalization id="N" flag="unmapped"/></Reaction>'
    )
    found = read(tmp_path / "a.xml", label("Nulol", extra=unmapped))
    assert found[3][1].concepts == ()
    several = normalized("rashes itchy", [("1", "One"), ("2", "Two")])
    found = read(tmp_path / "a.xml", label("Nulol", extra=several))
    assert (found[3][1].concepts, found[3][1].names) == (("1", "2"), ("One", "Two"))
    # What is left of two concepts must not pass for the one right concept.
    broken = several.replace('meddra_pt_id="2"', "")
    with pytest.raises(
        DataError, match=r"a.xml:13: a Normalization needs meddra_pt and meddra_pt_"
    ):
        read(tmp_path / "a.xml", label("Nulol", extra=broken))
    problems = Problems("count")
    found = read(tmp_path / "a.xml", label("Nulol", extra=broken), problems)
    assert found[3][1].concepts == ()
    assert problems.counts == {"malformed normalization": 1}


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (label("X")[:-20], "file is not XML", r"extra.xml:\d+: not XML \(.*\); fetch the file"),
        (
            '<?xml version="1.0" encoding="TF-8"?>\n<Label drug="X"/>',
            "file is not XML",
            r"extra.xml:1: not XML \(unknown encoding: TF-8\); fetch the file",
        ),
        ("<a/>", "file is not a drug label", r"extra.xml:1: no element Label with a drug; leave"),
        (
            label("X", [mention(1, "5", "x", "y")]),
            "malformed mention",
            r"extra.xml:6: a Mention needs id, str, start and len in a section; correct or remove",
        ),
        (
            label("X", [mention(1, "5,6", "1", "y")]),
            "malformed mention",
            r"extra.xml:6: a Mention n",
        ),
        (
            label("X", [mention(1, "5", "1", "y", section="S9")]),
            "malformed mention",
            r"extra.xml:6: a Mention needs id",
        ),
        (
            label("X", [mention(1, "900", "6", "rashes")]),
            "offset outside the text",
            r"extra.xml:6: offsets 900 to 906 are not a piece of the text",
        ),
        (
            label("X", [mention(1, "6", "5", "rash")]),
            "mention differs from the text",
            r"extra.xml:6: mention 'rash' is not the text at 6 11",
        ),
        (
            label("train0"),
            "mention comes twice",
            r"xml:\d+: mention 'train0:M1' comes twice; remove",
        ),
    ],
)
def test_malformed_labels_raise_or_are_counted(corpus, content, reason, message):
    with pytest.raises(DataError, match=message):
        corpus(content).download_and_prepare()
    builder = corpus(content, on_error="count")
    builder.download_and_prepare()
    malformed = [counts.malformed for counts in builder.counts.splits.values()]
    assert [found for found in malformed if found] == [{reason: 3 if "twice" in reason else 1}]
    assert sum(counts.kept for counts in builder.counts.splits.values()) == 43 * 3


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_damaged_labels_give_no_wrong_mention(tmp_path, data):
    content = label("Nulol").encode()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    inserted = data.draw(st.binary(max_size=5))
    path = tmp_path / "damaged.xml"
    path.write_bytes(content[:start] + inserted + content[end:])
    for found in _read_drug_label(path, Problems("count")):
        (span,) = found.spans
        assert found.id
        assert pieces_text(found.text, span.pieces).split() == span.text.split()
        assert span.text.strip()
