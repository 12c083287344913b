"""What the licences of corpora and ontologies allow to be passed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ONTOLOGY_LICENSES", "License"]


@dataclass(frozen=True, slots=True)
class License:
    """A licence, as far as publishing needs to know it.

    Args:
        name: Its name, for readers.
        url: Where its terms stand.
        redistributable: Whether the text may be passed on to anyone.
        citation: What its terms or its authors ask to be cited.
        id: The Hub's identifier of it, ``"other"`` where the Hub knows none.
    """

    name: str
    url: str
    redistributable: bool
    citation: str = ""
    id: str = "other"


ONTOLOGY_LICENSES: Mapping[str, License] = {
    "umls": License(
        name="UMLS Metathesaurus License",
        url="https://www.nlm.nih.gov/research/umls/knowledge_sources/metathesaurus/release/license_agreement.html",
        redistributable=False,
        citation="Bodenreider (2004), Nucleic Acids Research 32",
    ),
    "medic": License(
        name="CTD terms of use",
        url="https://ctdbase.org/about/legal.jsp",
        redistributable=False,
        citation="Davis et al. (2012), Database, bar065",
    ),
    "mesh": License(
        name="NLM terms and conditions, with attribution",
        url="https://www.nlm.nih.gov/databases/download/terms_and_conditions_mesh.html",
        redistributable=True,
        citation="Medical Subject Headings, U.S. National Library of Medicine",
    ),
    "icd10cm": License(
        name="public domain in the United States",
        url="https://www.cdc.gov/nchs/icd/icd-10-cm/",
        redistributable=True,
        citation="ICD-10-CM, National Center for Health Statistics",
    ),
    "open_cui_names": License(
        name="CC0 1.0, CC BY 4.0 and the HPO licence",
        url="https://hpo.jax.org/license",
        redistributable=True,
        citation="Disease Ontology; Mondo; Human Phenotype Ontology",
    ),
}
"""The licences of ontologies whose format tells which one it is. The names of a vocabulary of
lines or of an OBO file may be anyone's; ``open_cui_names`` are those of the Disease Ontology (CC0),
Mondo (CC BY 4.0) and HPO (its own licence), keyed by CUI."""
