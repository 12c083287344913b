import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.concepts import concept_from_names, surface_forms
from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.ontologies.ontology import widened
from hf_kfc.ranking.schema import Concept, Mention


def mention(text: str, concept: str) -> Mention:
    return Mention(document="1", text=text, left="", right="", concept=concept)


def test_concept_from_names_keeps_each_name_once():
    names = [" ", "Cold", "catarrh ", "COLD", "", "Catarrh", "\tcoryza"]
    assert concept_from_names("C1", names, ["Finding"]) == Concept(
        "C1", "Cold", ("catarrh", "coryza"), ("Finding",)
    )


@pytest.mark.parametrize("names", [[], [""], [" ", "\t\n", "\u00a0"]])
def test_a_concept_without_a_name_is_refused(names):
    with pytest.raises(DataError, match="concept 'C1' has no name; give it one"):
        concept_from_names("C1", names)


@given(st.lists(st.text(max_size=3), min_size=1))
def test_concept_from_names_of_any_names(names):
    if not any(map(str.strip, names)):
        with pytest.raises(DataError):
            concept_from_names("C1", names)
        return
    concept = concept_from_names("C1", names)
    lowered = [name.lower() for name in concept.names]
    assert len(set(lowered)) == len(lowered)
    assert set(lowered) == {name.strip().lower() for name in names} - {""}
    assert concept_from_names("C1", concept.names) == concept


@pytest.mark.parametrize(("id_", "name"), [(1, "fever"), ("C1", None), (None, "fever")])
def test_an_identifier_or_a_name_that_is_no_text_is_refused(id_, name):
    with pytest.raises(DataError, match=r"concept .* is called .*; give two strings"):
        Concept(id_, name)


def test_surface_forms_go_by_frequency_then_by_first_appearance():
    mentions = [
        mention("flu", "C2"),
        mention("colds", "C1"),
        mention("a cold", "C1"),
        mention("Cold", "C1"),
        mention(" a cold ", "C1"),
    ]
    assert surface_forms(mentions) == {"C2": ["flu"], "C1": ["a cold", "colds", "Cold"]}


def test_widened_adds_synonyms_and_then_new_concepts():
    concepts = [Concept("C1", "Cold", ("coryza",), ("Finding",)), Concept("C2", "Flu")]
    names = {"C4": ["ague", "Ague", "chill"], "C1": ["CORYZA", "a cold"], "C3": ["ache"]}
    assert list(widened(Ontology(concepts), names)) == [
        Concept("C1", "Cold", ("coryza", "a cold"), ("Finding",)),
        Concept("C2", "Flu"),
        Concept("C4", "ague", ("chill",)),
        Concept("C3", "ache"),
    ]
    assert list(names) == ["C4", "C1", "C3"]  # the caller's own names stay as they are
