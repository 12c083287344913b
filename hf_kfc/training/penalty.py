"""The consolidation penalty Σ_i λ_i (θ−θ*_i)ᵀ F_i (θ−θ*_i): value and gradient of one product."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from ..precision import wide_dtype
from ..priors import ConsolidationPrior
from .damped import Placement
from .fitting import fit
from .processes import assign, can_share, shard_like, whole
from .terms import BlockTerm, Change, LowRankTerm

__all__ = ["ConsolidationPenalty"]


class ConsolidationPenalty:
    """Σ_i λ_i Σ_blocks ⟨Δ, F_i·Δ⟩ with Δ = θ − θ*_i, of a model's present parameters.

    The parameters are taken once, here. Under FSDP2 the penalty must be made after wrapping and
    outside of forward and backward, where the module's parameters are temporary unsharded copies.
    Beside the priors it holds next to nothing: no damped factors, no joined anchors, and of an
    embedding's gradient the rows of tokens that have moved.

    Args:
        model: The model to be trained; unwrapped names, parameters may be FSDP2's DTensors. It
            may have LoRA adapters on the weights that the priors know.
        priors: Each fits the model (see :func:`~hf_kfc.training.fitting.fit`).
        strengths: λ of each prior.
        damping: Relative damping of every operator.
        dtype: A dtype of few bits to multiply matrices in; None is that of the parameters, at
            least float32. Sums, values and gradients are in that one in any case.
        distribute: Assign the blocks to the processes of ``torch.distributed``; each then
            multiplies and moves to its device only its own. Values are this process's part times
            the number of processes, so that their mean is the exact total, and so are gradients of
            whole parameters, for DDP to average; FSDP2's are exact.
        ignore: What is not held, see :class:`~hf_kfc.training.ConsolidationConfig`.
        added_rows: What has got more rows than the priors know, see there.

    Attributes:
        num_blocks: Blocks of all priors.
        num_own: Those that this process multiplies.
        factors: Of the strength of each prior, from the next evaluation on; the same in all
            processes.
    """

    def __init__(
        self,
        model: nn.Module,
        priors: Sequence[ConsolidationPrior],
        strengths: Sequence[float],
        damping: float,
        *,
        dtype: torch.dtype | None = None,
        distribute: bool = False,
        ignore: Iterable[str] | None = None,
        added_rows: Iterable[str] | None = None,
    ) -> None:
        self._parameters = dict(model.named_parameters())
        self._strengths = list(strengths)
        self.factors = [1.0] * len(priors)
        terms, placement = list[BlockTerm](), Placement(dtype)
        for number, prior in enumerate(priors):
            for fitted in fit(prior, model, ignore, added_rows):
                given = (number, fitted, prior.anchor, damping, placement)
                if fitted.adapter is None:
                    terms.append(BlockTerm(*given))
                else:
                    rank = self._parameters[fitted.adapter.up].shape[1]
                    terms.append(LowRankTerm(*given, rank))
        covered = [self._parameters[name] for term in terms for name in term.names]
        self._device = covered[0].device
        self._dtype = wide_dtype(covered[0].dtype)
        processes = dist.get_world_size() if distribute and dist.is_initialized() else 1
        self._processes = processes if can_share(covered, processes) else 1
        owners = assign([term.cost for term in terms], self._processes)
        rank = dist.get_rank() if self._processes > 1 else 0
        for term, owner in zip(terms, owners, strict=True):
            term.is_own = owner == rank
        self.num_blocks, self.num_own = len(terms), owners.count(rank)
        layers: dict[str, _Layer] = defaultdict(list)  # FSDP2 gathers once for all priors
        for term in terms:
            layers[term.names[0]].append(term)
        self._layers = list(layers.values())

    def __call__(self, embeddings: Evaluated | None = None) -> Evaluated:
        """Evaluate the penalty, as a part of a loss.

        Args:
            embeddings: What :meth:`of_embeddings` returned, which is not evaluated again then.

        Returns:
            The total, a scalar that carries its gradient, and the value of each prior, shape
            [priors], without gradient.
        """
        embeddings = self.of_embeddings() if embeddings is None else embeddings
        return self._add(embeddings, [layer for layer in self._layers if not _is_embedding(layer)])

    def of_embeddings(self) -> Evaluated:
        """Evaluate the embeddings' part, before the model's forward pass.

        Autograd goes back through what came first last: the rows that have moved become a gradient
        as large as the embedding when the activations are gone, and the embedding's gradient is the
        last one of the model's own too. All the others are not to wait for it, nor DDP for them.
        """
        nothing = self._zeros().sum(), self._zeros()
        return self._add(nothing, [layer for layer in self._layers if _is_embedding(layer)])

    def _add(self, evaluated: Evaluated, layers: Sequence[_Layer]) -> Evaluated:
        total, per_prior = evaluated
        for layer in layers:
            names = list(dict.fromkeys(name for term in layer for name in term.all_names))
            of_layer, of_priors = _LayerPenalty.apply(  # type: ignore[no-untyped-call]
                self, layer, names, *(self._parameters[name] for name in names)
            )
            total, per_prior = total + of_layer, per_prior + of_priors
        return total, per_prior

    @torch.no_grad()
    def evaluate(self, layer: _Layer) -> tuple[Tensor, dict[str, _Parts]]:
        """Return the value of each prior, and this process's parts of the gradients.

        Args:
            layer: Blocks of one weight. All processes must ask for the same ones in the same
                order: FSDP2 gathers their parameters.

        Returns:
            Values, shape [priors], and parts by name, of the parameters that are trained.
        """
        for term in layer:
            self._notice_what_stays(term)
        needed = dict.fromkeys(name for term in layer for name in term.needed)
        values = {name: whole(self._parameters[name]) for name in needed}
        parts: dict[str, _Parts] = {n: [] for n in needed if self._parameters[n].requires_grad}
        per_prior = self._zeros()
        with torch.autocast(self._device.type, enabled=False):
            for term in layer:
                if term.is_own and term.needed:
                    strength = self._strengths[term.prior] * self.factors[term.prior]
                    value, changes = term(values)
                    per_prior[term.prior] += self._processes * strength * value.to(per_prior)
                    for name in parts.keys() & changes.keys():
                        parts[name].append((2 * strength, changes[name]))
        return per_prior, parts

    def shard(self, parts: _Parts, parameter: DTensor) -> Tensor:
        """Return the exact gradient of a parameter of FSDP2, sharded like it.

        Args:
            parts: This process's.
            parameter: One of the model's.
        """
        total = torch.zeros(parameter.shape, dtype=self._dtype, device=self._device)
        return shard_like(_add_parts(total, parts), parameter, is_part=self._processes > 1)

    def compact(self, parts: _Parts, parameter: Tensor) -> tuple[float, Change] | None:
        """Return the gradient of a parameter as one change, with the factor that DDP divides by.

        Args:
            parts: This process's.
            parameter: One of the model's.
        """
        if not parts:
            return None
        if len(parts) > 1:
            total = torch.zeros_like(parameter, dtype=self._dtype)
            parts = [(1.0, Change(_add_parts(total, parts)))]
        ((factor, change),) = parts
        return factor * self._processes, change

    def _notice_what_stays(self, term: BlockTerm) -> None:
        """Find out once whether a frozen block is at its anchor."""
        if any(self._parameters[name].requires_grad for name in term.names):
            term.stays = None
        elif term.stays is None:
            term.stays = term.is_at_anchor({n: whole(self._parameters[n]) for n in term.names})

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self._strengths), dtype=self._dtype, device=self._device)


Evaluated = tuple[Tensor, Tensor]
"""A total that carries its gradient, and the value of each prior, shape [priors]."""
_Layer = list[BlockTerm]
_Parts = list[tuple[float, Change]]
"""Changes with their factors, which add up to a gradient."""


class _LayerPenalty(torch.autograd.Function):
    """Computes the gradients with the value, so that backward only hands them over.

    Each layer is a node of its own, so that its gradients are freed before the next one's are
    handed over.
    """

    @staticmethod
    def forward(
        ctx: Any,
        penalty: ConsolidationPenalty,
        layer: _Layer,
        names: list[str],
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        per_prior, parts = penalty.evaluate(layer)
        gradients: list[tuple[float, Change] | None] = []
        for name, parameter in zip(names, parameters, strict=True):
            if name not in parts:
                gradients.append(None)
            elif isinstance(parameter, DTensor):
                gradients.append((1.0, Change(penalty.shard(parts[name], parameter))))
            else:
                gradients.append(penalty.compact(parts[name], parameter))
        ctx.forms = [
            None if gradient is None else (gradient[0], parameter.shape, parameter.dtype)
            for gradient, parameter in zip(gradients, parameters, strict=True)
        ]
        ctx.save_for_backward(
            *(t for g in gradients for t in ((None, None) if g is None else g[1]))
        )
        ctx.mark_non_differentiable(per_prior)
        return per_prior.sum(), per_prior

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved, gradients = iter(ctx.saved_tensors), list[Tensor | None]()
        for form, values, rows in zip(ctx.forms, saved, saved, strict=True):
            if form is None:
                gradients.append(None)
                continue
            factor, shape, dtype = form
            gradient = (factor * upstream[0].to(values.dtype) * values).to(dtype)
            if rows is not None:
                gradient = gradient.new_zeros(shape).index_copy_(0, rows, gradient)
            gradients.append(gradient)
        return None, None, None, *gradients


def _is_embedding(layer: _Layer) -> bool:
    return layer[0].is_embedding


def _add_parts(total: Tensor, parts: _Parts) -> Tensor:
    for factor, (values, rows) in parts:
        if rows is None:
            total.add_(values, alpha=factor)
        else:
            own = values.to(total.dtype)
            total.index_add_(0, rows.to(total.device), own, alpha=factor)
    return total
