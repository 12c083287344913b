"""Probes of a ranker, made of an ontology: no mention of the old task is read for them."""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import DataError, ProbeError
from ..probes import Probes, Source, TokenTable
from .collator import CandidateCollator
from .encoding import encode_candidates
from .objective import ranking_forward
from .ontologies import Ontology
from .retrieval import Retriever, get_retriever
from .schema import Concept

__all__ = [
    "Candidates",
    "ProbeArguments",
    "candidates_of",
    "contexts_of",
    "ontology_examples",
    "probes_from_ontology",
]


logger = logging.getLogger(__name__)


@dataclass
class ProbeArguments:
    """Which probes of a task a script keeps."""

    max_probes: int = field(
        default=1000,
        metadata={
            "help": "How many inputs the prior keeps with what the model says of them: names of "
            "concepts as mentions, with their candidates, half of them among words that stand in "
            "10 training documents; 0 for none."
        },
    )
    min_probe_examples: int | None = field(
        default=None,
        metadata={
            "help": "Among the candidates of how many training examples a concept must stand to be "
            "used for them (default: 10, or of a hundredth where there are fewer than 1,000)."
        },
    )

    def __post_init__(self) -> None:
        for name, least in (("max_probes", 0), ("min_probe_examples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"{name} is {value}; give at least {least}")

    def candidates(self, examples: datasets.Dataset) -> Candidates | None:
        """Collect what probes are to be made of; None if there are to be none.

        Args:
            examples: Training examples of the task.

        Raises:
            DataError: Too few concepts stand among their candidates.
        """
        if not self.max_probes:
            return None
        least = self.min_probe_examples or max(1, min(10, len(examples) // 100))
        found = candidates_of(examples, min_examples=least)
        return found._replace(contexts=contexts_of(examples, count=self.max_probes))

    def probes(
        self,
        model: nn.Module,
        candidates: Candidates | None,
        collator: CandidateCollator,
        max_length: int,
    ) -> Probes | None:
        """Make the probes of a model that has just learnt the task.

        Args:
            model: The ranker.
            candidates: Of :meth:`candidates`.
            collator: Of the ranker, with its tokenizer.
            max_length: The most tokens of text and candidate name together.

        Raises:
            DataError: No name of a concept has tokens.
        """
        if candidates is None:
            return None
        return probes_from_ontology(
            model,
            candidates.ontology,
            collator,
            weights=candidates.counts,
            max_probes=self.max_probes,
            num_candidates=candidates.most,
            max_length=max_length,
            contexts=candidates.contexts,
        )


class Candidates(NamedTuple):
    """What probes are made of, of a task's examples: concepts that stand among their candidates.

    Args:
        ontology: The concepts, by the names that they stand there under.
        counts: In how many lists each stands, by identifier.
        most: Candidates of the longest list.
        contexts: Of :func:`contexts_of`.
    """

    ontology: Ontology
    counts: dict[str, int]
    most: int
    contexts: Sequence[tuple[str, str]] = ()


def probes_from_ontology(
    model: nn.Module, ontology: Ontology, collator: CandidateCollator, **how: Any
) -> Probes:
    """Keep what a ranker says of an ontology's own names.

    Args:
        model: At the parameters to be remembered.
        ontology: The concepts.
        collator: Of the ranker, with its tokenizer.
        **how: All other arguments of :func:`ontology_examples`.

    Returns:
        Probes, whose provenance says how they were made.

    Raises:
        DataError: The ontology has fewer than two concepts, none has a weight, or no name has
            tokens.

    Example:
        >>> found = candidates_of(train, min_examples=10)  # doctest: +SKIP
        >>> probes = probes_from_ontology(
        ...     model, found.ontology, collator, weights=found.counts
        ... )  # doctest: +SKIP
    """
    rows, source = ontology_examples(ontology, collator.tokenizer, **how)
    return Probes.from_dataset(model, rows, collator, forward=ranking_forward, source=source)


def ontology_examples(
    ontology: Ontology,
    tokenizer: PreTrainedTokenizerBase,
    *,
    weights: Mapping[str, float] | None = None,
    max_probes: int = 3000,
    retrieval: str | Retriever = "tfidf",
    num_candidates: int = 10,
    max_length: int = 96,
    drop_share: float = 0.5,
    contexts: Sequence[tuple[str, str]] = (),
    seed: int = 0,
) -> tuple[list[dict[str, Any]], Source]:
    """Make a ranker's inputs of an ontology, for :meth:`~hf_kfc.Probes.from_dataset`.

    Each is a name of a concept as the mention, one word of it left out in ``drop_share`` of the
    cases, with the candidates that retrieval finds for it. Which of them is right is not asked.

    What they tell of the old data is what the arguments do: an ontology from elsewhere nothing, one
    with the words of mentions these words, and ``weights`` by the old task's candidates
    (:func:`candidates_of`) which concepts the old texts are about.

    Args:
        ontology: The concepts, by the names that mentions are made of; a candidate is shown under
            its first one.
        tokenizer: Of the ranker.
        weights: How often mentions are made of which concept, by identifier; the others are
            candidates alone. None draws all alike.
        max_probes: How many to make; one with a name or a mention without tokens is left out.
        retrieval: A key of :data:`~hf_kfc.ranking.retrieval.RETRIEVERS`, or the retriever itself.
        num_candidates: Candidates of each, as the old task had them.
        max_length: The most tokens of text and candidate name together, likewise.
        drop_share: Share of the mentions that lack a word of the name, if it has several.
        contexts: Pairs (left, right) of words that may stand around a mention, drawn alike, as of
            :func:`contexts_of`. Without any a mention stands alone.
        seed: Of all that is drawn.

    Returns:
        Encoded examples without labels, and how they were made.

    Raises:
        DataError: The ontology has fewer than two concepts, none has a weight, or no name has
            tokens.
    """
    if len(ontology) < 2:
        raise DataError("the ontology has 1 concept; probes are between at least two")
    draw = random.Random(f"probes:{seed}")
    positions = _drawn(ontology, weights, max_probes, draw)
    mentions = [_mention(ontology[position], drop_share, draw) for position in positions]
    retriever = get_retriever(retrieval, ontology) if isinstance(retrieval, str) else retrieval
    rows = []
    found = retriever.search(mentions, num_candidates)
    for number, (mention, hits) in enumerate(zip(mentions, found, strict=True)):
        concepts = [ontology[hit.position] for hit in hits]
        draw.shuffle(concepts)
        left, right = draw.choice(contexts) if contexts else ("", "")
        rows.append(_row(number, left, mention, right, concepts))
    texts = {text for row in rows for text in (row["mention"], *row["candidate_names"])}
    empty = {text for text in texts if not tokenizer.tokenize(text)}
    kept = [row for row in rows if not empty & {row["mention"], *row["candidate_names"]}]
    if not kept:
        raise DataError("no name of the ontology has tokens; use a tokenizer that knows its words")
    examples = encode_candidates(datasets.Dataset.from_list(kept), tokenizer, max_length)
    settings: dict[str, int | float | str] = {
        "ontology": ontology.fingerprint,
        "retrieval": retrieval if isinstance(retrieval, str) else type(retrieval).__name__,
        "num_candidates": num_candidates,
        "max_length": max_length,
        "drop_share": drop_share,
        "contexts": len(contexts),
        "seed": seed,
    }
    counts = {
        "concepts": len(ontology),
        "names": ontology.num_names,
        "concepts mentioned": len(ontology if weights is None else weights),
        "without tokens": len(rows) - len(kept),
    }
    source = Source("ontology", settings=settings, counts=counts)
    return examples.remove_columns(["id", "labels"]).to_list(), source


def candidates_of(examples: Iterable[Mapping[str, Any]], *, min_examples: int = 10) -> Candidates:
    """Collect the concepts that stand among the candidates of examples, with their names.

    It is what is at hand of an ontology that is not. Neither labels nor mentions are read; but
    where a data set names concepts by the words of its own mentions, so do the candidates.

    Args:
        examples: With the columns ``candidate_ids`` and ``candidate_names``.
        min_examples: In how many lists of candidates a concept must stand.

    Raises:
        DataError: Fewer than two concepts stand in so many.
    """
    counts: Counter[str] = Counter()
    most = 0
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for example in examples:
        own = dict(zip(example["candidate_ids"], example["candidate_names"], strict=True))
        counts.update(own.keys())
        most = max(most, len(own))
        for id_, name in own.items():
            names[id_][name] = None
    kept = {id_: count for id_, count in sorted(counts.items()) if count >= min_examples}
    if len(kept) < 2:
        raise DataError(
            f"{len(kept)} concepts stand among the candidates of {min_examples} examples; lower "
            "min_examples, or make probes of the ontology itself"
        )
    concepts = (
        Concept(id_, first, tuple(others)) for id_ in kept for first, *others in [names[id_]]
    )
    return Candidates(Ontology(concepts), kept, most)


def contexts_of(
    examples: Iterable[Mapping[str, Any]],
    *,
    count: int,
    min_documents: int = 10,
    words: int = 16,
    share: float = 0.5,
    seed: int = 0,
) -> list[tuple[str, str]]:
    """Write words to stand around mentions, as often as they stand around those of examples.

    They are drawn one after another (:class:`~hf_kfc.probes.TokenTable`) from tables of words and
    of pairs of neighbours, each of which stands in ``min_documents`` documents or more. A ranker's
    scores are held where its inputs are: a mention alone is not one of them.

    Args:
        examples: With the columns ``left`` and ``right``; one without ``document`` is a document of
            its own.
        count: How many contexts.
        min_documents: In how many documents a word, or a pair, must stand.
        words: The most on each side.
        share: Of the contexts that have words; the others are empty.
        seed: Of all that is drawn.

    Returns:
        Pairs (left, right); none, with a warning, if no word stands in so many documents.
    """
    known: dict[str, int] = {}
    documents: dict[Any, list[list[int]]] = defaultdict(list)
    for number, example in enumerate(examples):
        sides = [example[side].split() for side in ("left", "right")]
        ids = [[known.setdefault(word, len(known)) for word in own] for own in sides]
        documents[example.get("document", number)] += [own for own in ids if own]
    rows = [{"input_ids": lists} for lists in documents.values() if lists]
    try:
        table = TokenTable.count(rows, min_examples=min_documents)
    except ProbeError:
        logger.warning(
            "No word around a mention stands in %d of %d documents: probes are names alone.",
            min_documents,
            len(rows),
        )
        return []
    full, by_number = round(share * count), list(known)
    texts = [
        " ".join(by_number[id_] for id_ in ids)
        for ids in table.draw(2 * full, (1, words), seed=seed)
    ]
    empty = [("", "")] * (count - full)
    return [*zip(texts[:full], texts[full:], strict=True), *empty]


def _drawn(
    ontology: Ontology, weights: Mapping[str, float] | None, count: int, draw: random.Random
) -> list[int]:
    """Draw concepts that mentions are made of, by position."""
    if weights is None:
        return draw.choices(range(len(ontology)), k=count)
    known = [(ontology.position(id_), weight) for id_, weight in weights.items()]
    usable = [(position, weight) for position, weight in known if position is not None]
    if not any(weight > 0 for _, weight in usable):
        raise DataError("no concept of the ontology has a weight; give it to some, or to none")
    found, shares = zip(*usable, strict=True)
    return draw.choices(found, shares, k=count)


def _mention(concept: Concept, drop_share: float, draw: random.Random) -> str:
    """Draw a name of a concept, and leave a word out of some."""
    words = draw.choice(concept.names).split()
    if len(words) > 1 and draw.random() < drop_share:
        del words[draw.randrange(len(words))]
    return " ".join(words)


def _row(
    number: int, left: str, mention: str, right: str, concepts: Collection[Concept]
) -> dict[str, Any]:
    return {
        "id": str(number),
        "left": left,
        "mention": mention,
        "right": right,
        "candidate_ids": [concept.id for concept in concepts],
        "candidate_names": [concept.name for concept in concepts],
        "label": 0,
    }
