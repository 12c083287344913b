"""What a rule is of a layer whose outputs fall into parts with inputs of their own."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from .base import LayerRule

__all__ = ["StackedRule"]


class StackedRule(LayerRule):
    """A layer whose outputs fall into equal parts, each of which has inputs of its own.

    Its weight's matrix [q, p] is one above the other those of n layers of q/n outputs, and each of
    these has its own factors (:class:`~hf_kfc.curvature.KroneckerStack`).
    """

    @abstractmethod
    def number_of_parts(self, module: nn.Module) -> int:
        """Return n."""

    @abstractmethod
    def inputs_by_part(
        self, a: Tensor, valid: Tensor, parts: int, average: bool
    ) -> Tensor | list[Tensor]:
        """Return the inputs of each part at positions that count, [M_e, p].

        Args:
            a: Inputs [N, R, ...].
            valid: Which positions count [N, R].
            parts: n.
            average: Return their means over the positions of an example instead.
        """

    @abstractmethod
    def gradients_by_part(
        self, a: Tensor, g: Tensor, parts: int, together: bool
    ) -> Tensor | list[Tensor]:
        """Return the gradients of each part's outputs, [M_e, q/n].

        Args:
            a: Inputs [N, R, ...].
            g: Output gradients [N, R, ...].
            parts: n.
            together: Add up those of an example.
        """
