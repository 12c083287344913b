"""Rules of tables of tokens, alone or tied to a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from ...curvature_arguments import Products
from ..blocks import Layout
from .base import LayerRule

__all__ = ["EmbeddingRule", "TiedEmbeddingRule", "tokens_of_examples"]


class EmbeddingRule(LayerRule):
    """``nn.Embedding``: the input is one-hot, so A is exactly the diagonal of token frequencies.

    Inputs stay token ids [N, R] instead of one-hot rows. Under ``reduce`` A would be a full
    [V, V] matrix of co-occurrences, so an embedding keeps the A of ``expand`` there.
    """

    layout = Layout.IN_OUT
    diagonal_inputs = True

    @override
    def refusal(self, module: nn.Module) -> str | None:
        for setting in ("max_norm", "scale_grad_by_freq"):
            if value := getattr(module, setting):
                return f"{setting}={value}"
        return None

    @override
    def by_call(self, module: nn.Module) -> bool:
        """A subclass may add an offset to the ids (BART's positions) or scale the rows."""
        return type(module).forward is nn.Embedding.forward or not isinstance(module, nn.Embedding)

    @override
    def reading(self, module: nn.Module) -> tuple[object, ...]:
        return (module.padding_idx,)

    @override
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Bring token ids to [N, R]; the padding token, which never learns, becomes -1."""
        assert isinstance(module, nn.Embedding)
        ids = x.reshape(examples, -1)
        return ids if module.padding_idx is None else ids.masked_fill(ids == module.padding_idx, -1)

    @override
    def add_input_moment(
        self, total: Tensor, features: Tensor, valid: Tensor, average: bool, products: Products
    ) -> None:
        """Count the tokens [V] at positions that count: the diagonal of Σ a aᵀ."""
        total += torch.bincount(features[valid & (features >= 0)], minlength=len(total))

    def input_examples(self, a: Tensor, valid: Tensor, size: int) -> Tensor:
        """Count the examples in which each token stands at a position that counts, shape [V]."""
        return torch.bincount(tokens_of_examples(a, valid & (a >= 0))[0], minlength=size)

    @override
    def rotate_inputs(self, a: Tensor, basis: Tensor) -> Tensor:
        """A is diagonal already: its eigenbasis is the identity."""
        return a

    @override
    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        tokens, rows = self.token_gradients(a, g)
        total.index_add_(1, tokens, rows.square().T)

    def token_gradients(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the gradients of each token in each example: seen twice, they add up.

        Args:
            a: Token ids [N, R], -1 for tokens without gradient.
            g: Output gradients [N, R, q].

        Returns:
            The tokens [M], once for each example that has them, and their gradients [M, q].
        """
        counted = a >= 0
        tokens, row = tokens_of_examples(a, counted)
        return tokens, g.new_zeros(len(tokens), g.shape[-1]).index_add_(0, row, g[counted])


class TiedEmbeddingRule(EmbeddingRule):
    """``nn.Embedding`` and ``nn.Linear`` with one weight [V, q]: a language model's tied head.

    One example's gradient is that of the embedding plus that of the head, Σ_r onehot(id_r) g_rᵀ +
    Σ_r ∂z_r h_rᵀ with h the inputs of the head and ∂z the gradients of its scores. No single
    Kronecker product describes the sum: KFC has one for each use, the other kinds the diagonal. A
    bias of the head alone is a block of its own.
    """

    has_factors = False
    names = ("weight",)
    beside = ("bias",)

    @override
    def refusal(self, module: nn.Module) -> str | None:
        return super().refusal(module) if isinstance(module, nn.Embedding) else None

    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Bring token ids to [N, R], or the inputs of the head to [N, R, q]."""
        if isinstance(module, nn.Embedding):
            return super().features(module, x, examples)
        return x.reshape(examples, -1, x.shape[-1])

    def add_squared_sums(self, total: Tensor, ids: Tensor, g: Tensor, h: Tensor, z: Tensor) -> None:
        """Add the sum over examples of the squared per-example gradient of both layers.

        Args:
            total: Changed in place, [q, V].
            ids: Token ids [N, R], -1 for tokens without gradient.
            g: Gradients of the embedding's outputs [N, R, q].
            h: Inputs of the head [N, S, q].
            z: Gradients of the head's scores [N, S, V].
        """
        q, tokens = total.shape
        step = max(1, self.held(total) // q)
        for start in range(0, tokens, step):  # no example's gradient is ever held whole
            part = slice(start, min(start + step, tokens))
            for own_ids, own_g, own_h, own_z in zip(ids, g, h, z, strict=True):
                gradient = own_h.T @ own_z[:, part]  # [q, v]
                inside = (own_ids >= part.start) & (own_ids < part.stop)
                gradient.index_add_(1, own_ids[inside] - part.start, own_g[inside].T)
                total[:, part].addcmul_(gradient, gradient)


def tokens_of_examples(ids: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Find the tokens of each example, however often it has them.

    Args:
        ids: Shape [N, R].
        counted: Which of them count [N, R].

    Returns:
        The tokens [M], once for each example that has them, and for each place that counts which of
        the M it is.
    """
    example = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    pairs = torch.stack([example[counted], ids[counted]])
    found, place = torch.unique(pairs, dim=1, return_inverse=True)
    return found[1], place
