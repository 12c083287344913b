"""What a page is made of, as Markdown and as HTML."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

__all__ = ["Block", "Bullets", "Code", "Heading", "Picture", "Table", "Text", "anchor"]


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        text: Markdown with nothing but ``**bold**``, code and links.
    """

    text: str

    def markdown(self) -> str:
        """Return it as Markdown."""
        return self.text

    def html(self) -> str:
        """Return it as HTML."""
        return f"<p>{_inline(self.text)}</p>"


@dataclass(frozen=True)
class Heading:
    """A heading that the table of contents leads to.

    Args:
        text: Its words.
        level: 2 or 3.
    """

    text: str
    level: int = 2

    def markdown(self) -> str:
        """Return it as Markdown."""
        return f"{'#' * self.level} {self.text}"

    def html(self) -> str:
        """Return it as HTML."""
        name = f"h{self.level}"
        return f'<{name} id="{anchor(self.text)}">{escape(self.text)}</{name}>'


@dataclass(frozen=True)
class Bullets:
    """A list.

    Args:
        items: Each as the text of :class:`Text`.
    """

    items: Sequence[str]

    def markdown(self) -> str:
        """Return it as Markdown."""
        return "\n".join(f"- {item}" for item in self.items)

    def html(self) -> str:
        """Return it as HTML."""
        return "<ul>\n" + "\n".join(f"<li>{_inline(i)}</li>" for i in self.items) + "\n</ul>"


@dataclass(frozen=True)
class Code:
    """A command, as it is.

    Args:
        text: The command.
    """

    text: str

    def markdown(self) -> str:
        """Return it as Markdown."""
        return f"```\n{self.text}\n```"

    def html(self) -> str:
        """Return it as HTML."""
        return f"<pre><code>{escape(self.text)}</code></pre>"


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Args:
        path: A PNG file beside the Markdown page; the HTML page takes an SVG file of its name, if
            that is not too large.
        caption: As the text of :class:`Text`.
    """

    path: Path
    caption: str

    def markdown(self) -> str:
        """Return it as Markdown."""
        return f"![{_plain(self.caption)}]({self.path.name})\n\n{self.caption}"

    def html(self) -> str:
        """Return it as HTML that needs no other file."""
        # As an image of its own: the names inside one SVG would meet those of the next.
        svg = self.path.with_suffix(".svg")
        small = svg.exists() and svg.stat().st_size <= 500_000
        content, kind = (svg, "svg+xml") if small else (self.path, "png")
        data = base64.b64encode(content.read_bytes()).decode("ascii")
        alt = escape(_plain(self.caption), quote=True)
        return (
            f'<figure><div class="scroll picture"><img alt="{alt}" '
            f'src="data:image/{kind};base64,{data}"></div>\n'
            f"<figcaption>{_inline(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Table:
    """A table whose rows stand in groups.

    Args:
        title: What it shows, with its number.
        columns: Of each, what stands above it and its neighbours (may be empty), and its name.
        groups: Rows by the name of their group; an empty name for none.
        notes: What has to be known to read it.
    """

    title: str
    columns: Sequence[tuple[str, str]]
    groups: Sequence[tuple[str, Sequence[Sequence[str]]]]
    notes: Sequence[str] = ()

    @property
    def rows(self) -> list[Sequence[str]]:
        """All rows, without the names of their groups."""
        return [row for _, rows in self.groups for row in rows]

    def markdown(self) -> str:
        """Return it as Markdown."""
        names = [f"{above}: {name}" if above else name for above, name in self.columns]
        lines = [names, ["---", *["---:"] * (len(names) - 1)]]
        for group, rows in self.groups:
            if group:
                lines.append([f"**{group}**", *[""] * (len(names) - 1)])
            lines += [list(row) for row in rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([f"**{self.title}**", table, *self.notes])

    def html(self) -> str:
        """Return it as HTML that scrolls sideways beside its first column."""
        body = []
        for group, rows in self.groups:
            if group:
                body.append(
                    f'<tr class="group"><th scope="rowgroup" colspan="{len(self.columns)}">'
                    f"<span>{escape(group)}</span></th></tr>"
                )
            for first, *cells in rows:
                tds = "".join(f"<td>{_inline(cell)}</td>" for cell in cells)
                body.append(f'<tr><th scope="row">{_inline(first)}</th>{tds}</tr>')
        notes = "\n".join(f'<p class="note">{_inline(note)}</p>' for note in self.notes)
        return (
            f'<p class="title">{escape(self.title)}</p>\n<div class="scroll"><table>\n'
            f"<thead>{self._head()}</thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n"
            f"</table></div>\n{notes}"
        )

    def _head(self) -> str:
        names = "".join(f'<th scope="col">{escape(name)}</th>' for _, name in self.columns)
        if not any(above for above, _ in self.columns):
            return f"<tr>{names}</tr>"
        spans = [(above, len(list(own))) for above, own in groupby(self.columns, lambda c: c[0])]
        over = "".join(
            f'<th class="over" scope="colgroup" colspan="{count}">{escape(above)}</th>'
            for above, count in spans
        )
        return f"<tr>{over}</tr><tr>{names}</tr>"


Block = Text | Heading | Bullets | Code | Picture | Table


def anchor(text: str) -> str:
    """Return the name by which a heading is led to."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _inline(text: str) -> str:
    text = escape(text, quote=False).replace(" %", "&nbsp;%")
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\[([^\]]+)\]\(([^)\s\"]+)\)", r'<a href="\2">\1</a>', text)


def _plain(text: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("`", "").replace("**", "")
