"""The anchor's outputs: what is kept of them, and how far another model's are from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..curvature import Family, Outputs
from ..errors import ProbeError
from ..precision import wide
from .rows import ranges

__all__ = ["Cache", "Divergences", "Targets", "kept_of"]

_NEVER = -1e4
"""The log-probability that stands where there is no class: e to it is 0 in every precision."""

_LARGEST = 2**28
"""The most numbers of one batch: probes from elsewhere may have sizes that ask for any memory."""


class Divergences(NamedTuple):
    """How far a model's outputs are from the anchor's.

    Args:
        loss: Mean over the decisions, at the temperature asked for, with a gradient; 0 of none.
        each: Of every decision, shape [M], without gradient: KL(anchor ‖ model) in nats of classes
            and of binary labels; the squared difference of numbers.
        changed: Whether another class, or the other of yes and no, is the likeliest; shape [M].
            A number is never a changed decision.
        owners: Which example of the batch each decision is of, shape [M].
    """

    loss: Tensor
    each: Tensor
    changed: Tensor
    owners: Tensor


class Targets(NamedTuple):
    """The anchor's outputs for one batch, a line for each decision in the order of the examples.

    Args:
        scores: Log-probabilities [M, k] of classes, of which there may be fewer than k; of other
            families the model's scores [M, 1].
        sizes: How many classes each decision is between, shape [M]; None if k of all.
        owners: Which example of the batch each decision is of, shape [M].
        indices: Which classes are kept, the likeliest first, shape [M, k]; None if all are.
        rest: Log of the probability of all other classes together, shape [M]; None if of none.
        family: What the scores are of.
    """

    scores: Tensor
    sizes: Tensor | None
    owners: Tensor
    indices: Tensor | None
    rest: Tensor | None
    family: Family

    def to(self, device: torch.device) -> Targets:
        """Move the tensors.

        Args:
            device: Where the model is.
        """
        moved = [x.to(device) if isinstance(x, Tensor) else x for x in self]
        return Targets(*moved)  # type: ignore[arg-type]

    def divergences(self, outputs: Outputs, temperature: float = 1.0) -> Divergences:
        """Compare a model's outputs with the anchor's.

        Args:
            outputs: Of the same inputs.
            temperature: T of the loss, T²·KL(p^{1/T} ‖ q^{1/T}), both scaled to sum to 1 (Hinton et
                al. 2015, arXiv:1503.02531). What is kept of many classes is tempered as it is
                kept, with the rest as one of them. Numbers have none, and what is measured of
                each decision is at 1.

        Raises:
            ProbeError: They are of other decisions.
        """
        scores = _decided(outputs)
        if outputs.family is not self.family or len(scores) != len(self.scores):
            raise ProbeError(
                f"the model makes {len(scores)} decisions ({outputs.family.value}) where the anchor"
                f" made {len(self.scores)} ({self.family.value}); pass the `forward` that the "
                "probes were made with, and a collator that gives an attention_mask"
            )
        if self.family is Family.GAUSSIAN:
            each = (scores - self.scores).square()[:, 0]
            changed = torch.zeros_like(each, dtype=torch.bool)
            return Divergences(_mean(each, scores), each.detach(), changed, self.owners)
        if self.family is Family.CATEGORICAL:
            log_p, log_q, changed = self._of_classes(scores)
        else:
            log_p, log_q = _of_two(self.scores), _of_two(scores)
            changed = ((self.scores > 0) != (scores > 0))[:, 0]
        each = loss = _kl(log_p, log_q)
        if temperature != 1:
            tempered = [(log / temperature).log_softmax(-1) for log in (log_p, log_q)]
            loss = temperature**2 * _kl(*tempered)
        return Divergences(_mean(loss, scores), each.detach(), changed, self.owners)

    def _of_classes(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p and log q [M, classes], and whether another one is the likeliest."""
        if self.indices is None:
            compact = _offered(scores, self.sizes, self.scores.shape[1])
            changed = compact.argmax(-1) != self.scores.argmax(-1)
            return self.scores, compact.log_softmax(-1), changed
        # Not 1 − Σ q: its logarithm loses all digits where the classes kept have nearly all mass.
        assert self.rest is not None
        # dtype's minimum, not −inf, of which logsumexp has no gradient where all are so.
        least = torch.finfo(scores.dtype).min
        others = scores.scatter(-1, self.indices, least).logsumexp(-1, keepdim=True)
        kept = scores.gather(-1, self.indices).clamp(min=least)
        log_q = torch.cat([kept, others], -1).log_softmax(-1)
        log_p = torch.cat([self.scores, self.rest[:, None]], -1)
        return log_p, log_q, scores.argmax(-1) != self.indices[:, 0]


