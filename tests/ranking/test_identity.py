"""One concept is one concept, however corpora and ontologies spell it; and none is none."""

import json

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pubtator_text import block

from hf_kfc.errors import DataError
from hf_kfc.ranking.concepts import canonical_id, concept_from_names, is_nil
from hf_kfc.ranking.corpora.clinical_notes import ClinicalNotes
from hf_kfc.ranking.corpora.psytar import PsyTar
from hf_kfc.ranking.corpora.pubtator import Pubtator
from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.ontologies.obo import read_obo
from hf_kfc.ranking.schema import Concept

NIL = [
    *("", " ", "-", "-1", "CUI-less", "CUI-LESS", "cui_less", "CUI less", "CONCEPT_LESS"),
    *("NIL", "nil", "None", "NULL", "N/A", "nan", "NOCODE", "No code", "no_concept"),
    *("MESH:-1", "MESH: None", "MESH:", "UMLS:CUI-less", "[NIL]", "n.a.", "unknown"),
    *("CUI\u2011less", "\uff2e\uff29\uff2c", "\u22121", "\u2013", "No\u200bne"),
]
MEDIC = (
    "C566466|610508||MODY, Type 7|MODY7\n"
    "D001260|208900||Ataxia Telangiectasia|Louis-Bar Syndrome\n"
    "D003110||Colonic Neoplasms\nD001943||Breast Neoplasms\n"
)
OBO = """format-version: 1.2

[Term]
id: HP:0009882
name: Short distal phalanx of finger
alt_id: HP:0001198

[Term]
id: HP:0001250
name: Seizure

[Term]
id: HP:0005364
name: obsolete Severe viral infections
is_obsolete: true
replaced_by: HP:0004429

[Term]
id: HP:0004429
name: Recurrent viral infections
"""
CODES = {"E11.9": "Type 2 diabetes", "I10": "Hypertension", "J45.909": "Asthma"}


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.mark.parametrize("id_", [*NIL, "NIL0042", "not mapped", "SNOMEDCT:NIL"])
def test_every_mark_for_no_concept_is_one(id_):
    assert is_nil(id_)


@pytest.mark.parametrize("id_", ["1", "-2", "C0027497", "NILE", "NIL1A", "HP:1", "0", "10001"])
def test_identifiers_are_no_such_marks(id_):
    assert not is_nil(id_)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("E11.9", "E119"),
        ("s22.49xa", "S2249XA"),
        ("ICD10CM:E11.9", "E119"),
        ("MESH:D003924", "D003924"),
        ("mesh:D003924", "D003924"),
        ("OMIM:208900", "208900"),
        ("SNOMEDCT_US:22253000", "22253000"),
        ("SCTID: 22253000", "22253000"),
        ("MedDRA:10013649", "10013649"),
        ("http://purl.obolibrary.org/obo/HP_0001250", "HP:0001250"),
        ("http://id.nlm.nih.gov/mesh/D003924", "D003924"),
        ("http://example.org/D003924", "http://example.org/D003924"),
        ("UMLS:C0000001", "C0000001"),
        (" D1 ", "D1"),
        ("HP:0009882", "HP:0009882"),
        ("DOID:4.1", "DOID:4.1"),
        ("OMIM:", "OMIM:"),
        ("10.1000", "10.1000"),
        ("e119", "E119"),
        ("E11.", "E11"),
        ("icd10: e11.9", "E119"),
        ("MESH: d003924", "D003924"),
        ("MESH:MeSH:D003924", "D003924"),
        ("c0027497", "C0027497"),
        ("hp_0001250", "HP:0001250"),
        ("\ufeffD00\u200b3924\u00a0", "D003924"),
        ("\uff24003924", "D003924"),
        ("ill_3", "ill_3"),
    ],
)
def test_one_spelling_for_each_source(written, canonical):
    assert canonical_id(written) == canonical


@given(st.text(max_size=12))
def test_the_canonical_spelling_of_any_text_is_its_own(text):
    once = canonical_id(text)
    assert canonical_id(once) == once or ":" in once


