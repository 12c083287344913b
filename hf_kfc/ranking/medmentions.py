"""MedMentions ST21pv: PubMed abstracts, linked to UMLS."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DataError
from .builder import CandidateRankingBuilder, stable_fraction
from .counts import SplitCounts
from .files import read_lines, read_names
from .ontology import concepts_from_names, surface_forms
from .schema import Concept, Mention

__all__ = ["MedMentions", "read_mentions"]

_FIELDS = ("doc", "mention", "cui", "left", "right")
_VALIDATION_SHARE = 0.10


def read_mentions(path: str | Path) -> Iterator[Mention]:
    """Read mentions from JSON lines with the fields ``doc, mention, cui, left, right``.

    Args:
        path: The file, gzipped or not.

    Yields:
        The mentions, in the file's order.

    Raises:
        DataError: The file is missing, or a line is not an object with these fields as strings.
    """
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error.msg}); correct or remove the line"
            ) from error
        fields = record if isinstance(record, dict) else {}
        values = [fields[name] for name in _FIELDS if isinstance(fields.get(name), str)]
        if len(values) != len(_FIELDS):
            raise DataError(
                f"{path}:{number}: expected an object with the strings {', '.join(_FIELDS)}; "
                "correct or remove the line"
            )
        document, text, concept, left, right = values
        yield Mention(document, text, left, right, concept, key=f"line{number}")


class MedMentions(CandidateRankingBuilder):
    """MedMentions ST21pv (Mohan & Li 2019), without the licensed names of UMLS.

    A stable hash of the document's identifier carves 10 % of the train documents out as the
    validation split; the test split is its own file.

    A concept is named by an open vocabulary (its first name there is the preferred one) and by
    the surface forms of the train split, the most frequent of which is the preferred name where
    the vocabulary has none. Mentions of a concept with no name at all are dropped and counted
    as not in the ontology.

    ``data_files``: ``train`` and ``test`` (see :func:`read_mentions`) and ``names`` (lines
    ``CUI<TAB>name``).
    """

    FILES = ("train", "test", "names")

    def _ontology(self) -> Sequence[Concept]:
        names = read_names(self.files["names"])
        for concept, forms in surface_forms(self._mentions("train", SplitCounts())).items():
            names.setdefault(concept, []).extend(forms)
        return concepts_from_names(names)

    def _mentions(self, split: str, counts: SplitCounts) -> Iterator[Mention]:
        if split == "test":
            yield from read_mentions(self.files["test"])
            return
        for mention in read_mentions(self.files["train"]):
            held_out = stable_fraction(mention.document) < _VALIDATION_SHARE
            if held_out == (split == "validation"):
                yield mention
