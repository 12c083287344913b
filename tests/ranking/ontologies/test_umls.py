import gzip
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.ontologies.umls import read_umls
from hf_kfc.ranking.problems import Problems
from hf_kfc.ranking.schema import Concept


def name(
    cui,
    text,
    language="ENG",
    ts="P",
    stt="PF",
    preferred="Y",
    source="MSH",
    suppress="N",
    code="D1",
) -> str:
    """A row of MRCONSO.RRF."""
    return (
        f"{cui}|{language}|{ts}|L1|{stt}|S1|{preferred}|A1||M1|D1|{source}|PT|{code}|{text}|0|"
        f"{suppress}|256|"
    )


def kind(cui, text) -> str:
    """A row of MRSTY.RRF."""
    return f"{cui}|T047|B2.2|{text}|AT1|256|"


@pytest.fixture
def read(tmp_path):
    def make(names, types=None, **kwargs) -> list[Concept]:
        # Names as the download cache gives them: they say nothing of the content.
        (tmp_path / "0a").write_text("".join(row + "\n" for row in names))
        paths = [tmp_path / "0a"]
        if types is not None:
            (tmp_path / "0b").write_text("".join(row + "\n" for row in types))
            paths.insert(0, tmp_path / "0b")
        return list(read_umls(*paths, **kwargs))

    return make


def test_names_are_ranked_as_umls_ranks_them_and_types_joined(read):
    names = [
        name("C0000005", "Catarrh", ts="S", stt="PF", preferred="Y"),
        name("C0000005", "colds", ts="P", stt="VO", preferred="Y"),
        name("C0000005", "COLD", ts="P", stt="PF", preferred="N"),
        name("C0000005", "Cold", ts="P", stt="PF", preferred="Y"),
        name("C0000007", "Flu"),
        name("C0000009", "Ache"),
    ]
    types = [
        kind("C0000001", "Finding"),
        kind("C0000005", "Disease or Syndrome"),
        kind("C0000005", "Finding"),
        kind("C0000009", "Sign or Symptom"),
        kind("C0000010", "Finding"),
    ]
    assert read(names, types) == [
        Concept("C0000005", "Cold", ("colds", "Catarrh"), ("Disease or Syndrome", "Finding")),
        Concept("C0000007", "Flu"),
        Concept("C0000009", "Ache", (), ("Sign or Symptom",)),
    ]


def test_retired_identifiers_lead_to_what_they_were_made_one_with(read, tmp_path):
    retired = tmp_path / "0c"
    retired.write_text(
        "C0000002|2000AC|SY|||C0000005|Y|\nC0000003|1995AA|RO|||C0000005|Y|\n"
        "C0000004|1996AA|DEL|||||\nC0000006|2001AA|SY|||C0000005|Y|\n"
    )
    (tmp_path / "names").write_text(
        name("C0000005", "Cold") + "\n" + name("C0000007", "Flu") + "\n"
    )
    concepts = list(read_umls(retired, tmp_path / "names"))
    assert concepts == [
        Concept("C0000005", "Cold", alternatives=("C0000002", "C0000006")),
        Concept("C0000007", "Flu"),
    ]
    ontology = Ontology(concepts)
    assert [ontology.position(f"C000000{i}") for i in range(2, 8)] == [0, None, None, 0, 0, 1]
    retired.write_text("C0000002|2000AC|SY|||C0000005\n")
    with pytest.raises(DataError, match=r"0c: no row of MRCONSO.RRF or MRSTY.RRF or MRCUI.RRF in"):
        list(read_umls(retired, tmp_path / "names"))


def test_concepts_of_one_source_by_its_codes(read):
    names = [
        name("C0000005", "Colds", ts="S", source="MDR", code="10009851"),
        name("C0000005", "Cold", source="MDR", code="10009851"),
        name("C0000005", "Common cold", source="MDR", code="10010106"),
        name("C0000005", "Catarrh", source="MSH", code="D003139"),
        name("C0000007", "Head cold", source="MDR", code="10009851"),
    ]
    types = [kind("C0000005", "Disease or Syndrome"), kind("C0000007", "Finding")]
    assert read(names, types, sources=["MDR"], ids="code") == [
        Concept("10009851", "Cold", ("Head cold", "Colds"), ("Disease or Syndrome", "Finding")),
        Concept("10010106", "Common cold", (), ("Disease or Syndrome",)),
    ]
    for wrong in ({"ids": "code"}, {"ids": "code", "sources": ["MDR", "MSH"]}, {"ids": "aui"}):
        with pytest.raises(DataError, match=r"give 'cui', or 'code' and one source$"):
            read(names, **wrong)