def test_an_ontology_is_found_by_any_spelling_and_by_alternatives():
    ontology = Ontology(
        [
            Concept("E11.9", "diabetes", alternatives=("C1", "C9")),
            Concept("C1", "flu", alternatives=("C8", "C9")),
            Concept("MESH:D2", "cold", alternatives=("OMIM:7",)),
        ]
    )
    found = {id_: ontology.position(id_) for id_ in ("E119", "e11.9", "D2", "MESH:D2", "7", "C8")}
    assert found == {"E119": 0, "e11.9": 0, "D2": 2, "MESH:D2": 2, "7": 2, "C8": 1}
    assert ontology.position("C1") == 1  # the identifier of one goes before an alternative one
    assert ontology.position("C9") is None  # of two
    assert [ontology.leads_to_several(id_) for id_ in ("C9", "C1", "C7")] == [True, False, False]
    both = Ontology([Concept("E11.9", "with a dot"), Concept("E119", "without")])
    assert [both.position(id_) for id_ in ("E11.9", "E119", "e11.9")] == [0, 1, None]


def pubtator(folder, ontology, format_, train, test, **config):
    """Build a corpus of one document for each pair of words and concept."""
    files = {}
    for key, marks in {"train": train, "validation": train[:1], "test": test}.items():
        files[key] = folder / f"{key}.txt"
        blocks = [block(f"{key}{i}", f"Of {m[0]}.", "", m) for i, m in enumerate(marks)]
        files[key].write_text("".join(blocks))
    files["ontology"] = folder / "ontology"
    files["ontology"].write_text(ontology)
    cache = str(folder / "cache")
    config = {"num_candidates": 3, "ontology_format": format_, **config}
    builder = Pubtator(data_files=files, cache_dir=cache, **config)
    builder.download_and_prepare()
    return builder


def golds(builder, split="test"):
    return [row["candidate_ids"][row["label"]] for row in builder.as_dataset()[split]]


@pytest.mark.parametrize("omim", ["OMIM:", "MIM:", ""])
def test_alternative_identifiers_lead_to_the_main_one(tmp_path, omim):
    train = [("A-T", f"{omim}208900"), ("colon cancer", "MESH:D003110")]
    test = [("Louis-Bar", f"{omim}208900"), ("MODY7", f"{omim}610508"), ("A-T", "D001260")]
    builder = pubtator(tmp_path, MEDIC, "medic", train, test)
    assert builder.counts.concepts == 4
    assert builder.counts.named_by_mentions == 0
    assert golds(builder) == ["D001260", "C566466", "D001260"]
    assert {row["gold_rank"] for row in builder.as_dataset()["test"]} == {0}


def test_retired_identifiers_lead_to_what_replaces_them(tmp_path):
    train = [("stubby fingertips", "HP:0001198"), ("fits", "HP:0001250")]
    test = [("stubby fingertips", "HP:0009882"), ("viral infections", "HP:0005364")]
    builder = pubtator(tmp_path, OBO, "obo", train, test)
    assert builder.counts.concepts == 3
    assert golds(builder) == ["HP:0009882", "HP:0004429"]


@pytest.mark.parametrize("nil", [mark for mark in NIL if mark.strip()])
def test_no_reader_makes_a_concept_of_a_mark_for_none(tmp_path, nil):
    names = "C1\tHypertension\nC2\tFever\nC3\tHeadache\n"
    train = [("high pressure", "C1"), ("drain in place", nil), ("fever", nil)]
    test = [("fever", "C2"), ("off", nil), ("both", f"C1|{nil}")]
    builder = pubtator(tmp_path, names, "names", train, test)
    assert (builder.counts.concepts, builder.counts.named_by_mentions) == (3, 0)
    assert builder.counts.splits["test"].dropped == {"no concept": 1, "composite mention": 1}
    assert golds(builder) == ["C2"]