@dataclass(frozen=True, eq=False)
class Cache:
    """The anchor's outputs of all probes, flat.

    Args:
        scores: Of all decisions one after another, float32 or wider.
        decisions: How many decisions each example has, int32 [N].
        sizes: How many scores are kept of each of its decisions, int32 [N].
        indices: The class of each score, int32; None if all classes are kept.
        rest: Log of the probability of the other classes of each decision; None if there are none.
        family: What the scores are of.
        classes: Of how many classes the scores were chosen; 0 where all are kept.
    """

    scores: Tensor
    decisions: Tensor
    sizes: Tensor
    indices: Tensor | None
    rest: Tensor | None
    family: Family
    classes: int = 0

    @classmethod
    def join(cls, parts: Sequence[Cache]) -> Cache:
        """Join what batches gave.

        Args:
            parts: At least one.

        Raises:
            ProbeError: They are of different families or numbers of classes.
        """
        if len({(part.family, part.classes) for part in parts}) > 1:
            raise ProbeError(
                "batches have scores of different families or numbers of classes; give `forward=` "
                "a function that tells them alike"
            )

        def joined(name: str) -> Tensor | None:
            tensors = [getattr(part, name) for part in parts]
            return None if tensors[0] is None else torch.cat(tensors)

        tensors = {n: joined(n) for n in ("scores", "decisions", "sizes", "indices", "rest")}
        return cls(**tensors, family=parts[0].family, classes=parts[0].classes)  # type: ignore[arg-type]

    @cached_property
    def _starts(self) -> tuple[list[int], list[int]]:
        """Where each example's scores, and its decisions, begin."""
        scores = (self.decisions.long() * self.sizes.long()).cumsum(0)
        return [0, *scores.tolist()], [0, *self.decisions.long().cumsum(0).tolist()]

    def select(self, indices: Sequence[int]) -> Cache:
        """Keep the outputs of some examples alone.

        Args:
            indices: Theirs.
        """
        scores, decisions = self._starts
        chosen = ranges(scores, indices)
        kept = torch.tensor(indices, dtype=torch.long)
        return replace(
            self,
            scores=self.scores[chosen],
            decisions=self.decisions[kept],
            sizes=self.sizes[kept],
            indices=None if self.indices is None else self.indices[chosen],
            rest=None if self.rest is None else self.rest[ranges(decisions, indices)],
        )

    def targets(self, indices: Sequence[int]) -> Targets:
        """Return the outputs of some examples as they are compared with.

        Args:
            indices: Theirs.
        """
        own = self.select(indices)
        most = int(own.sizes.max())
        if int(own.decisions.sum(dtype=torch.long)) * most > _LARGEST:
            raise ProbeError(
                f"the outputs of a batch of {len(indices)} probes need more than {_LARGEST} "
                "numbers; take fewer at a time"
            )
        owners = torch.repeat_interleave(torch.arange(len(indices)), own.decisions)
        sizes = own.sizes.long()[owners]
        lines = torch.full((len(owners), most), _NEVER, dtype=own.scores.dtype)
        there = torch.arange(most) < sizes[:, None]
        lines[there] = own.scores
        classes = None
        if own.indices is not None:
            classes = own.indices.long().view(len(owners), most)
        uneven = sizes if bool((sizes != most).any()) else None
        return Targets(lines, uneven, owners, classes, own.rest, own.family)

    def problems(self, examples: int) -> list[str]:
        """Say what is wrong with outputs that anybody may have written.

        Args:
            examples: How many there should be.
        """
        counts = (self.decisions, self.sizes)
        if any(x.shape != (examples,) or x.dtype != torch.int32 for x in counts):
            return [f"decisions and sizes are not {examples} counts"]
        # One without a score would take no byte of a file and any memory.
        if bool((self.decisions < 0).any()) or bool(
            ((self.sizes < 1) & (self.decisions > 0)).any()
        ):
            return ["decisions have no scores"]
        # In float64 first: of a product of two large counts int64 may have no room.
        due = float((self.decisions.double() * self.sizes.double()).sum())
        made = int(self.decisions.sum(dtype=torch.long))
        if self.scores.ndim != 1 or len(self.scores) != due or not made:
            return [f"scores have shape {list(self.scores.shape)}, expected [{due:.0f}]"]
        problems = [
            f"{name} have NaN or infinite values, or are no float32"
            for name, values in (("scores", self.scores), ("rest", self.rest))
            if values is not None
            and (values.dtype != torch.float32 or not bool(values.isfinite().all()))
        ]
        if len({self.indices is None, self.rest is None, self.classes == 0}) > 1:
            problems.append("indices, rest and the number of classes do not stand together")
        elif self.indices is not None and self.rest is not None:
            problems += self._problems_of_choice(self.indices, self.rest, made)
        if problems:
            return problems
        if self.family is Family.CATEGORICAL:
            total = self._mass(made)
            if bool((self.scores > 1e-3).any()) or bool(((total - 1).abs() > 1e-2).any()):
                problems.append("scores are no log-probabilities of everything that may be")
        elif bool((self.sizes != 1).any()):
            problems.append("numbers have one score each")
        return problems

    def _problems_of_choice(self, indices: Tensor, rest: Tensor, made: int) -> list[str]:
        if self.family is not Family.CATEGORICAL:
            return ["only classes are chosen from"]
        kept = int(self.sizes[0]) if len(self.sizes) else 0
        if not 0 < kept < self.classes or bool((self.sizes != kept).any()):
            return [f"sizes are not one number below {self.classes}"]
        if indices.shape != self.scores.shape or indices.dtype != torch.int32:
            return [f"indices are not int32 of shape {list(self.scores.shape)}"]
        if rest.shape != (made,) or bool((rest > 1e-3).any()):
            return [f"rest is not {made} logarithms of probabilities"]
        ordered = indices.view(-1, kept).sort(1).values
        if bool((ordered.diff(dim=1) == 0).any()) or not (
            0 <= int(ordered.min()) <= int(ordered.max()) < self.classes
        ):
            return [f"indices are not different numbers from 0 to {self.classes - 1}"]
        return []

    def _mass(self, made: int) -> Tensor:
        owners = torch.repeat_interleave(torch.arange(len(self.sizes)), self.decisions)
        lines = torch.repeat_interleave(torch.arange(made), self.sizes.long()[owners])
        total = torch.zeros(made, dtype=self.scores.dtype)
        total.index_add_(0, lines, self.scores.exp())
        return total if self.rest is None else total + self.rest.exp()

    @property
    def mean_rest(self) -> float:
        """Mean probability of the classes that are not kept."""
        return 0.0 if self.rest is None else float(self.rest.exp().mean())


