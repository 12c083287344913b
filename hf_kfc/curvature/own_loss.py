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

__all__ = ["refuse_other_loss"]

_CLASSES = 32  # of which weights are looked for
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
    if (every := _with_every_class(batch, outputs)) is not None:
        _compare_losses(model, every, default_forward(model, every))


def _with_every_class(batch: Mapping[str, Tensor], outputs: Outputs) -> dict[str, Tensor] | None:
    """Repeat the first example with one class after the other as its label.

    Examples of one class do not show by which weight their loss is multiplied. None where labels
    are no classes of examples.
    """
    labels = batch.get("labels")
    if labels is None or labels.ndim != 1 or outputs.logits.ndim != 2:
        return None
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    if outputs.family is not Family.CATEGORICAL or any(
        not t.ndim or len(t) != len(labels) for t in tensors
    ):
        return None
    classes = torch.arange(min(outputs.logits.shape[1], _CLASSES), device=labels.device)
    rows = torch.zeros_like(classes)
    repeated = {n: v[rows] if isinstance(v, Tensor) else v for n, v in batch.items()}
    return repeated | {"labels": classes.to(labels.dtype)}


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
    _refuse_other_heads(
        model, loss, [s for s, _ in _as_the_loss_reads(model, found, batch, outputs)]
    )


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
        "labels, each decision counting as much as the others (it is CTC, weighs classes, smooths "
        "labels, scores more than it returns, or leaves out positions that are not labelled -100); "
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
