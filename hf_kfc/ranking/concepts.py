"""What a concept is called: one spelling of its identifier, one rule for none, its names.

Corpora and ontologies write one identifier in many ways (``E11.9`` and ``E119``, ``MESH:D003924``
and ``D003924``) and "no concept" in more. All readers leave identifiers as they are written; what
compares them comes here, so that a gold is never a second concept beside the right one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from ..errors import DataError
from .schema import Concept, Mention

__all__ = ["canonical_id", "concept_from_names", "icd10_code", "is_nil", "surface_forms"]

# Compared without case, hyphens, underscores and spaces: "CUI-less", "CUI_LESS", "cui less" ...
_NIL = frozenset(
    ["", "cuiless", "conceptless", "nocode", "noconcept", "nil", "none", "null", "n/a", "nan"]
)
_PREFIX = re.compile(r"(?:MESH|MSH|O?MIM|UMLS|CUI|UMLS_CUI|ICD-?10(?:-?(?:CM|PCS))?):(?=.)", re.I)
_DOTTED = re.compile(r"[A-Z][0-9][0-9A-Z]\.[0-9A-Z]{1,4}", re.I)


def is_nil(id_: str) -> bool:
    """Whether an identifier stands for no concept, in any spelling that corpora have for it.

    Args:
        id_: What stands where an identifier could: ``"CUI-less"``, ``"NIL"``, ``"-1"``, nothing.

    Example:
        >>> [is_nil(id_) for id_ in ("CUI-less", "-1", " ", "1", "C0000001")]
        [True, True, True, False, False]
    """
    return id_.strip() == "-1" or re.sub(r"[-_\s]", "", id_).lower() in _NIL


def canonical_id(id_: str) -> str:
    """Spell an identifier in the one way by which identifiers are compared.

    White space and the prefix of a vocabulary (``MESH:``, ``OMIM:``, ``UMLS:``, ``ICD10CM:``) are
    left out, and so is the dot of a code of ICD-10, whose letters are made capitals. Any other
    identifier is left as it is.

    Args:
        id_: As a corpus or an ontology writes it.

    Example:
        >>> [canonical_id(id_) for id_ in ("s22.49xa", "MESH:D003924", "OMIM:208900", "DOID:4")]
        ['S2249XA', 'D003924', '208900', 'DOID:4']
    """
    id_ = _PREFIX.sub("", id_.strip(), count=1)
    return id_.replace(".", "").upper() if _DOTTED.fullmatch(id_) else id_


def icd10_code(code: str) -> str:
    """Spell a code of ICD-10 as its official files do: in capitals and without a dot.

    Args:
        code: A code, which :func:`canonical_id` could not tell from other identifiers where it is
            in small letters and has no dot; it is not checked.

    Example:
        >>> icd10_code("s22.49xa"), icd10_code("a00")
        ('S2249XA', 'A00')
    """
    code = canonical_id(code).upper()
    return code[:3] + code[4:] if code[3:4] == "." else code


def concept_from_names(
    id_: str, names: Iterable[str], types: Iterable[str] = (), alternatives: Iterable[str] = ()
) -> Concept:
    """Make a concept of a list of names.

    Args:
        id_: Its identifier.
        names: The first is the preferred one. White space around a name, a name without anything
            else, and a name that repeats an earlier one, compared without case, are left out.
        types: Its semantic types.
        alternatives: Its other identifiers.

    Raises:
        DataError: No name is left.
    """
    distinct: dict[str, str] = {}
    for name in map(str.strip, names):
        if name:
            distinct.setdefault(name.lower(), name)
    if not distinct:
        raise DataError(f"concept {id_!r} has no name; give it one, or leave it out")
    preferred, *synonyms = distinct.values()
    others = tuple(other for other in dict.fromkeys(alternatives) if other != id_)
    return Concept(id_, preferred, tuple(synonyms), tuple(types), others)


def surface_forms(mentions: Iterable[Mention]) -> dict[str, list[str]]:
    """Collect the words by which mentions refer to each concept.

    Args:
        mentions: Mentions of the train split; those of other splits would leak their answers.

    Returns:
        The distinct texts for each concept, the most frequent first, then by first appearance.
    """
    counters: dict[str, Counter[str]] = {}
    for mention in mentions:
        counters.setdefault(mention.concept, Counter())[mention.text.strip()] += 1
    return {id_: [text for text, _ in counter.most_common()] for id_, counter in counters.items()}
