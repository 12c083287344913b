"""The common part of all corpora: from mentions and an ontology to ranking examples."""

from __future__ import annotations

import glob
import hashlib
import logging
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets

from ..errors import DataError
from .counts import Counts, SplitCounts
from .retrieval import RETRIEVERS, Retriever
from .schema import FEATURES, Concept, Mention

__all__ = ["COUNTS_FILE", "SPLITS", "CandidateRankingBuilder", "RankingConfig", "stable_fraction"]

_Usable = tuple[str, Mention, Concept]  # a mention between its example id and its gold concept

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
"""The splits that every corpus has."""

COUNTS_FILE = "counts.json"
"""Name of the file in a builder's cache folder that holds its counts."""


def stable_fraction(text: str) -> float:
    """Hash a text to a number, the same in every process; for splits by document.

    Args:
        text: For example the identifier of a document.

    Returns:
        A number in [0, 1).
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


@dataclass
class RankingConfig(datasets.BuilderConfig):  # type: ignore[misc]  # untyped
    """How mentions become ranking examples; every value is part of the cache key.

    Args:
        num_candidates: Candidates of an example, the gold concept included (at least 2).
        context_words: Words of context kept on each side of the mention.
        retrieval: How candidates are found: ``"bm25"`` or ``"tfidf"`` (character trigrams).
        on_missing_gold: What to do with a mention whose gold concept is not in the ontology:
            ``"drop"`` and count it, or ``"raise"``.
        max_examples: Limit per split; a seeded random subset of the usable mentions is drawn,
            and kept in the corpus's order. A split without a limit keeps all.
        seed: Seed of that draw and of the order of the candidates.
    """

    num_candidates: int = 10
    context_words: int = 10
    retrieval: str = "bm25"
    on_missing_gold: str = "drop"
    max_examples: dict[str, int] | None = None
    seed: int = 0

    def check(self) -> None:
        """Check the values; a constructor cannot, since `datasets` also sets them afterwards.

        Raises:
            DataError: A value is out of its range.
        """
        if self.num_candidates < 2:
            raise DataError(f"num_candidates is {self.num_candidates}; give at least 2")
        if self.context_words < 0:
            raise DataError(f"context_words is {self.context_words}; give 0 or more")
        if self.retrieval not in RETRIEVERS:
            raise DataError(f"retrieval is {self.retrieval!r}; give {' or '.join(RETRIEVERS)}")
        if self.on_missing_gold not in ("drop", "raise"):
            raise DataError(f"on_missing_gold is {self.on_missing_gold!r}; give 'drop' or 'raise'")
        for split, limit in (self.max_examples or {}).items():
            if split not in SPLITS:
                raise DataError(f"max_examples names split {split!r}; use {', '.join(SPLITS)}")
            if limit < 1:
                raise DataError(f"max_examples[{split!r}] is {limit}; give at least 1")


class CandidateRankingBuilder(datasets.GeneratorBasedBuilder):  # type: ignore[misc]  # untyped
    """Base class of the corpora.

    A subclass says which files it reads (``FILES``) and implements :meth:`_ontology` and
    :meth:`_mentions`; both find the local paths in ``self.files``. The base class cuts the
    context, retrieves candidates, puts the gold concept in, checks and counts.

    The gold concept takes the last candidate's place where retrieval missed it, and the
    candidates are then shuffled by a seed made of the example's id, so that neither the label nor
    the order of retrieval gives the gold away.

    Args:
        data_files: Path (or URL) of each file, by its key in ``FILES`` or ``OPTIONAL_FILES``. A
            path is cached by its name and modification time.
        **kwargs: The other arguments of `datasets.DatasetBuilder` (``cache_dir``,
            ``config_name``) and the fields of :class:`RankingConfig`.

    Raises:
        DataError: A file is missing, or a value of the configuration is out of its range.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = RankingConfig
    FILES: ClassVar[tuple[str, ...]] = ()
    OPTIONAL_FILES: ClassVar[tuple[str, ...]] = ()

    config: RankingConfig

    def __init__(self, *, data_files: Mapping[str, str | Path] | None = None, **kwargs: Any):
        self._check_file_keys(data_files or {})
        if data_files:
            kwargs["data_files"] = {key: _as_pattern(path) for key, path in data_files.items()}
        super().__init__(**kwargs)
        self.config.check()
        self.files: dict[str, str] = {}
        self._counts: Counts | None = None

    @abstractmethod
    def _ontology(self) -> Sequence[Concept]:
        """Give the concepts, each once; no name may come from validation or test mentions."""

    @abstractmethod
    def _mentions(self, split: str, counts: SplitCounts) -> Iterator[Mention]:
        """Read the mentions of a split in the corpus's order.

        Args:
            split: One of ``SPLITS``.
            counts: Takes ``counts.drop(reason)`` for each mention that is not yielded, and
                ``counts.remark(what)`` for one that is yielded with something unusual.
        """

    @property
    def counts(self) -> Counts:
        """What was read, kept and dropped; of a cached dataset too.

        Raises:
            DataError: The dataset is not prepared yet.
        """
        if self._counts is None:
            self._counts = Counts.load(Path(self._output_dir) / COUNTS_FILE)
        return self._counts

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES)

    def _check_file_keys(self, data_files: Mapping[str, str | Path]) -> None:
        known = (*self.FILES, *self.OPTIONAL_FILES)
        for key in data_files:
            if key not in known:
                raise DataError(
                    f"{type(self).__name__} reads no file {key!r}; data_files may name "
                    f"{', '.join(known) or 'nothing'}"
                )
        for key in self.FILES:
            if key not in data_files:
                raise DataError(
                    f"{type(self).__name__} was given no file {key!r}; pass data_files with "
                    f"{', '.join(self.FILES)}"
                )

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        super()._download_and_prepare(*args, **kwargs)
        # `_output_dir` is a temporary folder here, moved to its place once all is written.
        self.counts.save(Path(self._output_dir) / COUNTS_FILE)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        # All is read and checked here: `datasets` would wrap an error of `_generate_examples` in
        # one of its own, and would have begun to write.
        downloaded = dl_manager.download(self.config.data_files or {})
        self.files = {key: paths[0] for key, paths in downloaded.items()}
        concepts = self._checked_ontology()
        retriever = RETRIEVERS[self.config.retrieval](concepts)
        ontology = {concept.id: concept for concept in concepts}
        self._counts = Counts(len(ontology), retriever.num_names, self.config.num_candidates)
        owners: dict[str, str] = {}
        generators = []
        for split in SPLITS:
            mentions = self._collect(split, ontology)
            _check_documents(split, mentions, owners)
            arguments = {
                "split": split,
                # A tuple: `datasets` would take a list for shards to share between processes.
                "mentions": tuple(self._draw(split, mentions)),
                "retriever": retriever,
            }
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs=arguments))
        return generators

    def _checked_ontology(self) -> Sequence[Concept]:
        ontology = self._ontology()
        if len(ontology) < 2:
            raise DataError(
                f"{self.dataset_name}: the ontology has {len(ontology)} concept(s); ranking "
                "needs at least 2"
            )
        return ontology

    def _collect(self, split: str, ontology: Mapping[str, Concept]) -> list[_Usable]:
        """Read a split's usable mentions, each with its example id and its gold concept."""
        counts = self.counts.splits[split] = SplitCounts()
        usable: list[_Usable] = []
        seen: set[str] = set()
        numbers: dict[str, int] = {}
        for mention in self._mentions(split, counts):
            number = numbers[mention.document] = numbers.get(mention.document, -1) + 1
            id_ = f"{mention.document}:{mention.key or number}"
            if id_ in seen:
                raise DataError(
                    f"{self.dataset_name}/{split}: mention {id_!r} comes twice; remove the "
                    "repeated document or annotation"
                )
            seen.add(id_)
            if not mention.text.strip():
                raise DataError(
                    f"{self.dataset_name}/{split}: empty mention {id_!r}; remove the annotation "
                    "or correct its span"
                )
            gold = ontology.get(mention.concept)
            if gold is not None:
                counts.read += 1
                usable.append((id_, self._cut(mention), gold))
            elif self.config.on_missing_gold == "drop":
                counts.drop("gold concept not in the ontology")
            else:
                raise DataError(
                    f"{self.dataset_name}/{split}: concept {mention.concept!r} of mention {id_!r} "
                    "is not in the ontology; add it or set on_missing_gold='drop'"
                )
        if not usable:
            raise DataError(f"{self.dataset_name}/{split}: no usable mention ({counts}); add some")
        return usable

    def _cut(self, mention: Mention) -> Mention:
        """Cut the context to its width, so that whole documents need not be kept in memory."""
        width = self.config.context_words
        left = mention.left.split()[-width:] if width else []  # [-0:] would be all of it
        right = mention.right.split()[:width]
        return replace(
            mention, text=mention.text.strip(), left=" ".join(left), right=" ".join(right)
        )

    def _draw(self, split: str, mentions: list[_Usable]) -> list[_Usable]:
        limit = (self.config.max_examples or {}).get(split, len(mentions))
        if limit < len(mentions):
            drawn = random.Random(f"{self.config.seed}:{split}").sample(range(len(mentions)), limit)
            mentions = [mentions[index] for index in sorted(drawn)]
        counts = self.counts.splits[split]
        counts.kept = len(mentions)
        counts.not_drawn = counts.read - sum(counts.dropped.values()) - counts.kept
        return mentions

    def _generate_examples(
        self, split: str, mentions: Sequence[_Usable], retriever: Retriever
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        retrieved = 0
        for id_, mention, gold in mentions:
            hits = retriever.search(mention.text, self.config.num_candidates)
            candidates = [hit.concept for hit in hits]
            # A gold that came in by chance, among those that fill the list up, was not retrieved.
            retrieved += any(hit.score > 0 and hit.concept.id == gold.id for hit in hits)
            if gold not in candidates:
                candidates[-1] = gold
            random.Random(f"{self.config.seed}:{id_}").shuffle(candidates)
            yield (
                id_,
                {
                    "id": id_,
                    "document": mention.document,
                    "mention": mention.text,
                    "left": mention.left,
                    "right": mention.right,
                    "candidate_ids": [concept.id for concept in candidates],
                    "candidate_names": [concept.name for concept in candidates],
                    "label": candidates.index(gold),
                },
            )
        counts = self.counts.splits[split]
        counts.retrieved = retrieved
        logger.info("%s/%s: %s", self.dataset_name, split, counts)


def _as_pattern(path: str | Path) -> str:
    if "://" in str(path):
        return str(path)
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; check the path or fetch the corpus")
    # `datasets` reads a path as a glob pattern.
    return glob.escape(str(path))


def _check_documents(split: str, mentions: Sequence[_Usable], owners: dict[str, str]) -> None:
    """Refuse a document that an earlier split holds; ``owners`` remembers whose each one is."""
    for _, mention, _ in mentions:
        owner = owners.setdefault(mention.document, split)
        if owner != split:
            raise DataError(
                f"document {mention.document!r} is in the splits {owner} and {split}; keep "
                "each document in one split"
            )
