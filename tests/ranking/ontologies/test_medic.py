import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.ontologies.medic import read_medic
from hf_kfc.ranking.problems import Problems
from hf_kfc.ranking.schema import Concept


@pytest.fixture
def read(tmp_path):
    def make(*lines, **kwargs) -> list[Concept]:
        (tmp_path / "medic").write_text("".join(line + "\n" for line in lines))
        return list(read_medic(tmp_path / "medic", **kwargs))

    return make


def test_a_concept_has_its_first_mesh_identifier(read):
    assert read(
        "C||Toy Diseases",
        "D01||Toy Fever|Fever, Toy",
        "1234|D02|C03||Bear Ache|BEAR ACHE|Ache of Bears",
        "5678||Doll Palsy",
        "OMIM:9|MESH:D04||Train Sickness",
    ) == [
        Concept("C", "Toy Diseases"),
        Concept("D01", "Toy Fever", ("Fever, Toy",)),
        Concept("D02", "Bear Ache", ("Ache of Bears",), (), ("1234", "C03")),
        Concept("5678", "Doll Palsy"),
        Concept("MESH:D04", "Train Sickness", (), (), ("OMIM:9",)),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "line is not 'ids||names'"),
        ("D02|Bear Ache", "line is not 'ids||names'"),
        ("D02||", "line is not 'ids||names'"),
        ("D02||Bear Ache| ", "line is not 'ids||names'"),
        ("||Bear Ache", "line is not 'ids||names'"),
        ("1234|D01||Bear Ache", "concept comes twice"),
    ],
)
def test_malformed_lines_raise_with_their_number_or_are_counted(read, line, reason):
    with pytest.raises(DataError, match=r"medic:2: .*remove"):
        read("D01||Toy Fever", line)
    problems = Problems("count")
    assert read("D01||Toy Fever", line, problems=problems) == [Concept("D01", "Toy Fever")]
    assert problems.counts == {reason: 1}


@settings(max_examples=100, deadline=None)
@given(content=st.text(st.sampled_from("CD1| a\n"), max_size=40))
def test_any_text_is_read_or_counted(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("medic") / "medic"
    path.write_bytes(content.encode())
    problems = Problems("count")
    concepts = list(read_medic(path, problems=problems))
    lines = content.removesuffix("\n").split("\n") if content else []
    assert len(concepts) + sum(problems.counts.values()) == len(lines)
    assert all(concept.id and concept.name for concept in concepts)
