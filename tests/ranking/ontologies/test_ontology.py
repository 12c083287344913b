import pickle

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.concepts import canonical_id, concept_from_names
from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.ontologies import ontology as module
from hf_kfc.ranking.ontologies.ontology import widened
from hf_kfc.ranking.schema import Concept

CONCEPTS = [
    Concept("C1", "cold", ("common cold", "coryza"), ("Disease or Syndrome", "Finding")),
    Concept("C2", "flu"),
    Concept("C3", "ache", ("dolor",)),
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
concepts = st.builds(
    Concept,
    texts,
    texts,
    st.lists(texts, max_size=2).map(tuple),
    st.lists(texts).map(tuple),
    st.lists(texts, max_size=2).map(tuple),
)
ontologies = st.lists(concepts, min_size=1, max_size=6, unique_by=lambda concept: concept.id)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ontologies")


@settings(max_examples=50, deadline=None)
@given(content=ontologies)
def test_what_goes_in_comes_out(folder, content):
    made = Ontology(iter(content))
    made.save(folder / "any.arrow")
    for ontology in (made, Ontology.load(folder / "any.arrow"), pickle.loads(pickle.dumps(made))):
        assert list(ontology) == content
        assert ontology.fingerprint == made.fingerprint
        assert ontology.ids() == [concept.id for concept in content]
        assert [ontology.position(concept.id) for concept in content] == [*range(len(content))]
        expected = [(n, name) for n, concept in enumerate(content) for name in concept.names]
        assert list(ontology.names()) == expected
        assert ontology.num_names == len(expected)
    assert made.position("no such concept") is None


IDS = st.sampled_from(["D1", "MESH:D1", "MSH:D1", "E11.9", "E119", "e11.9", "D2", "UMLS:D2", "x"])
NAMES = st.lists(st.sampled_from(["cold", "Cold", "flu", " ache", "痛み"]), min_size=1, max_size=3)
normal = st.builds(
    concept_from_names, IDS, NAMES, st.just(("Sign",)), st.lists(IDS, max_size=2).map(tuple)
)


@settings(max_examples=200, deadline=None)
@given(
    content=st.lists(normal, min_size=1, max_size=4, unique_by=lambda concept: concept.id),
    more=st.lists(st.dictionaries(IDS, NAMES, max_size=4), max_size=3),
)
def test_extended_is_as_if_made_anew(folder, content, more):
    """Also where it is extended again, and where identifiers lead to several concepts."""
    ontology = Ontology(content)
    for names in more:
        before = list(ontology)
        larger, changed = ontology.extended(names)
        rebuilt = Ontology(widened(ontology, names))
        assert list(larger) == list(rebuilt)
        assert changed == [n for n, own in enumerate(before) if larger[n] != own]
        assert larger.ids() == rebuilt.ids() and larger.num_names == rebuilt.num_names
        spellings = ["D1", "MESH:D1", "MSH:D1", "E11.9", "E119", "e11.9", "e119", "D2", "X", "x"]
        assert [*map(larger.position, spellings)] == [*map(rebuilt.position, spellings)]
        assert list(ontology) == before  # it stays as it is
        ontology = larger
    assert ontology.fingerprint == Ontology(ontology).fingerprint
    ontology.save(folder / "extended.arrow")
    assert Ontology.load(folder / "extended.arrow").fingerprint == ontology.fingerprint


def test_extending_reads_nothing_that_is_there_already(monkeypatch):
    ontology = Ontology(Concept(f"C{n}", f"illness {n}") for n in range(5_000))
    assert ontology.position("C7") == 7
    read = []
    monkeypatch.setattr(module, "canonical_id", lambda id_: read.append(id_) or canonical_id(id_))
    larger, changed = ontology.extended({"N1": ["new"], "MESH:C7": ["seven"]})
    first = set(read)
    larger, changed = larger.extended({"N2": ["newer"], "C8": ["eight"]})
    assert set(read) - first == {"N2"} and changed == [8]
    assert [larger[n].names for n in (7, 8)] == [("illness 7", "seven"), ("illness 8", "eight")]
    assert (larger.position("N1"), larger.position("N2")) == (5_000, 5_001)


@settings(max_examples=30, deadline=None)
@given(content=ontologies, batch=st.integers(1, 7))
def test_batches_make_no_difference(folder, content, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCH", batch)
        small = Ontology(content)
        assert list(small.names()) == list(Ontology(content).names())
        small.save(folder / "batches.arrow")
    whole = Ontology(content)
    assert small.fingerprint == whole.fingerprint
    assert list(small) == list(Ontology.load(folder / "batches.arrow")) == content


@settings(max_examples=50, deadline=None)
@given(one=ontologies, other=ontologies)
def test_fingerprints_are_equal_where_the_content_is(one, other):
    assert (Ontology(one).fingerprint == Ontology(other).fingerprint) == (one == other)


@pytest.mark.parametrize(
    "other",
    [
        CONCEPTS[::-1],
        CONCEPTS[:2],
        [Concept("C1", "cold", ("coryza", "common cold"), CONCEPTS[0].types), *CONCEPTS[1:]],
        [Concept("C1", "cold", ("common cold", "coryza"), ("Finding",)), *CONCEPTS[1:]],
        [Concept("C1", "cold", ("common cold",), ("coryza", *CONCEPTS[0].types)), *CONCEPTS[1:]],
        [Concept("C1", "cold, common cold", ("coryza",), CONCEPTS[0].types), *CONCEPTS[1:]],
        [CONCEPTS[0], Concept("C2", "Flu"), CONCEPTS[2]],
    ],
)
def test_the_fingerprint_depends_on_all_content_and_its_order(other):
    assert Ontology(other).fingerprint != Ontology(CONCEPTS).fingerprint


def test_indices_and_slices_are_those_of_a_list():
    ontology = Ontology(CONCEPTS)
    for index in range(-3, 3):
        assert ontology[index] == CONCEPTS[index]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"concept {index} of 3"):
            ontology[index]
    for part in (slice(1, None), slice(None, None, -2), slice(-2, 9), slice(2, 1)):
        assert ontology[part] == CONCEPTS[part]
    assert CONCEPTS[1] in ontology
    assert ontology.index(CONCEPTS[2]) == 2


def test_empty_ontologies_and_repeated_identifiers_are_refused():
    with pytest.raises(DataError, match="the ontology is empty"):
        Ontology([])
    with pytest.raises(DataError, match="concept 'C2' is in the ontology twice; merge"):
        Ontology([*CONCEPTS, Concept("C2", "influenza")])


def test_a_loaded_ontology_is_mapped_and_sent_to_workers_as_its_path(folder, monkeypatch):
    path = folder / "large.arrow"
    Ontology(Concept(f"C{i}", f"name {i}") for i in range(20_000)).save(path)
    before = pa.total_allocated_bytes()
    monkeypatch.chdir(folder)
    loaded = Ontology.load("large.arrow")
    assert loaded[19_999].name == "name 19999"
    assert pa.total_allocated_bytes() - before < path.stat().st_size / 10
    sent = pickle.dumps(loaded)
    assert len(sent) < 1000
    monkeypatch.chdir("/")
    assert pickle.loads(sent).fingerprint == loaded.fingerprint


def test_a_file_that_is_replaced_leaves_what_was_loaded_and_is_not_taken_for_it(folder):
    path = folder / "replaced.arrow"
    Ontology(CONCEPTS).save(path)
    loaded = Ontology.load(path)
    sent = pickle.dumps(loaded)
    Ontology(CONCEPTS[:1]).save(path)
    assert list(loaded) == CONCEPTS
    assert list(Ontology.load(path)) == CONCEPTS[:1]
    with pytest.raises(DataError, match=r"replaced.arrow: another ontology than when it was"):
        pickle.loads(sent)
    assert [file.name for file in folder.glob("replaced*")] == ["replaced.arrow"]


def test_files_that_are_not_a_saved_ontology_are_refused(folder):
    whole, broken = folder / "whole.arrow", folder / "broken.arrow"
    Ontology(CONCEPTS).save(whole)
    for size in (0, 3, 40, whole.stat().st_size // 2, whole.stat().st_size - 1):
        broken.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(DataError, match=r"broken.arrow: not a saved ontology.*save it again"):
            Ontology.load(broken)
    table = pa.table({"id": ["C1"], "names": [["cold"]], "types": [["Finding"]]})
    with pa.OSFile(str(broken), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    with pytest.raises(DataError, match=r"broken.arrow: not a saved ontology"):
        Ontology.load(broken)
    with pytest.raises(DataError, match=r"absent.arrow: not a saved ontology"):
        Ontology.load(folder / "absent.arrow")
