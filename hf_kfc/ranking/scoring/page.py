"""Pages that need no other file, with pictures drawn in place; whatever others wrote is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...text import printable

__all__ = ["page"]

_CELL = 200


def page(template: str, **values: Any) -> str:
    """Fill in a page of ``templates``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["shown"] = lambda text: printable(text, _CELL)
    return environment.get_template(f"{template}.html.j2").render(values)