def kept_of(outputs: Outputs, top_k: int | None) -> Cache:
    """Keep what a batch gave.

    Args:
        outputs: Of the anchor.
        top_k: How many classes to keep of each decision; None keeps all.

    Raises:
        ProbeError: A score is NaN or infinite.
    """
    logits, _, family = outputs
    examples = len(logits)
    decided = outputs.decided.reshape(examples, -1)
    decisions = decided.sum(1, dtype=torch.int32).cpu()
    scores = _decided(outputs)
    owners = torch.repeat_interleave(torch.arange(examples), decisions.long())
    if family is not Family.CATEGORICAL:
        _refuse_not_finite(scores)
        ones = torch.ones(examples, dtype=torch.int32)
        return Cache(scores.reshape(-1).cpu(), decisions, ones, None, None, family)
    offered = _is_offered(scores)
    log_p = scores.log_softmax(-1)
    _refuse_not_finite(log_p[offered])
    if top_k is None or top_k >= logits.shape[-1]:
        counts = offered.sum(1).cpu()
        sizes = torch.zeros(examples, dtype=torch.int32)
        sizes[owners] = counts.int()
        if bool((sizes[owners] != counts).any()):
            raise ProbeError(
                "decisions of one example are between different numbers of classes; give `top_k=`"
            )
        return Cache(log_p[offered].cpu(), decisions, sizes, None, None, family)
    best = log_p.topk(top_k)
    others = log_p.scatter(-1, best.indices, torch.finfo(log_p.dtype).min).logsumexp(-1)
    return Cache(
        best.values.clamp(min=_NEVER).reshape(-1).cpu(),
        decisions,
        torch.full((examples,), top_k, dtype=torch.int32),
        best.indices.int().reshape(-1).cpu(),
        others.clamp(min=_NEVER).cpu(),
        family,
        logits.shape[-1],
    )


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _of_two(scores: Tensor) -> Tensor:
    """Return the log-probabilities of yes and of no, [M, 2]."""
    return torch.cat([functional.logsigmoid(scores), functional.logsigmoid(-scores)], -1)


def _mean(values: Tensor, scores: Tensor) -> Tensor:
    return values.mean() if len(values) else scores.sum() * 0


def _decided(outputs: Outputs) -> Tensor:
    """Return the scores of all decisions in the order of the examples: [M, K], or [M, 1]."""
    logits, decided = outputs.logits, outputs.decided
    if outputs.family is not Family.CATEGORICAL:
        return wide(logits).reshape(-1, 1)
    if bool(decided.all()):  # no copy of a whole vocabulary's scores, nor of their gradient
        return wide(logits.reshape(-1, logits.shape[-1]))
    return wide(logits[decided])


def _is_offered(scores: Tensor) -> Tensor:
    """Whether each class is one that a decision may be: not at the dtype's minimum."""
    return ~(scores <= torch.finfo(torch.float16).min / 2)  # NaN is, and is refused later


def _offered(scores: Tensor, sizes: Tensor | None, most: int) -> Tensor:
    """Bring the classes that are offered to the front, in their order; shape [M, most]."""
    if scores.shape[1] == most and sizes is None:
        return scores
    offered = _is_offered(scores)
    if bool((offered.sum(1) != (most if sizes is None else sizes)).any()):
        raise ProbeError(
            "the model decides between another number of classes than the anchor did; if it has "
            "another head, take `prior.with_probes(None)`, and if not, pass the `forward` and a "
            "collator like those that the probes were made with"
        )
    order = offered.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return scores.gather(1, order)


def _refuse_not_finite(scores: Tensor) -> None:
    if not bool(scores.isfinite().all()):
        raise ProbeError("the model gives scores that are NaN or infinite; look at its parameters")
