"""Methods as a report groups, describes and marks them."""

from __future__ import annotations

from collections.abc import Iterable

from ..methods import METHODS, Method
from ..points import BASELINES

__all__ = [
    "COLOURS",
    "GROUPS",
    "description",
    "group_of",
    "in_order",
    "is_control",
    "needs_old_data",
    "remark",
]

GROUPS = {
    "no method": ("none",),
    "priors only": ("l2", "ewc", "kfc", "ekfac", "paper_ewc", "paper_kfc"),
    "probes": ("probes", "text_probes", "own_probes", "alias_probes"),
    "learning rate": ("lr_control", "lower_lr", "late_decay"),
    "rehearsal and replay (needs old data)": ("replay", "rehearsal", "rehearsal_growing"),
    "combinations": (),
    "averages": ("scores",),
    "controls": ("lora", "data_free", "average", "uniform", "lwf", "self_distillation"),
    "references": BASELINES,
}
"""The groups in their order, with the methods that are in them by their name."""

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = dict(
    zip(
        GROUPS,
        (
            "#7a7a7a",
            "#0072B2",
            "#a6761d",
            "#56B4E9",
            "#E69F00",
            "#009E73",
            "#CC79A7",
            "#D55E00",
            "#4d4d4d",
        ),
        strict=True,
    )
)
"""A colour for each group."""

_SETTINGS = ("temperature", "probe_batch", "budget")
"""Parts that are no method by themselves."""
_LITTLE = 0.05
"""The share of old examples up to which rehearsal is a control: anyone could keep as many."""


def group_of(name: str) -> str:
    """Return the group of a method; of several, that of averages or of combinations."""
    if name in BASELINES:
        return "references"
    own = [part.partition(":")[0] for part in name.split("+")]
    methods = [part for part in own if part not in _SETTINGS]
    if len(methods) != 1:
        return "averages" if Method.parse(name).average else "combinations"
    return next((group for group, parts in GROUPS.items() if methods[0] in parts), "combinations")


def in_order(names: Iterable[str]) -> list[str]:
    """Sort methods by group, then as the groups have them, then by their numbers."""
    groups, known = list(GROUPS), [part for parts in GROUPS.values() for part in parts]

    def place(name: str) -> tuple[int, list[tuple[int, float]]]:
        parts = [part.partition(":") for part in name.split("+")]
        # A part without its number is mostly the whole of it, as all old examples are.
        numbers = [float(number) if number else float("inf") for _, _, number in parts]
        # A part that is no method by itself comes last.
        places = [known.index(part) if part in known else len(known) for part, _, _ in parts]
        return groups.index(group_of(name)), list(zip(places, numbers, strict=True))

    return sorted(names, key=place)


def needs_old_data(name: str) -> bool:
    """Tell whether a method trains on examples of the old tasks."""
    if name in BASELINES:
        return name == "combined"
    method = Method.parse(name)
    return bool(method.rehearsal) or method.probes == "old"


def is_control(name: str) -> bool:
    """Tell whether a method is what a prior of the old task has to be better than.

    That is L2, a low-rank update, a prior without data, probes of other inputs than the old
    ontology's, an average of parameters, or rehearsal of at most 5 % of the old examples.
    """
    if name in BASELINES or "+" in name:
        return False
    method = Method.parse(name)
    little = method.rehearsal is not None and method.kept <= _LITTLE
    return little or name.partition(":")[0] in ("l2", *GROUPS["controls"])


def remark(name: str) -> str:
    """Return what a verdict says of a method in brackets; empty for a plain one."""
    remarks = [
        text
        for text, true in (("a control", is_control(name)), ("old data", needs_old_data(name)))
        if true
    ]
    return f" ({', '.join(remarks)})" if remarks else ""


def description(name: str) -> str:
    """Return how a method works, part by part, with the numbers it was given."""
    texts = []
    for given in name.split("+"):
        key, _, number = given.partition(":")
        part = METHODS[key]
        if not number and part.bounds is not None and part.number is not None:
            number = f"{part.number:.3g}"
        texts.append(
            f"{part.text}: {number}" if number else part.text.removesuffix("; its damping")
        )
    return "; and ".join(texts)
