"""What is checked of a corpus as a whole: its files, its splits, and whether its ontology fits."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..ontologies import Ontology
from ..schema import Mention

__all__ = [
    "as_patterns",
    "is_half_a_word",
    "splits_by_document",
    "warn_of_halves",
    "warn_of_repeats",
    "warn_of_strangers",
]

logger = logging.getLogger(__name__)

# Not letters of all scripts: many write words without spaces.
_IN_WORD = re.compile("[A-Za-z]{2}")


def as_patterns(paths: Any) -> list[str]:
    """Check paths and write them as the glob patterns that `datasets` reads; a folder is `/**`."""
    patterns = []
    # Not `Path`: `datasets` puts a class of its own in its place in this module.
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        if "://" in str(path):
            patterns.append(str(path))
        elif Path(path).is_dir():
            patterns.append(f"{glob.escape(str(path))}/**")
        elif Path(path).is_file():
            patterns.append(glob.escape(str(path)))
        else:
            raise DataError(f"{path}: no such file; check the path or fetch the corpus")
    return patterns


def is_half_a_word(mention: Mention) -> bool:
    """Whether a mention begins or ends inside of a word, as where its offsets are one off."""
    edges = (mention.left[-1:] + mention.text[:1], mention.text[-1:] + mention.right[:1])
    return any(map(_IN_WORD.fullmatch, edges))


def warn_of_halves(name: str, halves: int, mentions: int) -> None:
    """Say so where most mentions begin or end inside of a word."""
    if 2 * halves > mentions:
        logger.warning(
            "%s: %d of %d mentions begin or end inside of a word; check that offsets count "
            "characters, from 0, and that ends are those after the last one",
            name,
            halves,
            mentions,
        )


def warn_of_repeats(name: str, mentions: Mapping[str, Sequence[tuple[str, Mention]]]) -> None:
    """Say so where mentions of test stand in train too, in the same words, under another document.

    Mentions with fewer than ten words around them may well be the same by chance, but not a tenth
    of all: such is a text that stands there sentence by sentence.
    """
    words = {split: [(m.left, m.text, m.right) for _, m in own] for split, own in mentions.items()}
    learnt = {*words["train"]}
    both = [
        f"{left} [] {right}" for left, text, right in words["test"] if (left, text, right) in learnt
    ]
    repeated = sum(len(own.split()) > 10 for own in both)
    some = [own for own in both if len(own.split()) > 3]
    if len({*some}) > 4 and 10 * len(some) > len(words["test"]):
        repeated = len(some)
    if repeated:
        logger.warning(
            "%s: %d of %d mentions of test stand in train too, with the same words around them; "
            "look for one text under two identifiers",
            name,
            repeated,
            len(words["test"]),
        )


def warn_of_strangers(name: str, ontology: Ontology, golds: Collection[str]) -> None:
    """Say so where the ontology has few of the concepts that mentions name.

    They then have the mentions' words for names, so that nothing else would tell of an ontology of
    another vocabulary, or of one whose columns are swapped.
    """
    known = sum(ontology.position(gold) is not None for gold in golds)
    if 2 * known < len(golds):
        logger.warning(
            "%s: only %d of %d concepts of the mentions are in the ontology, the others are called "
            "by the mentions' words alone; check that it is of the corpus's vocabulary, with "
            "identifiers in the first column",
            name,
            known,
            len(golds),
        )


def splits_by_document(documents: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Say which split each document is in, and refuse one that is in two."""
    owners: dict[str, str] = {}
    for split, own in documents.items():
        for document in own:
            if owners.setdefault(document, split) != split:
                raise DataError(
                    f"document {document!r} is in the splits {owners[document]} and {split}; keep "
                    "each document in one split"
                )
    return owners
