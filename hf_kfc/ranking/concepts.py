"""What a concept is called: one spelling of its identifier, one rule for none, its names.

Corpora and ontologies write one identifier in many ways (``E11.9`` and ``E119``, ``MESH:D003924``
and ``D003924``) and "no concept" in more. All readers leave identifiers as they are written; what
compares them comes here, so that a gold is never a second concept beside the right one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from unicodedata import category, normalize

from ..errors import DataError
from .problems import refuse_text
from .schema import Concept, Mention

__all__ = [
    "canonical_id",
    "concept_from_names",
    "icd10_code",
    "is_nil",
    "leading_to",
    "surface_forms",
]

_MINUS_ONE = re.compile(r"[-\u2010-\u2015\u2212]1")
# Compared by letters and digits alone: "CUI-less", "CUI_LESS", "cui less" ...
_NIL = frozenset(
    [
        *("", "cuiless", "conceptless", "nocode", "nocui", "noid", "noconcept", "nomatch"),
        *("notfound", "nil", "none", "null", "na", "nan", "unknown", "unmapped", "notmapped"),
    ]
)
_NUMBERED_NIL = re.compile(r"NIL[0-9]+", re.I)  # as TAC's tasks write it
_PREFIX = re.compile(
    r"(?:(?:MESH|MSH|O?MIM|UMLS|CUI|UMLS_CUI|ICD[-_ ]?10(?:[-_ ]?(?:CM|PCS))?"
    r"|SNOMED(?:[-_ ]?CT)?(?:_US)?|SCT(?:ID)?|MEDDRA|MDR)\s*:\s*"
    r"|https?://(?:purl\.obolibrary\.org/obo|id\.nlm\.nih\.gov/mesh|snomed\.info/id)/)+(?=.)",
    re.I,
)
_CODE = re.compile(r"[A-Z][0-9][0-9A-Z]+", re.I)  # of MeSH, UMLS, ICD-10 without its dot
_DOTTED = re.compile(r"[A-Z][0-9][0-9A-Z]\.[0-9A-Z]{0,4}", re.I)
_CURIE = re.compile(r"(HP|DOID|MONDO|GO|CHEBI|NCIT|EFO|MP|UBERON)\s*[:_]\s*([0-9]+)", re.I)


def is_nil(id_: str) -> bool:
    """Whether an identifier stands for no concept, in any spelling that corpora have for it.

    Args:
        id_: What stands where an identifier could: ``"CUI-less"``, ``"NIL"``, ``"-1"``, nothing.

    Example:
        >>> [is_nil(id_) for id_ in ("CUI-less", "-1", " ", "1", "C0000001")]
        [True, True, True, False, False]
    """
    id_ = _PREFIX.sub("", f"{_plain(id_)} ").strip()
    if _MINUS_ONE.fullmatch(id_) or _NUMBERED_NIL.fullmatch(id_):
        return True
    return re.sub(r"[\W_]", "", id_).lower() in _NIL


def canonical_id(id_: str) -> str:
    """Spell an identifier in the one way by which identifiers are compared.

    White space, characters that nobody sees and the prefix of a vocabulary (``MESH:``, ``OMIM:``,
    ``UMLS:``, ``ICD10CM:``, ``SNOMEDCT:``, ``MEDDRA:``, an address of OBO's) are left out, and so
    is the dot of a code of ICD-10. The letters of codes like MeSH's, UMLS's and ICD-10's, and the
    prefixes of ontologies (``hp_0001250``), are made capitals. Any other identifier is left as it
    is.

    Args:
        id_: As a corpus or an ontology writes it.

    Example:
        >>> [canonical_id(id_) for id_ in ("s22.49xa", "MESH:D003924", "OMIM:208900", "DOID:4")]
        ['S2249XA', 'D003924', '208900', 'DOID:4']
    """
    id_ = _PREFIX.sub("", _plain(id_), count=1)
    if curie := _CURIE.fullmatch(id_):
        return f"{curie[1].upper()}:{curie[2]}"
    is_code = _DOTTED.fullmatch(id_) or _CODE.fullmatch(id_)
    return id_.replace(".", "").upper() if is_code else id_


def _plain(text: str) -> str:
    """A text in the one form of its letters, without the characters that nobody sees."""
    if not text.isascii():
        text = "".join(char for char in normalize("NFKC", text) if category(char) != "Cf")
    return text.strip()


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
    for name in map(str.strip, refuse_text(f"names of {id_!r}", names)):
        if name:
            distinct.setdefault(name.lower(), name)
    if not distinct:
        raise DataError(f"concept {id_!r} has no name; give it one, or leave it out")
    preferred, *synonyms = distinct.values()
    others = tuple(other for other in dict.fromkeys(alternatives) if other != id_)
    return Concept(id_, preferred, tuple(synonyms), tuple(types), others)


def leading_to(
    id_: str, replaced: Mapping[str, Iterable[str]], others: Container[str] = ()
) -> list[str]:
    """Find the identifiers that lead to one, through others too, in chains and in circles.

    Args:
        id_: Where they lead.
        replaced: By identifier those that it stands for, or replaces.
        others: Identifiers of concepts of their own, which lead to themselves.

    Example:
        >>> leading_to("C3", {"C3": ["C2"], "C2": ["C1"], "C1": ["C2"]})
        ['C2', 'C1']
    """
    found = [id_]
    for known in found:
        for other in dict.fromkeys(replaced.get(known, ())):
            if other not in found and other not in others:
                found.append(other)
    return found[1:]


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
