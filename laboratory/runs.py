"""What the recipes call: one tier, or a later one with methods side by side."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.curvature.checkpoint import parameters_digest
from hf_kfc.errors import ConsolidationError
from hf_kfc.files import refuse_foreign, replace_directory
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors.files import CONFIG_NAME
from hf_kfc.priors.privacy import without_rare_inputs
from hf_kfc.ranking import CandidateCollator, ranking_forward, ranking_position_mask
from hf_kfc.training import bayesian_strength

from .arguments import (
    DataArguments,
    LaterTierArguments,
    LearningArguments,
    RankerArguments,
    Tier1Arguments,
    Tier2Arguments,
    Tier3Arguments,
    settings_of,
)
from .figures import require_matplotlib, save_comparison_figure
from .methods import PLAIN, check_methods
from .prediction import measure_prediction
from .processes import process_state, shared
from .publish import PublishArguments, publish
from .results import RESULTS_NAME, Comparison, Outcome, choose_strength, versions
from .stages import Sources, Stage, from_priors, from_scratch
from .tiers import Learned, averaged, kept_examples, learn, prepare

__all__ = ["run_tier1", "run_tier2", "run_tier3"]

_MARKER = f"prior/{CONFIG_NAME}"  # tells a folder that a tier made


def run_tier1(
    tier: Tier1Arguments,
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
    publishing: PublishArguments,
) -> None:
    """Learn a task; save the model, its prior and its accuracy; publish them if asked to.

    Args:
        tier: Task and folder.
        ranker: The model to begin from.
        data: The examples.
        learning: How to train.
        curvature: How the prior is estimated.
        publishing: Whether and where to publish.

    Raises:
        HfKfcError: Something in the input is missing or wrong; nothing is left behind.
    """
    directory = Path(tier.output_dir)
    refuse_foreign(directory, _MARKER)
    target = publishing.target(directory, curvature.curvature)
    settings = _settings(publishing, tier, ranker, data, learning, curvature)
    if target is None or not _is_done(directory, settings):
        start, tokenizer, (task,) = prepare(ranker, learning.seed, [(tier.task, data)], curvature)
        collator = CandidateCollator(tokenizer)
        learned = learn(start, task, collator, learning)
        outcome = Outcome("none", [], None, None, learned.accuracy(task.test))
        comparison = Comparison("", task.name, None, [outcome], settings)
        stage = Stage(start, tokenizer, collator, [], task, None, {"none": []})
        _keep(directory, learned, stage, curvature, comparison, publishing)
    publish(directory, publishing, target)


def run_tier2(
    tier: Tier2Arguments,
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
    publishing: PublishArguments,
) -> None:
    """Learn a second task with methods side by side; save table, picture, model and prior.

    With ``tier.model`` the methods are *none* and consolidation against priors, at
    ``learning.strengths`` or the Bayesian strength; otherwise tier 1 is done first, on
    ``tier.old_task``, and the methods are ``tier.methods``, each at a strength that
    :func:`~laboratory.results.choose_strength` chooses on the development splits if
    ``learning.strengths`` gives none.

    Args:
        tier: Tasks, model, priors, methods and folder.
        ranker: The model to begin tier 1 from.
        data: The examples.
        learning: How to train.
        curvature: How priors are estimated.
        publishing: Whether and where to publish.

    Raises:
        HfKfcError: Something in the input is missing or wrong; nothing is left behind.
    """
    if tier.model is not None:
        _run_later(tier, tier.model, ranker, data, learning, curvature, publishing)
        return
    if tier.priors:
        raise ConsolidationError("--priors is given without a model; give it as --model")
    check_methods(tier.methods)
    if len(tier.old_task) > 1:
        raise ConsolidationError("without --model a single --old_task is learnt first; give one")
    old_task = next(iter(tier.old_task), "articles")
    directory = _begin(tier)
    target = publishing.target(directory, curvature.curvature)
    settings = _settings(publishing, tier, ranker, data, learning, curvature)
    if target is None or not _is_done(directory, settings):
        stage = from_scratch(old_task, tier.task, tier.methods, ranker, data, learning, curvature)
        _compare(directory, stage, learning, curvature, settings, publishing)
    publish(directory, publishing, target)


def run_tier3(
    tier: Tier3Arguments,
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
    publishing: PublishArguments,
) -> None:
    """Learn a further task against the priors of all earlier ones.

    Args:
        tier: Tasks, model, priors and folder.
        ranker: Length of examples.
        data: The examples.
        learning: How to train.
        curvature: How the new prior is estimated.
        publishing: Whether and where to publish.

    Raises:
        HfKfcError: Something in the input is missing or wrong; nothing is left behind.
    """
    if tier.model is None:
        raise ConsolidationError("tier 3 goes on from a model of tier 2; give it as --model")
    _run_later(tier, tier.model, ranker, data, learning, curvature, publishing)


def _run_later(
    tier: LaterTierArguments,
    model: str,
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
    publishing: PublishArguments,
) -> None:
    if ranker.ranker != RankerArguments().ranker:
        raise ConsolidationError("--model and --ranker are two models to begin from; give one")
    directory = _begin(tier)
    target = publishing.target(directory, curvature.curvature)
    sources = Sources.find(model, tier.priors)
    settings = _settings(publishing, tier, ranker, data, learning, curvature) | {
        "sources": sources.to_dict()
    }
    if target is None or not _is_done(directory, settings):
        stage = from_priors(sources, tier.task, tier.old_task, ranker, data, learning, curvature)
        _compare(directory, stage, learning, curvature, settings, publishing)
    publish(directory, publishing, target)


def _begin(tier: LaterTierArguments) -> Path:
    require_matplotlib()
    refuse_foreign(Path(tier.output_dir), _MARKER)
    return Path(tier.output_dir)


def _compare(
    directory: Path,
    stage: Stage,
    learning: LearningArguments,
    curvature: CurvatureArguments,
    settings: dict[str, Any],
    publishing: PublishArguments,
) -> None:
    comparison = Comparison(
        stage.old_names,
        stage.new.name,
        stage.old_before,
        settings=settings,
        remembered=stage.remembered(),
    )
    plain: Outcome | None = None
    for method in stage.priors:
        learned, chosen = _learn_chosen(stage, method, learning, plain)
        plain = chosen if method == "none" else plain
        comparison.outcomes.append(_measure(stage, method, learned, learning, "test"))
    _keep(directory, learned, stage, curvature, comparison, publishing)


def _learn_chosen(
    stage: Stage, method: str, learning: LearningArguments, plain: Outcome | None
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
    learned = [_learn(stage, method, t) for t in tries]
    outcomes = [_measure(stage, method, one, learning, "validation") for one in learned]
    chosen = choose_strength(outcomes, plain) if plain and len(tries) > 1 else outcomes[0]
    return learned[outcomes.index(chosen)], chosen


def _learn(stage: Stage, name: str, learning: LearningArguments) -> Learned:
    method = stage.methods.get(name, PLAIN)
    learned = learn(
        stage.start,
        stage.new,
        stage.collator,
        learning,
        stage.priors[name],
        method=method,
        kept=kept_examples(method, stage.old, learning.seed),
    )
    if method.average == "parameters":
        return averaged(stage.start, learned, 2, stage.collator, learning)
    return learned


def _measure(
    stage: Stage, method: str, learned: Learned, learning: LearningArguments, split: str
) -> Outcome:
    old = {task.name: learned.accuracy(getattr(task, split)) for task in stage.old}
    return Outcome(
        method,
        learned.trainer.strengths,
        learned.trainer.args.damping if learned.trainer.strengths else None,
        fmean(old.values()) if old else None,
        learned.accuracy(getattr(stage.new, split)),
        old,
    )


def _keep(
    directory: Path,
    learned: Learned,
    stage: Stage,
    curvature: CurvatureArguments,
    comparison: Comparison,
    publishing: PublishArguments,
) -> None:
    """Save the last model with its own prior, the results and a picture; print the table."""
    home = directory.resolve()
    progress = f".{home.name}.curvature-"  # beside the folder, which is replaced as a whole
    estimate = _digest(comparison.settings, learned.model)
    prior = ConsolidationPrior.estimate(
        learned.model,
        stage.new.train,
        stage.collator,
        curvature,
        task=stage.new.name,
        anchor_metrics={"accuracy": comparison.outcomes[-1].new},
        forward=ranking_forward,
        position_mask=ranking_position_mask,
        checkpoint_dir=home.with_name(progress + estimate),
    )
    # Of the prior as it would be published, while the data is there.
    public = without_rare_inputs(prior, publishing.min_examples)
    prediction = measure_prediction(public, learned, stage.new)
    state = process_state()
    if state.is_main_process:
        with replace_directory(directory) as partial:
            learned.model.save_pretrained(partial)
            stage.tokenizer.save_pretrained(partial)
            prior.save_pretrained(partial / "prior")
            prediction.save(partial)
            comparison.save(partial)
            if comparison.old_before is not None:
                save_comparison_figure(comparison, partial / "forgetting.png")
        for other in home.parent.iterdir():
            if other.name.startswith(progress):  # of a run that was given up
                shutil.rmtree(other, ignore_errors=True)
        print(f"\n{comparison.table()}\n\nsaved in {directory}")  # noqa: T201
    state.wait_for_everyone()


def _digest(settings: dict[str, Any], model: PreTrainedModel) -> str:
    """Tell the estimate of a very model: training it again need not give the same to the bit."""
    content = json.dumps(settings, sort_keys=True, default=str) + parameters_digest(model)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _settings(publishing: PublishArguments, *arguments: Any) -> dict[str, Any]:
    return settings_of(*arguments) | {
        "min_examples": publishing.min_examples,
        "processes": process_state().num_processes,
    }


def _is_done(directory: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds what these settings give, so that it only has to be published."""

    def look() -> bool:
        try:
            found = json.loads((directory / RESULTS_NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        wanted = json.loads(json.dumps(settings))
        return (found["settings"], found["versions"]) == (wanted, versions())

    done = shared(look)
    if done and process_state().is_main_process:
        print(f"{directory} holds what these arguments give; to learn it anew, delete it")  # noqa: T201
    return done
