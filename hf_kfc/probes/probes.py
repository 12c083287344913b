"""Probes: what the anchor puts out on inputs that anyone may have, and how far a model is from it.

A penalty on parameters is a picture of the old loss near the anchor; this holds what the model
does, however far it moves. Learning without Forgetting (Li & Hoiem 2016, arXiv:1606.09282) is the
case in which the inputs are those of the new task; a language model can make its own
(arXiv:2605.26097).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..curvature import Family, unwrapped
from ..curvature.batches import refuse_other_data, tokens_of
from ..curvature.objective import Forward
from ..errors import ProbeError
from .caching import outputs_of
from .content import Source, digest_of, fingerprint_of, from_content, to_content
from .forward import unlabelled_forward
from .generation import NGRAM, sampled_texts
from .inputs import (
    Collator,
    collated,
    inputs_of,
    pad_tokens,
    refuse_empty,
    refuse_long,
    special_tokens_around,
    vocabulary_of,
    with_decoder_inputs,
)
from .outputs import Cache, Divergences, Targets
from .rows import Rows
from .tokens import MIN_EXAMPLES, TokenTable

__all__ = ["Collator", "Probes"]


class _HasTokenTable(Protocol):
    def token_table(self, min_examples: int) -> TokenTable: ...


class Probes:
    """Inputs on which the anchor's outputs are kept. They do not change.

    Args:
        rows: Examples as a collator takes them, without labels.
        cache: The anchor's outputs on them.
        source: Where they come from.
        anchor_digests: SHA-256 of each of the anchor's parameters in float32, by name.

    Raises:
        ProbeError: Rows and outputs are not of equally many examples.

    Example:
        >>> probes = Probes.from_dataset(model, public_texts, collator)  # doctest: +SKIP
        >>> train, held_out = probes.split(0.2, seed=0)  # doctest: +SKIP
        >>> loss = train.loss(model, range(32), collator).loss  # doctest: +SKIP
    """

    def __init__(
        self, rows: Rows, cache: Cache, source: Source, anchor_digests: Mapping[str, str]
    ) -> None:
        self.rows = rows
        self.provenance = source
        self.anchor_digests = dict(anchor_digests)
        self._cache = cache
        if len(rows) != len(cache.decisions):
            raise ProbeError(f"{len(rows)} examples have {len(cache.decisions)} outputs")

    @classmethod
    def from_dataset(
        cls,
        model: nn.Module,
        dataset: Any,
        collator: Collator,
        *,
        max_probes: int | None = None,
        top_k: int | None = None,
        batch_size: int = 32,
        forward: Forward = unlabelled_forward,
        columns: Sequence[str] | None = None,
        source: str | Source = "dataset",
        seed: int = 0,
    ) -> Self:
        """Keep a model's outputs on examples; their labels are not read.

        They may be anything that the user may keep: public text, names of an ontology, a part of
        the old data on purpose, or the new task's own inputs (``source="new task"``).

        The model runs in evaluation mode and without gradient, and is as it was afterwards. Of up
        to 1,024 classes all log-probabilities are kept. Of more, as of a vocabulary, the ``top_k``
        largest are, and the mass of the rest: KL(anchor ‖ model) with the rest taken together is a
        lower bound of the whole (the log-sum inequality), and equal to it where the model keeps
        the proportions within the rest. :attr:`mean_rest` tells how much mass that is.

        Args:
            model: At the parameters to be remembered.
            dataset: Examples by index.
            collator: Makes the same batch of the same examples; one that masks at random is
                refused. Padding may be on either side.
            max_probes: How many to keep, chosen by ``seed``; None keeps all.
            top_k: How many classes to keep; None keeps all up to 1,024 and 64 of more.
            batch_size: Has no influence on the result.
            forward: Runs the model on a batch **without labels**; as in ``estimate_curvature``, so
                that rankers give theirs. Trainings need the same one.
            columns: Which of the examples' columns are inputs; by default those that the model's
                forward names.
            source: A name for where the examples come from, or more about it.
            seed: Of the choice.

        Raises:
            ProbeError: Inputs or outputs cannot be kept; it says which and why.
            CurvatureError: The model is sharded, or the data set has no examples by index.

        Example:
            >>> probes = Probes.from_dataset(
            ...     model, texts, DataCollatorWithPadding(tokenizer), max_probes=2000
            ... )  # doctest: +SKIP
        """
        model = unwrapped(model)
        refuse_other_data(dataset)
        if not len(dataset):
            raise ProbeError("the data set is empty; probes need at least one example")
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(dataset), generator=generator)[:max_probes].sort().values
        examples = [with_decoder_inputs(model, dataset[index]) for index in chosen.tolist()]
        rows = Rows.of(examples, inputs_of(model, examples[0], columns))
        refuse_empty(rows, chosen.tolist())
        if isinstance(source, str):
            source = Source(source, counts={"examples": len(dataset)})
        config = getattr(model, "config", None)
        source = replace(source, model=getattr(config, "_name_or_path", "") or type(model).__name__)
        cache = outputs_of(model, rows, collator, top_k, batch_size, forward)
        digests = {name: digest_of(value) for name, value in model.named_parameters()}
        return cls(rows, cache, source, digests)

    @classmethod
    def from_tokens(
        cls,
        model: nn.Module,
        table: TokenTable | _HasTokenTable | None,
        collator: Collator,
        *,
        count: int,
        length: int | tuple[int, int],
        min_examples: int = MIN_EXAMPLES,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Keep a model's outputs on texts drawn from a table of tokens.

        No text of the old task is read: in a table of it, every token and every pair stands in
        ``min_examples`` examples or more. Texts have before and after them what the collator's
        tokenizer adds to one, and no other special token.

        Args:
            model: At the parameters to be remembered.
            table: Of the old task, or a prior of an embedding's tokens; None draws all tokens of
                the model's vocabulary alike.
            collator: As in :meth:`from_dataset`.
            count: How many texts.
            length: Tokens drawn for each, or the least and the most.
            min_examples: A table of fewer is refused, and a prior's tokens of fewer are not drawn.
            seed: The same texts for the same seed.
            **options: ``top_k``, ``batch_size`` and ``forward`` of :meth:`from_dataset`.

        Raises:
            ProbeError: The table has entries of fewer examples, or none, or texts would be longer
                than the model has positions.

        Example:
            >>> table = TokenTable.count(old_examples)  # doctest: +SKIP
            >>> probes = Probes.from_tokens(
            ...     model, table, collator, count=1000, length=(8, 64)
            ... )  # doctest: +SKIP
        """
        model, tokenizer = unwrapped(model), getattr(collator, "tokenizer", None)
        name = "tokens"
        if table is None:
            table, name = TokenTable.uniform(range(vocabulary_of(model))), "uniform tokens"
        else:
            table = table if isinstance(table, TokenTable) else table.token_table(min_examples)
            if table.min_examples < min_examples:
                raise ProbeError(
                    f"the table has entries of {table.min_examples} examples, and min_examples is "
                    f"{min_examples}; count it anew, or lower min_examples"
                )
        special: set[int | None] = set(getattr(tokenizer, "all_special_ids", None) or [])
        special.add(getattr(getattr(model, "config", None), "pad_token_id", None))
        before, after = special_tokens_around(tokenizer)
        low, high = (length, length) if isinstance(length, int) else length
        longest = len(before) + high + len(after)
        refuse_long(model, f"length is {length}, with special tokens {longest},", longest)
        texts = table.draw(count, length, seed=seed, without=special)
        source = Source(
            name,
            settings={"min_examples": table.min_examples, "seed": seed, "from": low, "to": high},
            counts={
                "tokens": len(table.tokens),
                "pairs": sum(len(seconds) for seconds in table.pairs.values()),
                "kept": count,
            },
        )
        rows = [{"input_ids": [*before, *text, *after]} for text in texts]
        return cls.from_dataset(model, rows, collator, source=source, **options)

    @classmethod
    def generate(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        count: int,
        max_length: int,
        prompts: Sequence[str | Sequence[int]] | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        drop_repeats_of: Iterable[Any] | None = None,
        ngram: int = NGRAM,
        batch_size: int = 16,
        top_k: int | None = None,
    ) -> Self:
        """Let a causal language model write texts, and keep its outputs on them.

        Sampled from its whole distribution, whatever its generation settings, such texts are where
        the old model puts its mass (arXiv:2605.26097). A model may also repeat what it was trained
        on, word for word: a text that shares ``ngram`` tokens in a row with one of
        ``drop_repeats_of`` is dropped, and counted in :attr:`provenance`. What is not given cannot
        be found.

        Args:
            model: At the parameters to be remembered.
            tokenizer: Its tokenizer.
            count: How many texts to keep.
            max_length: The most tokens of each, with the prompt.
            prompts: Texts or lists of tokens to go on from, in turn; None begins with BOS.
            seed: The same texts for the same seed, batch size and machine.
            temperature: Of the sampling.
            drop_repeats_of: Training data: texts, lists of tokens, or rows with ``text`` or
                ``input_ids``.
            ngram: How many tokens in a row are a repetition.
            batch_size: Texts at a time.
            top_k: As in :meth:`from_dataset`.

        Raises:
            ProbeError: The model cannot write texts, or too few are left.

        Example:
            >>> probes = Probes.generate(
            ...     model, tokenizer, count=500, max_length=128, drop_repeats_of=old_texts
            ... )  # doctest: +SKIP
        """
        texts, source = sampled_texts(
            model,
            tokenizer,
            count=count,
            max_length=max_length,
            prompts=prompts,
            seed=seed,
            temperature=temperature,
            drop_repeats_of=drop_repeats_of,
            ngram=ngram,
            batch_size=batch_size,
        )
        rows = [{"input_ids": text} for text in texts]
        return cls.from_dataset(
            model, rows, pad_tokens, batch_size=batch_size, top_k=top_k, source=source
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return (
            f"Probes({len(self)} inputs, {self.num_decisions} decisions, "
            f"source='{self.provenance.name}')"
        )

    @property
    def family(self) -> Family:
        """What the outputs are scores of."""
        return self._cache.family

    @property
    def decisions(self) -> Tensor:
        """How many decisions each example has, shape [N]."""
        return self._cache.decisions

    @property
    def num_decisions(self) -> int:
        """Decisions of all examples together."""
        return int(self._cache.decisions.sum())

    @property
    def mean_rest(self) -> float:
        """Mean probability of the classes whose own is not kept; 0 where all are."""
        return self._cache.mean_rest

    @property
    def num_bytes(self) -> int:
        """How much they take where they are stored."""
        return sum(tensor.nbytes for tensor in self.state()[1].values())

    def summary(self) -> dict[str, Any]:
        """Return JSON values that tell what the probes are."""
        return {
            **asdict(self.provenance),
            "inputs": len(self),
            "decisions": self.num_decisions,
            "loss": self.family.value,
            "classes": self._cache.classes or "all",
            "mean_rest": self.mean_rest,
            "bytes": self.num_bytes,
            "fingerprint": self.fingerprint,
        }

    def batch(
        self, indices: Sequence[int], collator: Collator
    ) -> tuple[dict[str, Tensor], Targets]:
        """Make a batch of inputs, with the anchor's outputs.

        Args:
            indices: Of the probes.
            collator: Makes a batch of a list of rows; labels that it adds are left out.

        Returns:
            Tensors by name, padded on the right, and what the anchor decided.

        Raises:
            ProbeError: The collator cannot do without labels.
        """
        return collated([self.rows[i] for i in indices], collator), self._cache.targets(indices)

    def loss(
        self,
        model: nn.Module,
        indices: Sequence[int],
        collator: Collator,
        *,
        forward: Forward = unlabelled_forward,
        temperature: float = 1.0,
    ) -> Divergences:
        """Measure how far a model's outputs are from the anchor's.

        The mean over all decisions of the batch of KL(anchor ‖ model) = Σ_c p_c (log p_c − log q_c)
        in nats, p the anchor's probabilities and q the model's; of numbers, of the squared
        difference. Its gradient is 0 at the anchor. The model runs as it is: in training mode with
        its dropout, which alone moves it from the anchor.

        Args:
            model: Of the anchor's architecture.
            indices: Of the probes.
            collator: Makes a batch of a list of rows.
            forward: That of :meth:`from_dataset`.
            temperature: T of the mean, T²·KL(p^{1/T} ‖ q^{1/T}), both scaled to sum to 1; each
                decision's value is at 1.

        Returns:
            The mean, with a gradient, and each decision's value.

        Raises:
            ProbeError: The model makes other decisions than the anchor, or has not its tokens.
        """
        self.check(model)
        inputs, targets = self.batch(indices, collator)
        device = next(model.parameters()).device
        inputs = {name: value.to(device) for name, value in inputs.items()}
        return targets.to(device).divergences(forward(model, inputs), temperature)

    def select(self, indices: Sequence[int]) -> Self:
        """Keep some of the probes.

        Args:
            indices: Theirs.
        """
        columns = {name: column.select(indices) for name, column in self.rows.columns.items()}
        cache = self._cache.select(indices)
        return type(self)(Rows(columns), cache, self.provenance, self.anchor_digests)

    def split(self, held_out: float | int, seed: int = 0) -> tuple[Self, Self]:
        """Split into probes to train on and probes to measure with.

        Args:
            held_out: How many to hold out, or a share of all below 1; at least one.
            seed: The same split for the same seed.

        Returns:
            The training part and the part held out.

        Raises:
            ProbeError: Nothing is left for one of them.
        """
        wanted = round(held_out * len(self)) if isinstance(held_out, float) else held_out
        wanted = max(wanted, 1)
        if not held_out > 0 or not wanted < len(self):
            raise ProbeError(
                f"held_out={held_out} of {len(self)} probes leaves none for training or for "
                "measuring; make more probes or hold out fewer"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        return self.select(sorted(order[wanted:])), self.select(sorted(order[:wanted]))

    def check(self, model: nn.Module) -> None:
        """Make sure that a model can be compared with the anchor.

        Args:
            model: The model to be trained.

        Raises:
            ProbeError: The probes have tokens that it has not.
        """
        tokens, (least, most) = tokens_of(model), self._token_range
        if tokens is not None and not 0 <= least <= most < tokens:
            raise ProbeError(
                f"the probes have tokens from {least} to {most}, and {type(model).__name__} has "
                f"{tokens}; train the model that they were made with"
            )

    @cached_property
    def _token_range(self) -> tuple[int, int]:
        column = self.rows.columns.get("input_ids")
        if column is None or not len(column.values):
            return 0, 0
        return int(column.values.min()), int(column.values.max())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the rows and the outputs as they are stored."""
        return fingerprint_of(*self.state())

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON values and named tensors, of which no two share memory."""
        return to_content(self.rows, self._cache, self.provenance, self.anchor_digests)

    @classmethod
    def from_state(cls, values: Any, tensors: Mapping[str, Tensor]) -> Self:
        """Undo :meth:`state`; what it reads may be anybody's.

        Args:
            values: JSON values.
            tensors: By name.

        Raises:
            ProbeError: Something is missing, malformed, or does not fit the rest; all is listed.
        """
        return cls(*from_content(values, tensors))

    def without_digests(self, names: Collection[str]) -> Self:
        """Forget the sums of some parameters, by which a guess at their values could be verified.

        Args:
            names: Of the parameters.
        """
        digests = {n: value for n, value in self.anchor_digests.items() if n not in names}
        return type(self)(self.rows, self._cache, self.provenance, digests)
