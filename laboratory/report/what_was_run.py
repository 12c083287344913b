"""The end of the report: how the methods work, and everything needed to repeat the runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .blocks import Block, Bullets, Code, Heading, Table, Text
from .groups import description, in_order
from .loading import Model

__all__ = ["method_blocks", "run_blocks"]


def method_blocks(models: Sequence[Model]) -> list[Block]:
    """Return how each method that was run works."""
    names = dict.fromkeys(name for m in models for tier in (2, 3) for name in m.methods(tier))
    references = (
        "`individual`, `combined`: each task by a model of its own; both or all by one model that "
        "sees them at once"
    )
    items = [f"`{name}`: {description(name)}" for name in in_order(names)]
    return [Heading("How each method works"), Bullets([*items, references])]


def run_blocks(models: Sequence[Model]) -> list[Block]:
    """Return sizes, seeds, commands, versions and hours, as the files tell them."""
    total = sum(model.run_count for model in models)
    hours = sum(model.seconds for model in models) / 3600
    blocks: list[Block] = [
        Heading("What was run"),
        Text(f"{total} runs, {hours:.1f} hours in all (of learning; measuring not counted)."),
        _settings_table(models),
    ]
    for model in models:
        blocks.append(Heading(model.label, 3))
        seeds = ", ".join(map(str, model.seeds))
        text = f"{model.run_count} runs, {model.seconds / 3600:.1f} hours, seeds {seeds}."
        blocks.append(Text(" ".join([text, *model.notes])))
        for path, header in model.headers.items():
            for made_by in header["made_by"]:
                versions = ", ".join(f"{k} {v}" for k, v in made_by["versions"].items())
                blocks.append(Text(f"`{path.name}`, with {versions}:"))
                blocks.append(Code(made_by["command"]))
    return blocks


def _settings_table(models: Sequence[Model]) -> Table:
    settings = [_flat(model.settings) for model in models]
    names = list(dict.fromkeys(name for own in settings for name in own))
    return Table(
        "Settings",
        [("", "setting"), *(("", model.label) for model in models)],
        [("", [[name, *(own.get(name, "-") for own in settings)] for name in names])],
    )


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    flat = {}
    for name, value in settings.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, own in inner.items():
            # Strengths and seeds are those of the runs, whatever the arguments' defaults say.
            if (name, key) not in (
                ("LearningArguments", "strengths"),
                ("LearningArguments", "seed"),
            ):
                flat[key or name] = _shown(own)
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
