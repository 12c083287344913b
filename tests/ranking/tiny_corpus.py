"""A corpus that needs no files, in two configurations that differ."""

from collections.abc import Iterator
from typing import ClassVar

import datasets

from hf_kfc.ranking.corpora.builder import CandidateRankingBuilder
from hf_kfc.ranking.corpora.config import RankingConfig
from hf_kfc.ranking.corpora.counts import SplitCounts
from hf_kfc.ranking.licenses import License
from hf_kfc.ranking.problems import Problems
from hf_kfc.ranking.schema import Concept, Mention

SIZES = {"train": 20, "validation": 10, "test": 10}


class TinyCorpus(CandidateRankingBuilder):
    """Complaints of many parts of the body."""

    LICENSE = License("Apache License 2.0", "https://example.org", True, id="apache-2.0")
    BUILDER_CONFIGS: ClassVar[list[datasets.BuilderConfig]] = [
        RankingConfig(name=name, version=CandidateRankingBuilder.VERSION, num_candidates=4)
        for name in ("patients", "articles")
    ]

    def _concepts(self, problems: Problems) -> Iterator[Concept]:
        return (Concept(f"C{part}", f"pain of part {part}") for part in range(20))

    def _mentions(self, split: str, counts: SplitCounts, problems: Problems) -> Iterator[Mention]:
        size = (SIZES | (self.config.max_examples or {}))[split]
        name = self.config.name
        for number in range(size):
            part = (number + self.config.seed) % 20
            yield Mention(
                f"{name}-{split}-{number}", f"part {part}", "it hurts", "so much", f"C{part}"
            )
