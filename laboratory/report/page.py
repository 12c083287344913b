"""The report of the experiment over all permutations: Markdown, one HTML page, pictures.

    python -m laboratory report --results runs/cnn.jsonl runs/encoder.jsonl \\
        --toys benchmarks/toys --output_dir docs/report

It is made of results files alone (of `python -m laboratory permutations`, and with --stream of
`python -m laboratory stream`), so it may be made while the experiment goes on: runs that are
missing are counted.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_kfc.errors import ConsolidationError
from hf_kfc.files import refuse_blocked
from hf_kfc.ranking import require_matplotlib

from .figures import (
    curve_names,
    save_frontier_figure,
    save_summary_figure,
    save_tradeoff_figure,
)
from .groups import description, in_order
from .measures import Measures, tiers_of
from .meter import meter_frame, meter_table, save_meter_figure
from .models import Model, load_models
from .stream_figures import save_stream_figures
from .stream_table import StreamRuns, stream_table
from .tables import (
    baseline_table,
    settings_table,
    strength_table,
    summary_table,
    tier_table,
)
from .verdict import verdict

__all__ = ["ReportArguments", "run_report"]

_CORPORA = {
    "medmentions": "MedMentions ST21pv",
    "codiesp": "CodiEsp + ICD-10-CM",
    "psytar": "PsyTAR",
    "bc5cdr": "BC5CDR",
    "articles": "generated articles",
    "patients": "generated patients' posts",
    "notes": "generated notes",
}
_TOYS = ("two_parameters", "cnn_fisher", "hessian_lesson")


@dataclass
class ReportArguments:
    """What the report is made of, and where it goes."""

    results: list[str] = field(
        metadata={
            "help": "Results files of `laboratory permutations`; several may be of one model, and "
            "of several models."
        }
    )
    stream: str | None = field(
        default=None,
        metadata={"help": "Results file of `laboratory stream` (default: left out)."},
    )
    toys: str | None = field(
        default=None,
        metadata={"help": "Folder with the pictures of `laboratory toys` (default: left out)."},
    )
    output_dir: str = field(
        default="docs/report", metadata={"help": "Folder for report.md, report.html and pictures."}
    )


def run_report(args: ReportArguments) -> None:
    """Write ``report.md``, ``report.html`` and the pictures, from results files alone.

    Args:
        args: The files, and the folder.

    Raises:
        HfKfcError: A file is missing or broken, files do not go together, or pictures cannot be
            drawn.
    """
    require_matplotlib()
    directory = Path(args.output_dir)
    refuse_blocked(directory)
    for given in (args.stream, args.toys):
        if given is not None and not Path(given).exists():
            raise ConsolidationError(f"{given} does not exist; correct it or leave it out")
    models = load_models([Path(path) for path in args.results])
    stream = None if args.stream is None else StreamRuns.read(Path(args.stream))
    directory.mkdir(parents=True, exist_ok=True)
    content = _content(models)
    content |= {
        "pictures": list(_pictures(content["tiers"], directory)),
        "meters": [_meter(model, directory) for model in models if _has_meter(model)],
        "toys": None if args.toys is None else _toys(Path(args.toys), directory),
        "stream": None if stream is None else _stream(stream, Path(str(args.stream)), directory),
    }
    (directory / "report.md").write_text(_markdown(content), encoding="utf-8")
    (directory / "report.html").write_text(_html(content), encoding="utf-8")


def _content(models: Sequence[Model]) -> dict[str, Any]:
    """What the templates tell of, but for the pictures."""
    tiers = [measures for model in models for measures in tiers_of(model)]
    count = max(len(model.tasks) for model in models)
    number = {2: "two", 3: "three", 4: "four"}.get(count, str(count))
    names = in_order(dict.fromkeys(name for own in tiers for name in own.methods))
    return {
        "title": f"Learning {number} tasks one after another, in every order",
        "models": models,
        "tiers": tiers,
        "tier2": [measures for measures in tiers if measures.tier == 2],
        "tier3": [measures for measures in tiers if measures.tier == 3],
        "tasks": dict.fromkeys(_CORPORA.get(task, task) for m in models for task in m.tasks),
        "baselines": baseline_table(models),
        "missing_baselines": {
            f"{model.label}: {name}": lacking
            for model in models
            for name, lacking in model.missing_baselines().items()
        },
        "methods": [
            *(f"`{name}`: {description(name)}" for name in names),
            "`individual`, `combined`: each task by a model of its own; both or all by one model "
            "that sees them at once",
        ],
        "settings": settings_table(models),
        "verdict": verdict,
        "tier_table": tier_table,
        "summary_table": summary_table,
        "strength_table": strength_table,
    }


def _pictures(tiers: Sequence[Measures], directory: Path) -> Iterator[tuple[Measures, str, Path]]:
    """Draw each model and tier."""
    for measures in tiers:
        stem = f"{_anchor(measures.model.label)}-tier{measures.tier}"

        def paths(which: str, stem: str = stem) -> list[Path]:
            return [directory / f"{stem}-{which}{end}" for end in (".png", ".svg")]

        for names in curve_names(measures) if measures.tier == 2 else []:
            which = "combinations" if any("+" in own for own in names) else "priors"
            save_tradeoff_figure(measures, names, paths(which))
            yield measures, which, paths(which)[0]
        if save_summary_figure(measures, paths("summary")):
            yield measures, "summary", paths("summary")[0]
        if _has_meter(measures.model):
            save_frontier_figure(measures, paths("frontier"))
            yield measures, "frontier", paths("frontier")[0]


def _has_meter(model: Model) -> bool:
    return any("probes" in record for record in model.records.values())


def _meter(model: Model, directory: Path) -> dict[str, Any]:
    """Draw how well probes tell what is lost."""
    frame = meter_frame(model.records)
    stem = f"{_anchor(model.label)}-meter"
    paths = [directory / f"{stem}{end}" for end in (".png", ".svg")]
    save_meter_figure(frame, paths)
    return {"label": model.label, "table": meter_table(frame), "path": paths[0]}


def _toys(folder: Path, directory: Path) -> dict[str, Path | None]:
    """Copy the pictures of the toy computations."""
    copied: dict[str, Path | None] = dict.fromkeys(_TOYS)
    for name in _TOYS:
        for end in (".svg", ".png"):
            if (folder / f"{name}{end}").exists():
                copied[name] = directory / f"toy-{name}.png"
                shutil.copyfile(folder / f"{name}{end}", directory / f"toy-{name}{end}")
    if not any(copied.values()):
        raise ConsolidationError(
            f"{folder} has none of {', '.join(f'{name}.png' for name in _TOYS)}; make them with "
            "`python -m laboratory toys` or leave --toys out"
        )
    return copied


def _stream(runs: StreamRuns, path: Path, directory: Path) -> dict[str, Any]:
    table, notes = stream_table(runs)
    return {"table": table, "notes": notes} | save_stream_figures(runs, path.stem, directory)


def _markdown(content: dict[str, Any]) -> str:
    environment = _environment()
    body = _rendered(environment, "markdown.j2", content)
    text = f"# {content['title']}\n\n{body['verdict']}\n\n{body['body']}"
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _html(content: dict[str, Any]) -> str:
    environment = _environment()
    parts = _rendered(environment, "html.j2", content)
    contents = re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', parts["body"])
    page = environment.get_template("page.html.j2")
    text = page.render(title=content["title"], contents=contents, **parts)
    return re.sub(r"\n{2,}", "\n", text)


def _rendered(environment: Environment, macros: str, content: dict[str, Any]) -> dict[str, str]:
    form = environment.get_template(macros).module
    return {
        name: environment.get_template(f"{name}.j2").render(content, f=form)
        for name in ("verdict", "body")
    }


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        autoescape=False,
    )
    environment.filters |= {
        "anchor": _anchor,
        "embedded": _embedded,
        "inline": _inline,
        "oneline": lambda text: " ".join(text.split()),
        "paragraphs": lambda text: [" ".join(p.split()) for p in text.split("\n\n") if p.strip()],
        "plain": _plain,
    }
    return environment


def _anchor(text: str) -> str:
    """The name by which a heading is led to."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _inline(text: str) -> str:
    """Markdown of one line, with nothing but bold, code and links, as HTML."""
    text = escape(text, quote=False).replace(" %", "&nbsp;%")
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\[([^\]]+)\]\(([^)\s\"]+)\)", r'<a href="\2">\1</a>', text)


def _plain(text: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("`", "").replace("**", "")


def _embedded(path: Path) -> str:
    """A PNG file as a URL, or the SVG file of its name if that is not too large.

    As an image of its own: the names inside one SVG would meet those of the next.
    """
    svg = path.with_suffix(".svg")
    small = svg.exists() and svg.stat().st_size <= 500_000
    content, kind = (svg, "svg+xml") if small else (path, "png")
    return f"data:image/{kind};base64,{base64.b64encode(content.read_bytes()).decode('ascii')}"
