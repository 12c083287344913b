"""Ontologies: their file formats, and one class that holds millions of concepts compactly."""

from .ontology import Ontology
from .readers import ONTOLOGY_FORMATS, read_ontology

__all__ = ["ONTOLOGY_FORMATS", "Ontology", "read_ontology"]
