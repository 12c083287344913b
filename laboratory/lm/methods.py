"""Methods by which a language model learns a domain, by name; their strengths are in the name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from hf_kfc.errors import ConsolidationError

from ..methods import Part, changes_of

__all__ = ["LM_METHODS", "LmMethod"]


@dataclass(frozen=True)
class LmMethod:
    """How a domain is learnt.

    Args:
        name: As given.
        curvature: Of the penalty; None for no penalty.
        strength: λ of the penalty.
        damping: Of the penalty, relative; None for that of the command line.
        rank: Of the curvature's factors, which are kept in bfloat16 then; 0 for all of them.
        probes: Weight of the KL on texts that the anchor has sampled; None for none.
        rows: Of these in a step; 0 for as many as the command line says.
        probe_every: They are in every k-th step; 0 for as the command line says.
        temperature: At which these were sampled; the meter's, and the curvature's, are at 1.
        public: Share of public texts among those of probes and curvature.
        tokens: To which the texts of probes are cut then; 0 for none that is cut.
        repeated: Share of public texts, cut to a half, that stand twice in their row as
            probes; the curvature is of them as they are.
        distilled: Weight of the KL on the new texts themselves; None for none.
        mixed: Weight of the cross entropy of public texts among the new ones; None for none.
        adapter: What learns in the place of the parameters, see
            :data:`~laboratory.lm.adapters.ADAPTERS`; None for all of these.
        size: Of the adapter.
        rate: Multiple of the learning rate.
        average: Share of the trained parameters in the mean with the anchor's.
    """

    name: str
    curvature: str | None = None
    strength: float = 0.0
    damping: float | None = None
    rank: int = 0
    probes: float | None = None
    rows: int = 0
    probe_every: int = 0
    temperature: float = 1.0
    public: float = 0.0
    tokens: int = 0
    repeated: float = 0.0
    distilled: float | None = None
    mixed: float | None = None
    adapter: str | None = None
    size: float = 0.0
    rate: float = 1.0
    average: float = 1.0

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read a method off its name, see :func:`~laboratory.methods.changes_of`.

        Args:
            name: A key of :data:`LM_METHODS`, or several joined by ``+``.

        Raises:
            ConsolidationError: Something in the name is unknown, or does not go with the rest.
        """
        method = replace(cls(name), **changes_of(name, LM_METHODS))
        if method.distilled and method.mixed:
            raise ConsolidationError(f"method '{name}' has two rivals' terms; give lwf or mixed")
        if (method.repeated or method.tokens) and not (method.public and method.probes):
            raise ConsolidationError(
                f"method '{name}' repeats or cuts what it has not; give probes and public beside it"
            )
        if method.damping is not None and method.curvature is None:
            raise ConsolidationError(f"method '{name}' damps no penalty; give kfc, ewc or l2")
        if method.probe_every and method.probes is None:
            raise ConsolidationError(f"method '{name}' spaces no probes; give probes beside")
        return method

    @property
    def trained(self) -> str:
        """The name without the average: what is to be trained for it."""
        parts = [part for part in self.name.split("+") if not part.startswith("average")]
        return "+".join(parts) or "none"


def _part(text: str, number: float, name: str, **others: Any) -> Part:
    """Make a part whose number is that field of a method."""
    return Part(text, lambda value: {name: value, **others}, number, (0.0, float("inf")))


def _count(name: str, text: str, number: int) -> Part:
    """Make a part whose number is that field of a method, and whole."""
    return Part(text, lambda value: {name: int(value)}, number, (1, 65536))


def _adapter(kind: str, text: str, rank: int) -> Part:
    """Make a part of an adapter whose number is its rank."""
    return Part(text, lambda r: {"adapter": kind, "size": int(r)}, rank, (1, 4096))


LM_METHODS: Mapping[str, Part] = {
    "none": Part("plain fine-tuning", lambda _: {}),
    "kfc": _part(
        "Kronecker-factored penalty of sampled texts; its λ",
        0.01,
        "strength",
        curvature="kronecker",
    ),
    "ewc": _part(
        "diagonal penalty of sampled texts; its λ", 0.01, "strength", curvature="diagonal"
    ),
    "l2": _part("L2 towards the anchor; its λ", 0.01, "strength", curvature="identity"),
    "probes": _part("KL to the anchor on texts that it sampled; its weight", 1.0, "probes"),
    "damping": _part("with a penalty: its relative damping", 0.1, "damping"),
    "rank": _count("rank", "the curvature compressed, as it is published; eigenpairs a factor", 64),
    "rows": _count("rows", "sampled texts of a step", 1),
    "probe_every": _count("probe_every", "these in every k-th step, at k times their weight", 2),
    "temperature": Part(
        "that of the sampling, below 1 for texts that the model holds more likely",
        lambda value: {"temperature": value},
        0.7,
        (0.1, 10.0),
    ),
    "public": Part(
        "public texts in the place of sampled ones, for probes and curvature; their share",
        lambda share: {"public": share},
        1.0,
        (0.0, 1.0),
    ),
    "tokens": _count("tokens", "with public texts: to how many tokens probes are cut", 72),
    "repeated": Part(
        "with public texts: how many of them are half as long and said twice, so that what comes "
        "next stands far back (induction, Olsson et al. 2022)",
        lambda share: {"repeated": share},
        0.25,
        (0.0, 1.0),
    ),
    "lwf": _part(
        "learning without forgetting (Li & Hoiem 2016): KL on the new texts; its weight",
        1.0,
        "distilled",
    ),
    "mixed": _part(
        "public texts are learnt among the new ones, as many rows as of probes; their weight",
        1.0,
        "mixed",
    ),
    "lora": _adapter("lora", "a low-rank update alone (Hu et al. 2021), merged; its rank", 8),
    "corda": _adapter(
        "corda",
        "likewise along what old inputs use least (CorDA, Yang et al. 2024, knowledge-preserved "
        "mode), by a Kronecker-factored prior of sampled texts; its rank",
        8,
    ),
    "osf": Part(
        "what is orthogonal to the largest singular directions of each matrix (OSF, Nayak et al. "
        "2025), merged; the share of these",
        lambda share: {"adapter": "osf", "size": share},
        0.5,
        (0.01, 0.99),
    ),
    "rate": _part("a multiple of the learning rate", 1.0, "rate"),
    "average": Part(
        "WiSE-FT (Wortsman et al. 2022): a mean with the anchor's parameters; the new ones' share",
        lambda share: {"average": share},
        0.5,
        (0.0, 1.0),
    ),
}
"""What methods are made of, by name."""
