import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.ontologies.obo import read_obo
from hf_kfc.ranking.problems import Problems
from hf_kfc.ranking.schema import Concept

HEADER = "format-version: 1.2\nontology: toy\n! a comment\n\n"
COLD = """[Term]
id: TOY:1 ! the commonest
name: common cold {source="toy"}
alt_id: TOY:11
def: "A cold: it is \\"common\\"." [url:http\\://example.org]
synonym: "cold" EXACT []
synonym: "acute\\, viral \\"rhinitis\\" \\[sic]" EXACT layperson [TOY:a "b", TOY:c] {x="y"} ! why
synonym: "catarrh" RELATED []
synonym: "sniffles" []
synonym: "Common Cold" EXACT [TOY:d]
xref: UMLS_CUI:C1 {xref="url:https://example.org"}
xref: UMLS_CUI:C2 "a description"
xref: MESH:D1\\n
xref: NORD:http\\://example.org
is_a: TOY:0 ! disease
"""
FLU = """[Term]
id: TOY:2
name: flu
synonym: "grippe" NARROW []
xref: UMLS_CUI:C2
"""
OLD = "[Term]\nid: TOY:3\nname: ague\nis_obsolete: true\n"
OTHER = "[Typedef]\nid: has_symptom\nname: has symptom\n"


@pytest.fixture
def read(tmp_path):
    def make(*stanzas, **kwargs) -> list[Concept]:
        (tmp_path / "toy.obo").write_text(HEADER + "\n".join(stanzas))
        return list(read_obo(tmp_path / "toy.obo", **kwargs))

    return make


def test_terms_with_their_exact_synonyms(read):
    assert read(COLD, OTHER, OLD, FLU, OTHER) == [
        Concept("TOY:1", "common cold", ("cold", 'acute, viral "rhinitis" [sic]'), (), ("TOY:11",)),
        Concept("TOY:2", "flu"),
    ]


def test_scopes_and_obsolete_terms_are_chosen(read):
    assert [concept.names for concept in read(COLD, FLU, OLD, scopes=["RELATED", "NARROW"])] == [
        ("common cold", "catarrh", "sniffles"),  # a synonym without a scope is RELATED
        ("flu", "grippe"),
    ]
    assert [concept.id for concept in read(FLU, OLD, obsolete=True)] == ["TOY:2", "TOY:3"]
    with pytest.raises(DataError, match="synonym scope 'exact'; use EXACT"):
        read(COLD, scopes=["exact"])


def test_concepts_by_cross_reference(read):
    read_by = {prefix: read(COLD, FLU, xref_prefix=prefix) for prefix in ("UMLS_CUI", "MESH")}
    synonyms = ("cold", 'acute, viral "rhinitis" [sic]')
    assert read_by["UMLS_CUI"] == [
        Concept("C1", "common cold", synonyms),
        Concept("C2", "common cold", (*synonyms, "flu")),
    ]
    assert read_by["MESH"] == [Concept("D1", "common cold", synonyms)]
    assert [c.id for c in read(COLD, xref_prefix="NORD")] == ["http://example.org"]
    with pytest.raises(DataError, match=r"toy.obo: no term has a cross-reference ICD:"):
        read(COLD, FLU, xref_prefix="ICD")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('synonym: "grippe EXACT []', "line is not 'tag: value'"),
        ('synonym: "grippe" EXACT [', "line is not 'tag: value'"),
        ('synonym: "grippe" EXAC', "line is not 'tag: value'"),
        ('synonym: " " EXACT []', "line is not 'tag: value'"),
        ("synonym grippe", "line is not 'tag: value'"),
        ("is_obsolete: maybe", "line is not 'tag: value'"),
        ("xref:", "line is not 'tag: value'"),
        ("xref: MESH: D2", "line is not 'tag: value'"),
        ("[Ter", "unknown kind of stanza"),
    ],
)
def test_malformed_lines_raise_with_their_number_or_are_counted(read, line, reason):
    with pytest.raises(DataError, match=r"toy.obo:10: "):
        read(FLU + line, OLD)
    problems = Problems("count")
    assert read(FLU + line, problems=problems) == [Concept("TOY:2", "flu")]
    assert problems.counts == {reason: 1}


@pytest.mark.parametrize(
    ("stanza", "reason"),
    [
        ("[Term]\nid: TOY:4\n", "term without one id and one name"),
        ("[Term]\nid: TOY:4\nname: \n", "term without one id and one name"),
        ("[Term]\nname: ague\n", "term without one id and one name"),
        ("[Term]\nid: TOY:4\nname: ague\nname: fever\n", "term without one id and one name"),
        ("[Term]\nid: TOY:2\nname: influenza\n", "term comes twice"),
    ],
)
def test_malformed_terms_raise_with_their_line_or_are_counted(read, stanza, reason):
    with pytest.raises(DataError, match=r"toy.obo:11: term"):
        read(FLU, stanza, OLD)
    problems = Problems("count")
    assert [concept.id for concept in read(FLU, stanza, problems=problems)] == ["TOY:2"]
    assert problems.counts == {reason: 1}


def escaped(text: str) -> str:
    for char in '\\"{}[]!:,':
        text = text.replace(char, f"\\{char}")
    return text.replace("\n", "\\n").replace("\t", "\\t")


words = (
    st.text(
        st.characters(exclude_characters="\r!", exclude_categories=["Cs"]), min_size=1, max_size=8
    )
    .map(str.strip)
    .filter(bool)
)
terms = st.dictionaries(
    st.from_regex(r"TOY:\d{1,4}", fullmatch=True),
    st.lists(words, min_size=1, max_size=4, unique_by=str.lower),
    min_size=1,
    max_size=6,
)


def written(concepts) -> str:
    return HEADER + "\n".join(
        "\n".join(
            [
                "[Term]",
                f"id: {id_}",
                f"name: {escaped(names[0])}",
                *(f'synonym: "{escaped(synonym)}" EXACT []' for synonym in names[1:]),
                "",
            ]
        )
        for id_, names in concepts.items()
    )


@settings(max_examples=60, deadline=None)
@given(concepts=terms)
def test_what_is_written_is_read(tmp_path_factory, concepts):
    path = tmp_path_factory.mktemp("obo") / "toy.obo"
    path.write_bytes(written(concepts).encode())
    assert {concept.id: list(concept.names) for concept in read_obo(path)} == concepts


@settings(max_examples=100, deadline=None)
@given(concepts=terms, data=st.data())
def test_damage_raises_or_is_counted_and_never_invents_a_synonym(tmp_path_factory, concepts, data):
    content = written(concepts).encode()
    cut = data.draw(st.integers(len(HEADER), len(content) - 1))
    junk = data.draw(st.sampled_from([b"", b"\xff", b"\n", b"\n["]))
    path = tmp_path_factory.mktemp("obo") / "toy.obo"
    path.write_bytes(content[:cut] + (junk + content[cut:] if junk else b""))
    problems = Problems("count")
    read = list(read_obo(path, problems=problems))
    # A preferred name has no mark of its end: one cut short cannot be told from another name.
    known = {synonym for names in concepts.values() for synonym in names[1:]}
    assert {synonym for concept in read for synonym in concept.synonyms} <= known
    assert len(read) <= len(concepts)
    blank_line = junk == b"\n" and b"\n" in (content[cut - 1 : cut], content[cut : cut + 1])
    if junk and not blank_line:
        assert problems.counts
