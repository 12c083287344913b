"""What a corpus builder read, kept and dropped, so that no loss of data is silent."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError

__all__ = ["Counts", "SplitCounts"]


@dataclass
class SplitCounts:
    """The mentions of one split: ``read == kept + not_drawn + sum(dropped.values())``.

    Args:
        read: Mentions in the corpus, malformed records apart.
        linked: Those with one gold concept.
        named: Those whose gold concept has a name in the ontology.
        kept: Mentions that became examples.
        not_drawn: Usable mentions that ``max_examples`` left out.
        dropped: Mentions that cannot be used, by reason.
        malformed: Records that could not be read, by reason (with ``on_error="count"``).
        remarks: What was unusual about mentions that were kept, or was passed over beside them, by
            what it is (counted before ``max_examples``).
        gold_at: Kept mentions whose gold concept retrieval put at rank 1, 2, ..., before it was
            put in by force.
        filled: Random candidates where retrieval found too few.
        same_name: Kept mentions with candidates of one name.
        gold_same_name: Those among them whose gold is one of these: nobody can rank it right but
            by chance.
    """

    read: int = 0
    linked: int = 0
    named: int = 0
    kept: int = 0
    not_drawn: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    malformed: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)
    gold_at: list[int] = field(default_factory=list)
    filled: int = 0
    same_name: int = 0
    gold_same_name: int = 0

    def drop(self, reason: str) -> None:
        """Count a mention that was read and cannot be used.

        Args:
            reason: Why, in words that are the same for all such mentions.
        """
        self.read += 1
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def remark(self, what: str) -> None:
        """Count something unusual about a mention that is used all the same.

        Args:
            what: What it is, in words that are the same for all such mentions.
        """
        self.remarks[what] = self.remarks.get(what, 0) + 1

    def add_examples(self, examples: Any) -> None:
        """Count what only the examples of the split tell, a `datasets.Dataset`."""
        columns = ["label", "same_name", "gold_rank", "num_retrieved", "candidate_ids"]
        self.gold_at = []
        for row in examples.select_columns(columns):
            k = len(row["candidate_ids"])
            self.gold_at += [0] * (k - len(self.gold_at))
            if row["gold_rank"] >= 0:
                self.gold_at[row["gold_rank"]] += 1
            # Where nothing more was found, one of the random ones gave its place to the gold.
            put_in = row["gold_rank"] < 0
            self.filled += max(0, k - row["num_retrieved"] - put_in)
            self.same_name += bool(row["same_name"])
            self.gold_same_name += row["label"] in row["same_name"]

    def recall(self, k: int | None = None) -> float:
        """Share of the kept mentions whose gold concept is among the first ``k`` retrieved.

        Args:
            k: By default as many as there are candidates.
        """
        return sum(self.gold_at[:k]) / self.kept if self.kept else 0.0

    def recall_of_linked(self) -> float:
        """Share of all linked mentions, those without a name as misses, with their gold retrieved.

        Where ``max_examples`` drew a part, the recall of that part stands for all.
        """
        return self.recall() * self.named / self.linked if self.linked else 0.0

    def __str__(self) -> str:
        text = (
            f"{self.read} mentions read, {self.linked} linked, {self.named} of them to a concept "
            f"with a name; {self.kept} kept, {self.not_drawn} not drawn, "
            f"{sum(self.dropped.values())} dropped ({_listed(self.dropped)})"
        )
        if self.kept:
            text += (
                f"; recall@{len(self.gold_at)} of retrieval {self.recall():.3f} of the kept, "
                f"{self.recall_of_linked():.3f} of the linked; {self.same_name} with candidates "
                f"of one name, gold among them in {self.gold_same_name}; {self.filled} random "
                "candidates"
            )
        if self.malformed:
            text += f"; malformed records: {_listed(self.malformed)}"
        return text + (f"; remarks: {_listed(self.remarks)}" if self.remarks else "")


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in numbers.items()) or "none"


@dataclass
class Counts:
    """The counts of a whole corpus.

    Args:
        concepts: Concepts in the ontology.
        names: Distinct names that retrieval searched.
        num_candidates: How many candidates retrieval was asked for.
        named_by_mentions: Concepts among them that only mentions name (see ``names_from``).
        ontology_malformed: Records of the ontology that could not be read, by reason.
        splits: The counts of each split.
        retrieval: How candidates were found.
        context_words: Words of context on each side of a mention.
        show_types: Whether names of candidates carry their semantic types.
    """

    concepts: int
    names: int
    num_candidates: int
    named_by_mentions: int = 0
    ontology_malformed: dict[str, int] = field(default_factory=dict)
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    retrieval: str = "bm25"
    context_words: int = 10
    show_types: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Turn the counts, recalls included, into what JSON can hold."""
        splits = {
            name: asdict(split)
            | {"recall": split.recall(), "recall_of_linked": split.recall_of_linked()}
            for name, split in self.splits.items()
        }
        return asdict(self) | {"splits": splits}

    def save(self, path: str | Path) -> None:
        """Write the counts as a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Counts:
        """Read what :meth:`save` wrote, and refuse a file that is missing or something else."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
            splits = raw.pop("splits")
            for split in splits.values():
                del split["recall"], split["recall_of_linked"]  # follow from the others
            return cls(**raw, splits={name: SplitCounts(**split) for name, split in splits.items()})
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; prepare the dataset first") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path}: not a file of counts; prepare the dataset again with "
                "download_mode='force_redownload'"
            ) from error
