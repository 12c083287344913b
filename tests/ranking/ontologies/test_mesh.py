import gzip

import pytest

from hf_kfc.errors import DataError
from hf_kfc.ranking.ontologies.mesh import read_mesh
from hf_kfc.ranking.problems import Problems
from hf_kfc.ranking.schema import Concept

COLD = """<DescriptorRecord DescriptorClass="1">
  <DescriptorUI>D1</DescriptorUI>
  <DescriptorName><String>Common Cold</String></DescriptorName>
  <SeeRelatedList><SeeRelatedDescriptor><DescriptorReferredTo>
    <DescriptorUI>D9</DescriptorUI><DescriptorName><String>Noses</String></DescriptorName>
  </DescriptorReferredTo></SeeRelatedDescriptor></SeeRelatedList>
  <ConceptList>
    <Concept PreferredConceptYN="Y">
      <ConceptUI>M1</ConceptUI><ConceptName><String>Common Cold</String></ConceptName>
      <SemanticTypeList><SemanticType>
        <SemanticTypeUI>T047</SemanticTypeUI>
        <SemanticTypeName>Disease or Syndrome</SemanticTypeName>
      </SemanticType></SemanticTypeList>
      <TermList>
        <Term RecordPreferredTermYN="Y"><TermUI>T1</TermUI><String>Common Cold</String></Term>
        <Term RecordPreferredTermYN="N"><TermUI>T2</TermUI><String>Cold, Common</String></Term>
      </TermList>
    </Concept>
    <Concept PreferredConceptYN="N">
      <ConceptUI>M2</ConceptUI><ConceptName><String>Catarrh &amp; Sneezes</String></ConceptName>
      <TermList><Term><TermUI>T3</TermUI><String>Catarrh &amp; Sneezes</String></Term></TermList>
    </Concept>
  </ConceptList>
</DescriptorRecord>
"""
ACID = """<SupplementalRecord SCRClass="1">
  <SupplementalRecordUI>C1</SupplementalRecordUI>
  <SupplementalRecordName><String>toyic acid</String></SupplementalRecordName>
  <ConceptList><Concept><TermList><Term><String>toyate</String></Term></TermList></Concept>
  </ConceptList>
</SupplementalRecord>
"""
CONCEPTS = [
    Concept("D1", "Common Cold", ("Cold, Common", "Catarrh & Sneezes"), ("Disease or Syndrome",)),
    Concept("C1", "toyic acid", ("toyate",)),
]


def document(*records: str) -> str:
    set_ = "DescriptorRecordSet"
    return (
        f'<?xml version="1.0"?>\n<!DOCTYPE {set_} SYSTEM "https://example.org/desc.dtd">\n'
        f"<{set_}>\n{''.join(records)}</{set_}>\n"
    )


@pytest.fixture
def read(tmp_path):
    def make(text, **kwargs) -> list[Concept]:
        (tmp_path / "desc.xml").write_text(text)
        return list(read_mesh(tmp_path / "desc.xml", **kwargs))

    return make


def test_descriptors_and_supplementary_concepts(read, tmp_path):
    assert read(document(COLD, ACID)) == CONCEPTS
    paths = [tmp_path / "desc.gz", tmp_path / "supp.gz"]
    for path, record in zip(paths, (COLD, ACID), strict=True):
        path.write_bytes(gzip.compress(document(record).encode()))
    assert list(read_mesh(*paths)) == CONCEPTS


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (COLD.replace("D1", " "), "record without an identifier or a name"),
        (
            ACID.replace("C1", "C2").replace("toyic acid", ""),
            "record without an identifier or a name",
        ),
        (COLD, "record comes twice"),
    ],
)
def test_malformed_records_raise_with_their_last_line_or_are_counted(read, record, reason):
    text = document(COLD, record, ACID)
    line = 3 + COLD.count("\n") + record.count("\n")
    with pytest.raises(DataError, match=f"desc.xml:{line}: record .*(give|remove)"):
        read(text)
    problems = Problems("count")
    assert read(text, problems=problems) == CONCEPTS
    assert problems.counts == {reason: 1}


@pytest.mark.parametrize("cut", [0, 1, 60, 700, 1500, -30, -2])
def test_xml_cut_short_anywhere_is_found_out(read, cut):
    text = document(COLD, ACID)[:cut]
    with pytest.raises(DataError, match=rf"desc.xml:{len(text.splitlines())}: damaged XML"):
        read(text)
    problems = Problems("count")
    found = read(text, problems=problems)
    ends = [f"</{kind}Record>" for kind in ("Descriptor", "Supplemental")]
    assert found == CONCEPTS[: sum(end in text for end in ends)]
    assert problems.counts == {"damaged XML": 1}


def test_gzip_cut_short_is_found_out(tmp_path):
    path = tmp_path / "desc.gz"
    path.write_bytes(gzip.compress(document(COLD, ACID).encode())[:-20])
    with pytest.raises(DataError, match="damaged gzip data"):
        list(read_mesh(path))
    problems = Problems("count")
    assert list(read_mesh(path, problems=problems)) in ([], CONCEPTS[:1], CONCEPTS)
    assert problems.counts["damaged gzip data"] == 1


def test_the_declared_encoding_does_not_matter(read):
    text = document(COLD, ACID).replace('version="1.0"', 'version="1.0" encoding="TF-8"')
    assert read(text) == CONCEPTS
