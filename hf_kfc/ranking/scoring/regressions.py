"""What an update of a linker changed: mentions that were right and now are wrong, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ...commands.report import Report, Table
from ...errors import DataError
from .answers import Answer, Answers, answers_of_scores
from .bootstrap import Bootstrap, Estimate
from .page import page

__all__ = ["Change", "Flip", "Regressions", "find_regressions", "regressions_of_trainers"]

_SHOWN = 20


class Flip(NamedTuple):
    """A mention about which two linkers differ, one of them being right."""

    old: Answer
    new: Answer


class Change(NamedTuple):
    """How many mentions of a type or a concept changed.

    Args:
        mentions: How many there are.
        lost: How many were right and now are wrong.
        won: How many were wrong and now are right.
    """

    mentions: int
    lost: int
    won: int


@dataclass(frozen=True)
class Regressions:
    """What an update of a linker changed.

    Args:
        documents: How many documents the two linkers were asked about.
        mentions: How many mentions.
        old: Share of the mentions that the old one has right, also that there is no concept.
        new: The same of the new one.
        difference: New minus old.
        p_value: Of McNemar's exact test: how likely so uneven a split of the flips is by chance.
        lost: Flips from right to wrong.
        won: Flips from wrong to right.
        by_type: Changes by type, the largest loss first.
        by_concept: Changes by the right concept, the largest loss first; without others.
        names: What concepts are called.
    """

    documents: int
    mentions: int
    old: Estimate
    new: Estimate
    difference: Estimate
    p_value: float
    lost: list[Flip]
    won: list[Flip]
    by_type: dict[str, Change]
    by_concept: dict[str, Change]
    names: dict[str, str]

    def report(self) -> Report:
        """Tell it as a table and as JSON values."""
        values = asdict(self)
        del values["names"]
        estimates = {"old": self.old, "new": self.new, "difference": self.difference}
        values |= {name: own._asdict() for name, own in estimates.items()}
        for name in ("by_type", "by_concept"):
            values[name] = {key: own._asdict() for key, own in getattr(self, name).items()}
        for name in ("lost", "won"):
            flips = getattr(self, name)
            values[name] = [asdict(old) | {"now": new.predicted} for old, new in flips]
        parts: list[Table | str] = [
            self.summary(),
            Table(
                [
                    ("right", "", "95 % interval"),
                    *((name, str(own), own.interval) for name, own in estimates.items()),
                ]
            ),
        ]
        for title, changes in (("type", self.by_type), ("concept", self.by_concept)):
            rows: list[Sequence[str]] = [(title, "mentions", "lost", "won")]
            rows += [
                (self.name(key) if title == "concept" else key, *map(str, change))
                for key, change in list(changes.items())[:_SHOWN]
            ]
            parts += [Table(rows)] if changes else []
        flips = [
            (old.document, old.context, self.name(old.gold), self.name(new.predicted))
            for old, new in self.lost[:_SHOWN]
        ]
        parts += [Table([("lost in", "", "right", "now"), *flips], left=4)] if flips else []
        return Report(values, parts)

    def summary(self) -> str:
        """Tell in one sentence how many mentions changed."""
        return (
            f"{self.mentions:,} mentions in {self.documents:,} documents: {len(self.lost):,} were "
            f"right and now are wrong, {len(self.won):,} the other way (McNemar's exact test: "
            f"p = {self.p_value:.2g})"
        )

    def name(self, id_: str | None) -> str:
        """Say a concept with its name."""
        return " ".join([id_ or "no concept", self.names.get(id_ or "", "")]).strip()

    def html(self, title: str = "What the update changed") -> str:
        """Tell it as one page, which needs no other file.

        Args:
            title: Its heading.
        """
        return page("regressions", title=title, found=self)


def find_regressions(
    old: Answers, new: Answers, *, resamples: int = 1000, seed: int = 0
) -> Regressions:
    """Find what the new linker gets wrong that the old one had right, and the other way.

    McNemar's test takes mentions for independent, those of one document too; the interval of the
    difference does not, as it draws documents.

    Args:
        old: The answers of the linker as it was.
        new: Those of the linker as it is.
        resamples: Resamples of the bootstrap behind the intervals.
        seed: Of its random numbers.

    Raises:
        DataError: They are not of the same mentions with the same right answers, or of none.
    """
    from scipy.stats import binomtest  # noqa: PLC0415 - takes a second, and few need it

    places = [[(row.document, row.key, row.gold) for row in own.rows] for own in (old, new)]
    if places[0] != places[1] or not old.rows:
        raise DataError(
            "the answers of the old linker and of the new one are not of the same mentions; ask "
            "both about the same gold, with at least one mention"
        )
    flips = [Flip(*pair) for pair in zip(old.rows, new.rows, strict=True)]
    lost = [flip for flip in flips if flip.old.correct > flip.new.correct]
    won = [flip for flip in flips if flip.old.correct < flip.new.correct]
    was, is_ = (np.array([row.correct for row in own.rows], dtype=float) for own in (old, new))
    every = np.ones_like(was)
    draw = Bootstrap([row.document for row in old.rows], resamples, seed)
    shares = draw.shares(
        {"old": (was, every), "new": (is_, every), "difference": (is_ - was, every)}
    )
    changed = len(lost) + len(won)

    def changes(keys: Callable[[Answer], Iterable[str]]) -> dict[str, Change]:
        all_, ours, theirs = (
            Counter(key for flip in own for key in dict.fromkeys(keys(flip.old)))
            for own in (flips, lost, won)
        )
        found = {key: Change(all_[key], ours[key], theirs[key]) for key in all_}
        return dict(sorted(found.items(), key=lambda item: (item[1].won - item[1].lost, item[0])))

    by_concept = changes(lambda row: [row.gold] if row.gold else [])
    return Regressions(
        len({row.document for row in old.rows}),
        len(flips),
        shares["old"],
        shares["new"],
        shares["difference"],
        float(binomtest(len(lost), changed).pvalue) if changed else 1.0,
        lost,
        won,
        changes(lambda row: row.types),
        {key: own for key, own in by_concept.items() if own.lost or own.won},
        old.names | new.names,
    )


def regressions_of_trainers(
    old: Any, new: Any, names: Iterable[str], splits: Iterable[Any], encoded: Iterable[Any]
) -> dict[str, Regressions]:
    """Find what a training changed in the test mentions of some tasks.

    Args:
        old: The Trainer of the model as it was; of several processes all are to ask.
        new: That of the model as it is.
        names: What the tasks are called.
        splits: The ranking examples of each.
        encoded: The same, encoded.

    Returns:
        The changes by task.
    """
    found = {}
    for name, examples, own in zip(names, splits, encoded, strict=True):
        scores = (trainer.predict(own["test"]).predictions for trainer in (old, new))
        found[name] = find_regressions(*(answers_of_scores(examples["test"], s) for s in scores))
    return found