def test_filters_by_language_source_and_suppression(read):
    names = [
        name("C0000005", "Resfriado", language="SPA", source="SCTSPA"),
        name("C0000005", "Cold"),
        name("C0000005", "Common cold", ts="S", source="SNOMEDCT_US"),
        name("C0000005", "Cold NOS", ts="S", source="SNOMEDCT_US", suppress="O"),
        name("C0000006", "Gripe", language="SPA", source="SCTSPA"),
    ]
    assert [concept.names for concept in read(names)] == [("Cold", "Common cold")]
    assert [concept.names for concept in read(names, sources=["SNOMEDCT_US"])] == [("Common cold",)]
    assert [concept.names for concept in read(names, suppressed=True)] == [
        ("Cold", "Common cold", "Cold NOS")
    ]
    assert [concept.names for concept in read(names, languages=["SPA", "ENG"])] == [
        ("Resfriado", "Cold", "Common cold"),
        ("Gripe",),
    ]


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"sources": ["MSH", "ICD10", "RXNORM"]}, "no name of ICD10, RXNORM passes"),
        ({"languages": ["ENG", "FRE"]}, "no name of FRE passes"),
        ({"languages": "ENG"}, "languages is the text 'ENG'; give a list"),
        ({"sources": ["OLD"]}, "no name of ENG, OLD passes"),
    ],
)
def test_languages_and_sources_that_never_occur_are_named(read, options, missing):
    names = [name("C0000005", "Cold"), name("C0000006", "Flu", source="OLD", suppress="Y")]
    with pytest.raises(DataError, match=missing):
        read(names, **options)


def test_parts_of_a_split_file_and_gzip(tmp_path):
    first, second = tmp_path / "MRCONSO.RRF.aa.gz", tmp_path / "MRCONSO.RRF.ab.gz"
    rows = [name("C0000005", "Cold"), name("C0000005", "Catarrh", ts="S"), name("C0000006", "Flu")]
    first.write_bytes(gzip.compress(f"{rows[0]}\n".encode()))
    second.write_bytes(gzip.compress("\r\n".join(rows[1:]).encode()))
    assert list(read_umls(first, second)) == [
        Concept("C0000005", "Cold", ("Catarrh",)),
        Concept("C0000006", "Flu"),
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (name("C0000005", "Catarrh")[:-1], "not a row of MRCONSO.RRF"),
        (name("C0000005", "Cat|arrh"), "not a row of MRCONSO.RRF"),
        (name("", "Catarrh"), "not a row of MRCONSO.RRF"),
        ("C0000005|ENG|P|L1|PF|S1|", "not a row of MRCONSO.RRF"),  # as many fields as MRSTY has
        ("", "not a row of MRCONSO.RRF"),
        (name("C0000005", " "), "row without a name or without N, O, E or Y in SUPPRESS"),
        (
            name("C0000005", "Catarrh", suppress="X"),
            "row without a name or without N, O, E or Y in SUPPRESS",
        ),
    ],
)
def test_malformed_names_raise_with_their_line_or_are_counted(read, bad, reason):
    names = [name("C0000005", "Cold"), bad, name("C0000006", "Flu")]
    with pytest.raises(DataError, match=r"0a:2: .*; correct"):
        read(names)
    problems = Problems("count")
    assert read(names, problems=problems) == [
        Concept("C0000005", "Cold"),
        Concept("C0000006", "Flu"),
    ]
    assert problems.counts == {reason: 1}


def test_a_first_row_cut_short_does_not_hide_what_the_file_is(read):
    names, problems = ["C0000005|ENG|P|L1|PF|S1|", name("C0000006", "Flu")], Problems("count")
    assert read(names, problems=problems) == [Concept("C0000006", "Flu")]
    assert problems.counts == {"not a row of MRCONSO.RRF": 1}


