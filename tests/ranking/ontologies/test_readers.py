import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import DATA, needs_data

from hf_kfc.errors import DataError
from hf_kfc.ranking.ontologies import ONTOLOGY_FORMATS, Ontology, read_ontology
from hf_kfc.ranking.ontologies.names import read_names
from hf_kfc.ranking.problems import Problems
from hf_kfc.ranking.schema import Concept


def test_names_of_several_lines_and_files_come_together(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b.gz"
    first.write_text("C1\tcold\nC2\tflu\nC1\tcoryza\nC1\tCold\n")
    second.write_bytes(gzip.compress(b"C2 \t grippe\r\nC3\tache"))
    assert list(read_names(first, second)) == [
        Concept("C1", "cold", ("coryza",)),
        Concept("C2", "flu", ("grippe",)),
        Concept("C3", "ache"),
    ]


@pytest.mark.parametrize("line", ["C2", "C2\t", "\tflu", "C2\t ", "C2\tflu\tgrippe", "", " "])
def test_malformed_names_raise_with_their_line_or_are_counted(tmp_path, line):
    path = tmp_path / "names"
    path.write_text(f"C1\tcold\n{line}\nC3\tache\n")
    with pytest.raises(DataError, match=r"names:2: expected 'id<TAB>name'"):
        list(read_names(path))
    problems = Problems("count")
    assert [concept.id for concept in read_names(path, problems=problems)] == ["C1", "C3"]
    assert problems.counts == {"line is not 'id<TAB>name'": 1}


@pytest.mark.parametrize(
    "titles",
    [
        *("id\tname", "CUI\tSTR", "code\tx", "concept_id\tlabel", "MeSH ID\theading"),
        *("#DiseaseID\tDiseaseName", "name\tid", "DiseaseName\tDiseaseID", "ICD-10 code\ttext"),
        *("sctid\tterm", "accession\tpreferred name", "vocabulary\tname"),
    ],
)
def test_a_header_is_no_name(tmp_path, titles):
    path = tmp_path / "names"
    path.write_text(f"{titles}\nC1\tcold\n")
    with pytest.raises(DataError, match=r"names:1: a header, .*; remove it$"):
        list(read_names(path, problems=Problems("count")))


@pytest.mark.parametrize("id_", ["-1", "NIL", "CUI-less", "MESH:-1", "None"])
def test_an_identifier_that_stands_for_no_concept_is_none_of_an_ontology(tmp_path, id_):
    path = tmp_path / "names"
    path.write_text(f"C1\tcold\n{id_}\tnothing\n")
    with pytest.raises(
        DataError, match=rf"names: '{id_}', called 'nothing', stands for no concept"
    ):
        Ontology(read_ontology([path]))


@pytest.mark.parametrize("first", ["covid\tCOVID-19", "C1\tname", "fever\tFever", "GO:1\tterm"])
def test_what_is_no_header_is_read(tmp_path, first):
    path = tmp_path / "names"
    path.write_text(f"{first}\n")
    assert [(own.id, own.name) for own in read_names(path)] == [tuple(first.split("\t"))]


def test_an_identifier_in_two_spellings_is_one_concept(tmp_path):
    path = tmp_path / "names"
    path.write_text("MESH:D1\tcold\nE11.9\tdiabetes\nD1\tcoryza\ne119\tT2D\n")
    found = [(own.id, own.names) for own in read_names(path)]
    assert found == [("MESH:D1", ("cold", "coryza")), ("E11.9", ("diabetes", "T2D"))]


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("names", "cold {1}\tC{0}\n"),
        ("medic", "cold {1}||C{0}\n"),
        ("json", '{{"id": "cold {1}", "names": ["C{0}"]}}\n'),
    ],
)
def test_names_before_identifiers_are_found_out(tmp_path, form, line):
    path = tmp_path / "names"
    path.write_text("".join(line.format(i, chr(97 + i)) for i in range(12)))
    with pytest.raises(DataError, match=r"names: the names look like identifiers and the identif"):
        list(read_ontology([path], form))
    for content in ("C{0}\tcold\n", "{1}\t{1}\n", "P{0}\tTP{0}\n", "cold {1}\tcold\n"):
        path.write_text("".join(content.format(i, chr(97 + i)) for i in range(12)))
        assert len(list(read_ontology([path]))) == 12


def test_a_path_where_a_list_of_them_is_wanted_is_refused():
    with pytest.raises(DataError, match=r"paths is the text 'names.tsv'; give a list"):
        read_ontology("names.tsv")


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=30) | st.text(st.sampled_from("C1\t a\n")).map(str.encode))
def test_any_bytes_are_names_or_counted(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("names") / "names"
    path.write_bytes(content)
    problems = Problems("count")
    num_names = sum(len(concept.names) for concept in read_names(path, problems=problems))
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    assert num_names + sum(problems.counts.values()) <= len(lines)
    assert bool(num_names or problems.counts) == bool(lines)


def test_format_options_and_problems_reach_the_reader(tmp_path):
    path = tmp_path / "codes"
    path.write_text("code,billable,long_desc\nX10,0,Toy fever\nX11,1,Toy ache\n?,1,Toy\n")
    problems = Problems("count")
    concepts = read_ontology([path], "icd10cm", {"billable_only": True}, problems)
    assert list(concepts) == [Concept("X11", "Toy ache")]
    assert sum(problems.counts.values()) == 1


def test_unknown_formats_and_options_are_refused_at_once(tmp_path):
    with pytest.raises(DataError, match="ontology format 'owl'; use names, umls, "):
        read_ontology([tmp_path / "a"], "owl")
    with pytest.raises(DataError, match=r"'umls' with options \{'language': .*'language'"):
        read_ontology([tmp_path / "a"], "umls", {"language": "ENG"})


@pytest.mark.parametrize("format_", ONTOLOGY_FORMATS)
@pytest.mark.parametrize("on_error", ["raise", "count"])
def test_an_empty_or_a_missing_file_is_an_error_in_every_format(tmp_path, format_, on_error):
    empty, absent = tmp_path / "empty", tmp_path / "absent"
    empty.touch()
    message = "empty: no concept in format|empty: no row of MRCONSO|empty:0: damaged XML"
    with pytest.raises(DataError, match=message if on_error == "raise" else "empty: no "):
        list(read_ontology([empty], format_, problems=Problems(on_error)))
    with pytest.raises(DataError, match="absent: no such file"):
        list(read_ontology([absent], format_, problems=Problems(on_error)))


@needs_data
@pytest.mark.parametrize(
    ("file", "format_", "options", "concepts", "names"),
    [
        ("bc5cdr/mesh_names.tsv.gz", "names", {}, 29_054, 29_054),
        ("bc5cdr/medic_2012.txt.gz", "medic", {}, 11_915, 75_969),
        ("icd10cm/icd10cm2019.tsv.gz", "icd10cm", {}, 94_444, 147_752),
        ("ontologies/doid_2016-09.obo.gz", "obo", {}, 6_971, 17_706),
        ("ontologies/doid_2016-09.obo.gz", "obo", {"xref_prefix": "UMLS_CUI"}, 6_431, 20_585),
        ("ontologies/cui_names_strict.tsv.gz", "names", {}, 29_422, 166_693),
    ],
)
def test_real_files_have_the_known_numbers_of_concepts(file, format_, options, concepts, names):
    ontology = Ontology(read_ontology([DATA / file], format_, options))
    assert (len(ontology), ontology.num_names) == (concepts, names)
