"""The span attack: which tokens went into the second moment of a layer that reads embeddings?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..curvature import Block
from ..curvature.modes import frozen
from ..curvature.rare_tokens import count_examples
from ..priors import ConsolidationPrior
from ..priors.privacy import MIN_EXAMPLES
from .membership import Separation, area_under_curve
from .reading import batches_of

__all__ = ["difference_auc", "span_auc"]

_DAMPING = 1e-6  # relative to the mean eigenvalue: above the rounding of float32 factors
_POSITIONS = 64
_AT_ONCE = 256


class _ReachedError(Exception):
    """The layer has its input: the rest of the model need not run."""


def span_auc(
    prior: ConsolidationPrior,
    model: nn.Module,
    members: Any,
    data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
    *,
    min_examples: int = MIN_EXAMPLES,
    batch_size: int = 32,
) -> Separation | None:
    """Attack a prior: tell tokens that stand in few of its examples from tokens that no one has.

    The model reads each token of the vocabulary alone, at every position, as far as the first
    linear layer of which the prior holds A. There a token's score is minus the lowest leverage
    aᵀ A⁻¹ a of its inputs: those that A was made of cost little. Whoever has the prior and the
    model can do that, or the base model where its embeddings have hardly moved.

    Args:
        prior: The prior, as it is or is to be published.
        model: At the prior's anchor.
        members: Examples that it was estimated on, by index, with a length.
        data_collator: Makes a batch, with ``input_ids``, of a list of examples.
        min_examples: In how many examples a token is no longer rare.
        batch_size: Examples of a batch; does not change the result.

    Returns:
        How well rare tokens are told from absent ones; None where the model has no such layer, or
        there are less than two of either.

    Raises:
        CurvatureError: The collator's batches have no ``input_ids``.
    """
    data = _Data(model, members, data_collator, batch_size)
    rare = (data.counts > 0) & (data.counts < min_examples)
    moments = {block.name: _moment(block) for block in prior.curvature.blocks if _has_span(block)}
    return _separation("rare tokens", model, moments, rare, data)


def difference_auc(
    prior: ConsolidationPrior,
    earlier: ConsolidationPrior,
    model: nn.Module,
    members: Any,
    added: Any,
    data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
    *,
    min_examples: int = MIN_EXAMPLES,
    batch_size: int = 32,
) -> Separation | None:
    """Attack two revisions of a prior: tell the tokens of the examples that came between them.

    As :func:`span_auc`, with the difference of the two sums of inputs, P·A − P₀·A₀ for P and P₀
    positions, in place of A: what is left is made of the added examples alone.

    Args:
        prior: The later revision.
        earlier: The other; of the same model.
        model: At the prior's anchor.
        members: Examples that the later one was estimated on, by index, with a length.
        added: Those of them that the earlier one was not.
        data_collator: Makes a batch, with ``input_ids``, of a list of examples.
        min_examples: In how many of the later one's examples a token is no longer rare.
        batch_size: Examples of a batch; does not change the result.

    Returns:
        How well their rare tokens are told from absent ones; None where the model has no such
        layer, or there are less than two of either.

    Raises:
        CurvatureError: The collator's batches have no ``input_ids``.
    """
    data, own = (_Data(model, x, data_collator, batch_size) for x in (members, added))
    new, old = (
        {block.name: block for block in x.curvature.blocks if _has_span(block)}
        for x in (prior, earlier)
    )
    rest = data.positions - own.positions
    moments = {
        name: _definite(data.positions * _moment(new[name]), rest * _moment(old[name]))
        for name in new.keys() & old.keys()
        if new[name].shape == old[name].shape
    }
    theirs = (own.counts > 0) & (data.counts < min_examples)
    return _separation("rare tokens of added examples", model, moments, theirs, data)


class _Data:
    """What is known of examples: their batches, and in how many of them each token stands."""

    def __init__(
        self,
        model: nn.Module,
        examples: Any,
        data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
        batch_size: int,
    ) -> None:
        device = next(model.parameters()).device
        vocabulary = max(
            (m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=0
        )
        batches = list(batches_of(examples, data_collator, batch_size, device))
        self.counts = torch.zeros(vocabulary, dtype=torch.long, device=device)
        found = count_examples(batches, device)[:vocabulary]
        self.counts[: len(found)] = found
        self.batches = [batch for _, batch in batches]
        self.positions = sum(
            int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum())
            for batch in self.batches
        )


def _separation(
    what: str, model: nn.Module, moments: Mapping[str, Tensor], told: Tensor, data: _Data
) -> Separation | None:
    """Tell some tokens from those that stand nowhere, by sums of a layer's inputs."""
    tokens = [mask.nonzero().flatten() for mask in (told, data.counts == 0)]
    if min(map(len, tokens)) < 2:
        return None
    with frozen(model), torch.no_grad(), _First(model, moments) as first:
        scores = [first.scores(ids, data.batches) for ids in tokens]
    if first.name is None or len(scores[0]) == 0:
        return None
    return Separation(f"{what} by inputs of {first.name}", *area_under_curve(*scores))


