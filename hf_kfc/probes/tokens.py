"""Texts drawn from tables of tokens, in which nothing stands that few examples have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from random import Random
from typing import Any

from ..errors import ProbeError

__all__ = ["MIN_EXAMPLES", "TokenTable", "lists_of"]

MIN_EXAMPLES = 10
"""In how many examples a token, or a pair of them, must stand to be in a table."""


@dataclass(frozen=True)
class TokenTable:
    """How often tokens stand in a task's examples, and which one follows which.

    Args:
        tokens: How often each token is drawn, by token: counts or frequencies.
        pairs: How often each token is drawn after another one, by the other one. After a token that
            is not in it, one is drawn as at the start.
        min_examples: In how many examples every entry stands at least; 0 of a table that tells of
            no example.
    """

    tokens: Mapping[int, float]
    pairs: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    min_examples: int = 0

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ProbeError("a token table has no tokens; lower min_examples or count more texts")

    @classmethod
    def uniform(cls, tokens: Iterable[int]) -> TokenTable:
        """Make the table of tokens that are all as frequent; it tells of no example.

        Args:
            tokens: Those that are drawn.
        """
        return cls(dict.fromkeys(tokens, 1.0))

    @classmethod
    def count(
        cls, examples: Iterable[Mapping[str, Any]], *, min_examples: int = MIN_EXAMPLES
    ) -> TokenTable:
        """Count the old task's examples, to be kept instead of them.

        Args:
            examples: Rows with ``input_ids``, in lists of any depth.
            min_examples: Tokens and pairs of neighbours that fewer examples have are left out; they
                cannot be found out from the table.

        Raises:
            ProbeError: No token is left.
        """
        tokens, pairs = Counter[int](), Counter[tuple[int, int]]()
        owners, pair_owners = Counter[int](), Counter[tuple[int, int]]()
        for example in examples:
            lists = list(lists_of(example["input_ids"]))
            own = Counter(token for ids in lists for token in ids)
            both = Counter(pair for ids in lists for pair in pairwise(ids))
            tokens, pairs = tokens + own, pairs + both
            owners.update(own.keys())
            pair_owners.update(both.keys())
        follow: dict[int, dict[int, float]] = {}
        for (first, second), number in pairs.items():
            if pair_owners[first, second] >= min_examples:
                follow.setdefault(first, {})[second] = number
        kept = {token: number for token, number in tokens.items() if owners[token] >= min_examples}
        return cls(kept, follow, min_examples)

    def draw(
        self,
        count: int,
        length: int | tuple[int, int],
        *,
        seed: int = 0,
        without: Iterable[int | None] = (),
    ) -> list[list[int]]:
        """Draw texts, token after token.

        Args:
            count: How many.
            length: Tokens of each, or the least and the most of them, of which each length is as
                likely.
            seed: The same texts for the same seed.
            without: Tokens that are not drawn, as those of padding and of ends.

        Raises:
            ProbeError: No token is left to draw.
        """
        left_out, generator = set(without), Random(seed)
        start = _Drawn(self.tokens, left_out)
        if not start.tokens:
            raise ProbeError("a token table has no tokens but special ones; count other texts")
        follow = {first: _Drawn(seconds, left_out) for first, seconds in self.pairs.items()}
        low, high = (length, length) if isinstance(length, int) else length
        texts = []
        for _ in range(count):
            text = [start.draw(generator)]
            for _ in range(generator.randint(low, high) - 1):
                after = follow.get(text[-1], start)
                text.append((after if after.tokens else start).draw(generator))
            texts.append(text)
        return texts


class _Drawn:
    def __init__(self, weights: Mapping[int, float], left_out: set[int | None]) -> None:
        self.tokens = sorted(token for token in weights if token not in left_out)
        self._sums = list(accumulate(weights[token] for token in self.tokens))

    def draw(self, generator: Random) -> int:
        return generator.choices(self.tokens, cum_weights=self._sums)[0]


def lists_of(ids: Any) -> Iterator[Sequence[int]]:
    """Yield the innermost lists of tokens."""
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    if values and isinstance(values[0], int):
        yield values
        return
    for part in values:
        yield from lists_of(part)
