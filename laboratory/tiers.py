"""Tiers: learn a task, measure, remember it, learn the next one."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import datasets
import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
)

from hf_kfc.curvature import CurvatureArguments, survey
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.probes import Probes
from hf_kfc.ranking import (
    CandidateCollator,
    compute_metrics,
    load_pretrained,
    new_cnn,
    ranking_forward,
    ranking_position_mask,
)
from hf_kfc.ranking.tasks import prepare_task

from .arguments import DataArguments, LearningArguments, RankerArguments
from .averaging import average_parameters
from .data import Example, Examples, TaskData, encode_task, random_examples
from .lora import add_lora, merge_lora
from .methods import PLAIN, Method
from .processes import process_state
from .rehearsal import RehearsalSampler, keep_part
from .rivals import RivalArguments, RivalTrainer

__all__ = [
    "Learned",
    "as_learned",
    "averaged",
    "check_rehearsal",
    "forgetting",
    "kept_examples",
    "learn",
    "make_prior",
    "make_probes",
    "new_ranker",
    "prepare",
]


def new_ranker(
    args: RankerArguments, tasks: Sequence[datasets.DatasetDict], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a ranker that has learnt nothing yet, or load one.

    Args:
        args: Which ranker.
        tasks: Give a new CNN its vocabulary.
        seed: Of new weights.

    Returns:
        The model and its tokenizer.

    Raises:
        HfKfcError: The model or its tokenizer is missing or damaged.
    """
    if args.ranker != "cnn":
        return load_pretrained(args.ranker, num_layers=args.num_layers, seed=seed)
    examples = datasets.concatenate_datasets([splits["train"] for splits in tasks])
    return new_cnn(examples, hidden_size=args.hidden_size, vocab_size=args.vocab_size, seed=seed)


def prepare(
    ranker: RankerArguments,
    seed: int,
    tasks: Sequence[tuple[str, DataArguments]],
    curvature: CurvatureArguments,
    common_vocabulary: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[TaskData]]:
    """Load tasks and ranker.

    Args:
        ranker: Which ranker.
        seed: Of the examples drawn and of new weights.
        tasks: Names and sizes.
        curvature: What is to be estimated of the ranker, once it has learnt.
        common_vocabulary: A new ranker gets the vocabulary of all tasks, as a general one would,
            and not of the first alone.

    Returns:
        Model, tokenizer and encoded tasks.

    Raises:
        HfKfcError: A task or a file is missing or malformed, or the ranker has no such curvature.
    """
    with process_state().main_process_first():  # the others find the examples in the cache
        builders = [
            prepare_task(name, data_dir=data.data_dir, seed=seed, **data.config)
            for name, data in tasks
        ]
        splits = [builder.as_dataset() for builder in builders]
        model, tokenizer = new_ranker(ranker, splits if common_vocabulary else splits[:1], seed)
        survey(model, curvature.ignore)  # refuses now what the estimate would refuse later
        encoded = [
            encode_task(name, task, tokenizer, ranker.max_length, builder)
            for (name, _), task, builder in zip(tasks, splits, builders, strict=True)
        ]
    return model, tokenizer, encoded


@dataclass(frozen=True)
class Learned:
    """A model after a tier.

    Args:
        model: The model itself, without the Trainer's wrappers.
        trainer: Evaluates it.
    """

    model: PreTrainedModel
    trainer: RivalTrainer

    def accuracy(self, examples: Examples) -> float:
        """Return the share of examples whose gold candidate is ranked first.

        Args:
            examples: Encoded examples.
        """
        self.trainer.remove_callback(ProgressCallback)  # a bar for each, within that of the runs
        metrics = self.trainer.evaluate(cast(Any, examples))
        _unwrap(self.model)
        return float(metrics["eval_accuracy"])


