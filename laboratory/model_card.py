"""The card of a published model: its tiers, what it still knows of each, and how to go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from hf_kfc.cards import render
from hf_kfc.hub import Source
from hf_kfc.ranking import relative_change

from .results import RESULTS_NAME, RESULTS_TABLE

if TYPE_CHECKING:
    from .publish import PublishArguments

__all__ = ["EVAL_RESULTS", "eval_results", "model_card"]

EVAL_RESULTS = ".eval_results/hf_kfc.yaml"
_FIGURE = "forgetting.png"


@dataclass(frozen=True)
class _Task:
    """A task that the model has learnt, and what is left of it."""

    name: str
    learnt: float | None
    now: float | None
    strength: float | None = None
    prior: str | None = None

    @property
    def change(self) -> float | None:
        """Relative change of the accuracy in percent; None if it is not known."""
        if not self.learnt or self.now is None:
            return None
        return relative_change(self.learnt, self.now)


def model_card(directory: Path, repo_id: str, args: PublishArguments, prior: str | None) -> str:
    """Write the card of a model.

    Args:
        directory: What a tier left.
        repo_id: The repository that it goes to.
        args: Licence, data statement and data set.
        prior: Its own prior, ``"org/name@sha"``; None as long as it is not published.

    Returns:
        The card, its metadata included.
    """
    results = _read(directory)
    tasks = list(_tasks(results))
    previous = _previous(results)
    data = ModelCardData(
        library_name="transformers",
        base_model=previous.partition("@")[0] if previous else None,
        license=args.license,
        datasets=args.hub_dataset_id,
        metrics=["accuracy"],
        model_name=repo_id.rpartition("/")[2],
        tags=["hf_kfc", "continual-learning", "entity-linking", "multiple-choice"],
        eval_results=[_eval_result(task, args.hub_dataset_id) for task in _measured(tasks)],
        previous_model=previous,
        consolidated_against=[task.prior for task in tasks if task.prior] or None,
        consolidation_prior=prior,
    )
    text = render(
        "model_card.md",
        repo_id=repo_id,
        tasks=tasks,
        previous=previous,
        prior=Source.parse(prior) if prior else None,
        method=results["outcomes"][-1]["method"],
        damping=results["outcomes"][-1]["damping"],
        settings=results["settings"],
        table=(directory / RESULTS_TABLE).read_text(encoding="utf-8").strip(),
        figure=_FIGURE if (directory / _FIGURE).exists() else None,
        data_statement=args.data_statement,
        versions=results["versions"],
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}"))


def eval_results(directory: Path, dataset_id: str) -> str:
    """Write the results in the form of the Hub's folder ``.eval_results``.

    The Hub shows those of data sets that are registered with it as benchmarks, and passes over
    the others.

    Args:
        directory: What a tier left.
        dataset_id: The data set that has the tasks as its configurations.
    """
    entries = [
        EvalResultEntry(dataset_id=dataset_id, task_id=task.name, value=task.now)
        for task in _measured(list(_tasks(_read(directory))))
    ]
    return str(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))


def _read(directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((directory / RESULTS_NAME).read_text(encoding="utf-8"))
    return values


def _tasks(results: dict[str, Any]) -> Iterator[_Task]:
    """The earlier tasks in the order of the priors, then the one learnt last."""
    kept = results["outcomes"][-1]
    remembered = results["remembered"]
    strengths = kept["strengths"] or [None] * len(remembered)
    for own, strength in zip(remembered, strengths, strict=True):
        now = kept["old_by_task"].get(own["task"])
        yield _Task(own["task"], own["accuracy"], now, strength, own["source"])
    yield _Task(results["new_task"], kept["new"], kept["new"])


def _measured(tasks: Sequence[_Task]) -> list[_Task]:
    return [task for task in tasks if task.now is not None]


def _previous(results: dict[str, Any]) -> str | None:
    """The model gone on from, if others can find it on the Hub."""
    model = str(results["settings"].get("sources", {}).get("model", ""))
    return model if "@" in model else None


def _eval_result(task: _Task, dataset_id: str | None) -> EvalResult:
    return EvalResult(
        task_type="multiple-choice",
        dataset_type=dataset_id or task.name,
        dataset_name=task.name,
        dataset_config=task.name if dataset_id else None,
        dataset_split="test",
        metric_type="accuracy",
        metric_value=task.now,
    )
