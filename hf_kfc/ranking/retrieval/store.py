"""The retrievers by name, and their indexes on disk."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
from filelock import FileLock

from ...errors import DataError
from ...files import refuse_blocked, replace_directory
from ..ontologies import Ontology
from .base import Retriever
from .bm25 import Bm25Retriever
from .sparse import SparseRetriever
from .tfidf import TfidfRetriever

__all__ = ["RETRIEVERS", "get_retriever"]

logger = logging.getLogger(__name__)

RETRIEVERS: dict[str, type[SparseRetriever]] = {"bm25": Bm25Retriever, "tfidf": TfidfRetriever}
"""Retrievers by the name that a builder's configuration gives them."""


def get_retriever(name: str, ontology: Ontology, cache_dir: str | Path | None = None) -> Retriever:
    """Find the index of an ontology on disk and map it into memory, or build and save it first.

    An index belongs to the content of the ontology: another one is made as soon as a name, or the
    order of the concepts, differs. Of several processes one builds and the others wait for it.

    Args:
        name: A key of ``RETRIEVERS``.
        ontology: The ontology.
        cache_dir: Folder of the indexes; by default ``hf_kfc_indexes`` in the cache of `datasets`.

    Returns:
        The retriever; it pickles as the path of its index.

    Raises:
        DataError: There is no such retriever, or the ontology has nothing to search.
        HfKfcError: The folder of the indexes cannot be made.
    """
    if name not in RETRIEVERS:
        raise DataError(f"retriever {name!r}; use {' or '.join(RETRIEVERS)}")
    kind = RETRIEVERS[name]
    parent = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "hf_kfc_indexes")
    folder = parent / f"{name}-{kind.VERSION}-{ontology.fingerprint}"
    refuse_blocked(parent)
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            try:
                return kind.load(folder)
            except DataError as error:
                logger.warning("%s; it is built again", error)
        with replace_directory(folder) as partial:
            kind(ontology).save(partial)
        return kind.load(folder)
