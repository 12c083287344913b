"""The site: ``sphinx-build -W -b html docs docs/_build``."""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.ext.napoleon import GoogleDocstring
from transformers import Seq2SeqTrainingArguments, TrainingArguments

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the docstrings of this checkout, installed or not

from hf_kfc import __version__  # noqa: E402

_URLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]

project = "hf_kfc"
author = copyright = "The hf_kfc developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"hf_kfc {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"source_repository": _URLS["Homepage"], "source_directory": "docs/"}

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the generated report begins parts at any depth

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Napoleon takes what a property's first sentence has before a colon for its type.
GoogleDocstring._parse_attribute_docstring = GoogleDocstring._consume_to_end

_PICTURE = r"!\[[^]]*\]\([^)]*\)"  # which may itself be what a link is on
_LINK = re.compile(_PICTURE + r"|\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def _link_to_the_repository(page: Path, text: str) -> str:
    """Let links to files that are not pages of the site lead to the repository.

    The pages are read in the repository as well, where such links are relative.

    Args:
        page: The file that the links are relative to.
        text: Its Markdown.
    """

    def replace(match: re.Match[str]) -> str:
        if match[1] is None:  # a picture
            return match[0]
        target = (page.parent / match[1]).resolve()
        is_page = target.suffix in {".md", ".html"} and target.is_relative_to(ROOT / "docs")
        if is_page or not target.is_relative_to(ROOT):
            return match[0]
        kind = "tree" if target.is_dir() else "blob"
        where = target.relative_to(ROOT).as_posix()
        return f"]({_URLS['Homepage']}/{kind}/main/{where}{match[2] or ''})"

    return _LINK.sub(replace, text)


def _without_the_trainers(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Leave the hundred fields inherited from TrainingArguments out of a signature."""
    if not (isinstance(obj, type) and issubclass(obj, TrainingArguments)):
        return None
    known = {field.name for field in fields(Seq2SeqTrainingArguments)}
    own = [f"{field.name}=..." for field in fields(obj) if field.name not in known]
    return f"({', '.join(['output_dir', '...', *own])})", returns


def _with_their_help(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Explain the fields of settings by their help, where the docstring does not."""
    if isinstance(obj, type) and is_dataclass(obj) and "Args:" not in lines:
        helps = {own.name: own.metadata["help"] for own in fields(obj) if "help" in own.metadata}
        lines += ["", "Args:", *(f"    {field}: {text}" for field, text in helps.items())]


def setup(app: Sphinx) -> None:
    """Hook up what changes pages while they are read.

    Args:
        app: Sphinx.
    """

    def read(app: Sphinx, docname: str, content: list[str]) -> None:
        content[0] = _link_to_the_repository(Path(app.env.doc2path(docname)), content[0])

    app.connect("source-read", read)
    app.connect("autodoc-process-signature", _without_the_trainers)
    app.connect("autodoc-process-docstring", _with_their_help, priority=400)  # before napoleon