def learn(
    start: PreTrainedModel,
    task: TaskData,
    collator: CandidateCollator,
    args: LearningArguments,
    priors: Sequence[ConsolidationPrior] = (),
    *,
    method: Method = PLAIN,
    kept: Sequence[Example] = (),
    probes: Sequence[Probes] = (),
) -> Learned:
    """Train a copy of a model on a task.

    Args:
        start: The model to begin from; it is left as it is.
        task: The task.
        collator: Makes batches of encoded examples.
        args: How to train.
        priors: Of earlier tasks.
        method: What else is done against forgetting: rehearsal, learning rates, LoRA. (Averages
            are taken of finished models.)
        kept: Examples of earlier tasks to rehearse; see :func:`kept_examples`.
        probes: Of earlier tasks, on which the model is to stay as it is.

    Returns:
        The new model.
    """
    model = copy.deepcopy(start)
    if method.lora_rank is not None:
        model = add_lora(model, method.lora_rank)
    rehearsed = list(kept) if method.rehearsal else None
    trainer = _trainer(
        model, collator, _rates(args, method), task, priors, method, rehearsed, probes
    )
    if method.late_decay is not None:
        steps = math.ceil(len(trainer.get_train_dataloader()) * args.epochs)
        trainer.args.lr_scheduler_kwargs = {"num_decay_steps": math.ceil(method.late_decay * steps)}
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    _unwrap(model)
    if method.lora_rank is not None:
        return as_learned(merge_lora(model), collator, args)
    return Learned(cast(PreTrainedModel, model), trainer)


def _unwrap(model: nn.Module) -> None:
    """Take off what training or evaluating by accelerate has left on a model.

    Mixed precision wraps the model's forward, through which no curvature must be estimated, and a
    model marked as prepared is not prepared again: the next tier would train it in float32.
    (``unwrap_model(keep_fp32_wrapper=False)`` would take off the class's own decorators too.)
    """
    for attribute in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(model).pop(attribute, None)


def _rates(args: LearningArguments, method: Method) -> LearningArguments:
    damping = args.damping if method.damping is None else method.damping
    return replace(args, learning_rate=args.learning_rate * method.rate, damping=damping)


def kept_examples(method: Method, tasks: Sequence[TaskData], seed: int) -> Examples:
    """Return what a method that rehearses has kept of earlier tasks.

    Drawn once from each task, the same at every later tier, as if the rest had been deleted.

    Args:
        method: Says which share is kept.
        tasks: The earlier tasks.
        seed: Of the draw.
    """
    if not method.rehearsal:
        return []
    parts = [part for task in tasks for part in task.parts or (task,)]
    return [example for part in parts for example in keep_part(part.train, method.kept, seed)]


def check_rehearsal(
    method: Method, new: TaskData, tasks: Sequence[TaskData], args: LearningArguments
) -> None:
    """Make sure that a method has old examples to rehearse, before hours of learning.

    Args:
        method: The method.
        new: The task to learn.
        tasks: The earlier tasks.
        args: Batch size and seed.

    Raises:
        ConsolidationError: An epoch would have no old example.
    """
    if method.rehearsal:
        RehearsalSampler(
            len(new.train),
            len(kept_examples(method, tasks, args.seed)),
            method.rehearsal,
            step_size=args.batch_size * process_state().num_processes,
        )


def averaged(
    before: PreTrainedModel,
    learned: Learned,
    tier: int,
    collator: CandidateCollator,
    args: LearningArguments,
) -> Learned:
    """Average the parameters of the models of all tiers so far, each with the same weight.

    Args:
        before: The average up to the tier before.
        learned: What has learnt the newest task.
        tier: Number k of this tier; the newest model has the weight 1/k.
        collator: Makes batches of encoded examples.
        args: Batch size and precision.
    """
    model = copy.deepcopy(before)
    model.load_state_dict(average_parameters(before, learned.model, 1 / tier))
    return as_learned(model, collator, args)


def as_learned(
    model: PreTrainedModel, collator: CandidateCollator, args: LearningArguments
) -> Learned:
    """Take a model as it is, to evaluate it in float32, as one that was just trained is.

    Args:
        model: The model.
        collator: Makes batches of encoded examples.
        args: Batch size.
    """
    return Learned(model, _trainer(model, collator, replace(args, bf16=False)))


