"""BC5CDR: chemicals and diseases in PubMed abstracts, linked to MeSH."""

from __future__ import annotations

from ..licenses import CORPUS_LICENSES
from .config import SPLITS
from .pubtator import Pubtator

__all__ = ["Bc5cdr"]


class Bc5cdr(Pubtator):
    """BioCreative V CDR (Li et al. 2016), with the official splits.

    The ontology is a list of MeSH names, widened by the surface forms of the train documents.

    ``data_files``: ``train``, ``validation``, ``test`` (PubTator format) and ``ontology``.
    """

    LICENSE = CORPUS_LICENSES["bc5cdr"]
    FILES = (*SPLITS, "ontology")
    OPTIONAL_FILES = ()
