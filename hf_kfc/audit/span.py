"""The span attack: which tokens went into the second moment of a layer that reads embeddings?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..curvature import Block
from ..curvature.capture import frozen
from ..curvature.rare_tokens import count_examples
from ..priors import ConsolidationPrior
from ..priors.privacy import MIN_EXAMPLES
from .membership import Separation, area_under_curve

__all__ = ["span_auc"]

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
    device = next(model.parameters()).device
    vocabulary = max(
        (m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=0
    )
    batches = list(_batches(members, data_collator, batch_size, device))
    counts = torch.zeros(vocabulary, dtype=torch.long, device=device)
    found = count_examples(batches, device)[:vocabulary]
    counts[: len(found)] = found
    rare = ((counts > 0) & (counts < min_examples)).nonzero().flatten()
    absent = (counts == 0).nonzero().flatten()
    if min(len(rare), len(absent)) < 2:
        return None
    blocks = {b.name: b for b in prior.curvature.blocks if _has_span(b)}
    with frozen(model), torch.no_grad(), _First(model, blocks) as first:
        scores = [first.scores(ids, [batch for _, batch in batches]) for ids in (rare, absent)]
    if first.name is None or len(scores[0]) == 0:
        return None
    return Separation(f"rare tokens by inputs of {first.name}", *area_under_curve(*scores))


class _First:
    """The first of some linear layers that a model calls, and tokens scored by its inputs."""

    def __init__(self, model: nn.Module, blocks: Mapping[str, Block]) -> None:
        self.model = model
        self.name: str | None = None
        self._blocks = blocks
        self._handles: list[RemovableHandle] = []
        self._x: Tensor | None = None
        self._inverse: Tensor | None = None

    def __enter__(self) -> _First:
        for name, module in self.model.named_modules():
            if name in self._blocks and isinstance(module, nn.Linear):
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
        """Return minus the lowest leverage of each token; empty if no layer was reached.

        Args:
            tokens: The tokens [n].
            batches: What the model is used to: as many dimensions, and a mask or none.
        """
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
            moment = self._blocks[str(self.name)].operator.input_moment()
            assert moment is not None
            M = moment.double()
            shift = _DAMPING * M.diagonal().mean() * torch.eye(len(M), dtype=M.dtype)
            self._inverse = torch.linalg.inv(M + shift.to(M.device)).to(x.device)
        a = x.double()
        if len(self._inverse) == a.shape[-1] + 1:  # of the bias
            a = torch.cat([a, torch.ones_like(a[..., :1])], dim=-1)
        return ((a @ self._inverse) * a).sum(-1).amin(1)


def _has_span(block: Block) -> bool:
    moment = None if block.is_embedding else block.operator.input_moment()
    return moment is not None and moment.ndim == 2


def _batches(
    examples: Any,
    data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
    size: int,
    device: torch.device,
) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    for start in range(0, len(examples), size):
        stop = min(start + size, len(examples))
        batch = data_collator([examples[index] for index in range(start, stop)])
        yield stop - start, {name: value.to(device) for name, value in batch.items()}
