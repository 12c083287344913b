"""TwiMed: drugs, symptoms and diseases in tweets and PubMed sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..formats.brat import brat_documents
from ..formats.lines import read_lines
from ..licenses import License
from ..problems import Problems
from .annotated import AnnotatedCorpus, Annotation

__all__ = ["TwiMed", "read_brat_names"]

_NAME = re.compile(r"name:[^:]*:\s*(?P<name>\S.*?)\s*")
_NO_CONCEPT = ("0", "-1")  # the annotators disagreed, or knew none


def read_brat_names(path: str | Path, problems: Problems | None = None) -> dict[str, list[str]]:
    """Read the names of concepts from a file of brat's normalisation database.

    Args:
        path: Its lines are ``id<TAB>name:Name:preferred<TAB>name:Also known as:synonym...``.
        problems: Told of malformed lines; by default they raise.

    Returns:
        The names by identifier, the preferred one first.

    Raises:
        DataError: The file is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    names: dict[str, list[str]] = {}
    for number, line in read_lines(path, problems):
        id_, *fields = line.split("\t")
        matches = [_NAME.fullmatch(field) for field in fields]
        found = [match["name"] for match in matches if match]
        if not id_ or not found or len(found) < len(fields):
            message = f"expected 'id<TAB>name:Name:...', got {line[:80]!r}; correct the line"
            problems("line is not 'id<TAB>name:Name:...'", f"{path}:{number}", message)
            continue
        names.setdefault(id_, []).extend(found)
    return names


class TwiMed(AnnotatedCorpus):
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

    LICENSE = License(
        name="X (Twitter) developer terms",
        url="https://developer.x.com/en/developer-terms/agreement-and-policy",
        redistributable=False,
        citation="Alvaro et al. (2017), JMIR Public Health and Surveillance 3",
    )
    FILES = ("annotations", "concepts")

    def _names(self, problems: Problems) -> Mapping[str, Sequence[str]]:
        names = read_brat_names(self._file("concepts"), problems)
        return {id_: own for id_, own in names.items() if id_ not in _NO_CONCEPT}

    def _annotations(self, problems: Problems) -> Iterator[Annotation]:
        for document in brat_documents(self._paths("annotations"), problems):
            # Sentences of one article are "PMC123_4" and "PMC123_5".
            article, _, sentence = document.id.partition("_")
            for span in document.spans:
                ids = dict.fromkeys(id_ for _, id_ in span.normalizations)
                yield Annotation(
                    document=article,
                    mention=span.text,
                    text=document.text,
                    pieces=span.pieces,
                    concepts=tuple((id_, "") for id_ in ids if id_ not in _NO_CONCEPT),
                    key=f"{sentence}.{span.key}" if sentence else span.key,
                    where=span.where,
                )
