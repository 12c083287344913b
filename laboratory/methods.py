"""The ways against forgetting, by name: what each penalises, rehearses, slows down or averages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hf_kfc.errors import ConsolidationError

__all__ = [
    "METHODS",
    "NAMES",
    "PLAIN",
    "Method",
    "Part",
    "changes_of",
    "check_methods",
    "methods_help",
]

_PAPER_STRENGTHS = (1e1, 1e3, 1e5, 1e7, 1e9)


@dataclass(frozen=True)
class Method:
    """One way to learn a new task, made of parts: ``Method.parse("rehearsal:0.05+kfc")``.

    Args:
        name: As it was given.
        curvature: Kind of curvature that is penalised with; None for no penalty.
        damping: Relative damping of it; None for that of the learning arguments.
        estimate: Fields of ``CurvatureArguments`` that differ from the given ones.
        strengths: λ to search through.
        data_free: The curvature is of random tokens, with labels that the model draws.
        probes: The inputs on which the model of the old task is to stay as it is, a kind of
            :meth:`~laboratory.data.TaskData.probe_examples`; None for none.
        probe_weight: Weight of KL(old model ‖ model) on them.
        probe_temperature: Temperature of that KL.
        probe_batch: How many a step has, of all old tasks together.
        budget: Nats of each old task that may be forgotten on probes, which sets weight and λ while
            training; None leaves both as they are.
        rehearsal: ``replay``, ``fixed`` or ``growing``; None for no old examples.
        kept: Share of the old examples that was kept for that.
        layer_decay: Factor of the learning rate from each layer to the one below it.
        rate: Multiple of the learning rate.
        late_decay: Share of the steps in which the learning rate, constant before, falls to 0;
            None for a linear decay from the start.
        lora_rank: Rank of a low-rank update that is learnt alone; None for all parameters.
        average: ``parameters`` of the models of all tiers so far are averaged, or ``scores`` of
            models that each learnt one task alone; None for the last model by itself.
    """

    name: str
    curvature: str | None = None
    damping: float | None = None
    estimate: Mapping[str, Any] = field(default_factory=dict)
    strengths: tuple[float, ...] = ()
    data_free: bool = False
    probes: str | None = None
    probe_weight: float = 1.0
    probe_temperature: float = 1.0
    probe_batch: int = 32
    budget: float | None = None
    rehearsal: str | None = None
    kept: float = 1.0
    layer_decay: float = 1.0
    rate: float = 1.0
    late_decay: float | None = None
    lora_rank: int | None = None
    average: str | None = None

    @classmethod
    def parse(cls, name: str) -> Method:
        """Read a method off its name, see :func:`changes_of`.

        Args:
            name: A key of :data:`METHODS`, or several joined by ``+``.
        """
        return replace(cls(name), **changes_of(name, METHODS))


PLAIN = Method("none")
"""Plain fine-tuning."""


@dataclass(frozen=True)
class Part:
    """A named part of a method.

    Args:
        text: What it does, with its source.
        make: From its number to fields of :class:`Method`.
        number: Its number where none is given.
        bounds: The least and the most that the number may be; None if it takes no number.
    """

    text: str
    make: Callable[[Any], dict[str, Any]]
    number: float | None = None
    bounds: tuple[float, float] | None = None

    def changes(self, text: str, number: str | None) -> dict[str, Any]:
        """Return the fields of a method that this part sets.

        Args:
            text: The part as it was given, for messages.
            number: What follows its colon; None without one.

        Raises:
            ConsolidationError: The number is none, out of range, or not asked for.
        """
        if number is None:
            return self.make(self.number)
        if self.bounds is None:
            raise ConsolidationError(f"method '{text}' takes no number; leave ':{number}' out")
        least, most = self.bounds
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise ConsolidationError(
                f"method '{text}': '{number}' is no number from {least:g} to {most:g}; correct it"
            )
        return self.make(value)


def _penalty(
    kind: str, strengths: tuple[float, ...], **changes: Any
) -> Callable[[float | None], dict[str, Any]]:
    return lambda damping: {
        "curvature": kind,
        "damping": damping,
        "strengths": strengths,
        **changes,
    }


def _probes(kind: str) -> Callable[[float], dict[str, Any]]:
    return lambda weight: {"probes": kind, "probe_weight": weight}


def _old_examples(schedule: str) -> Callable[[float], dict[str, Any]]:
    return lambda kept: {"rehearsal": schedule, "kept": kept}


_DAMPING = (0.0, float("inf"))
_SHARE = (1e-4, 1.0)
_WEIGHT = (1e-4, 1e4)

NAMES = {"identity": "l2", "diagonal": "ewc", "kronecker": "kfc", "kronecker_eigen": "ekfac"}
"""The method that penalises with each kind of curvature."""

METHODS: Mapping[str, Part] = {
    "none": Part("plain fine-tuning", lambda _: {}),
    "lr_control": Part(
        "learning-rate control: the rate falls by a factor from each layer to the one below "
        "(Howard & Ruder 2018)",
        lambda factor: {"layer_decay": factor},
        1 / 2.6,
        (1e-6, 1.0),
    ),
    "lower_lr": Part("a lower learning rate", lambda factor: {"rate": factor}, 0.1, (1e-6, 1.0)),
    "late_decay": Part(
        "a constant learning rate that falls to 0 in the last part of the steps",
        lambda share: {"late_decay": share},
        0.2,
        (0.01, 1.0),
    ),
    "l2": Part(
        "L2 towards the previous parameters",
        _penalty("identity", (1e-3, 3e-3, 1e-2, 3e-2)),
        number=0.0,
    ),
    "ewc": Part(
        "elastic weight consolidation, diagonal Fisher (Kirkpatrick et al. 2017); its damping",
        _penalty("diagonal", (10.0, 30.0, 100.0, 300.0)),
        bounds=_DAMPING,
    ),
    "kfc": Part(
        "Kronecker-factored Fisher (McInerney et al. 2021), expand; its damping",
        _penalty("kronecker", (0.15, 0.5, 1.5, 5.0)),
        bounds=_DAMPING,
    ),
    "ekfac": Part(
        "Fisher diagonal in the Kronecker eigenbasis (George et al. 2018); its damping",
        _penalty("kronecker_eigen", (1.0, 3.0, 10.0, 30.0)),
        bounds=_DAMPING,
    ),
    "paper_ewc": Part(
        "EWC as in McInerney et al. 2021: undamped, their five strengths",
        _penalty("diagonal", _PAPER_STRENGTHS),
        number=0.0,
    ),
    "paper_kfc": Part(
        "KFC as in McInerney et al. 2021: factors averaged over uses, undamped, their five "
        "strengths",
        _penalty("kronecker", _PAPER_STRENGTHS, estimate={"sharing": "average"}),
        number=0.0,
    ),
    "data_free": Part(
        "control: a KFC prior of random tokens, with labels drawn from the model; its damping",
        _penalty("kronecker", (0.1, 1.0, 10.0), data_free=True, estimate={"labels": "sampled"}),
        bounds=_DAMPING,
    ),
    "probes": Part(
        "KL to the old model on probes of the old ontology: its names, and words that are the "
        "mention in 10 old documents; its weight",
        _probes("names"),
        1.0,
        _WEIGHT,
    ),
    "text_probes": Part(
        "likewise, half of them among words that stand in 10 old documents",
        _probes("texts"),
        1.0,
        _WEIGHT,
    ),
    "own_probes": Part(
        "likewise, the ontology's own names alone", _probes("own_names"), 1.0, _WEIGHT
    ),
    "alias_probes": Part(
        "likewise, with all words of old training mentions", _probes("aliases"), 1.0, _WEIGHT
    ),
    "uniform": Part(
        "control: KL to the old model on uniformly random tokens; its weight",
        _probes("uniform"),
        1.0,
        _WEIGHT,
    ),
    "lwf": Part(
        "control: KL to the old model on the new task's inputs (Li & Hoiem 2016); its weight",
        _probes("new"),
        1.0,
        _WEIGHT,
    ),
    "self_distillation": Part(
        "bound: KL to the old model on the old training inputs themselves; its weight",
        _probes("old"),
        1.0,
        _WEIGHT,
    ),
    "temperature": Part(
        "with probes: the temperature of that KL (Hinton et al. 2015)",
        lambda temperature: {"probe_temperature": temperature},
        2.0,
        (0.1, 10.0),
    ),
    "probe_batch": Part(
        "with probes: how many are in a step",
        lambda size: {"probe_batch": int(size)},
        64.0,
        (1.0, 4096.0),
    ),
    "budget": Part(
        "with probes: their weight, and λ, are set while training so that this many nats of each "
        "old task are forgotten",
        lambda nats: {"budget": nats},
        0.05,
        (1e-6, 1e2),
    ),
    "replay": Part(
        "experience replay: after every m batches of the new task, n of a kept share of the old",
        _old_examples("replay"),
        1.0,
        _SHARE,
    ),
    "rehearsal": Part(
        "data rehearsal, epoch size fixed: half of it from a kept share of the old examples",
        _old_examples("fixed"),
        1.0,
        _SHARE,
    ),
    "rehearsal_growing": Part(
        "data rehearsal, epoch size growing: all new examples and a kept share of the old",
        _old_examples("growing"),
        1.0,
        _SHARE,
    ),
    "lora": Part(
        "control: a low-rank update alone (Hu et al. 2021), merged afterwards; its rank",
        lambda rank: {"lora_rank": int(rank)},
        8.0,
        (1.0, 4096.0),
    ),
    "average": Part(
        "the parameters of the models of all tiers averaged", lambda _: {"average": "parameters"}
    ),
    "scores": Part(
        "the scores of models that each learnt one task alone, averaged",
        lambda _: {"average": "scores"},
    ),
}
"""What methods are made of, by name."""


def methods_help(parts: Mapping[str, Part] = METHODS) -> str:
    """Return a line for each part, for the help of a command.

    Args:
        parts: What methods are made of, by name.
    """
    return "\n".join(f"    {name:18} {part.text}" for name, part in parts.items())


def changes_of(name: str, parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return the fields of a method that its name sets.

    Args:
        name: Of a part, or of several joined by ``+``; a number after a colon takes the place of
            the part's own.
        parts: What methods are made of, by name.

    Raises:
        ConsolidationError: A part is unknown, its number is out of range, or two parts say
            different things of the same.
    """
    found = dict[str, Any]()
    for text in name.split("+"):
        part, colon, number = text.partition(":")
        if part not in parts:
            where = "" if part == name else f" in '{name}'"
            raise ConsolidationError(
                f"unknown method '{part}'{where}; choose from {', '.join(parts)}"
            )
        changes = parts[part].changes(text, number if colon else None)
        if twice := found.keys() & changes.keys():
            raise ConsolidationError(
                f"method '{name}' says two things of its {' and '.join(sorted(twice))}; take "
                f"'{text}' out"
            )
        found |= changes
    return found


def check_methods(methods: Sequence[str], search: Sequence[str] = ()) -> dict[str, Method]:
    """Read methods off their names.

    Args:
        methods: Names as :meth:`Method.parse` takes them.
        search: Strengths to search through instead of a method's own, as in ``"kfc=0.5,5,50"``.

    Raises:
        ConsolidationError: A method is unknown or given twice, or there is none; or a search is
            malformed, or of no such method with a penalty.
    """
    if not methods or len(set(methods)) < len(methods):
        raise ConsolidationError(f"methods are {methods}; give at least one, and none twice")
    parsed = {name: Method.parse(name) for name in methods}
    for text in search:
        name, _, values = text.partition("=")
        try:
            strengths = tuple(float(value) for value in values.split(","))
        except ValueError:
            strengths = ()
        if not (strengths and all(0 < s < float("inf") for s in strengths)):
            raise ConsolidationError(f"search: '{text}' is not METHOD=λ,λ,...; correct it")
        if name not in parsed or not parsed[name].strengths:
            raise ConsolidationError(
                f"search: '{name}' is none of the methods with a penalty; correct it"
            )
        parsed[name] = replace(parsed[name], strengths=strengths)
    return parsed
