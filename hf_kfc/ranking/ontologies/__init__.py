"""Ontologies: their file formats, and one class that holds millions of concepts compactly."""

from .json_lines import write_concepts
from .ontology import Ontology
from .readers import ONTOLOGY_FORMATS, read_ontology

__all__ = ["ONTOLOGY_FORMATS", "Ontology", "read_ontology", "write_concepts"]
