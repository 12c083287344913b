"""Pushing a finished tier: its model, its prior, and the links between the two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from ..cards import render
from ..errors import HfKfcError
from ..hub import MODEL_FILES, Source, hub_errors_as, push_card, push_model, split_revision
from ..priors import ConsolidationPrior
from ..priors.card import prior_card
from ..priors.privacy import MIN_EXAMPLES, refuse_few_examples, without_rare_inputs
from .comparison import FIGURE_NAME, RESULTS_NAME, RESULTS_TABLE, method_name
from .metrics import relative_change

__all__ = ["PushArguments", "model_card", "push_tier"]

# They tell the folders of this machine, and the card has what is in them.
_FILES = tuple(name for name in MODEL_FILES if name not in (RESULTS_NAME, RESULTS_TABLE))
_NOT_SHOWN = {"model", "priors", "output_dir", "dataset", "data_dir", "name", "methods", "use_cpu"}


@dataclass
class PushArguments:
    """Whether and where a tier is published on the Hugging Face Hub."""

    push_to_hub: str | None = field(
        default=None,
        metadata={
            "help": "Publish the model as this repository, ORG/NAME, and its prior as ORG/NAME-kfc "
            "(or with the name of another curvature); run it again if it was stopped."
        },
    )
    hub_private_repo: bool = field(
        default=True, metadata={"help": "Whether only their members may see the repositories."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence of model and prior, as the Hub calls it."}
    )
    data_statement: str | None = field(
        default=None,
        metadata={"help": "What the cards say of the data: whence it is, and on what terms."},
    )
    min_examples: int = field(
        default=MIN_EXAMPLES,
        metadata={
            "help": "In how many examples a token must have been seen for the published prior to "
            "cover it."
        },
    )

    def __post_init__(self) -> None:
        if self.min_examples < 0:
            raise HfKfcError(f"min_examples is {self.min_examples}; give at least 0")
        if self.push_to_hub is not None and self.push_to_hub.count("/") != 1:
            raise HfKfcError(f"push_to_hub is {self.push_to_hub!r}; give it as ORG/NAME")

    def check(self) -> None:
        """Make sure that the Hub knows who pushes, before hours of work that end without it.

        Raises:
            HfKfcError: It is to be pushed, and the Hub is out of reach or takes no token.
        """
        if self.push_to_hub is not None:
            with hub_errors_as(
                "--push_to_hub: the Hub does not tell who you are ({reason}); log in with "
                "'hf auth login' or set HF_TOKEN"
            ):
                HfApi(library_name="hf_kfc").whoami()


def push_tier(folder: str | Path, args: PushArguments) -> str:
    """Push a tier's model and its prior, or what is missing of them on the Hub.

    The model goes first, in one commit; then the prior, whose anchor points at that commit; then
    the model's card, which names the prior. Where it is stopped it goes on when called again.

    Args:
        folder: With the model, its tokenizer, what :meth:`Comparison.save` wrote, and in
            ``prior`` the prior.
        args: Where, and what the cards say.

    Returns:
        Where the prior is, ``"org/name@sha"``.

    Raises:
        HfKfcError: The Hub refused or is out of reach; every repository is left whole.

    Example:
        >>> push_tier("runs/tier1", PushArguments("org/tier1"))  # doctest: +SKIP
    """
    repo_id, private = str(args.push_to_hub), args.hub_private_repo
    prior = ConsolidationPrior.from_pretrained(Path(folder) / "prior")
    refuse_few_examples(without_rare_inputs(prior, args.min_examples))
    card = model_card(folder, repo_id, args)
    pushed = push_model(folder, repo_id, card=card, files=_FILES, private=private)
    # Without the commit, which is not the same when this is done again.
    prior.provenance = replace(prior.provenance, base_model=repo_id, base_revision=None)
    name = f"{repo_id}-{method_name([prior]).partition('+')[0]}"  # of the curvature alone
    card = prior_card(
        without_rare_inputs(prior, args.min_examples),
        name,
        base_model=str(pushed),
        license_id=args.license,
        data_statement=args.data_statement,
    )
    published = prior.push_to_hub(
        name, private=private, min_examples=args.min_examples, anchor=str(pushed), card=card
    )
    push_card(
        repo_id,
        model_card(folder, repo_id, args, str(published)),
        commit_message="Name its prior",
        parent=pushed.commit,
    )
    return str(published)


def model_card(
    folder: str | Path, repo_id: str, args: PushArguments, prior: str | None = None
) -> str:
    """Write the card of a tier's model: its tasks, what it still knows of each, and how to go on.

    Args:
        folder: What :func:`push_tier` takes.
        repo_id: The repository that it goes to.
        args: Licence and data statement.
        prior: Its own prior, ``"org/name@sha"``; None as long as it is not pushed.

    Returns:
        The card, its metadata included.
    """
    results = json.loads((Path(folder) / RESULTS_NAME).read_text(encoding="utf-8"))
    settings, kept = results["settings"], results["outcomes"][-1]
    tasks = list(_tasks(results))
    base, dataset = _on_hub(settings["tier"]["model"]), _on_hub(settings["data"]["dataset"])
    previous = settings["tier"]["model"] if base and results["remembered"] else None
    data = ModelCardData(
        library_name="transformers",
        base_model=base,
        license=args.license,
        datasets=dataset,
        metrics=["accuracy"],
        model_name=repo_id.rpartition("/")[2],
        tags=["hf_kfc", "continual-learning", "entity-linking", "multiple-choice"],
        eval_results=[
            EvalResult(
                task_type="multiple-choice",
                dataset_type=task.name,
                dataset_name=task.name,
                dataset_split="test",
                metric_type="accuracy",
                metric_value=task.now,
            )
            for task in tasks
            if task.now is not None
        ],
        previous_model=previous,
        consolidated_against=[task.prior for task in tasks if task.prior] or None,
        consolidation_prior=prior,
    )
    shown = settings["data"] | settings["tier"] | settings["learning"]
    shown["processes"] = settings["processes"]
    text = render(
        "model_card.md",
        repo_id=repo_id,
        tasks=tasks,
        previous=previous,
        prior=Source.parse(prior) if prior else None,
        method=kept["method"],
        damping=kept["damping"],
        settings={k: v for k, v in shown.items() if v is not None and k not in _NOT_SHOWN},
        table=(Path(folder) / RESULTS_TABLE).read_text(encoding="utf-8").strip(),
        figure=FIGURE_NAME if (Path(folder) / FIGURE_NAME).exists() else None,
        data_statement=args.data_statement,
        versions=results["versions"],
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}"))


def _on_hub(name: str | None) -> str | None:
    """Return the repository of a name that others can find; None of a folder or a task."""
    place = str(name).partition(":")[0]
    is_repository = name is not None and "/" in place and not Path(place).exists()
    return split_revision(place)[0] if is_repository else None


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


def _tasks(results: dict[str, Any]) -> Iterator[_Task]:
    """The earlier tasks in the order of the priors, then the one learnt last."""
    kept, remembered = results["outcomes"][-1], results["remembered"]
    for own, strength in zip(
        remembered, kept["strengths"] or [None] * len(remembered), strict=True
    ):
        now = kept["old_by_task"].get(own["task"])
        yield _Task(own["task"], own["accuracy"], now, strength, own["source"])
    yield _Task(results["new_task"], kept["new"], kept["new"])
