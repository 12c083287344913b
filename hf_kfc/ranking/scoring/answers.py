"""What a linker said of mentions, beside what they mean: from documents or from scores."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...errors import DataError
from ..concepts import canonical_id, is_nil
from ..formats.documents import Document, Pieces, Span
from ..ontologies import Ontology

__all__ = ["Answer", "Answers", "answers_of_documents", "answers_of_scores", "concept_counts"]

_CONTEXT = 80  # characters on each side of a mention


@dataclass(frozen=True, slots=True)
class Answer:
    """What a mention means and what a linker says of it; identifiers in their canonical spelling.

    Args:
        document: Its document.
        key: What tells it from the others of its document.
        mention: Its words.
        left: Text before it.
        right: Text after it.
        types: Its types; none are known of ranking examples.
        gold: The right concept; empty where it means none.
        predicted: What the linker says; empty for no concept, ``None`` where it says nothing.
        candidates: What it chose from, the best first, if that is known.
        probability: That the first candidate is right, if that is known.
    """

    document: str
    key: str
    mention: str
    left: str
    right: str
    types: tuple[str, ...]
    gold: str
    predicted: str | None
    candidates: tuple[str, ...] = ()
    probability: float | None = None

    @property
    def correct(self) -> bool:
        """Whether the linker is right, also that there is no concept."""
        return self.predicted == self.gold

    @property
    def context(self) -> str:
        """The mention between brackets in what stands around it, on one line."""
        return " ".join(f"{self.left}[{self.mention}]{self.right}".split())


@dataclass
class Answers:
    """The answers of one linker.

    Args:
        rows: One for each mention of the gold, in its order.
        names: What concepts are called.
        notes: How many mentions were left out or are otherwise remarkable, by what they are.
    """

    rows: list[Answer]
    names: dict[str, str] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)


def answers_of_documents(
    predictions: Iterable[Document], gold: Iterable[Document], ontology: Ontology | None = None
) -> Answers:
    """Set a linker's documents beside the gold ones.

    Mentions with several concepts have no single right one and are left out, as in training. A
    mention that the linker did not have is wrong; one that the gold does not have is left out.

    Args:
        predictions: What the linker wrote.
        gold: The right answers.
        ontology: Where it is given, other identifiers of a concept lead to its main one.

    Raises:
        DataError: A text differs between the two, or they have no mention in common.
    """
    resolve = _resolver(ontology)
    said, texts, names = _said(predictions, resolve)
    rows, asked, notes = [], set[tuple[str, Pieces]](), Counter[str]()
    for document in gold:
        if texts.get(document.id, document.text) != document.text:
            raise DataError(
                f"document {document.id!r} has another text in the predictions than in the gold; "
                "link the gold's texts"
            )
        golds: dict[Pieces, set[str]] = defaultdict(set)
        for span in document.spans:
            golds[span.pieces] |= set(map(resolve, span.concepts)) or {""}
        asked |= {(document.id, pieces) for pieces in golds}
        for span in document.spans:
            right, *others = golds[span.pieces]
            if others:
                notes["left out: several concepts"] += 1
                continue
            answer = said.get((document.id, span.pieces))
            notes["wrong: not in the predictions"] += answer is None
            rows.append(_answer(document, span, right, answer, resolve))
    notes["left out: not in the gold"] = len(said.keys() - asked)
    if not asked & said.keys():
        raise DataError(
            "the predictions and the gold have no mention in common; give those of one text, with "
            "the same document identifiers and offsets"
        )
    for id_ in {row.gold for row in rows} - names.keys() if ontology else ():
        if ontology and (position := ontology.position(id_)) is not None:
            names[id_] = ontology[position].name
    return Answers(rows, names, dict(+notes))


def _said(
    predictions: Iterable[Document], resolve: Callable[[str], str]
) -> tuple[dict[tuple[str, Pieces], Span], dict[str, str], dict[str, str]]:
    """Gather the spans by their places, the texts by document and the names by concept."""
    said, texts, names = {}, {}, dict[str, str]()
    for document in predictions:
        texts[document.id] = document.text
        for span in document.spans:
            said[document.id, span.pieces] = span
            own = zip(span.concepts, span.names, strict=False)
            for id_, name in (*own, *((one.id, one.name) for one in span.candidates)):
                names.setdefault(resolve(id_), name)
    return said, texts, names


def _answer(
    document: Document, span: Span, gold: str, said: Span | None, resolve: Callable[[str], str]
) -> Answer:
    start, end = min(s for s, _ in span.pieces), max(e for _, e in span.pieces)
    answer = Answer(
        document.source or document.id,
        ";".join(f"{s}-{e}" for s, e in span.pieces),
        span.text,
        document.text[max(start - _CONTEXT, 0) : start],
        document.text[end : end + _CONTEXT],
        span.types,
        gold,
        None,
    )
    if said is None:
        return answer
    return replace(
        answer,
        predicted="|".join(sorted(set(map(resolve, said.concepts)))),
        candidates=tuple(resolve(candidate.id) for candidate in said.candidates),
        probability=said.candidates[0].probability if said.candidates else said.probability,
    )


def answers_of_scores(examples: Iterable[Mapping[str, Any]], logits: ArrayLike) -> Answers:
    """Read a ranker's answers off its scores, as ``Trainer.predict`` gives them.

    Args:
        examples: Ranking examples (:data:`~hf_kfc.ranking.FEATURES`), a split of a data set.
        logits: Their scores ``[examples, candidates]``; beyond an example's candidates padding.

    Raises:
        DataError: There are more or fewer rows of scores than examples, or too few columns.
    """
    scores, names = np.asarray(logits, dtype=float), dict[str, str]()
    rows, examples = [], list(examples)
    if scores.ndim != 2 or len(scores) != len(examples):
        raise DataError(f"scores of shape {scores.shape} are not of {len(examples)} examples")
    for example, padded in zip(examples, scores, strict=True):
        ids = list(map(canonical_id, example["candidate_ids"]))
        own = padded[: len(ids)]
        if len(ids) > len(own):
            raise DataError(
                f"example {example['id']!r} has {len(ids)} candidates, {len(own)} scores"
            )
        order = np.argsort(-own, kind="stable")
        names |= dict(zip(ids, example["candidate_names"], strict=True))
        rows.append(
            Answer(
                example["document"],
                example["id"],
                example["mention"],
                example["left"][-_CONTEXT:],
                example["right"][:_CONTEXT],
                (),
                ids[example["label"]],
                ids[order[0]],
                tuple(ids[place] for place in order),
                float(1 / np.exp(own - own.max()).sum()),
            )
        )
    return Answers(rows, names)


def concept_counts(documents: Iterable[Document], ontology: Ontology | None = None) -> Counter[str]:
    """Count the mentions of each concept, as :func:`answers_of_documents` compares concepts.

    Args:
        documents: Those that a ranker was trained on.
        ontology: As there.
    """
    resolve = _resolver(ontology)
    return Counter(
        resolve(id_) for document in documents for span in document.spans for id_ in span.concepts
    )


def _resolver(ontology: Ontology | None) -> Callable[[str], str]:
    """Make the function that spells identifiers in one way; no concept is empty."""

    def resolve(id_: str) -> str:
        if is_nil(id_):
            return ""
        position = None if ontology is None else ontology.position(id_)
        return canonical_id(id_ if ontology is None or position is None else ontology[position].id)

    return resolve