def test_malformed_types_raise_with_their_line_or_are_counted(read):
    names, types = [name("C0000005", "Cold")], [kind("C0000005", ""), kind("C0000005", "Finding")]
    with pytest.raises(DataError, match="0b:1: empty STY"):
        read(names, types)
    problems = Problems("count")
    assert read(names, types, problems=problems) == [Concept("C0000005", "Cold", (), ("Finding",))]
    assert problems.counts == {"row without a semantic type": 1}


@pytest.mark.parametrize("on_error", ["raise", "count"])
def test_unsorted_files_are_refused(read, on_error):
    names = [name("C0000005", "Cold"), name("C0000007", "Ache"), name("C0000006", "Flu")]
    with pytest.raises(DataError, match=r"0a:3: C0000006 after C0000007.*sort the file"):
        read(names, problems=Problems(on_error))
    types = [kind("C0000006", "Finding"), kind("C0000005", "Finding")]
    with pytest.raises(DataError, match="0b:2: C0000005 after C0000006"):
        read(sorted(names), types, problems=Problems(on_error))


def test_other_files_are_refused(read, tmp_path):
    with pytest.raises(DataError, match=r"0a: no row of MRCONSO.RRF or MRSTY.RRF"):
        read(["C0000005\tCold"])
    with pytest.raises(DataError, match=r"0a: no row of MRCONSO.RRF or MRSTY.RRF"):
        read([])
    with pytest.raises(DataError, match=r"0a: no names; give MRCONSO.RRF too"):
        read([kind("C0000005", "Finding")])
    with pytest.raises(DataError, match="no such file"):
        list(read_umls(tmp_path / "absent"))


words = st.text(
    st.characters(exclude_characters="|\n\r", exclude_categories=["Cs"]), min_size=1, max_size=8
).filter(str.strip)
entries = st.dictionaries(
    st.from_regex(r"C[1-9][0-9]{6}", fullmatch=True),
    st.tuples(st.lists(words, min_size=1, max_size=4), st.lists(words, max_size=2, unique=True)),
    min_size=1,
    max_size=6,
)


def rows_of(concepts) -> tuple[list[str], list[str]]:
    """The rows of both files; the first name of each concept is written last."""
    names, types = [], []
    for cui, (texts, kinds) in sorted(concepts.items()):
        names += [name(cui, text, ts="S") for text in texts[1:]]
        names.append(name(cui, texts[0]))
        types += [kind(cui, text) for text in kinds]
    return names, types


@settings(max_examples=60, deadline=None)
@given(concepts=entries)
def test_what_is_written_is_read(tmp_path_factory, concepts):
    names, types = rows_of(concepts)
    path = tmp_path_factory.mktemp("umls")
    (path / "names").write_bytes("".join(row + "\n" for row in names).encode())
    (path / "types").write_bytes(
        "".join(row + "\n" for row in types or [kind("C0000000", "x")]).encode()
    )
    read = list(read_umls(path / "names", path / "types"))
    assert [concept.id for concept in read] == sorted(concepts)
    for concept in read:
        texts, kinds = concepts[concept.id]
        assert concept.name == texts[0].strip()
        assert {text.lower() for text in concept.names} == {text.strip().lower() for text in texts}
        assert concept.types == tuple(dict.fromkeys(text.strip() for text in kinds))


@settings(max_examples=100, deadline=None)
@given(concepts=entries, data=st.data())
def test_damage_raises_or_is_counted_and_never_invents_a_name(tmp_path_factory, concepts, data):
    names, _ = rows_of(concepts)
    content = "".join(row + "\n" for row in names).encode()
    cut = data.draw(st.integers(0, len(content) - 1))
    inserted = data.draw(st.sampled_from([b"", b"|", b"\n", b"\xff"]))
    path = tmp_path_factory.mktemp("umls") / "names"
    # Cut at the end, or something inserted in the middle.
    path.write_bytes(content[:cut] + (inserted + content[cut:] if inserted else b""))
    problems = Problems("count")
    try:
        read = list(read_umls(path, problems=problems))
    except DataError as error:
        assert re.search("no row of MRCONSO|no name of ENG", str(error))
        return
    known = {cui: {text.strip().lower() for text in texts} for cui, (texts, _) in concepts.items()}
    for concept in read:
        assert {text.lower() for text in concept.names} <= known[concept.id]
    whole_rows = not inserted and b"\n" in (content[cut - 1 : cut], content[cut : cut + 1])
    assert bool(problems.counts) != whole_rows
