"""Cards: their templates, and sections that are replaced without touching the rest."""

from __future__ import annotations

import re
from typing import Any

import jinja2

__all__ = ["render", "with_section"]

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("hf_kfc", "model_cards"),
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # Markdown, not HTML
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """Fill in a template of the folder ``model_cards``.

    Args:
        template: Its file name.
        **values: What it names; a value that is missing is an error.
    """
    return _TEMPLATES.get_template(template).render(values).strip() + "\n"


def with_section(card: str, name: str, section: str) -> str:
    """Put a section into a card, in place of an older one of its name or at the end.

    Args:
        card: The card; all of it but the older section stays as it is.
        name: What the section is found by; a comment around it holds the name.
        section: Its text.
    """
    start, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    block = f"{start}\n{section.strip()}\n{end}"
    older = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if older.search(card):
        return older.sub(lambda _: block, card, count=1)
    return f"{card.rstrip()}\n\n{block}\n"
