"""The encoded splits of a task."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import datasets
from transformers import PreTrainedTokenizerBase

from hf_kfc.errors import ConsolidationError, DataError
from hf_kfc.probes import Source
from hf_kfc.ranking import candidates_of, contexts_of, encode_splits, ontology_examples
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.corpora.builder import CandidateRankingBuilder

__all__ = [
    "PROBE_KINDS",
    "Example",
    "Examples",
    "Names",
    "ProbeKind",
    "TaskData",
    "encode_task",
    "random_examples",
]

Example = dict[str, Any]
Examples = list[Example]
"""Encoded examples in memory: reading Arrow rows in every epoch costs as much as a small CNN."""


class ProbeKind(NamedTuple):
    """What probes are made of an ontology with.

    Args:
        min_documents: In how many documents mentions must consist of words that are names too; None
            for the ontology's own names alone.
        with_contexts: Half of the mentions stand among words that stand in ten documents.
    """

    min_documents: int | None
    with_contexts: bool = False


PROBE_KINDS: Mapping[str, ProbeKind] = {
    "names": ProbeKind(10),
    "texts": ProbeKind(10, with_contexts=True),
    "own_names": ProbeKind(None),
    "aliases": ProbeKind(1),
}
"""Kinds of probes of an ontology, by name."""


class Names:
    """What probes of a task are made of: its ontology, and not its mentions.

    Args:
        builder: Of the task, prepared.
        tokenizer: Of the ranker.
        max_length: The most tokens of text and candidate name together.
    """

    def __init__(
        self,
        builder: CandidateRankingBuilder,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> None:
        self._builder, self._tokenizer, self._max_length = builder, tokenizer, max_length
        self.examples = lru_cache(self._examples)

    def _examples(self, kind: ProbeKind, learnt: int, seed: int) -> tuple[Examples, Source]:
        """Make inputs of the ontology's names.

        Concepts are mentioned as often as they stood among the candidates of what was learnt, if
        they did so in ten examples (where fewer than 1,000 were learnt, in one of a hundred).

        Args:
            kind: Of what.
            learnt: How many training examples the ranker has learnt.
            seed: Of all that is drawn.
        """
        train = self._builder.as_dataset()["train"]
        least = max(1, min(10, learnt // 100))
        own = train.select(range(learnt))
        learnt_from = candidates_of(own, min_examples=least)
        ontology = self._builder.read_ontology(kind.min_documents)
        return ontology_examples(
            ontology,
            self._tokenizer,
            weights=learnt_from.counts,
            retrieval=self._builder.config.retrieval,
            num_candidates=self._builder.config.num_candidates,
            max_length=self._max_length,
            contexts=contexts_of(own, count=3000, seed=seed) if kind.with_contexts else (),
            seed=seed,
        )


@dataclass(frozen=True)
class TaskData:
    """A task ready for a ranker.

    Args:
        name: The task's name.
        train: Encoded training examples.
        validation: Encoded examples for choosing strengths.
        test: Encoded examples for the figures that are reported.
        parts: Tasks that it was put together from; a share is kept of each for rehearsal.
        names: Of its ontology; None if there is none to read.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    parts: tuple[TaskData, ...] = ()
    names: Names | None = None

    def probe_examples(
        self, kind: str, seed: int, new: TaskData, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Examples, str | Source]:
        """Make inputs on which a ranker that has learnt the task is to stay as it is.

        Args:
            kind: A key of :data:`PROBE_KINDS`, ``uniform`` (random tokens), ``new`` (the new
                task's inputs) or ``old`` (the task's own training inputs).
            seed: Of what is drawn.
            new: The task to be learnt.
            tokenizer: Of the ranker.

        Returns:
            The inputs, and where they come from.

        Raises:
            ConsolidationError: The task has no ontology to make them of.
        """
        if kind in PROBE_KINDS:
            if self.names is None:
                raise ConsolidationError(
                    f"'{self.name}' has no ontology to make probes of; take another method"
                )
            return self.names.examples(PROBE_KINDS[kind], len(self.train), seed)
        if kind == "uniform":
            return random_examples(tokenizer, 3000, seed), "tokens"
        return (new.train, "new task") if kind == "new" else (self.train, "dataset")


def encode_task(
    name: str,
    splits: datasets.DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    builder: CandidateRankingBuilder | None = None,
) -> TaskData:
    """Check and encode the splits of a task.

    Args:
        name: The task's name.
        splits: ``train``, ``validation`` and ``test`` as the builders make them.
        tokenizer: Of the ranker.
        max_length: The most tokens of text and candidate name together.
        builder: What made the splits, for its ontology.

    Raises:
        DataError: An example cannot be ranked.
    """
    for split, examples in splits.items():
        try:
            check_examples(examples)
        except DataError as error:
            raise DataError(f"{name}/{split}: {error}") from None
    encoded = encode_splits(splits, tokenizer, max_length)
    names = None if builder is None else Names(builder, tokenizer, max_length)
    return TaskData(name, encoded["train"], encoded["validation"], encoded["test"], names=names)


def random_examples(
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    seed: int,
    candidates: int = 10,
    tokens: int = 32,
) -> Examples:
    """Make ranking examples of random tokens, for a prior without data.

    Args:
        tokenizer: Gives the vocabulary; special tokens are left out, but for the separator
            between text and name.
        count: Number of examples.
        seed: Of the draw.
        candidates: Candidates of an example.
        tokens: Tokens of a candidate's pair.

    Returns:
        Examples as :func:`~hf_kfc.ranking.encode_candidates` makes them; the labels are drawn
        too, and mean nothing.
    """
    draw = random.Random(seed)
    special = set(tokenizer.all_special_ids)
    words = [token for token in range(len(tokenizer)) if token not in special]
    first, separator = tokenizer.cls_token_id, tokenizer.sep_token_id
    text, name = tokens - 8, 5
    examples: Examples = []
    for _ in range(count):
        shared = [first, *draw.choices(words, k=text), separator]
        pairs = [[*shared, *draw.choices(words, k=name), separator] for _ in range(candidates)]
        types = [[0] * len(shared) + [1] * (name + 1)] * candidates
        label = draw.randrange(candidates)
        examples.append({"input_ids": pairs, "token_type_ids": types, "labels": label})
    return examples
