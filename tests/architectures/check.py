"""What every architecture must stand: estimate, oracle, save, load, train; and how it fared."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from catalogue import Architecture, build, collator, examples_for
from torch import Tensor, nn
from transformers import TrainingArguments

from hf_kfc import ConsolidationPrior, ConsolidationTrainer, CurvatureArguments

__all__ = ["check"]

TOLERANCE = 1e-3


def check(architecture: Architecture) -> dict[str, Any]:
    """Take one architecture through the README's steps, with no argument beyond the README's.

    Returns:
        ``stage`` that was reached last ("done" if all was right), ``why`` it went no further, the
        share of parameters that the prior covers and the largest relative error of the diagonal.
    """
    row: dict[str, Any] = {"architecture": str(architecture), "model_type": architecture.model_type}
    stage = "build"
    try:
        model = build(architecture)
        examples, collate = examples_for(architecture, model), collator(model)
        with torch.no_grad():
            output = model(**collate(examples))
        assert output.loss.isfinite(), "its own loss is not finite"
        row["parameters"] = sum(p.numel() for p in model.parameters())
        stage = "estimate"
        prior = _estimate(model, examples, collate, "kronecker")
        row["covered"] = _covered(prior, model)
        row["operators"] = _operators(prior)
        stage = "oracle"
        row["error"] = _error(model, examples, collate)
        assert row["error"] < TOLERANCE, f"the diagonal is off by {row['error']:.2g}"
        stage = "save"
        with tempfile.TemporaryDirectory() as folder:
            prior.save_pretrained(Path(folder) / "prior")
            loaded = ConsolidationPrior.from_pretrained(Path(folder) / "prior")
            assert loaded.fingerprint == prior.fingerprint, "it is another prior when loaded"
            stage = "train"
            _train(model, loaded, examples, collate, folder)
        assert row["covered"] == 1.0, f"{1 - row['covered']:.1%} of the parameters move freely"
        stage = "done"
    except Exception as error:  # whatever it is, it is told
        row["why"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    row["stage"] = stage
    return row


def _estimate(
    model: nn.Module, examples: list[Any], collate: Callable[..., Any], kind: str
) -> ConsolidationPrior:
    arguments = CurvatureArguments(curvature=kind, curvature_batch_size=len(examples))
    return ConsolidationPrior.estimate(model, examples, collate, arguments, task="old")


def _covered(prior: ConsolidationPrior, model: nn.Module) -> float:
    known = prior.curvature.parameters
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    return sum(size for name, size in sizes.items() if name in known) / sum(sizes.values())


def _operators(prior: ConsolidationPrior) -> dict[str, int]:
    found: dict[str, int] = {}
    for block in prior.curvature.blocks:
        q, p = block.shape
        found[block.operator.kind] = found.get(block.operator.kind, 0) + q * p
    return found


def _error(model: nn.Module, examples: list[Any], collate: Callable[..., Any]) -> float:
    """Hold the diagonal of a padded batch to squared gradients of each example alone, float64."""
    wide = copy.deepcopy(model).double()
    wide_examples = [
        {name: t.double() if t.is_floating_point() else t for name, t in example.items()}
        for example in examples
    ]
    prior = _estimate(wide, wide_examples, collate, "diagonal")
    wanted = _squared_gradients(wide, wide_examples, collate)
    worst = 0.0
    largest = max(float(w.max()) for w in wanted.values())
    for block in prior.curvature.blocks:
        for name, found in block.split(block.operator.diagonal).items():
            scale = float(wanted[name].max())
            if scale > 1e-12 * largest:  # what is below has no gradient but rounding
                worst = max(worst, float((found - wanted[name]).abs().max()) / scale)
    return worst


def _squared_gradients(
    model: nn.Module, examples: list[Any], collate: Callable[..., Any]
) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for example in examples:
        model.zero_grad()
        batch = collate([example])
        loss = model(**batch).loss * _decisions(model, batch)
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] += parameter.grad.detach() ** 2 / len(examples)
    return total


def _decisions(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """How many decisions the model's own loss of one example is a mean over."""
    if "start_positions" in batch:
        return 2
    labels = batch["labels"]
    if labels.ndim < 2:
        return 1
    shifts = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")) and not getattr(
        model.config, "is_encoder_decoder", False
    )
    return int(((labels[:, 1:] if shifts else labels) != -100).sum())


def _train(
    model: nn.Module,
    prior: ConsolidationPrior,
    examples: list[Any],
    collate: Callable[..., Any],
    folder: str,
) -> None:
    args = TrainingArguments(
        f"{folder}/run",
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = ConsolidationTrainer(
        copy.deepcopy(model), args, priors=[prior], train_dataset=examples, data_collator=collate
    )
    trainer.train()
    logged = [entry["penalty"] for entry in trainer.state.log_history if "penalty" in entry]
    assert len(logged) == 2, "the penalty was not logged"
    assert logged[1] > 0, "the penalty is 0 after a step"
