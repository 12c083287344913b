"""TAC 2017 ADR: adverse reactions in drug labels, mapped to MedDRA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from xml.parsers import expat

from ..formats.documents import Document, Pieces, Span, span_text
from ..licenses import CORPUS_LICENSES
from ..problems import Problems
from .config import split_by_hash
from .documents import DocumentCorpus

__all__ = ["TacAdr"]

_OFFSETS = re.compile(r"[0-9]{1,9}(?:,[0-9]{1,9})*")
_Element: TypeAlias = tuple[str, dict[str, str]]  # file and line, attributes


@dataclass
class _Label:
    """What the elements of a file say."""

    drug: str = ""
    sections: dict[str, str] = field(default_factory=dict)
    mentions: list[_Element] = field(default_factory=list)
    reactions: dict[str, list[_Element]] = field(default_factory=dict)


def _parse(path: Path) -> _Label:
    """Parse a file by expat itself: it knows the line that an element stands in."""
    label = _Label()
    parser = expat.ParserCreate()
    section, reaction = "", ""

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal section, reaction
        element = (f"{path}:{parser.CurrentLineNumber}", attributes)
        if tag == "Label":
            label.drug = attributes.get("drug", "")
        elif tag == "Section":
            section = attributes.get("id", "")
        elif tag == "Mention":
            label.mentions.append(element)
        elif tag == "Reaction":
            reaction = attributes.get("str", "").lower()
        elif tag == "Normalization":
            label.reactions.setdefault(reaction, []).append(element)

    def text(data: str) -> None:
        if section:
            label.sections[section] = label.sections.get(section, "") + data

    def end(tag: str) -> None:
        nonlocal section
        if tag == "Section":
            section = ""

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text
    parser.Parse(path.read_bytes(), True)
    return label


def _read_drug_label(path: str | Path, problems: Problems) -> Iterator[Document]:
    """Read each adverse reaction of a drug label in the section that it is in.

    A mention belongs to the reaction of its words, whose normalisations are its concepts. A
    reaction flagged as unmapped, and a mention of no listed reaction (one that is negated or
    hypothetical), has none. Mentions of other types (severities, factors, drug classes ...) are
    passed over.
    """
    try:
        label = _parse(Path(path))
    except (expat.ExpatError, LookupError) as error:  # the latter: an encoding nobody knows
        message = f"not XML ({error}); fetch the file again or leave it out"
        problems("file is not XML", f"{path}:{getattr(error, 'lineno', 1)}", message)
        return
    if not label.drug:
        message = "no element Label with a drug; leave the file out"
        problems("file is not a drug label", f"{path}:1", message)
        return
    terms = {words: _terms(elements, problems) for words, elements in label.reactions.items()}
    for where, attributes in label.mentions:
        if attributes.get("type") != "AdverseReaction":
            continue
        pieces = _pieces(attributes)
        text = label.sections.get(attributes.get("section", ""))
        if "id" not in attributes or "str" not in attributes or not pieces or text is None:
            message = "a Mention needs id, str, start and len in a section; correct or remove it"
            problems("malformed mention", where, message)
            continue
        words = attributes["str"]
        if span_text(text, pieces, where, problems, written=words) is None:
            continue
        own = terms.get(words.lower(), {})
        span = Span(pieces, words, tuple(own), where, attributes["id"], names=tuple(own.values()))
        yield Document(label.drug, text, [span])


def _terms(normalizations: list[_Element], problems: Problems) -> dict[str, str]:
    """Read the names of a reaction's preferred terms by their codes."""
    terms: dict[str, str] = {}
    for where, attributes in normalizations:
        code, name = attributes.get("meddra_pt_id", ""), attributes.get("meddra_pt", "")
        if code and name:
            terms[code] = name
        elif attributes.get("flag") != "unmapped":
            message = "a Normalization needs meddra_pt and meddra_pt_id, or flag='unmapped'"
            problems("malformed normalization", where, f"{message}; correct it")
            return {}  # one concept of several would be a wrong one
    return terms


def _pieces(attributes: dict[str, str]) -> Pieces:
    """Read start and length of each piece, ``"15,36"`` and ``"6,8"``; empty if malformed."""
    lists = [attributes.get(name, "") for name in ("start", "len")]
    if not all(map(_OFFSETS.fullmatch, lists)):
        return ()
    starts, lengths = ([int(number) for number in listed.split(",")] for listed in lists)
    if len(starts) != len(lengths):
        return ()
    return tuple((start, start + length) for start, length in zip(starts, lengths, strict=True))


class TacAdr(DocumentCorpus):
    """TAC 2017 ADR (Roberts et al. 2017, Demner-Fushman et al. 2018), with its official split.

    The release (bionlp.nlm.nih.gov/tac2017adversereactions) has an XML file for each drug label:
    101 in ``train_xml`` and 99, with the annotations published after the evaluation, in
    ``gold_xml``. Concepts are MedDRA's preferred terms, by code, named as the annotations name
    them; 15 % of the train labels become validation.

    ``data_files``: ``train`` and ``test`` (folders) and, optionally, ``ontology`` (identifiers are
    MedDRA codes).
    """

    LICENSE = CORPUS_LICENSES["tac_adr"]
    FILES = ("train", "test")

    def _documents(self, split: str, problems: Problems) -> Iterator[Document]:
        for path in self._paths(split):
            for document in _read_drug_label(path, problems):
                held_out = split == "train" and split_by_hash(document.id) == "validation"
                document.split = "validation" if held_out else split
                yield document
