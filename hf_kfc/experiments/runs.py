"""What the recipes call: one tier, or a second tier with methods side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..curvature import CurvatureArguments
from ..errors import ConsolidationError
from ..files import refuse_foreign, replace_directory
from ..priors import ConsolidationPrior
from ..priors.files import CONFIG_NAME
from ..ranking import CandidateCollator
from ..training import bayesian_strength
from .arguments import DataArguments, LearningArguments, RankerArguments
from .data import TaskData
from .figures import require_matplotlib, save_comparison_figure
from .results import Comparison, Outcome, choose_strength
from .tiers import CURVATURE_OF, Learned, as_learned, check_methods, learn, make_prior, prepare

__all__ = ["Tier1Arguments", "Tier2Arguments", "run_tier1", "run_tier2"]

_MARKER = f"prior/{CONFIG_NAME}"  # tells a folder that a tier made


@dataclass
class Tier1Arguments:
    """Tier 1: what is learnt first, and where it goes."""

    task: str = field(
        default="articles",
        metadata={
            "help": "Task to learn: articles, notes or patients (generated), or bc5cdr, psytar or "
            "medmentions (with --data_dir)."
        },
    )
    output_dir: str = field(
        default="runs/tier1",
        metadata={"help": "Folder for the model, its prior (in prior/) and the results."},
    )


@dataclass
class Tier2Arguments:
    """Tier 2: what is learnt next, from which model, and against which priors."""

    task: str = field(default="patients", metadata={"help": "New task to learn."})
    old_task: str | None = field(
        default=None,
        metadata={
            "help": "Old task to measure forgetting on (default: none with --priors, otherwise "
            "articles, which is then learnt first)."
        },
    )
    priors: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Folders of the priors to consolidate against; --ranker is then the model "
            "that they belong to (default: do tier 1 on the spot)."
        },
    )
    methods: list[str] = field(
        default_factory=lambda: ["none", "ewc", "ekfac", "kfc"],
        metadata={
            "help": "What to compare when tier 1 is done on the spot: none, l2, ewc, ekfac, kfc; "
            "the model of the last one is kept."
        },
    )
    output_dir: str = field(
        default="runs/tier2",
        metadata={"help": "Folder for the model, its prior (in prior/), table and picture."},
    )


@dataclass
class _Stage:
    """Everything that is ready when the second tier begins."""

    start: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    collator: CandidateCollator
    old: TaskData | None
    new: TaskData
    old_before: float | None
    priors: dict[str, list[ConsolidationPrior]]
    multiples: tuple[float, ...] = (1.0,)
    """Strengths to choose from, as multiples of the Bayesian value."""


def run_tier1(
    tier: Tier1Arguments,
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
) -> None:
    """Learn a task; save the model, its prior and its accuracy.

    Args:
        tier: Task and folder.
        ranker: The model to begin from.
        data: The examples.
        learning: How to train.
        curvature: How the prior is estimated.

    Raises:
        HfKfcError: Something in the input is missing or wrong; nothing is left behind.
    """
    refuse_foreign(Path(tier.output_dir), _MARKER)
    start, tokenizer, (task,) = prepare(ranker, learning.seed, [(tier.task, data)], curvature)
    collator = CandidateCollator(tokenizer)
    learned = learn(start, task, collator, learning)
    outcome = Outcome("none", [], None, None, learned.accuracy(task.test))
    settings = _settings(tier, ranker, data, learning, curvature)
    comparison = Comparison("", task.name, None, [outcome], settings)
    _keep(Path(tier.output_dir), learned, task, tokenizer, collator, curvature, comparison)


def run_tier2(
    tier: Tier2Arguments,
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
) -> None:
    """Learn a second task with methods side by side; save table, picture, model and prior.

    With ``tier.priors`` the methods are *none* and consolidation against those priors, at
    ``learning.strengths`` or the Bayesian strength; otherwise tier 1 is done first, on
    ``tier.old_task``, and the methods are ``tier.methods``, each at a strength that
    :func:`~hf_kfc.experiments.results.choose_strength` chooses on the development splits if
    ``learning.strengths`` gives none.

    Args:
        tier: Tasks, priors, methods and folder.
        ranker: The model to begin from.
        data: The examples.
        learning: How to train.
        curvature: How priors are estimated.

    Raises:
        HfKfcError: Something in the input is missing or wrong; nothing is left behind.
    """
    require_matplotlib()
    check_methods(tier.methods)
    refuse_foreign(Path(tier.output_dir), _MARKER)
    make_stage = _stage_from_priors if tier.priors else _stage_from_scratch
    stage = make_stage(tier, ranker, data, learning, curvature)
    old_tasks = stage.old.name if stage.old else " + ".join(p.task for p in _last(stage.priors))
    comparison = Comparison(
        old_tasks,
        stage.new.name,
        stage.old_before,
        settings=_settings(tier, ranker, data, learning, curvature),
    )
    plain: Outcome | None = None
    for method in stage.priors:
        learned, chosen = _learn_chosen(stage, method, learning, plain)
        plain = chosen if method == "none" else plain
        comparison.outcomes.append(_measure(stage, method, learned, learning, "test"))
    _keep(
        Path(tier.output_dir),
        learned,
        stage.new,
        stage.tokenizer,
        stage.collator,
        curvature,
        comparison,
    )


def _learn_chosen(
    stage: _Stage, method: str, learning: LearningArguments, plain: Outcome | None
) -> tuple[Learned, Outcome]:
    """Learn the new task at the strength that the development splits of both tasks favour.

    Args:
        stage: What the tier begins with.
        method: One of its methods.
        learning: How to train.
        plain: Outcome of no method on the development splits, if it is known.

    Returns:
        The model, and its outcome on the development splits.
    """
    priors, tries = stage.priors[method], [learning]
    if priors and plain is not None and learning.strengths is None and len(stage.multiples) > 1:
        bayesian = bayesian_strength(priors[0], len(stage.new.train))
        tries = [replace(learning, strengths=[m * bayesian]) for m in stage.multiples]
    learned = [learn(stage.start, stage.new, stage.collator, t, priors) for t in tries]
    outcomes = [_measure(stage, method, one, learning, "validation") for one in learned]
    chosen = choose_strength(outcomes, plain) if plain and len(tries) > 1 else outcomes[0]
    return learned[outcomes.index(chosen)], chosen


def _measure(
    stage: _Stage, method: str, learned: Learned, learning: LearningArguments, split: str
) -> Outcome:
    old = learned.accuracy(getattr(stage.old, split)) if stage.old else None
    damping = learning.damping if stage.priors[method] else None
    new = learned.accuracy(getattr(stage.new, split))
    return Outcome(method, learned.trainer.strengths, damping, old, new)


def _stage_from_priors(
    tier: Tier2Arguments,
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
) -> _Stage:
    if ranker.ranker == "cnn":
        raise ConsolidationError("--priors is given without a model; give its folder as --ranker")
    priors = [ConsolidationPrior.from_pretrained(folder) for folder in tier.priors]
    _check_strengths(learning.strengths, len(priors))
    names = [tier.task] if tier.old_task is None else [tier.task, tier.old_task]
    start, tokenizer, (new, *old) = prepare(
        ranker, learning.seed, [(n, data) for n in names], curvature
    )
    for prior in priors:
        prior.check(start)
        if learning.strengths is None:
            bayesian_strength(prior, len(new.train))  # not first after learning with no method
    collator = CandidateCollator(tokenizer)
    before = as_learned(start, collator, learning).accuracy(old[0].test) if old else None
    method_of = {kind: name for name, kind in CURVATURE_OF.items()}
    kinds = dict.fromkeys(prior.provenance.curvature for prior in priors)
    method = " + ".join(method_of.get(kind, kind) for kind in kinds)
    methods: dict[str, list[ConsolidationPrior]] = {"none": [], method: priors}
    return _Stage(start, tokenizer, collator, old[0] if old else None, new, before, methods)


def _stage_from_scratch(
    tier: Tier2Arguments,
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
) -> _Stage:
    _check_strengths(learning.strengths, 1)
    if learning.strengths is None and "l2" in tier.methods:
        raise ConsolidationError("method 'l2' has no Bayesian strength; give --strengths")
    names = [tier.old_task or "articles", tier.task]
    start, tokenizer, (old, new) = prepare(
        ranker, learning.seed, [(n, data) for n in names], curvature
    )
    collator = CandidateCollator(tokenizer)
    first = learn(start, old, collator, learning)
    before = first.accuracy(old.test)
    metrics = {"accuracy": before}
    priors = {
        method: []
        if method == "none"
        else [make_prior(method, first, old, collator, curvature, metrics)]
        for method in tier.methods
    }
    return _Stage(first.model, tokenizer, collator, old, new, before, priors, multiples=(1.0, 10.0))


def _keep(
    directory: Path,
    learned: Learned,
    task: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    collator: CandidateCollator,
    curvature: CurvatureArguments,
    comparison: Comparison,
) -> None:
    """Save the last model with its own prior, the results and a picture; print the table."""
    metrics = {"accuracy": comparison.outcomes[-1].new}
    prior = ConsolidationPrior.estimate(
        learned.model,
        task.train,
        collator,
        curvature,
        task=task.name,
        anchor_metrics=metrics,
    )
    state = PartialState()
    if state.is_main_process:
        with replace_directory(directory) as partial:
            learned.model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            prior.save_pretrained(partial / "prior")
            comparison.save(partial)
            if comparison.old_before is not None:
                save_comparison_figure(comparison, partial / "forgetting.png")
        print(f"\n{comparison.table()}\n\nsaved in {directory}")  # noqa: T201
    state.wait_for_everyone()


def _check_strengths(strengths: list[float] | None, num_priors: int) -> None:
    """Refuse here what the Trainer would refuse after learning with no method."""
    if strengths is not None and len(strengths) not in (1, num_priors):
        raise ConsolidationError(
            f"{len(strengths)} strengths are given for {num_priors} prior(s) at a time; give one "
            "for all or one for each"
        )


def _last(priors: dict[str, list[ConsolidationPrior]]) -> list[ConsolidationPrior]:
    return priors[next(reversed(priors))]


def _settings(*arguments: Any) -> dict[str, Any]:
    return {type(a).__name__: asdict(a) for a in arguments}
