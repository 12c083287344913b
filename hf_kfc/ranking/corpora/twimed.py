"""TwiMed: drugs, symptoms and diseases in tweets and PubMed sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..concepts import is_nil
from ..formats.brat import brat_documents
from ..formats.documents import Document
from ..formats.lines import read_lines
from ..licenses import CORPUS_LICENSES
from ..problems import Problems
from .documents import DocumentCorpus

__all__ = ["TwiMed"]

_NAME = re.compile(r"name:[^:]*:\s*(?P<name>\S.*?)\s*")
_DISAGREEMENT = "0"  # of the annotators on the concept


def _read_brat_names(path: str | Path, problems: Problems) -> dict[str, list[str]]:
    """Read names by identifier from brat's database, ``id<TAB>name:Name:...<TAB>name:...``."""
    names: dict[str, list[str]] = {}
    for number, line in read_lines(path, problems):
        id_, *fields = line.split("\t")
        found = [match["name"] for field in fields if (match := _NAME.fullmatch(field))]
        if not id_ or not found or len(found) < len(fields):
            message = f"expected 'id<TAB>name:Name:...', got {line[:80]!r}; correct the line"
            problems("line is not 'id<TAB>name:Name:...'", f"{path}:{number}", message)
            continue
        names.setdefault(id_, []).extend(found)
    return names


class TwiMed(DocumentCorpus):
    """TwiMed (Alvaro et al. 2017), split by tweet and by article.

    The release (github.com/nestoralvaro/TwiMed) has folders of brat files, ``gold/twitter`` and
    ``gold/pubmed``, with the concept of a span in an ``N`` line. The texts of the tweets are not
    published: the release's tools fetch them and write them as ``.txt`` files. Annotations of a
    tweet that is gone are malformed records: leave their files out or read with
    ``on_error="count"``.

    Concepts are UMLS CUIs for symptoms and diseases and PubChem numbers for drugs, named by the
    release's ``files_for_brat/Concepts.txt``. Spans whose concept the annotators did not agree on
    (``0``) or did not know (``-1``) have none.

    ``data_files``: ``annotations`` (one or both of the folders, or more with the texts),
    ``concepts`` (``Concepts.txt``) and, optionally, ``ontology``.
    """

    LICENSE = CORPUS_LICENSES["twimed"]
    FILES = ("annotations", "concepts")

    def _names(self, problems: Problems) -> Mapping[str, Sequence[str]]:
        names = _read_brat_names(self._file("concepts"), problems)
        return {i: own for i, own in names.items() if i != _DISAGREEMENT and not is_nil(i)}

    def _all_documents(self, problems: Problems) -> Iterator[Document]:
        for document in brat_documents(self._paths("annotations"), problems):
            # Sentences of one article are "PMC123_4" and "PMC123_5".
            article, _, sentence = document.id.partition("_")
            spans = [
                replace(
                    span,
                    concepts=tuple(id_ for id_ in span.concepts if id_ != _DISAGREEMENT),
                    key=f"{sentence}.{span.key}" if sentence else span.key,
                )
                for span in document.spans
            ]
            yield Document(article, document.text, spans)
