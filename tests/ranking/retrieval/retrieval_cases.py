"""Small ontologies, and the names that hits stand for."""

from collections.abc import Sequence

from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.retrieval import Hit
from hf_kfc.ranking.schema import Concept


def named(*names: str) -> Ontology:
    return Ontology(Concept(f"C{index}", name) for index, name in enumerate(names))


def positions(hits: Sequence[Hit]) -> list[int]:
    return [hit.position for hit in hits]
