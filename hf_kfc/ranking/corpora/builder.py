"""The common part of all corpora: from mentions and an ontology to ranking examples."""

from __future__ import annotations

import logging
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import datasets
from tqdm.auto import tqdm

from ...errors import DataError
from ..candidates import cut_context, shown_name
from ..concepts import is_nil, surface_forms
from ..licenses import License
from ..ontologies import Ontology, read_ontology
from ..ontologies.ontology import widened
from ..problems import Problems
from ..retrieval import Retriever, get_retriever
from ..schema import FEATURES, Concept, Mention
from .config import SPLITS, RankingConfig
from .consistency import (
    as_patterns,
    is_half_a_word,
    splits_by_document,
    warn_of_halves,
    warn_of_repeats,
    warn_of_strangers,
)
from .counts import Counts, SplitCounts

__all__ = ["COUNTS_FILE", "CandidateRankingBuilder"]

_Usable = tuple[str, Mention, int]  # an example's id, its mention, the position of its gold concept

logger = logging.getLogger(__name__)

COUNTS_FILE = "counts.json"
"""Name of the file in a builder's cache folder that holds its counts."""

_ONTOLOGY_FILE = "ontology.arrow"

_CHUNK = 5000  # mentions that are retrieved together, and that processes share out


class CandidateRankingBuilder(datasets.GeneratorBasedBuilder):  # type: ignore[misc]  # untyped
    """Base class of the corpora.

    A subclass says which files it reads (``FILES``) and implements :meth:`_mentions` (for
    documents with spans see :class:`~hf_kfc.ranking.corpora.documents.DocumentCorpus`); one whose
    concepts do not come from a file ``ontology`` also implements :meth:`_concepts`. All find the
    local paths by :meth:`_file` and :meth:`_paths`. The base class cuts the context, retrieves
    candidates, puts the gold concept in, checks and counts. Identifiers are compared as
    :meth:`Ontology.position` does: in any spelling, and alternative ones lead to the main one.

    The gold concept takes the last candidate's place where retrieval missed it, and the
    candidates are then shuffled by a seed made of the example's id, so that neither the label nor
    the order of retrieval gives the gold away.

    Args:
        data_files: Path (or URL) of each file, a list of them or a folder, by its key in
            ``FILES`` or ``OPTIONAL_FILES``. A path is cached by its name and modification time.
        **kwargs: The other arguments of `datasets.DatasetBuilder` (``cache_dir``,
            ``config_name``) and the fields of :class:`RankingConfig`.

    Raises:
        DataError: A file is missing, or a value of the configuration is out of its range.
    """

    VERSION = datasets.Version("3.1.0")  # part of the cache key: of what the examples say
    BUILDER_CONFIG_CLASS = RankingConfig
    FILES: ClassVar[tuple[str, ...]] = ()
    OPTIONAL_FILES: ClassVar[tuple[str, ...]] = ()
    EITHER: ClassVar[
        Sequence[tuple[str, ...]]
    ] = ()  # sets of optional files, one of which is given
    LICENSE: ClassVar[License | None] = None  # of the text; pushing asks for it

    config: RankingConfig

    def __init__(self, *, data_files: Mapping[str, Any] | None = None, **kwargs: Any):
        if kwargs.get("data_dir") is not None:
            raise DataError("data_dir is cached by name alone; pass data_files instead")
        self._check_file_keys(data_files or {})
        if data_files:
            kwargs["data_files"] = {key: as_patterns(paths) for key, paths in data_files.items()}
        super().__init__(**kwargs)
        self.config.check()
        self.files: dict[str, list[str]] = {}
        self._counts: Counts | None = None

    @abstractmethod
    def _mentions(self, split: str, counts: SplitCounts, problems: Problems) -> Iterator[Mention]:
        """Read the mentions of a split in the corpus's order.

        Args:
            split: One of ``SPLITS``.
            counts: Takes ``counts.drop(reason)`` for each mention that is not yielded, and
                ``counts.remark(what)`` for one that is yielded with something unusual.
            problems: Told of malformed records.
        """

    def _concepts(self, problems: Problems) -> Iterable[Concept]:
        """Give the concepts, each once, in their own words; by default those of the ontology.

        Args:
            problems: Told of malformed records.
        """
        paths = self._paths("ontology")
        if not paths:
            return ()
        return read_ontology(
            paths, self.config.ontology_format, self.config.ontology_options, problems
        )

    def _names(self, problems: Problems) -> Mapping[str, Sequence[str]]:
        """Give what the corpus itself calls concepts, the preferred name first; by default nothing.

        Args:
            problems: Told of malformed records.
        """
        return {}

    def _file(self, key: str) -> str:
        """Return the local path of a file that is one."""
        if len(self.files[key]) != 1:
            raise DataError(
                f"{self.dataset_name}: {key!r} is {len(self.files[key])} files; give one"
            )
        return self.files[key][0]

    def _paths(self, key: str) -> list[str]:
        """Return the local paths of the files of a key, sorted; none for an optional one."""
        return self.files.get(key, [])

    @property
    def counts(self) -> Counts:
        """What was read, kept and dropped; of a cached dataset too.

        Raises:
            DataError: The dataset is not prepared yet.
        """
        if self._counts is None:
            self._counts = Counts.load(Path(self._output_dir) / COUNTS_FILE)
        return self._counts

    @property
    def ontology(self) -> Ontology:
        """The concepts that candidates come from, with the names that mentions gave them.

        Raises:
            DataError: The dataset is not prepared yet.
        """
        return Ontology.load(Path(self._output_dir) / _ONTOLOGY_FILE)

    def read_ontology(self, min_documents: int | None = None) -> Ontology:
        """Read the concepts again, for more than the candidates of the examples.

        Args:
            min_documents: Words of mentions, of the splits ``names_from``, are names too if
                mentions in so many documents consist of them. None leaves all words of mentions
                out, and with them the concepts that nothing else names.

        Returns:
            The concepts that have a name then.

        Raises:
            DataError: A file is malformed, or fewer than two concepts have a name.
        """
        patterns = self.config.data_files or {}
        manager = datasets.DownloadManager(dataset_name=self.dataset_name)
        self.files = {key: sorted(paths) for key, paths in manager.download(patterns).items()}
        mentions = {split: self._read(split, SplitCounts()) for split in SPLITS}
        if min_documents is None:
            lenders = []
        else:
            own = [m for split in self.config.names_from for _, m in mentions[split]]
            found = Counter(text for _, text in {(m.document, m.text.lower()) for m in own})
            lenders = [m for m in own if found[m.text.lower()] >= min_documents]
        return self._ontology(lenders, Problems(self.config.on_error))[1]

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES)

    def _check_file_keys(self, data_files: Mapping[str, Any]) -> None:
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
        either = [{*files} for files in self.EITHER if {*files} <= {*known}]
        if either and {*data_files} & set().union(*either) not in either:
            raise DataError(
                f"{type(self).__name__} was given the files {', '.join(data_files)}; give "
                f"{', or '.join(map(', '.join, self.EITHER))}"
            )

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        super()._download_and_prepare(*args, **kwargs)
        # Read back from the examples: several processes may have made them.
        for split, counts in self.counts.splits.items():
            counts.add_examples(self._as_dataset(datasets.Split(split)))
            logger.info("%s/%s: %s", self.dataset_name, split, counts)
        # `_output_dir` is a temporary folder here, moved to its place once all is written.
        self.counts.save(Path(self._output_dir) / COUNTS_FILE)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        # All is read and checked here: `datasets` would wrap an error of `_generate_examples` in
        # one of its own, and would have begun to write.
        downloaded = dl_manager.download(self.config.data_files or {})
        self.files = {key: sorted(paths) for key, paths in downloaded.items()}
        splits = {split: SplitCounts() for split in SPLITS}
        mentions = {split: self._read(split, counts) for split, counts in splits.items()}
        for split, counts in splits.items():
            self._require(split, mentions[split], counts)  # before what is made of them fails
        splits_by_document({split: [m.document for _, m in own] for split, own in mentions.items()})
        warn_of_repeats(self.dataset_name, mentions)
        problems = Problems(self.config.on_error)
        lenders = [m for split in self.config.names_from for _, m in mentions[split]]
        own, ontology = self._ontology(lenders, problems)
        ontology.save(Path(self._output_dir) / _ONTOLOGY_FILE)
        indexes = Path(self._cache_dir_root) / "hf_kfc_indexes"
        retriever = get_retriever(self.config.retrieval, ontology, indexes)
        self._counts = Counts(
            concepts=len(ontology),
            names=retriever.num_names,
            num_candidates=self.config.num_candidates,
            retrieval=self.config.retrieval,
            context_words=self.config.context_words,
            show_types=self.config.show_types,
            named_by_mentions=len(ontology) - own,
            ontology_malformed=problems.counts,
            splits=splits,
        )
        generators = []
        for split, counts in splits.items():
            drawn = self._draw(
                split, self._usable(split, mentions[split], ontology, counts), counts
            )
            arguments = {
                "chunks": [drawn[i : i + _CHUNK] for i in range(0, len(drawn), _CHUNK)],
                "ontology": ontology,
                "retriever": retriever,
            }
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs=arguments))
        return generators

    def _ontology(self, lenders: Sequence[Mention], problems: Problems) -> tuple[int, Ontology]:
        """Make the ontology; also give how many of its concepts not only mentions name."""
        strict = self.config.on_unknown_concept == "raise"
        own = _held(self._concepts(problems))
        if names := self._names(problems):
            own = _held(widened(own, names))
        if own is None and not lenders:
            raise DataError(
                f"{self.dataset_name}: no concept has a name; give an ontology, or let mentions "
                "name concepts (names_from)"
            )
        known = own is not None and strict
        if own is not None:
            warn_of_strangers(self.dataset_name, own, {mention.concept for mention in lenders})
        ontology = Ontology(widened(own, surface_forms(lenders), only_known=known))
        if len(ontology) < 2:
            raise DataError(
                f"{self.dataset_name}: the ontology has 1 concept; ranking needs at least 2"
            )
        return len(own or ()), ontology

    def _read(self, split: str, counts: SplitCounts) -> list[tuple[str, Mention]]:
        """Read a split's linked mentions with their example ids, the context cut."""
        problems = Problems(self.config.on_error)
        counts.malformed = problems.counts
        mentions: dict[str, Mention] = {}
        numbers: Counter[str] = Counter()
        halves = 0
        for mention in tqdm(
            self._mentions(split, counts, problems),
            desc=f"reading {self.dataset_name}/{split}",
            unit=" mentions",
            disable=datasets.are_progress_bars_disabled(),
        ):
            id_ = f"{mention.document}:{mention.key or numbers[mention.document]}"
            numbers[mention.document] += 1
            where = mention.where or f"{self.dataset_name}/{split}"
            if id_ in mentions:
                message = f"mention {id_!r} comes twice; remove the repeated record"
                problems("mention comes twice", where, message)
            elif is_nil(mention.concept):
                counts.drop("no concept")
            elif not mention.text.strip():
                message = f"empty mention {id_!r}; remove the annotation or correct its span"
                problems("empty mention", where, message)
            else:
                halves += is_half_a_word(mention)
                # Cut at once, so that whole documents need not be kept in memory.
                mentions[id_] = cut_context(mention, self.config.context_words)
        warn_of_halves(f"{self.dataset_name}/{split}", halves, len(mentions))
        counts.linked = len(mentions)
        return list(mentions.items())

    def _usable(
        self,
        split: str,
        mentions: Sequence[tuple[str, Mention]],
        ontology: Ontology,
        counts: SplitCounts,
    ) -> list[_Usable]:
        """Find the gold concepts; a mention whose gold has no name is dropped or refused."""
        usable: list[_Usable] = []
        for id_, mention in mentions:
            gold = ontology.position(mention.concept)
            if gold is not None:
                usable.append((id_, mention, gold))
            elif ontology.leads_to_several(mention.concept):
                counts.drop("identifier of several concepts")
            elif self.config.on_unknown_concept == "raise":
                where = mention.where or f"{self.dataset_name}/{split}"
                raise DataError(
                    f"{where}: concept {mention.concept!r} of mention {id_!r} is not in the "
                    "ontology; add it or set on_unknown_concept='count'"
                )
            else:
                counts.drop("gold concept not in the ontology")
        counts.named = len(usable)
        counts.read += counts.named  # `drop` has counted the others
        if 2 * counts.named < counts.linked:
            logger.warning(
                "%s/%s: only %d of %d mentions are of a concept that has a name; check that the "
                "ontology is of the vocabulary that the corpus is mapped to",
                self.dataset_name,
                split,
                counts.named,
                counts.linked,
            )
        self._require(split, usable, counts)
        return usable

    def _require(self, split: str, usable: Sequence[Any], counts: SplitCounts) -> None:
        if not usable:
            raise DataError(f"{self.dataset_name}/{split}: no usable mention ({counts}); add some")

    def _draw(self, split: str, mentions: list[_Usable], counts: SplitCounts) -> list[_Usable]:
        limit = (self.config.max_examples or {}).get(split, len(mentions))
        counts.kept = min(limit, len(mentions))
        counts.not_drawn = len(mentions) - counts.kept
        if not counts.not_drawn:
            return mentions
        drawn = random.Random(f"{self.config.seed}:{split}").sample(range(len(mentions)), limit)
        return [mentions[index] for index in sorted(drawn)]

    def _generate_examples(
        self, chunks: Sequence[Sequence[_Usable]], ontology: Ontology, retriever: Retriever
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for chunk in chunks:
            found = retriever.search([m.text for _, m, _ in chunk], self.config.num_candidates)
            for (id_, mention, gold), hits in zip(chunk, found, strict=True):
                positions = [hit.position for hit in hits]
                retrieved = [hit.position for hit in hits if hit.score > 0]
                if gold not in positions:
                    positions[-1] = gold
                random.Random(f"{self.config.seed}:{id_}").shuffle(positions)
                candidates = [ontology[position] for position in positions]
                names = [shown_name(concept, self.config.show_types) for concept in candidates]
                seen = Counter(name.casefold() for name in names)
                example = {
                    "id": id_,
                    "document": mention.document,
                    "mention": mention.text,
                    "left": mention.left,
                    "right": mention.right,
                    "candidate_ids": [concept.id for concept in candidates],
                    "candidate_names": names,
                    "label": positions.index(gold),
                    "same_name": [i for i, name in enumerate(names) if seen[name.casefold()] > 1],
                    # A gold that came in by chance, among those that fill up, was not retrieved.
                    "gold_rank": retrieved.index(gold) if gold in retrieved else -1,
                    "num_retrieved": len(retrieved),
                }
                yield id_, example


def _held(concepts: Iterable[Concept]) -> Ontology | None:
    """Hold concepts compactly, of which there may be millions; nothing if there are none."""
    remaining = iter(concepts)
    first = next(remaining, None)
    return None if first is None else Ontology(chain([first], remaining))