class _First:
    """The first of some linear layers that a model calls, and tokens scored by its inputs."""

    def __init__(self, model: nn.Module, moments: Mapping[str, Tensor]) -> None:
        self.model = model
        self.name: str | None = None
        self._moments = moments
        self._handles: list[RemovableHandle] = []
        self._x: Tensor | None = None
        self._inverse: Tensor | None = None

    def __enter__(self) -> _First:
        for name, module in self.model.named_modules():
            if name in self._moments and isinstance(module, nn.Linear):
                self._handles.append(module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def read(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.name, self._x = name, inputs[0].detach()
            raise _ReachedError

        return read

    def scores(self, tokens: Tensor, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return minus the lowest leverage of each token; empty if no layer was reached."""
        found, like = [], batches[0]
        length = min(_POSITIONS, max(batch["input_ids"].shape[-1] for batch in batches))
        alone = [1] * (like["input_ids"].ndim - 2)  # one candidate
        for ids in torch.split(tokens, _AT_ONCE):
            batch = {"input_ids": ids.reshape(-1, *alone, 1).expand(-1, *alone, length)}
            if "attention_mask" in like:
                batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            try:
                self.model(**batch)
            except _ReachedError:
                assert self._x is not None
                found.append(-self._leverage(self._x.reshape(len(ids), -1, self._x.shape[-1])))
            else:
                break
        return torch.cat(found) if found else tokens.new_empty(0, dtype=torch.double)

    def _leverage(self, x: Tensor) -> Tensor:
        if self._inverse is None:
            M = self._moments[str(self.name)]
            shift = _DAMPING * M.diagonal().mean() * torch.eye(len(M), dtype=M.dtype)
            self._inverse = torch.linalg.inv(M + shift.to(M.device)).to(x.device)
        a = x.double()
        if len(self._inverse) == a.shape[-1] + 1:  # of the bias
            a = torch.cat([a, torch.ones_like(a[..., :1])], dim=-1)
        return ((a @ self._inverse) * a).sum(-1).amin(1)


def _moment(block: Block) -> Tensor:
    moment = block.operator.input_moment()
    assert moment is not None
    return moment.double()


def _definite(whole: Tensor, part: Tensor) -> Tensor:
    """Subtract two sums; what is below the rounding of float32 factors is noise."""
    values, vectors = torch.linalg.eigh(whole - part)
    noise = _DAMPING * float(torch.linalg.eigvalsh(whole)[-1])
    definite: Tensor = (vectors * values.clamp(min=noise)) @ vectors.T
    return definite


def _has_span(block: Block) -> bool:
    moment = None if block.is_embedding else block.operator.input_moment()
    return moment is not None and moment.ndim == 2
