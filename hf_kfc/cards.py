"""Cards: their templates, sections replaced without touching the rest, metadata of others' read."""

from __future__ import annotations

import re
from typing import Any

import jinja2
import yaml  # type: ignore[import-untyped]

from .errors import HfKfcError
from .text import printable

__all__ = ["metadata_of", "render", "with_section"]

_METADATA = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)
_METADATA_LIMIT = 2**18  # characters
_DEPTH_LIMIT = 50
# All scalars stay text: a number or a date of a hostile card is not even computed.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("hf_kfc", "model_cards"),
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # Markdown, not HTML
    trim_blocks=True,
    lstrip_blocks=True,
)
_LONG = 200  # characters of a name
_MARKUP = str.maketrans({c: f"\\{c}" for c in "`[]|"} | {"<": "&lt;", ">": "&gt;"})


def _as_text(value: object) -> str:
    """Show what others have named: on one line, without links, tags or cells of its own."""
    return printable(value, _LONG).translate(_MARKUP)


def _as_code(value: object) -> str:
    return f"`{printable(value, _LONG).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


_TEMPLATES.filters |= {"as_text": _as_text, "as_code": _as_code}


def render(template: str, **values: Any) -> str:
    """Fill in a template of the folder ``model_cards``.

    Names that others gave go through the filters ``as_text`` and ``as_code`` there. A value that it
    names and is not given is an error.
    """
    return _TEMPLATES.get_template(template).render(values).strip() + "\n"


def with_section(card: str, name: str, section: str) -> str:
    """Put a section into a card, in place of an older one of its name or at the end."""
    start, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    block = f"{start}\n{section.strip()}\n{end}"
    older = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if older.search(card):
        return older.sub(lambda _: block, card, count=1)
    return f"{card.rstrip()}\n\n{block}\n"


def metadata_of(card: str) -> dict[str, Any]:
    """Read the metadata at the head of a card that anybody may have written.

    Every value is text, a list or a mapping; of a card without any, there is none. Aliases are
    refused, by which a few hundred bytes become gigabytes, and metadata that are too long or too
    deep.

    Raises:
        HfKfcError: They cannot be read; the message says why.
    """
    match = _METADATA.match(card)
    if match is None:
        return {}
    text = match[1]
    if len(text) > _METADATA_LIMIT:
        raise HfKfcError(f"its metadata have more than {_METADATA_LIMIT} characters")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEPTH_LIMIT:
                raise HfKfcError("its metadata have aliases, or are nested too deep")
        metadata = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError) as error:
        raise HfKfcError(" ".join(str(error).split())) from error
    if not isinstance(metadata, dict):
        raise HfKfcError("its metadata are no mapping")
    return metadata
