"""Tiers: learn a task, measure, remember it, learn the next one."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import datasets
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..curvature import CurvatureArguments, find_layers
from ..errors import ConsolidationError, HfKfcError
from ..priors import ConsolidationPrior
from ..ranking import (
    CandidateCollator,
    CnnConfig,
    CnnForMultipleChoice,
    compute_metrics,
    load_ranker,
    train_tokenizer,
)
from ..ranking.tasks import prepare_task
from ..training import ConsolidationArguments, ConsolidationTrainer
from .arguments import DataArguments, LearningArguments, RankerArguments
from .data import Examples, TaskData, encode_task, task_texts
from .processes import process_state

__all__ = [
    "CURVATURE_OF",
    "Learned",
    "as_learned",
    "check_methods",
    "learn",
    "make_prior",
    "new_ranker",
    "prepare",
]

CURVATURE_OF: Mapping[str, str | None] = {
    "none": None,
    "l2": "identity",
    "ewc": "diagonal",
    "kfc": "kronecker",
    "ekfac": "kronecker_eigen",
}
"""The curvature that each method penalises with; ``none`` is plain fine-tuning."""


def check_methods(methods: Sequence[str]) -> None:
    """Make sure that every method is known.

    Raises:
        ConsolidationError: One is not.
    """
    for method in methods:
        if method not in CURVATURE_OF:
            raise ConsolidationError(
                f"unknown method '{method}'; choose from {', '.join(CURVATURE_OF)}"
            )


def new_ranker(
    args: RankerArguments, first_task: datasets.DatasetDict, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a ranker that has learnt nothing yet, or load one.

    Args:
        args: Which ranker.
        first_task: Gives a new CNN its vocabulary.
        seed: Of new weights.

    Returns:
        The model and its tokenizer.

    Raises:
        ConsolidationError: The model or its tokenizer is missing or damaged.
    """
    set_seed(seed)
    if args.ranker != "cnn":
        return _load(args)
    tokenizer = train_tokenizer(task_texts(first_task), args.vocab_size)
    config = CnnConfig(vocab_size=len(tokenizer), hidden_size=args.hidden_size)
    return CnnForMultipleChoice(config), tokenizer


def _load(args: RankerArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.ranker)
        return load_ranker(args.ranker, num_layers=args.num_layers), tokenizer
    except HfKfcError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConsolidationError(
            f"ranker '{args.ranker}' cannot be loaded ({str(error).strip()}); give 'cnn', the "
            "folder of a model with its tokenizer, or the name of a Hub repository"
        ) from error


def prepare(
    ranker: RankerArguments,
    seed: int,
    tasks: Sequence[tuple[str, DataArguments]],
    curvature: CurvatureArguments,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[TaskData]]:
    """Load tasks and ranker; a new ranker gets the vocabulary of the first task.

    Args:
        ranker: Which ranker.
        seed: Of the examples drawn and of new weights.
        tasks: Names and sizes.
        curvature: What is to be estimated of the ranker, once it has learnt.

    Returns:
        Model, tokenizer and encoded tasks.

    Raises:
        HfKfcError: A task or a file is missing or malformed, or the ranker has no such curvature.
    """
    with process_state().main_process_first():  # the others find the examples in the cache
        splits = [
            prepare_task(
                name, data_dir=data.data_dir, max_examples=data.max_examples, seed=seed
            ).as_dataset()
            for name, data in tasks
        ]
        model, tokenizer = new_ranker(ranker, splits[0], seed)
        find_layers(model, curvature.ignore)  # refuses now what the estimate would refuse later
        encoded = [
            encode_task(name, task, tokenizer, ranker.max_length)
            for (name, _), task in zip(tasks, splits, strict=True)
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
    trainer: ConsolidationTrainer

    def accuracy(self, examples: Examples) -> float:
        """Return the share of examples whose gold candidate is ranked first.

        Args:
            examples: Encoded examples.
        """
        metrics = self.trainer.evaluate(cast(Any, examples))
        return float(metrics["eval_accuracy"])


def learn(
    start: PreTrainedModel,
    task: TaskData,
    collator: CandidateCollator,
    args: LearningArguments,
    priors: Sequence[ConsolidationPrior] = (),
) -> Learned:
    """Train a copy of a model on a task.

    Args:
        start: The model to begin from; it is left as it is.
        task: The task.
        collator: Makes batches of encoded examples.
        args: How to train.
        priors: Of earlier tasks.

    Returns:
        The new model.
    """
    trainer = _trainer(copy.deepcopy(start), collator, args, task, priors)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    # Mixed precision wraps the model's forward, through which no curvature must be estimated, and
    # a model marked as prepared is not prepared again: the next tier would train it in float32.
    # (`unwrap_model(keep_fp32_wrapper=False)` would take off the class's own decorators too.)
    for attribute in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(model).pop(attribute, None)
    return Learned(cast(PreTrainedModel, model), trainer)


def as_learned(
    model: PreTrainedModel, collator: CandidateCollator, args: LearningArguments
) -> Learned:
    """Take a model as it is, to evaluate it.

    Args:
        model: The model.
        collator: Makes batches of encoded examples.
        args: Batch size and precision.
    """
    return Learned(model, _trainer(model, collator, args))


def make_prior(
    method: str,
    learned: Learned,
    task: TaskData,
    collator: CandidateCollator,
    args: CurvatureArguments,
    anchor_metrics: Mapping[str, float],
) -> ConsolidationPrior:
    """Make the prior that a method needs of a finished task.

    Args:
        method: A key of ``CURVATURE_OF`` other than ``none``.
        learned: The model that has learnt the task.
        task: The task.
        collator: Makes batches of encoded examples.
        args: Labels, sharing and ignored parameters; the kind is the method's.
        anchor_metrics: The model's metrics on the task.
    """
    kind = CURVATURE_OF[method]
    if kind == "identity":
        return ConsolidationPrior.l2(learned.model, task=task.name, ignore=args.ignore)
    return ConsolidationPrior.estimate(
        learned.model,
        task.train,
        collator,
        replace(args, curvature=str(kind)),
        task=task.name,
        anchor_metrics=anchor_metrics,
    )


def _trainer(
    model: PreTrainedModel,
    collator: CandidateCollator,
    args: LearningArguments,
    task: TaskData | None = None,
    priors: Sequence[ConsolidationPrior] = (),
) -> ConsolidationTrainer:
    with tempfile.TemporaryDirectory() as unused:  # a Trainer makes a folder for checkpoints
        arguments = ConsolidationArguments(
            output_dir=unused,
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=4 * args.batch_size,
            strengths=args.strengths if priors else None,
            damping=args.damping,
            bf16=args.bf16,
            use_cpu=not torch.accelerator.is_available(),
            seed=args.seed,
            save_strategy="no",
            logging_steps=50,
            report_to=[],
        )
        return ConsolidationTrainer(
            model,
            arguments,
            priors=priors,
            data_collator=collator,
            train_dataset=None if task is None else cast(Any, task.train),
            compute_metrics=compute_metrics,
        )
