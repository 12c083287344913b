"""The pages of the repository, and what stands in them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
URL = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Homepage"]
RAW = URL.replace("github.com", "raw.githubusercontent.com")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "laboratory").glob("*.md"),
    *(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
    *(ROOT / "benchmarks").rglob("*.md"),
]


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    """A page less its blocks and spans of code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(```+).*?^\1", "", text, flags=re.M | re.S))


def links(page: Path) -> list[str]:
    """Targets of all links and images of a page."""
    return re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """What `page.md#anchor` may name: its headings, as GitHub and the site spell them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def code_blocks(page: Path, mark: str | None = None) -> list[str]:
    """The Python of a page; only that which stands after a mark <!-- mark -->, if one is given."""
    text = page.read_text(encoding="utf-8")
    before = "" if mark is None else rf"<!-- {re.escape(mark)} -->\n"
    return re.findall(before + r"```python\n(.*?)^```", text, re.M | re.S)
