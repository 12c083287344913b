"""Candidate retrieval: which concepts of an ontology a mention may refer to."""

from .base import Hit, Retriever
from .bm25 import Bm25Retriever
from .store import RETRIEVERS, get_retriever
from .tfidf import TfidfRetriever

__all__ = ["RETRIEVERS", "Bm25Retriever", "Hit", "Retriever", "TfidfRetriever", "get_retriever"]
