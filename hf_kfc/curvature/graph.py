"""The graph of autograd: what a tensor is computed of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["nodes_under"]


def nodes_under(nodes: Iterable[Any]) -> Iterator[Any]:
    """Yield some nodes and all that they are made of, each once.

    Args:
        nodes: ``grad_fn`` of tensors; None, of a tensor without, has nothing under it.
    """
    seen, left = set[Any]([None]), list(nodes)
    while left:
        node = left.pop()
        if node not in seen:
            seen.add(node)
            yield node
            left += [below for below, _ in node.next_functions]
