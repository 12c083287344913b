"""A model's own loss, where it has one: what is differentiated must be what it learns by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..curvature_arguments import Labels
from ..errors import CurvatureError
from ..precision import wide
from .graph import nodes_under
from .likelihood import Family, Outputs, logit_gradients
from .objective import (
    ENDS,
    answers,
    default_forward,
    has_answers,
    named,
    parameters_of,
    refuse_classes,
)
from .sides import has_sides

__all__ = ["refuse_other_loss"]

_CLASSES = 32  # of which weights are looked for
_SMOOTHED = 0.005  # share of a label that is not its class's
_MOST_NAMED = 3


def refuse_other_loss(model: nn.Module, batch: Mapping[str, Tensor], outputs: Outputs) -> None:
    """Make sure that a model's own loss is the one that is differentiated.

    Args:
        model: Its parameters, or some, have gradients.
        batch: Tensors by name.
        outputs: Of :func:`default_forward` on the batch.

    Raises:
        CurvatureError: A label is no class, or its gradient at the logits is no multiple of that
            of the family's loss, for an example or for all of them together: CTC, for example,
            weights of classes, smoothed labels, or labels at padding that the loss leaves out.
    """
    if outputs.family is Family.CATEGORICAL:
        refuse_classes(outputs.labels, outputs.logits.shape[-1])
    if not _computes_loss(model, batch):
        return
    _compare_losses(model, batch, outputs)
    if (other := _with_other_labels(model, batch, outputs)) is not None:
        _compare_losses(model, other, default_forward(model, other))


def _with_other_labels(
    model: nn.Module, batch: Mapping[str, Tensor], outputs: Outputs
) -> dict[str, Tensor] | None:
    """Repeat the first example with other labels: every class, far numbers, fewer positions.

    Examples of like labels do not show by which weight each counts. None where labels are of no
    examples, or of positions and too many classes.
    """
    labels, classes = batch.get("labels"), outputs.logits.shape[-1]
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    if labels is None or any(not t.ndim or len(t) != len(labels) for t in tensors):
        return None
    first = labels[:1]
    if outputs.family is Family.GAUSSIAN:
        size = first.abs().clamp(min=1)
        other = torch.cat([first + size, first + 100 * size])
    elif outputs.family is Family.BERNOULLI:
        other = torch.cat([first, 1 - first])
    elif labels.ndim == 1 and outputs.logits.ndim == 2:
        other = torch.arange(min(classes, _CLASSES), device=labels.device)
    elif labels.ndim == 2 and classes <= _CLASSES and bool(outputs.decided[0].any()):
        places = (first[0] != -100).nonzero()[:, 0]
        rows = max(2, -(-classes // len(places)))
        other = first.repeat(rows, 1)
        numbers = torch.arange(rows * len(places), device=labels.device)
        other[:, places] = (numbers % classes).view(rows, -1)
        if not has_sides(model):  # whose decoder may read its labels
            other[-1, places[: len(places) // 2]] = -100
    else:
        return None
    repeated = torch.zeros(len(other), dtype=torch.long, device=labels.device)
    batch = {n: v[repeated] if isinstance(v, Tensor) else v for n, v in batch.items()}
    return batch | {"labels": other.to(labels.dtype)}


def _compare_losses(model: nn.Module, batch: Mapping[str, Tensor], outputs: Outputs) -> None:
    with torch.enable_grad():
        found = named(model(**batch))
    loss = getattr(found, "loss", None)
    for scores, expected in _as_the_loss_reads(model, found, batch, outputs):
        own = _gradient(loss, scores)
        if own is None:  # of logits that it computes anew, or of others than it returns
            if loss is not None and not has_answers(batch) and not _is_mean(loss, expected):
                _refuse_loss(model, outputs)
            continue
        (residual,) = logit_gradients(expected, Labels.EMPIRICAL, range(len(scores)), 0)
        own, residual = wide(own)[:, : residual.shape[1]].flatten(1), residual.flatten(1)
        both = own.any(1) & residual.any(1)
        own, residual = own[both], residual[both]
        together = own.reshape(1, -1), residual.reshape(1, -1)
        least = 0.98 if torch.finfo(scores.dtype).eps > 1e-4 else 0.999
        cosines = [functional.cosine_similarity(*x, eps=1e-30) for x in ((own, residual), together)]
        if len(own) and bool((torch.cat(cosines) < least).any()):
            _refuse_loss(model, outputs)
        if _are_smoothed(own, residual, _expected(expected).flatten(1)[both], scores.dtype):
            _refuse_loss(model, outputs)
    _refuse_other_heads(
        model, loss, [s for s, _ in _as_the_loss_reads(model, found, batch, outputs)]
    )


def _expected(outputs: Outputs) -> Tensor:
    """Return what the scores say of the labels, 0 where they say nothing."""
    logits = wide(outputs.logits.detach())
    if outputs.family is Family.GAUSSIAN:
        return 2 * logits
    if outputs.family is Family.BERNOULLI:
        return logits.sigmoid() - 0.5
    return (logits.softmax(-1) - 1 / logits.shape[-1]) * outputs.decided[..., None]


def _are_smoothed(own: Tensor, residual: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether labels count for less than what is expected of them, in gradient = expected − label.

    Of a model that has learnt nothing, smoothed labels are nearly a factor of the gradient.
    """
    size = residual.square().sum()
    beside = expected - (expected * residual).sum() / size * residual
    is_known = beside.norm() > 1e3 * torch.finfo(dtype).eps * size.sqrt()
    factor = (own * residual).sum() / size
    share = (own * beside).sum() / (factor * beside.square().sum())
    return bool(is_known & (share.abs() > _SMOOTHED))


