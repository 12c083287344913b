"""What a corpus builder read, kept and dropped, so that no loss of data is silent."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError

__all__ = ["Counts", "SplitCounts"]


@dataclass
class SplitCounts:
    """The mentions of one split: ``read == kept + not_drawn + sum(dropped.values())``.

    Args:
        read: Mentions in the corpus.
        kept: Mentions that became examples.
        not_drawn: Usable mentions that ``max_examples`` left out.
        dropped: Mentions that cannot be used, by reason.
        remarks: Mentions that were kept although something about them is unusual, by what it is
            (counted before ``max_examples``).
        retrieved: Kept mentions whose gold concept retrieval found by its names.
    """

    read: int = 0
    kept: int = 0
    not_drawn: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)
    retrieved: int = 0

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

    @property
    def recall(self) -> float:
        """Share of the kept mentions whose gold concept retrieval found by its names."""
        return self.retrieved / self.kept if self.kept else 0.0

    def __str__(self) -> str:
        dropped = "; ".join(f"{reason}: {count}" for reason, count in self.dropped.items())
        remarks = "; ".join(f"{remark}: {count}" for remark, count in self.remarks.items())
        return (
            f"{self.read} mentions read, {self.kept} kept, {self.not_drawn} not drawn, "
            f"{sum(self.dropped.values())} dropped ({dropped or 'none'}), recall of retrieval "
            f"{self.recall:.3f}" + (f", remarks: {remarks}" if remarks else "")
        )


@dataclass
class Counts:
    """The counts of a whole corpus.

    Args:
        concepts: Concepts in the ontology.
        names: Distinct names that retrieval searched.
        num_candidates: How many candidates retrieval was asked for: ``recall`` is at this number.
        splits: The counts of each split.
    """

    concepts: int
    names: int
    num_candidates: int
    splits: dict[str, SplitCounts] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Turn the counts, recalls included, into what JSON can hold.

        Returns:
            Nested dictionaries of numbers.
        """
        splits = {
            name: asdict(split) | {"recall": split.recall} for name, split in self.splits.items()
        }
        return asdict(self) | {"splits": splits}

    def save(self, path: str | Path) -> None:
        """Write the counts as a JSON file.

        Args:
            path: The file to write.
        """
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Counts:
        """Read what :meth:`save` wrote.

        Args:
            path: The JSON file.

        Returns:
            The counts.

        Raises:
            DataError: The file is missing or is not a file of counts.
        """
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
            splits = raw.pop("splits")
            for split in splits.values():
                del split["recall"]  # follows from the others
            return cls(**raw, splits={name: SplitCounts(**split) for name, split in splits.items()})
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; prepare the dataset first") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path}: not a file of counts; prepare the dataset again with "
                "download_mode='force_redownload'"
            ) from error
