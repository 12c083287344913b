"""The report: from results files to a Markdown page, an HTML page and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from hf_kfc.errors import ConsolidationError
from hf_kfc.files import refuse_blocked

from ..figures import require_matplotlib
from .blocks import Block, Bullets, Heading, Picture, Text, anchor
from .extras import stream_blocks, toy_blocks
from .figures import curve_names, save_summary_figure, save_tradeoff_figure
from .loading import Model, load_models
from .measures import Measures
from .style import PAGE
from .tables import baseline_table, strength_tables, summary_table, tier_table
from .verdict import verdict
from .what_was_run import method_blocks, run_blocks

__all__ = ["ReportArguments", "run_report"]

_PAPER_URL = "https://arxiv.org/abs/2111.06012"
_CORPORA = {
    "medmentions": "MedMentions ST21pv",
    "codiesp": "CodiEsp + ICD-10-CM",
    "psytar": "PsyTAR",
    "bc5cdr": "BC5CDR",
    "articles": "generated articles",
    "patients": "generated patients' posts",
    "notes": "generated notes",
}


@dataclass
class ReportArguments:
    """What the report is made of, and where it goes."""

    results: list[str] = field(
        metadata={
            "help": "Results files of recipes/permutations.py; several may be of one model, and "
            "of several models."
        }
    )
    stream: str | None = field(
        default=None, metadata={"help": "Results file of recipes/stream.py (default: left out)."}
    )
    toys: str | None = field(
        default=None,
        metadata={"help": "Folder with the pictures of recipes/toys.py (default: left out)."},
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
    directory.mkdir(parents=True, exist_ok=True)
    tiers = [[Measures(m, tier) for tier in (2, 3) if m.methods(tier)] for m in models]
    first = _verdict_blocks(tiers)
    body = [*_table_blocks(models, tiers), *_figure_blocks(tiers, directory)]
    if args.toys is not None:
        body += toy_blocks(Path(args.toys), directory)
    if args.stream is not None:
        body += stream_blocks(Path(args.stream), directory)
    body += [*method_blocks(models), *run_blocks(models)]
    title = f"Learning {_count(models)} tasks one after another, in every order"
    (directory / "report.md").write_text(_markdown(title, [*first, *body]), encoding="utf-8")
    (directory / "report.html").write_text(_html(title, first, body), encoding="utf-8")


def _verdict_blocks(tiers: Sequence[Sequence[Measures]]) -> list[Block]:
    blocks: list[Block] = []
    for measures in (own for model in tiers for own in model):
        runs = f"{len(measures.chains)} permutations, {len(measures.model.seeds)} seeds"
        blocks.append(Text(f"**{measures.model.label}, tier {measures.tier}** ({runs})"))
        blocks.append(Bullets(verdict(measures)))
    return blocks


def _table_blocks(models: Sequence[Model], tiers: Sequence[Sequence[Measures]]) -> list[Block]:
    by_tier = {t: [m for model in tiers for m in model if m.tier == t] for t in (2, 3)}
    blocks: list[Block] = [
        Heading("Alone and together"),
        baseline_table("Table 1. Each task alone, and together with others", models),
        Heading("Tier 2: two tasks"),
        *_tier_tables("2", "CNN", [m for m in by_tier[2] if m.model.is_cnn]),
        *_tier_tables("3", "encoder", [m for m in by_tier[2] if not m.model.is_cnn]),
        Heading("Tier 3: three tasks"),
        *_tier_tables("4", "tier 3", by_tier[3]),
        *_not_run(models, by_tier[3]),
        Heading("Beside the paper"),
        Text(_beside_the_paper(models)),
    ]
    if by_tier[2]:
        title = "Table 5. CF reduction by method at tier 2, the paper's values beside ours"
        blocks.append(summary_table(title, by_tier[2]))
    blocks.append(Heading("Strengths chosen"))
    blocks.append(
        Text(
            "On the development splits of the first seed: among the strengths whose new-task "
            "accuracy is at most 1 point below that of no method, the one that keeps most of the "
            "old tasks; if none is, the one that loses least of the new task. Other seeds take the "
            "same."
        )
    )
    for model, own in zip(models, tiers, strict=True):
        blocks += strength_tables(f"Table 6. Strengths of the {model.label}", own)
    return blocks


def _tier_tables(number: str, what: str, measured: Sequence[Measures]) -> list[Block]:
    if not measured:
        return [Text(f"Table {number} is left out: the files hold no run of it ({what}).")]
    letters = [""] if len(measured) == 1 else "abcdefgh"
    return [
        tier_table(
            f"Table {number}{letter}. {own.model.label} at tier {own.tier}, all permutations", own
        )
        for letter, own in zip(letters, measured, strict=False)
    ]


def _not_run(models: Sequence[Model], measured: Sequence[Measures]) -> list[Block]:
    run = [own.model for own in measured]
    left = [model.label for model in models if model not in run]
    return [Text(f"Not run at tier 3: {'; '.join(left)}.")] if run and left else []


def _beside_the_paper(models: Sequence[Model]) -> str:
    names = dict.fromkeys(_CORPORA.get(task, task) for model in models for task in model.tasks)
    rankers = " and ".join(f"the {model.label}" for model in models)
    return (
        f"McInerney et al. 2021 ([arXiv:2111.06012]({_PAPER_URL})) report a CF reduction of 51 % "
        "by KFC and 27 % by EWC, means of six permutations at tier 2. Their tasks were "
        "MedMentions, 3DNotes and MedNorm, their model a BERT of 3 layers; ours are "
        f"{', '.join(names)}, learnt by {rankers}, so that the numbers stand beside each other but "
        "do not measure the same. The cells of the paper's own tables could not be consulted: its "
        "other values are shown as -, and the layout of all tables here is ours."
    )


def _figure_blocks(tiers: Sequence[Sequence[Measures]], directory: Path) -> list[Block]:
    blocks: list[Block] = [Heading("Figures")]
    for measures in (own for model in tiers for own in model):
        label, tier = measures.model.label, measures.tier
        name = f"{anchor(label)}-tier{tier}"
        for names in curve_names(measures) if tier == 2 else []:
            which = "combinations" if any("+" in own for own in names) else "priors"
            paths = [directory / f"{name}-{which}{end}" for end in (".png", ".svg")]
            save_tradeoff_figure(measures, names, paths)
            caption = (
                f"{label}, tier {tier}, {which}: every strength that was tried, joined by λ, on "
                f"the **test** splits of seed {measures.model.seeds[0]}; ringed is what the "
                "development splits chose. Up is less forgetting, right a better new task; the "
                "axis of points is stretched around 0."
            )
            blocks.append(Picture(paths[0], caption))
        paths = [directory / f"{name}-summary{end}" for end in (".png", ".svg")]
        if save_summary_figure(measures, paths):
            caption = (
                f"{label}, tier {tier}: CF reduction (ratio of mean changes over permutations and "
                "seeds), and the new task's accuracy minus that of no method ± its standard error, "
                "on the test splits."
            )
            blocks.append(Picture(paths[0], caption))
    return blocks


def _count(models: Sequence[Model]) -> str:
    count = max(len(model.tasks) for model in models)
    return {2: "two", 3: "three", 4: "four"}.get(count, str(count))


def _markdown(title: str, blocks: Sequence[Block]) -> str:
    return f"# {title}\n\n" + "\n\n".join(block.markdown() for block in blocks) + "\n"


def _html(title: str, first: Sequence[Block], body: Sequence[Block]) -> str:
    contents = [
        f'<li><a href="#{anchor(block.text)}">{escape(block.text)}</a></li>'
        for block in body
        if isinstance(block, Heading) and block.level == 2
    ]
    return PAGE.format(
        title=escape(title),
        verdict="\n".join(block.html() for block in first),
        contents="\n".join(contents),
        body="\n".join(block.html() for block in body),
    )