def _refuse_other_heads(model: nn.Module, loss: Tensor | None, scores: Sequence[Tensor]) -> None:
    """Refuse a loss that learns parameters of which the scores tell nothing: F of them is 0."""
    if loss is None or any(_gradient(loss, s) is None for s in scores):
        return
    nodes = nodes_under([s.grad_fn for s in scores])
    told = {id(getattr(node, "variable", None)) for node in nodes}
    untold = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in told}
    if not untold:
        return
    found = torch.autograd.grad(loss, list(untold.values()), retain_graph=True, allow_unused=True)
    learning = [
        name
        for name, g in zip(untold, found, strict=True)
        if g is not None and bool(g.to_dense().any())
    ]
    if not learning:
        return
    names = ", ".join(learning[:_MOST_NAMED])
    raise CurvatureError(
        f"the loss of {type(model).__name__} has a part that its logits do not tell, by which "
        f"{len(learning)} parameters learn ({names}, ...) that would move freely; give `forward=` "
        "a function whose logits and labels are of all decisions, or list them in `ignore`"
    )


def _is_mean(loss: Tensor, outputs: Outputs) -> bool:
    """Whether a loss is what the scores say, as a mean over all decisions or over examples.

    Of a model that has learnt nothing, other scores' loss is nearly the same too.
    """
    losses = outputs.losses().detach()
    decisions = outputs.decided.reshape(len(losses), -1).sum(1)
    over_decisions = (losses * decisions).sum() / decisions.sum().clamp(min=1)
    found = wide(loss.detach()).to(losses)
    share = 0.02 if torch.finfo(loss.dtype).eps > 1e-4 else 1e-4
    return any(
        bool(torch.isclose(found, mean, rtol=share)) for mean in (over_decisions, losses.mean())
    )


def _refuse_loss(model: nn.Module, outputs: Outputs) -> NoReturn:
    raise CurvatureError(
        f"the loss of {type(model).__name__} is not the {outputs.family.value} of its logits and "
        "labels, each decision counting as much as the others (it is CTC, weighs some more, "
        "smooths labels, scores more than it returns, or leaves out positions not labelled -100); "
        "give `forward=` a function whose logits and labels are those of the loss"
    )


def _computes_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether a model has a loss of these labels, as far as its signature tells."""
    if has_answers(batch):
        return set(ENDS) <= parameters_of(model).keys()
    parameters = parameters_of(model)
    if "labels" in parameters or not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return "labels" in parameters
    try:
        with torch.no_grad():
            model(**batch)
    except TypeError:  # what it calls does not take them
        return False
    return True


def _as_the_loss_reads(
    model: nn.Module, output: Any, batch: Mapping[str, Tensor], outputs: Outputs
) -> Iterator[tuple[Tensor, Outputs]]:
    """Yield scores, and what they are of; the softmax over positions has padding in it too."""
    if not has_answers(batch):
        yield output.logits, outputs
        return
    whole = answers(model, output, batch, None)
    for number, scores in enumerate((output.start_logits, output.end_logits)):
        yield scores, Outputs(whole.logits[:, number], whole.labels[:, number])


def _gradient(loss: Tensor | None, scores: Tensor) -> Tensor | None:
    if loss is None or not loss.requires_grad or not scores.requires_grad:
        return None
    (own,) = torch.autograd.grad(loss, scores, retain_graph=True, allow_unused=True)
    return own
