"""MeSH: the XML files of its descriptors and of its supplementary concepts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast
from xml.etree.ElementTree import Element, ParseError, XMLPullParser

from ..concepts import concept_from_names
from ..formats.lines import watch_lines
from ..problems import Problems
from ..schema import Concept

__all__ = ["read_mesh"]

# What the identifier and the name of a record are called, less "UI" and "Name".
_RECORDS = {"DescriptorRecord": "Descriptor", "SupplementalRecord": "SupplementalRecord"}


def read_mesh(*paths: str | Path, problems: Problems | None = None) -> Iterator[Concept]:
    """Read MeSH as NLM publishes it in XML (``desc2019.xml``, ``supp2019.xml``).

    The heading is the preferred name, and every entry term a synonym, also the terms of narrower
    concepts, which share the record. Semantic types stand in the files of 2018 and before.

    Args:
        *paths: The files, gzipped or not.
        problems: Told of records without an identifier or a name and of those that come twice,
            and of damaged XML, which ends the file; by default they raise.

    Yields:
        The records, in the order of the files.

    Raises:
        DataError: A file is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    seen: set[str] = set()
    for path in paths:
        for where, record in _records(Path(path), problems):
            prefix = _RECORDS[record.tag]
            id_ = record.findtext(f"{prefix}UI", "").strip()
            name = record.findtext(f"{prefix}Name/String", "").strip()
            if not id_ or not name:
                message = f"record with identifier {id_!r} and name {name!r}; give it both"
                problems("record without an identifier or a name", where, message)
            elif id_ in seen:
                message = f"record {id_!r} comes twice; remove one of the two"
                problems("record comes twice", where, message)
            else:
                seen.add(id_)
                yield concept_from_names(
                    id_,
                    (name, *_texts(record, "ConceptList/Concept/TermList/Term/String")),
                    dict.fromkeys(_texts(record, ".//SemanticType/SemanticTypeName")),
                )


def _texts(record: Element, path: str) -> Iterator[str]:
    return (element.text.strip() for element in record.iterfind(path) if element.text)


def _records(path: Path, problems: Problems) -> Iterator[tuple[str, Element]]:
    """Yield each record with the line that it ends on; only one is in memory at a time."""
    parser: XMLPullParser[Element] = XMLPullParser(["end"])
    number = 0
    try:
        for number, line in watch_lines(path, path.name, problems):
            parser.feed(line + "\n")
            for _, element in cast("Iterator[tuple[str, Element]]", parser.read_events()):
                if element.tag in _RECORDS:
                    yield f"{path}:{number}", element
                    element.clear()
        parser.close()
    except ParseError as error:
        message = f"damaged XML ({error}); fetch the file again"
        problems("damaged XML", f"{path}:{number}", message)
