"""Ontologies in the OBO format, 1.2 or 1.4."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ...errors import DataError
from ..concepts import concept_from_names, leading_to
from ..formats.lines import read_lines
from ..problems import Problems, refuse_text
from ..schema import Concept

__all__ = ["read_obo"]

_STANZAS = ("[Term]", "[Typedef]", "[Instance]")
_SCOPES = ("EXACT", "NARROW", "BROAD", "RELATED")
_TAG = re.compile(r"[a-z][a-z_-]*")
_SYNONYM = re.compile(
    r'"(?P<text>(?:[^"\\]|\\.)*)"\s*(?P<scope>EXACT|NARROW|BROAD|RELATED)?'
    r"(?:\s+[^\s\[]+)?\s*\[(?:[^\]\\]|\\.)*\].*"  # the synonym's type, its references, the rest
)
# Qualifiers {key="value"} and a comment at the end of an unquoted value.
_TAIL = re.compile(r"(?:\s+\{[^{}]*=[^{}]*\})?(?:\s+!.*)?\s*$")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "t": "\t", "W": " "}


@dataclass
class _Term:
    where: str
    ids: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    synonyms: list[str] = field(default_factory=list)
    xrefs: list[str] = field(default_factory=list)
    alternatives: list[str] = field(default_factory=list)  # identifiers that lead to it
    replaced_by: list[str] = field(default_factory=list)
    obsolete: bool = False


def read_obo(
    *paths: str | Path,
    problems: Problems | None = None,
    scopes: Collection[str] = ("EXACT",),
    obsolete: bool = False,
    xref_prefix: str | None = None,
) -> Iterator[Concept]:
    """Read the terms of OBO files.

    A term's ``alt_id`` lines, and the identifiers of obsolete terms that it replaces (their
    ``replaced_by``), are alternative identifiers of it; so is what leads to one of these.

    Args:
        *paths: The files, gzipped or not.
        problems: Told of terms without one identifier and one name or that come twice, and of
            lines that are malformed; by default they raise.
        scopes: Which synonyms to keep: ``"EXACT"``, ``"NARROW"``, ``"BROAD"``, ``"RELATED"``.
        obsolete: Whether to keep obsolete terms.
        xref_prefix: Make concepts of the terms' cross-references of this prefix, for example
            ``"UMLS_CUI"``, instead of the terms' own identifiers. Terms that share one are one
            concept, a term with several lends its names to each, and terms with none are left
            out.

    Yields:
        The concepts in the order of their first terms, whose names are the preferred ones.

    Raises:
        DataError: A file is missing, a scope is none of these, no term has a cross-reference of
            the prefix, or ``problems`` raises.
    """
    for scope in refuse_text("scopes", scopes):
        if scope not in _SCOPES:
            raise DataError(f"synonym scope {scope!r}; use {', '.join(_SCOPES)}")
    names: dict[str, list[str]] = {}
    alternatives: dict[str, list[str]] = {}
    empty = True
    for term in _whole_terms(paths, problems or Problems(), scopes):
        empty, (id_,) = False, term.ids
        for main in term.replaced_by if term.obsolete else ():
            alternatives.setdefault(main, []).append(id_)
        alternatives.setdefault(id_, []).extend(term.alternatives)
        if obsolete or not term.obsolete:
            for key in _keys(term, xref_prefix):
                names.setdefault(key, []).extend((*term.names, *term.synonyms))
    if not empty and not names and xref_prefix is not None:
        raise DataError(
            f"{', '.join(map(str, paths))}: no term has a cross-reference {xref_prefix}:…; "
            "correct xref_prefix"
        )
    for key, spellings in names.items():
        yield concept_from_names(key, spellings, alternatives=leading_to(key, alternatives, names))


def _whole_terms(
    paths: Iterable[str | Path], problems: Problems, scopes: Collection[str]
) -> Iterator[_Term]:
    """Yield the terms that have one identifier of their own and one name."""
    seen: set[str] = set()
    for term in chain.from_iterable(_terms(path, problems, scopes) for path in paths):
        if len(term.ids) != 1 or len(term.names) != 1 or not (term.ids[0] and term.names[0]):
            message = f"term with ids {term.ids} and names {term.names}; give it one of each"
            problems("term without one id and one name", term.where, message)
        elif term.ids[0] in seen:
            message = f"term {term.ids[0]!r} comes twice; merge the two"
            problems("term comes twice", term.where, message)
        else:
            seen.add(term.ids[0])
            yield term


def _keys(term: _Term, xref_prefix: str | None) -> list[str]:
    if xref_prefix is None:
        return term.ids
    pairs = (xref.partition(":") for xref in dict.fromkeys(term.xrefs))
    return [id_ for prefix, _, id_ in pairs if prefix == xref_prefix and id_]


def _terms(path: str | Path, problems: Problems, scopes: Collection[str]) -> Iterator[_Term]:
    term: _Term | None = None  # None in the file's header and in stanzas of other kinds
    for number, text in read_lines(path, problems):
        line, where = text.strip(), f"{path}:{number}"
        if line.startswith("["):
            if term:
                yield term
            stanza = _TAIL.sub("", line, count=1)
            term = _Term(where) if stanza == "[Term]" else None
            if stanza not in _STANZAS:
                message = f"stanza {line[:80]!r}; use {', '.join(_STANZAS)} or remove it"
                problems("unknown kind of stanza", where, message)
        elif term and line and not line.startswith("!"):
            tag, colon, value = line.partition(":")
            if not (colon and _TAG.fullmatch(tag)) or not _take(term, tag, value.strip(), scopes):
                message = f"expected 'tag: value', got {line[:80]!r}; correct or remove the line"
                problems("line is not 'tag: value'", where, message)
    if term:
        yield term


def _take(term: _Term, tag: str, value: str, scopes: Collection[str]) -> bool:
    """Take a line into a term; false if it is malformed."""
    if tag == "synonym":
        match = _SYNONYM.fullmatch(value)
        if match is None:
            return False
        text = _unescaped(match["text"])
        if text and (match["scope"] or "RELATED") in scopes:  # RELATED is the format's default
            term.synonyms.append(text)
        return bool(text)
    lists = {
        "id": term.ids,
        "name": term.names,
        "alt_id": term.alternatives,
        "replaced_by": term.replaced_by,
    }
    if tag not in (*lists, "xref", "is_obsolete"):
        return True
    plain = _unescaped(_TAIL.sub("", value, count=1))
    if tag in lists:
        lists[tag].append(plain)
    elif tag == "xref":
        xref = plain.split(maxsplit=1)[:1]  # a description may follow
        term.xrefs.extend(xref)
        return bool(xref) and not xref[0].endswith(":")
    else:
        term.obsolete = plain == "true"
        return plain in ("true", "false")
    return True


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), text).strip()
