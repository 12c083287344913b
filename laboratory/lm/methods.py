"""Methods by which a language model learns a domain, by name; their strengths are in the name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from ..methods import Part, changes_of

__all__ = ["LM_METHODS", "LmMethod"]


@dataclass(frozen=True)
class LmMethod:
    """How a domain is learnt.

    Args:
        name: As given.
        curvature: Of the penalty; None for no penalty.
        strength: λ of the penalty.
        probes: Weight of the KL on texts that the anchor has sampled; None for none.
        distilled: Weight of the KL on the new texts themselves; None for none.
        adapter: PEFT's method that learns in the place of the parameters; None for all of these.
        rank: Of the adapter.
        rate: Multiple of the learning rate.
        average: Share of the trained parameters in the mean with the anchor's.
    """

    name: str
    curvature: str | None = None
    strength: float = 0.0
    probes: float | None = None
    distilled: float | None = None
    adapter: str | None = None
    rank: int = 0
    rate: float = 1.0
    average: float = 1.0

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read a method off its name, see :func:`~laboratory.methods.changes_of`.

        Args:
            name: A key of :data:`LM_METHODS`, or several joined by ``+``.
        """
        return replace(cls(name), **changes_of(name, LM_METHODS))

    @property
    def trained(self) -> str:
        """The name without the average: what is to be trained for it."""
        parts = [part for part in self.name.split("+") if not part.startswith("average")]
        return "+".join(parts) or "none"


def _penalty(curvature: str, strength: float, text: str) -> Part:
    def make(number: float) -> dict[str, Any]:
        return {"curvature": curvature, "strength": number}

    return Part(text, make, strength, (0.0, float("inf")))


def _adapter(kind: str, rank: int, text: str) -> Part:
    return Part(text, lambda r: {"adapter": kind, "rank": int(r)}, rank, (1, 4096))


def _weight(name: str, number: float, text: str, bounds: tuple[float, float]) -> Part:
    return Part(text, lambda value: {name: value}, number, bounds)


_ANY = (0.0, float("inf"))

LM_METHODS: Mapping[str, Part] = {
    "none": Part("plain fine-tuning", lambda _: {}),
    "kfc": _penalty("kronecker", 0.005, "Kronecker-factored penalty of sampled texts; its λ"),
    "ewc": _penalty("diagonal", 0.005, "diagonal penalty of sampled texts; its λ"),
    "l2": _penalty("identity", 0.01, "L2 towards the anchor; its λ"),
    "probes": _weight("probes", 1.0, "KL to the anchor on texts that it sampled; its weight", _ANY),
    "lwf": _weight(
        "distilled",
        1.0,
        "learning without forgetting (Li & Hoiem 2016): KL on the new texts themselves; its weight",
        _ANY,
    ),
    "lora": _adapter("lora", 8, "a low-rank update alone (Hu et al. 2021), merged; its rank"),
    "rate": _weight("rate", 1.0, "a multiple of the learning rate", (1e-6, 1e6)),
    "average": _weight(
        "average",
        0.5,
        "WiSE-FT (Wortsman et al. 2022): a mean with the anchor's parameters; the new ones' share",
        (0.0, 1.0),
    ),
}
"""What methods are made of, by name."""
