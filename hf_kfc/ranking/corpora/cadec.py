"""CADEC: patients' posts on drugs, mapped to SNOMED CT or MedDRA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ..concepts import is_nil
from ..formats.brat import brat_documents
from ..formats.documents import Document
from ..licenses import CORPUS_LICENSES
from ..problems import Problems
from .documents import DocumentCorpus

__all__ = ["Cadec"]

# "A | a | + B | b |" (both), "A | a | or B | b |" (either), "A/B": several codes and their names.
_BETWEEN = re.compile(r"\s*(?:\+|/|\|?\s*\bor\b)\s*(?=\d{6})")
_CONCEPT = re.compile(r"(?P<code>\d{6,18})(?!\d)\s*(?P<name>.*)")
# One more concept that has no code: the first one alone would be wrong.
_WITHOUT_CODE = re.compile(r"(?:^|\|)\s*(?:\+|/|or\b)")


def _read_label(label: str) -> tuple[tuple[str, str], ...] | None:
    """Read code and name of each concept from the label of a span; none if it is no label.

    Labels are ``"271782001 | Drowsy |"``, ``"10013649/10019211"`` (codes alone) or
    ``"CONCEPT_LESS"``; for example ``"102498003 | Agony| or 76948002|Severe pain|"`` has two
    concepts.
    """
    if is_nil(label.strip("| ")):
        return ()
    concepts = []
    for part in _BETWEEN.split(label):
        match = _CONCEPT.fullmatch(part.strip())
        if match is None or _WITHOUT_CODE.search(match["name"]):
            return None
        # Bars stand around the name, and before what tells it from others: "iron | (substance)".
        concepts.append((match["code"], " ".join(match["name"].replace("|", " ").split())))
    return tuple(concepts)


class Cadec(DocumentCorpus):
    """CADEC (Karimi et al. 2015), split by post.

    The release (doi:10.4225/08/570FB102BDAD2, version 2) has four folders of files of one name:
    ``text`` (the posts), ``original`` (spans and their types, not read here), and ``sct`` and
    ``meddra`` (the same spans with the code in the place of brat's type). The folder given says
    which vocabulary's codes are the concepts: ``sct`` (SNOMED CT, and AMT for drugs) names them,
    ``meddra`` does not.

    A few lines of the release have spaces where a tab belongs: correct them or read with
    ``on_error="count"``. Files must be UTF-8.

    ``data_files``: ``text`` and ``annotations`` (folders) and, optionally, ``ontology``
    (identifiers are the codes).
    """

    LICENSE = CORPUS_LICENSES["cadec"]
    FILES = ("text", "annotations")

    def _all_documents(self, problems: Problems) -> Iterator[Document]:
        paths = (*self._paths("text"), *self._paths("annotations"))
        for document in brat_documents(paths, problems):
            marked, document.spans = document.spans, []
            for span in marked:
                (label,) = span.types
                concepts = _read_label(label)
                if concepts is None:
                    message = f"{label[:80]!r} is no code; correct or remove the line"
                    problems("label is no code", span.where, message)
                    continue
                codes = tuple(code for code, _ in concepts)
                names = tuple(name for _, name in concepts)
                document.spans.append(replace(span, concepts=codes, names=names))
            yield document