@pytest.mark.parametrize(
    "ontology", [CODES, {code.replace(".", ""): CODES[code] for code in CODES}]
)
def test_codes_meet_names_with_and_without_dots(tmp_path, ontology):
    files = {"ontology": tmp_path / "names"}
    files["ontology"].write_text("".join(f"{code}\t{name}\n" for code, name in ontology.items()))
    for split in ("train", "validation", "test"):
        files[split] = tmp_path / f"{split}.jsonl"
        rows = []
        for code, name in CODES.items():
            span = {"start": 4, "end": 4 + len(name), "code": code.lower()}
            rows.append({"id": f"{split}{code}", "text": f"Has {name}.", "spans": [span]})
        files[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"ontology_format": "names", "num_candidates": 2, "on_unknown_concept": "raise"}
    builder = ClinicalNotes(data_files=files, cache_dir=str(tmp_path / "cache"), **config)
    builder.download_and_prepare()
    assert golds(builder) == list(ontology)
    assert builder.counts.splits["test"].recall(1) == 1


def test_retired_identifiers_lead_on_in_chains_and_circles(tmp_path):
    retired = "[Term]\nid: HP:{}\nname: old {}\nis_obsolete: true\nreplaced_by: HP:{}\n\n"
    text = "".join(retired.format(*own) for own in [(1, 1, 2), (2, 2, 3), (3, 3, 2), (4, 4, 8)])
    text += "[Term]\nid: HP:9\nname: new\nalt_id: HP:8\nalt_id: HP:3\n"
    path = tmp_path / "hp.obo"
    path.write_text(text)
    (concept,) = read_obo(path)
    assert (concept.id, set(concept.alternatives)) == ("HP:9", {f"HP:{n}" for n in (1, 2, 3, 4, 8)})


def test_an_identifier_of_several_concepts_names_none(tmp_path):
    obo = OBO + "\n[Term]\nid: HP:7\nname: Fits\nalt_id: HP:5\n\n[Term]\nid: HP:6\nname: Cold\n"
    obo += "alt_id: HP:5\n"
    train = [("seizure", "HP:0001250"), ("fits and cold", "HP:5")]
    builder = pubtator(tmp_path, obo, "obo", train, [("seizure", "HP:0001250"), ("fits", "HP:5")])
    assert (builder.counts.concepts, builder.counts.named_by_mentions) == (5, 0)
    dropped = {"identifier of several concepts": 1}
    assert [builder.counts.splits[own].dropped for own in ("train", "test")] == [dropped, dropped]
    assert golds(builder) == ["HP:0001250"]


def test_a_text_is_no_list_of_names():
    with pytest.raises(DataError, match=r"synonyms of concept 'C1' is the text 'flu'; give a list"):
        Concept("C1", "influenza", "flu")
    with pytest.raises(DataError, match=r"names of 'C1' is the text 'flu'; give a list"):
        concept_from_names("C1", "flu")
    with pytest.raises(DataError, match=r"concepts is the text 'names.tsv'; give a list"):
        Ontology("names.tsv")


def test_raise_means_what_it_says_where_train_mentions_could_name_a_concept(tmp_path):
    train = [("fever", "C1"), ("rash", "C7")]
    names = "C1\tFever\nC2\tCough\n"
    with pytest.raises(DataError, match=r"train.txt:8: concept 'C7' of mention 'train1:3-7' is"):
        pubtator(tmp_path, names, "names", train, train[:1], on_unknown_concept="raise")
    builder = pubtator(tmp_path, names, "names", train, [("fever", "C1"), ("rash", "C7")])
    assert golds(builder) == ["C1", "C7"]


def test_raise_spares_the_concepts_that_a_corpus_itself_names(tmp_path):
    rows = ["review\tmention\tcuis\tcui_names\tsentence"]
    rows += [f"drug.{i}\thair\tC{1 + i % 2}\tname{1 + i % 2}\tmy hair" for i in range(60)]
    files = {"mentions": tmp_path / "mentions.tsv", "ontology": tmp_path / "names.tsv"}
    files["mentions"].write_text("\n".join(rows) + "\n")
    files["ontology"].write_text("C1\tAlopecia\nC3\tInsomnia\n")
    builder = PsyTar(
        data_files=files,
        cache_dir=str(tmp_path / "cache"),
        num_candidates=2,
        on_unknown_concept="raise",
    )
    builder.download_and_prepare()
    assert (builder.counts.concepts, builder.counts.named_by_mentions) == (3, 0)
    assert set(golds(builder)) == {"C1", "C2"}
