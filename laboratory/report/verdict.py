"""What the numbers say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .groups import group_of, is_control, needs_old_data, remark
from .measures import Measures, Summary
from .tables import PAPER, number, signed, with_error, within_a_point

__all__ = ["GOALS", "verdict"]

GOALS = {True: 75, False: 60}
"""The CF reduction in percent that is aimed at within 1 point: of a CNN, of an encoder."""

_HALF, _TWICE = 50, (1.5, 2.5)


def verdict(measures: Measures) -> list[str]:
    """Say what a model's runs of one tier come to.

    Methods that lack a run on some permutation take no part.

    Args:
        measures: Of one model at one tier.

    Returns:
        Sentences as Markdown, each a point of its own.
    """
    none = measures.summary("none")
    if not none.runs:
        return ["There is no run with no method to hold the others against."]
    if none.change >= 0:
        return [
            f"With no method nothing is forgotten (mean change {with_error(none.change, math.nan)} "
            "%), so that there is no CF reduction."
        ]
    every = [measures.summary(name) for name in measures.methods if name != "none"]
    whole = [own for own in every if own.every_chain and not math.isnan(own.reduction)]
    sentences = [_best(whole, none)]
    if measures.tier == 2:
        goal = GOALS[measures.model.is_cnn]
        sentences += [*_paper(whole), _goal(whole, goal)]
    sentences.append(_controls(measures, whole))
    if left := [own.method for own in every if own not in whole]:
        sentences.append(f"Not judged, as runs on some permutation are missing: {_names(left)}.")
    return sentences


def _best(whole: Sequence[Summary], none: Summary) -> str:
    change = f"With no method the old tasks change by {signed(none.change)} %."
    within = _within(whole)
    if not within:
        return f"{change} No method stays within 1 point of the new task."
    text = f"{change} Within 1 point of the new task, {_told(within[0])} keeps most."
    frugal = [own for own in within if not needs_old_data(own.method)]
    if frugal and frugal[0] is not within[0]:
        text += f" Without old data it is {_told(frugal[0])}."
    prior = [own for own in within if group_of(own.method) == "priors only"]
    if prior and prior[0] not in (within[0], *frugal[:1]):
        text += f" Of the priors alone it is {_told(prior[0])}."
    return text


def _paper(whole: Sequence[Summary]) -> list[str]:
    """KFC against a half, and against EWC: as it is here, and as in the paper."""
    sentences, known = [], {own.method: own for own in whole}
    for kfc_name, ewc_name, way in (
        ("kfc", "ewc", "KFC"),
        ("paper_kfc", "paper_ewc", "KFC as in the paper (`paper_kfc`)"),
    ):
        kfc, ewc = known.get(kfc_name), known.get(ewc_name)
        if kfc is None:
            if kfc_name == "kfc":
                sentences.append("KFC was not run on every permutation.")
            continue
        more = kfc.reduction > _HALF
        text = (
            f"{way} {'reduces' if more else 'does not reduce'} forgetting by more than half: "
            f"{signed(kfc.reduction, 0)} % at {with_error(kfc.points, kfc.error)} points of the "
            f"new task (the paper: {PAPER[kfc_name]} %)."
        )
        sentences.append(text + (_twice(kfc, ewc) if ewc else f" `{ewc_name}` was not run."))
    return sentences


def _twice(kfc: Summary, ewc: Summary) -> str:
    told = f"EWC: {signed(ewc.reduction, 0)} % at {with_error(ewc.points, ewc.error)} points"
    if ewc.reduction <= 0:
        return f" EWC reduces nothing, so that there is no ratio ({told})."
    ratio = kfc.reduction / ewc.reduction
    least, most = _TWICE
    if least <= ratio <= most:
        said = "That is about twice as much as EWC"
    elif ratio > most:
        said = "That is more than about twice as much as EWC"
    elif ratio > 1:
        said = "That is more than EWC, but not about twice as much"
    else:
        said = "That is not more than EWC"
    return f" {said} ({signed(ratio)} times; {told}; the paper: 27 %, 1.9 times)."


def _goal(whole: Sequence[Summary], goal: int) -> str:
    within = _within(whole)
    reached = [own for own in within if own.reduction >= goal]
    proper = [own for own in reached if not is_control(own.method)]
    aim = f"The goal of at least {goal} % within 1 point"
    if proper:
        text = f"{aim} is met by {_listed(proper)}."
        controls = [own for own in reached if own not in proper]
        return text + (f" A control meets it too: {_listed(controls)}." if controls else "")
    if reached:
        return f"{aim} is met by controls alone: {_listed(reached)}."
    best = f"; the most is {_told(within[0])}" if within else ""
    return f"{aim} is not met{best}."


def _controls(measures: Measures, whole: Sequence[Summary]) -> str:
    kfc = next((own for own in whole if own.method == "kfc"), None)
    controls = [own for own in whole if is_control(own.method)]
    if kfc is None or not controls:
        return "No control can be held against KFC: one or the other was not run."
    # A control may cost the new task a point, as any method may, or as much as KFC costs it.
    winners = [
        own
        for own in controls
        if own.reduction > kfc.reduction and (within_a_point(own) or own.points >= kfc.points)
    ]
    if not winners:
        return f"No control beats KFC (run: {_names([own.method for own in controls])})." + (
            _beyond_a_point(kfc, controls)
        )
    told = "; ".join(f"{_told(own)}, {_lead(measures, own)}" for own in winners)
    ours = f"KFC: {signed(kfc.reduction, 0)} % at {with_error(kfc.points, kfc.error)} points"
    who = "**A control beats KFC**" if len(winners) == 1 else "**Controls beat KFC**"
    return f"{who} ({ours}): {told}."


def _beyond_a_point(kfc: Summary, controls: Sequence[Summary]) -> str:
    """What is left to say of controls that do not beat KFC, or KFC itself, by their cost."""
    if not within_a_point(kfc):
        within = _within(controls)
        those = f"; of the controls that do not, the best is {_told(within[0])}" if within else ""
        return f" But KFC itself costs the new task more than 1 point{those}."
    more = [own for own in controls if own.reduction > kfc.reduction]
    return f" More is kept by {_listed(more)}, at a cost of more than 1 point." if more else ""


def _lead(measures: Measures, own: Summary) -> str:
    """By how much a control keeps more than KFC, run by run, and whether that is beyond noise."""
    ahead = measures.differences(own.method, "kfc")
    lead, error = ahead.mean(), ahead.sem()
    text = f"the old tasks keep {number(lead)} % more"
    if math.isnan(error):
        return text
    noise = "" if abs(lead) > 2 * error else ", which may be chance"
    return f"{text} (± {error:.1f} over runs{noise})"


def _within(whole: Sequence[Summary]) -> list[Summary]:
    """Those that cost the new task at most a point, the one that keeps most first."""
    return sorted(filter(within_a_point, whole), key=lambda own: -own.reduction)


def _told(own: Summary) -> str:
    points = with_error(own.points, own.error)
    return (
        f"`{own.method}`{remark(own.method)} with {signed(own.reduction, 0)} % at {points} points"
    )


def _listed(summaries: Sequence[Summary]) -> str:
    return ", ".join(
        f"`{own.method}`{remark(own.method)} {signed(own.reduction, 0)} %" for own in summaries
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
