"""What every architecture must stand: estimate, oracle, save, load, train; and how it fared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from math import isclose
from pathlib import Path
from typing import Any

import torch
from catalogue import Architecture, build, collator, examples_for
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainingArguments

from hf_kfc import ConsolidationPrior, ConsolidationTrainer, CurvatureArguments
from hf_kfc.curvature import relative_difference

__all__ = ["check"]

TOLERANCES = {torch.float64: 1e-3, torch.float32: 2e-2}
"""Relative to the largest entry of each parameter; some models cannot be run in float64."""


def check(architecture: Architecture) -> dict[str, Any]:
    """Take one architecture through the README's steps, with no argument beyond the README's.

    Returns:
        ``stage`` that was reached last ("done" if all was right), ``why`` it went no further, the
        share of parameters that the prior covers, by how much batches of another size change it,
        and the largest relative error of the diagonal.
    """
    row: dict[str, Any] = {"architecture": str(architecture), "model_type": architecture.model_type}
    stage = "build"
    try:
        model = build(architecture)
        examples, collate = examples_for(architecture, model), collator(model)
        assert _loss(model, collate(examples)).isfinite(), "its own loss is not finite"
        row["reads_padding"] = _reads_padding(model, examples, collate)
        row["parameters"] = sum(p.numel() for p in model.parameters())
        stage = "estimate"
        prior = _estimate(model, examples, collate, "kronecker")
        row["covered"] = _covered(prior, model)
        row["operators"] = _operators(prior)
        stage = "batches"
        row["by_batch"] = _difference(_estimate(model, examples, collate, "kronecker", 2), prior)
        assert row["by_batch"] < 1e-3, f"batches of 2 differ by {row['by_batch']:.2g}"
        stage = "oracle"
        dtype = _oracle_dtype(model, examples, collate)
        row["oracle"], row["error"] = str(dtype), _error(model.to(dtype), examples, collate)
        model.float()
        assert row["error"] < TOLERANCES[dtype], f"the diagonal is off by {row['error']:.2g}"
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
    model: nn.Module,
    examples: list[Any],
    collate: Callable[..., Any],
    kind: str,
    batch_size: int | None = None,
) -> ConsolidationPrior:
    size = batch_size or len(examples)
    arguments = CurvatureArguments(curvature=kind, curvature_batch_size=size)
    return ConsolidationPrior.estimate(model, examples, collate, arguments, task="old")


def _difference(one: ConsolidationPrior, other: ConsolidationPrior) -> float:
    """Return the largest relative difference of two curvatures' blocks, of those with any."""
    pairs = list(zip(one.curvature.blocks, other.curvature.blocks, strict=True))
    traces = [float(block.operator.trace(block.shape)) for _, block in pairs]
    return max(
        relative_difference(theirs.operator, mine.operator, mine.shape) or 0.0
        for (mine, theirs), trace in zip(pairs, traces, strict=True)
        if trace > 1e-9 * max(traces)  # what is below has no gradient but rounding
    )


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


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        loss: Tensor = model(**batch).loss
    return loss


def _reads_padding(model: nn.Module, examples: list[Any], collate: Callable[..., Any]) -> bool:
    with torch.no_grad():
        together = _logits(model(**collate(examples)))
        alone = [_logits(model(**collate([example])))[0] for example in examples]
    for row, own in enumerate(alone):
        seen = together[row][: len(own)]  # of classes, or of the positions that it has
        if not torch.allclose(seen, own, rtol=1e-5, atol=1e-6):
            return True
    return False


def _logits(output: Any) -> Tensor:
    logits: Tensor = output.logits if "logits" in output else output.start_logits
    return logits


def _oracle_dtype(
    model: nn.Module, examples: list[Any], collate: Callable[..., Any]
) -> torch.dtype:
    try:
        wide = _as(examples, torch.float64)
        squares = _squared_gradients(model.double(), wide, collate)
        finite = all(bool(total.isfinite().all()) for total in squares.values())
    except RuntimeError:  # something in it is float32 whatever the model is
        finite = False
    model.float()
    return torch.float64 if finite else torch.float32


def _as(examples: list[Any], dtype: torch.dtype) -> list[Any]:
    return [
        {name: t.to(dtype) if t.is_floating_point() else t for name, t in example.items()}
        for example in examples
    ]


def _error(model: nn.Module, examples: list[Any], collate: Callable[..., Any]) -> float:
    """Hold the diagonal of a padded batch to squared gradients of each example alone."""
    examples = _as(examples, next(model.parameters()).dtype)
    prior = _estimate(model, examples, collate, "diagonal")
    wanted = _squared_gradients(model, examples, collate)
    worst = 0.0
    largest = max(float(w.max()) for w in wanted.values() if w.numel())
    for block in prior.curvature.blocks:
        for name, found in block.split(block.operator.diagonal).items():
            scale = float(wanted[name].max()) if found.numel() else 0.0
            if scale > 1e-10 * largest:  # what is below has no gradient but rounding
                worst = max(worst, float((found - wanted[name]).abs().max()) / scale)
    return worst


def _squared_gradients(
    model: nn.Module, examples: list[Any], collate: Callable[..., Any]
) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for example in examples:
        model.zero_grad()
        batch = collate([example])
        output = model(**batch)
        (output.loss * _decisions(output, batch)).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] += parameter.grad.detach() ** 2 / len(examples)
    return total


def _decisions(output: Any, batch: dict[str, Tensor]) -> int:
    """How many decisions the model's own loss of one example is a mean over.

    Some causal models compare logits with the labels of the next position and some do not; the
    value of the loss tells.
    """
    if "start_positions" in batch:
        return 2
    labels = batch["labels"]
    if labels.ndim < 2 or output.logits.shape[:-1] != labels.shape:
        return 1
    shifted = functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    is_shifted = isclose(float(shifted), float(output.loss), rel_tol=1e-5)
    return int(((labels[:, 1:] if is_shifted else labels) != -100).sum())


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
        model, args, priors=[prior], train_dataset=examples, data_collator=collate
    )
    trainer.train()
    logged = [entry["penalty"] for entry in trainer.state.log_history if "penalty" in entry]
    assert len(logged) == 2, "the penalty was not logged"
    assert logged[1] > 0, "the penalty is 0 after a step"