def make_prior(
    method: Method,
    learned: Learned,
    task: TaskData,
    collator: CandidateCollator,
    args: CurvatureArguments,
    anchor_metrics: Mapping[str, float],
) -> ConsolidationPrior:
    """Make the prior that a method needs of a finished task.

    Args:
        method: A method with a penalty.
        learned: The model that has learnt the task.
        task: The task; of a data-free prior, its name and its number of examples alone are used.
        collator: Makes batches of encoded examples.
        args: How the curvature is estimated, where the method does not say.
        anchor_metrics: The model's metrics on the task.
    """
    if method.curvature == "identity":
        return ConsolidationPrior.l2(learned.model, task=task.name, ignore=args.ignore)
    examples = task.train
    if method.data_free:
        count = min(len(examples), args.max_curvature_examples or len(examples))
        examples = random_examples(collator.tokenizer, count, args.curvature_seed)
    return ConsolidationPrior.estimate(
        learned.model,
        examples,
        collator,
        replace(args, curvature=str(method.curvature), **method.estimate),
        task=task.name,
        anchor_metrics=anchor_metrics,
        forward=ranking_forward,
        position_mask=ranking_position_mask,
    )


def make_probes(
    kind: str,
    learned: Learned,
    task: TaskData,
    new: TaskData,
    collator: CandidateCollator,
    seed: int,
) -> Probes:
    """Keep what a model says of inputs like those of a finished task.

    Args:
        kind: See :meth:`~laboratory.data.TaskData.probe_examples`.
        learned: The model that has learnt the task.
        task: The task.
        new: The task to be learnt next.
        collator: Makes batches of encoded examples.
        seed: Of what is drawn.
    """
    examples, source = task.probe_examples(kind, seed, new, collator.tokenizer)
    return Probes.from_dataset(
        learned.model, examples, collator, forward=ranking_forward, source=source
    )


@torch.no_grad()
def forgetting(
    probes: Probes, model: nn.Module, collator: CandidateCollator
) -> tuple[float, float]:
    """Measure how far a model is from what was kept.

    Args:
        probes: None of which was trained on.
        model: The model.
        collator: Makes batches of encoded examples.

    Returns:
        The mean of KL(anchor ‖ model) in nats, and the share of changed decisions.
    """
    model.eval()
    found = probes.loss(model, range(len(probes)), collator, forward=ranking_forward)
    return float(found.each.mean()), float(found.changed.float().mean())


def _trainer(
    model: PreTrainedModel,
    collator: CandidateCollator,
    args: LearningArguments,
    task: TaskData | None = None,
    priors: Sequence[ConsolidationPrior] = (),
    method: Method = PLAIN,
    kept: Examples | None = None,
    probes: Sequence[Probes] = (),
) -> RivalTrainer:
    with tempfile.TemporaryDirectory() as unused:  # a Trainer makes a folder for checkpoints
        arguments = RivalArguments(
            output_dir=unused,
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            lr_scheduler_type="linear" if method.late_decay is None else "warmup_stable_decay",
            layer_decay=method.layer_decay,
            rehearsal=method.rehearsal or "fixed",
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=4 * args.batch_size,
            strengths=args.strengths if priors else None,
            damping=args.damping,
            penalty_every=args.penalty_every,
            penalty_dtype=args.penalty_dtype,
            probe_weight=method.probe_weight,
            probe_temperature=method.probe_temperature,
            probe_batch_size=method.probe_batch,
            forgetting_every=0 if method.budget is None else 10,
            forgetting_budget=method.budget,
            bf16=args.bf16,
            use_cpu=not torch.accelerator.is_available(),
            seed=args.seed,
            save_strategy="no",
            logging_steps=50,
            report_to=[],
        )
        return RivalTrainer(
            model,
            arguments,
            priors=priors,
            probes=probes,
            old_dataset=kept,
            data_collator=collator,
            train_dataset=None if task is None else cast(Any, task.train),
            compute_metrics=compute_metrics,
        )
