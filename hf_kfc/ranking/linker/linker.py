"""The linker: retrieval, ranker and thresholds, from text to concepts."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import datasets
import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import DataError, HfKfcError
from ...hub import PushedModel
from ..candidates import cut_context, shown_name, span_mention
from ..concepts import is_nil
from ..formats.documents import Candidate
from ..ontologies import Ontology
from ..problems import refuse_text
from ..retrieval import get_retriever
from ..schema import Concept, Mention
from . import files
from .calibration import Calibration, Floats, calibrated
from .inputs import as_document, documents_of, is_one, with_answers
from .linked import LinkedMention
from .ranker import Ranker
from .settings import LinkerSettings

__all__ = ["EntityLinker"]

logger = logging.getLogger(__name__)

_FEW = 100  # mentions: a share of right answers is known to five points then, or less well
_SEARCHED = 16_384  # mentions that are searched for together


class _Ranked(NamedTuple):
    """A mention's candidates and their scores, those that retrieval found first."""

    mention: Mention
    positions: list[int]  # of the candidates in the ontology
    concepts: list[Concept]
    similarity: Floats  # retrieval's scores [candidates]; 0 of those that only fill up
    logits: Floats  # the ranker's scores [candidates]


class EntityLinker:
    """Links mentions to the concepts of an ontology.

    Retrieval finds candidates by their names, and the ranker scores each in the mention's context,
    as in training: the same code cuts the context, shows the names and encodes both.

    Args:
        model: A ranker, a model with a multiple-choice head that has learnt to rank.
        tokenizer: Its tokenizer.
        ontology: The concepts. For what the ranker was trained beside, the ontology of the
            builder, whose concepts have the words of the train mentions as names too.
        cache_dir: Where the index of the names is kept; see
            :func:`~hf_kfc.ranking.retrieval.get_retriever`.
        **settings: Fields of :class:`LinkerSettings`: ``num_candidates``, ``temperature``,
            ``nil_threshold`` and others.

    Attributes:
        settings: The settings.
        ontology: The concepts.
        retriever: What finds candidates.
        calibration: What :meth:`calibrate` measured last; None if nothing.

    Raises:
        DataError: A setting is unknown or out of its range, the tokenizer does not fit, or the
            ontology has fewer than two concepts.

    Example:
        >>> linker = EntityLinker.from_pretrained("org/diseases")  # doctest: +SKIP
        >>> linker("Her gout is back.", [(4, 8)])[0].concept  # doctest: +SKIP
        'D006073'
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        ontology: Ontology | Iterable[Concept],
        *,
        cache_dir: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self.settings = LinkerSettings.of(settings)
        self.ontology = ontology if isinstance(ontology, Ontology) else Ontology(ontology)
        if len(self.ontology) < 2:
            raise DataError("the ontology has 1 concept; ranking needs at least 2")
        self.model: PreTrainedModel = model
        nn.Module.eval(model)
        self.tokenizer = tokenizer
        self.calibration: Calibration | None = None
        self._ranker = Ranker(
            model, tokenizer, self.settings.max_length, self.settings.max_name_length
        )
        self.retriever = get_retriever(self.settings.retrieval, self.ontology, cache_dir)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        ontology: str | Path | Ontology | None = None,
        *,
        ontology_format: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        cache_dir: str | Path | None = None,
        **settings: Any,
    ) -> EntityLinker:
        """Load a saved linker, or make one of a ranker and an ontology.

        Args:
            name_or_path: A folder, ``"org/name"`` or ``"org/name@revision"``: what
                :meth:`save_pretrained` wrote, or a ranker with its tokenizer.
            ontology: The concepts, or a file of them; by default those that the linker was saved
                with. A ranker alone has none.
            ontology_format: Format of such a file, a key of
                :data:`~hf_kfc.ranking.ontologies.ONTOLOGY_FORMATS`; by default ``"json"`` of
                ``.jsonl`` files and ``"names"`` of others.
            revision: Branch, tag or commit.
            token: Access token; by default the one logged in with.
            device: Where the model is to run.
            dtype: Type of its weights; ``"bfloat16"`` is faster where the processor has it, and
                tells fewer scores apart.
            cache_dir: See the class.
            **settings: Fields of :class:`LinkerSettings` that are to differ from the saved ones.

        Raises:
            HfKfcError: The repository or the folder has no ranker, or is damaged; there is no
                ontology; device or type cannot be used; or what the class raises.
        """
        device, dtype = _usable(device, dtype)
        loaded = files.load(name_or_path, ontology, ontology_format, revision, token)
        changed = asdict(LinkerSettings.of(asdict(loaded.settings) | settings))
        nn.Module.to(loaded.model, device, dtype)
        linker = cls(
            loaded.model, loaded.tokenizer, loaded.ontology, cache_dir=cache_dir, **changed
        )
        linker.calibration = loaded.calibration
        return linker

    @overload
    def __call__(
        self,
        inputs: Iterable[Any],
        mentions: None = None,
        *,
        batch_size: int | None = None,
        num_proc: int | None = None,
    ) -> list[list[LinkedMention]]: ...
    @overload
    def __call__(
        self,
        inputs: Any,
        mentions: Iterable[Any] | None = None,
        *,
        batch_size: int | None = None,
        num_proc: int | None = None,
    ) -> list[LinkedMention]: ...
    def __call__(
        self,
        inputs: Any,
        mentions: Iterable[Any] | None = None,
        *,
        batch_size: int | None = None,
        num_proc: int | None = None,
    ) -> Any:
        """Link the mentions of a text, or of many documents.

        Args:
            inputs: A text with ``mentions``, a note, a document of a reader or of spaCy (see
                :func:`as_document`), or a list of these other than texts.
            mentions: Where the text has mentions, ``(start, end)`` in characters.
            batch_size: How many mentions are ranked together; by default as many as suit the
                caches of a processor, 32 of a ranker of width 128 and 10 of one of 384. A GPU is
                faster with more.
            num_proc: Processes that look for candidates; by default this one.

        Returns:
            The linked mentions in the order of the mentions; of a list of documents a list of them
            for each.

        Raises:
            DataError: The input is none of these, or a mention is not in the text.
        """
        if mentions is not None or is_one(inputs):
            documents = [as_document(inputs, mentions)]
        else:
            documents = list(documents_of(inputs))
        pairs = [(document, span) for document in documents for span in document.spans]
        ranked = self._rank([span_mention(*pair, "") for pair in pairs], batch_size, num_proc)
        linked = (
            self._linked(own, span.pieces[0][0], span.pieces[-1][1], span.text)
            for own, (_, span) in zip(ranked, pairs, strict=True)
        )
        found = [[next(linked) for _ in document.spans] for document in documents]
        next(linked, None)  # nothing is left; what ranking has paused goes on
        return found[0] if mentions is not None or is_one(inputs) else found

    def link_mentions(
        self,
        mentions: Iterable[Mention],
        *,
        batch_size: int | None = None,
        num_proc: int | None = None,
    ) -> list[LinkedMention]:
        """Link mentions that come with the text around them and without a document.

        Args:
            mentions: The mentions.
            batch_size: How many are ranked together; see :meth:`__call__`.
            num_proc: Processes that look for candidates; by default this one.

        Returns:
            One for each; their offsets count in the mention's own words.
        """
        ranked = self._rank(list(mentions), batch_size, num_proc)
        return [self._linked(own, 0, len(own.mention.text), own.mention.text) for own in ranked]

    def calibrate(
        self,
        development: Iterable[Any],
        *,
        least_precision: float | None = None,
        batch_size: int | None = None,
        num_proc: int | None = None,
    ) -> Calibration:
        """Set retrieval's weight, temperature and threshold by mentions whose concepts are known.

        Args:
            development: Documents as in a call, whose spans carry their concepts (those with
                several are left out), or :class:`~hf_kfc.ranking.schema.Mention` records. What
                the ranker was trained on would make it look surer than it is. Of fewer than 100 a
                warning tells.
            least_precision: The precision that the threshold is to reach; by default it is the
                one with the highest F1.
            batch_size: How many are ranked together; see :meth:`__call__`.
            num_proc: Processes that look for candidates; by default this one.

        Returns:
            What was measured; also kept as ``calibration``.

        Raises:
            DataError: There are no mentions, none has a concept of the ontology or none that
                retrieval finds, or no threshold reaches the precision.
        """
        mentions = list(with_answers(refuse_text("development", development)))
        golds = [None if is_nil(m.concept) else self.ontology.position(m.concept) for m in mentions]
        if not any(gold is not None for gold in golds):
            raise DataError(
                f"none of the {len(mentions)} development mentions has a concept of the ontology; "
                "give some with the identifiers that it has"
            )
        if len(mentions) < _FEW:
            logger.warning(
                "%d development mentions are few to choose retrieval's weight, the temperature and "
                "the threshold with; give %d or more",
                len(mentions),
                _FEW,
            )
        ranked = list(self._rank(mentions, batch_size, num_proc))
        shape = len(ranked), max(len(own.positions) for own in ranked)
        logits, similarity = np.full(shape, -np.inf), np.zeros(shape)
        right = np.zeros(shape, bool)
        for row, (own, gold) in enumerate(zip(ranked, golds, strict=True)):
            columns = slice(len(own.positions))
            logits[row, columns], similarity[row, columns] = own.logits, own.similarity
            right[row, columns] = [position == gold for position in own.positions]
        linkable = np.array([gold is not None for gold in golds])
        found = calibrated(logits, similarity, right, linkable, least_precision)
        self.calibration = found
        self.settings = replace(
            self.settings,
            retrieval_weight=found.retrieval_weight,
            temperature=found.temperature,
            nil_threshold=found.nil_threshold,
        )
        return found

    def add_concepts(self, names: Mapping[str, Sequence[str]]) -> None:
        """Add concepts, or names of concepts, from now on; nothing is trained.

        Args:
            names: The names by identifier. One that the ontology knows, in any spelling, gets
                more names; another is a new concept, whose first name is the preferred one.

        Raises:
            DataError: An identifier stands for no concept, or has no name; nothing is added then.
        """
        for id_, own in names.items():
            if is_nil(id_):
                raise DataError(f"{id_!r} stands for no concept; give another identifier")
            if not any(name.strip() for name in refuse_text(f"names of {id_!r}", own)):
                raise DataError(f"concept {id_!r} has no name; give it one")
        ontology, changed = self.ontology.extended(names)
        if ontology is not self.ontology:
            self.retriever = self.retriever.extended(ontology, changed)
            self.ontology = ontology

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, tokenizer, ontology and settings into a folder, whole or not at all.

        Args:
            folder: The folder; an older linker in it is replaced.

        Raises:
            HfKfcError: It holds something else, or cannot be made.
        """
        files.save(self._parts(), Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
    ) -> PushedModel:
        """Push all that :meth:`save_pretrained` writes to a repository, in one commit.

        The names of the ontology go with it: look at its licence before others may see it.

        Args:
            repo_id: The repository, ``"organisation/name"``; made if it is not there.
            private: Whether only its members may see it.
            token: Access token; by default the one logged in with.

        Raises:
            HubError: The repository holds a prior or is not as private as asked, or the Hub refused
                or is out of reach; nothing is half pushed then.
        """
        return files.push(self._parts(), repo_id, private=private, token=token)

    def _parts(self) -> files.Parts:
        return files.Parts(
            self.model, self.tokenizer, self.ontology, self.settings, self.calibration
        )

    def _rank(
        self, mentions: Sequence[Mention], batch_size: int | None, num_proc: int | None
    ) -> Iterator[_Ranked]:
        """Find and score the candidates of mentions."""
        if batch_size is None:
            batch_size = self._ranker.batch_size
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; give at least 1")
        bar = tqdm(
            total=len(mentions),
            desc="linking",
            unit=" mentions",
            disable=datasets.are_progress_bars_disabled() or len(mentions) <= batch_size,
        )
        with bar, _no_collection():
            for start in range(0, len(mentions), _SEARCHED):
                cut = [
                    cut_context(mention, self.settings.context_words)
                    for mention in mentions[start : start + _SEARCHED]
                ]
                found = self._search([mention.text for mention in cut], num_proc)
                distinct = list({p for positions, _ in found for p in positions})
                concepts = dict(zip(distinct, self.ontology.take(distinct), strict=True))
                with_types = self.settings.show_types
                names = {p: shown_name(own, with_types) for p, own in concepts.items()}
                lists = [[names[p] for p in positions] for positions, _ in found]
                scores = self._ranker(cut, lists, batch_size, bar.update)
                for mention, (positions, similarity), own in zip(cut, found, scores, strict=True):
                    candidates = [concepts[position] for position in positions]
                    yield _Ranked(mention, positions, candidates, similarity, own)

    def _search(self, texts: list[str], num_proc: int | None) -> list[tuple[list[int], Floats]]:
        """Find the candidates of each text, and retrieval's scores of them."""
        search = _Search(self.retriever, self.settings.num_candidates)
        batch: Mapping[str, list[Any]]
        if num_proc is None or num_proc < 2:
            batch = search({"text": texts})
        else:
            batch = datasets.Dataset.from_dict({"text": texts}).map(
                search,
                batched=True,
                batch_size=max(1, len(texts) // (4 * num_proc)),
                num_proc=num_proc,
                new_fingerprint="search",  # nothing is cached, and no index is hashed
                desc="searching",
            )[:]
        scores = map(np.array, batch["scores"])
        return list(zip(batch["concepts"], scores, strict=True))

    def _linked(self, ranked: _Ranked, start: int, end: int, text: str) -> LinkedMention:
        """Turn scores into probabilities, and the best of them into an answer."""
        settings = self.settings
        scores = ranked.logits + settings.retrieval_weight * ranked.similarity
        weights = np.exp((scores - scores.max()) / settings.temperature)
        shares = (weights / weights.sum()).tolist()
        found = [
            Candidate(concept.id, concept.name, share)
            for concept, similarity, share in zip(
                ranked.concepts, ranked.similarity.tolist(), shares, strict=True
            )
            if similarity
        ]
        found.sort(key=lambda candidate: -candidate.probability)
        if not found:
            return LinkedMention(start, end, text, None, None, 0.0, ())
        best = found[0]
        is_given = best.probability >= (settings.nil_threshold or 0.0)
        return LinkedMention(
            start,
            end,
            text,
            best.id if is_given else None,
            best.name if is_given else None,
            best.probability,
            tuple(found),
        )


def _usable(
    device: str | torch.device, dtype: str | torch.dtype
) -> tuple[torch.device, torch.dtype]:
    """Check where and in which type a model is to run, before it is read."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise HfKfcError(f"dtype is {dtype!r:.80}; give 'float32' or 'bfloat16'")
    try:
        return torch.empty(0, device=device).device, found
    except (RuntimeError, AssertionError) as error:  # the second where torch was built without it
        reason = str(error).partition("\n")[0]
        raise HfKfcError(
            f"device {str(device)!r} cannot be used ({reason}); give cpu, or one that is there"
        ) from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector, which takes a quarter of the time to find that lists are used.

    What is made meanwhile has no cycles.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Search:
    """The function given to ``Dataset.map``."""

    def __init__(self, retriever: Any, num_candidates: int) -> None:
        self.retriever, self.num_candidates = retriever, num_candidates

    def __call__(self, batch: Mapping[str, list[str]]) -> dict[str, list[Any]]:
        hits = self.retriever.search(batch["text"], self.num_candidates)
        return {
            "concepts": [[hit.position for hit in own] for own in hits],
            "scores": [[hit.score for hit in own] for own in hits],
        }
