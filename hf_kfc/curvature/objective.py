"""What is differentiated: the logits of a batch, and the gradients of its log-likelihood there.

Every task is softmax cross-entropy, whose gradient at the logits is ``softmax(z) − onehot(y)``.
Which ``y`` is the label kind; the estimator and the oracle share this file and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..curvature_arguments import Labels
from ..errors import CurvatureError
from ..precision import wide

__all__ = [
    "Forward",
    "Outputs",
    "PositionMask",
    "default_forward",
    "default_position_mask",
    "logit_gradients",
    "refuse_other_loss",
]


class Outputs(NamedTuple):
    """What a forward pass gives to the curvature.

    Args:
        logits: Shape [N, K] (one decision per example) or [N, T, K] (one per position); the
            dtype's minimum where a class is not offered.
        labels: Shape [N] or [N, T]; −100 where there is no decision.
    """

    logits: Tensor
    labels: Tensor


Forward = Callable[[nn.Module, Mapping[str, Tensor]], Outputs]
PositionMask = Callable[[Mapping[str, Tensor]], Tensor | Mapping[str, Tensor]]


def default_position_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """Say which positions of a batch count: the attended tokens.

    Args:
        batch: Tensors by name: ``attention_mask`` [N, ..., T] is used where it is; without it
            every position counts, also those labelled −100.

    Returns:
        Boolean tensor [N], [N, T] or [N, C, T].

    Raises:
        CurvatureError: No mask, and no labels to count the examples by.
    """
    if "attention_mask" not in batch:
        return torch.ones_like(_labels(batch), dtype=torch.bool)
    return batch["attention_mask"].bool()


def default_forward(model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
    """Run a Hugging Face model with a ``logits`` output.

    A causal language model scores the **next** token: its own loss compares the logits of
    position t with the label of position t + 1, and so does this. Whether a model does is asked
    of the model, not of its name: of a batch in which only first positions are labelled such a
    loss has nothing to say.

    Args:
        model: Called with the batch less ``labels``, unless they are one per position and it has a
            loss of its own.
        batch: Tensors by name; ``labels`` is required.

    Returns:
        Logits and labels; of a causal language model [N, T−1, K] and [N, T−1], those of positions
        that have a next one.

    Raises:
        CurvatureError: No labels, no logits, or logits that are not class scores of the labels.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)
        >>> ids = torch.tensor([[3, 1, 4, 1, 5]])
        >>> outputs = default_forward(GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids})
        >>> outputs.logits.shape, outputs.labels.tolist()
        (torch.Size([1, 4, 20]), [[1, 4, 1, 5]])
    """
    inputs = dict(batch)
    labels = _labels(inputs)
    del inputs["labels"]
    probe, shifts = _probe_labels(model, labels), False
    if probe is not None and (start := _first_attended(inputs, labels)):
        shifts = _shifts(model, _loss_from(model, inputs, probe, start))
    elif probe is not None:
        inputs["labels"] = probe
    output = model(**inputs)
    logits = getattr(output, "logits", None)
    if logits is None or logits.shape[:-1] != labels.shape or logits.shape[-1] < 2:
        shape = None if logits is None else list(logits.shape)
        raise CurvatureError(
            f"{type(model).__name__} gave logits of shape {shape} for labels of shape "
            f"{list(labels.shape)}; curvature needs one score per class, so give `forward=` a "
            "function that returns them"
        )
    if shifts or ("labels" in inputs and _shifts(model, getattr(output, "loss", None))):
        return Outputs(logits[:, :-1], labels[:, 1:])
    return Outputs(logits, labels)


def logit_gradients(
    outputs: Outputs, kind: Labels, keys: Sequence[int], seed: int
) -> Iterator[Tensor]:
    """Yield logit gradients V whose per-example outer products sum to the wanted Fisher.

    For ``exact``, F = Σ_c p_c ∇log p_c ∇log p_cᵀ needs one V per class, scaled by √p_c; decisions
    at different positions are independent, so each position has its own.

    Args:
        outputs: Of a forward pass.
        kind: The label kind.
        keys: A number per example that is the same in every run, whatever batch it is in.
        seed: Of the sampled labels.

    Yields:
        Tensors shaped like the logits, without gradient.

    Raises:
        CurvatureError: Logits and labels do not fit each other or the examples.
    """
    logits = outputs.logits.detach()
    if logits.shape[:-1] != outputs.labels.shape or len(logits) != len(keys):
        raise CurvatureError(
            f"logits of shape {list(logits.shape)} and labels of shape "
            f"{list(outputs.labels.shape)} are no scores of {len(keys)} examples; `forward=` must "
            "return [N, K] and [N], or [N, T, K] and [N, T]"
        )
    decided = outputs.labels != -100
    wrong = decided & ((outputs.labels < 0) | (outputs.labels >= logits.shape[-1]))
    if bool(wrong.any()):
        raise CurvatureError(
            f"label {int(outputs.labels[wrong][0])} is out of range for {logits.shape[-1]} "
            "classes; use -100 where there is no decision"
        )
    probabilities = wide(logits).softmax(-1)
    if kind is Labels.EMPIRICAL:
        yield _residual(probabilities, outputs.labels.clamp(min=0), decided)
    elif kind is Labels.SAMPLED:
        yield _residual(probabilities, _sample(probabilities, keys, seed), decided)
    else:
        yield from _exact(probabilities, decided)


def refuse_other_loss(model: nn.Module, batch: Mapping[str, Tensor], outputs: Outputs) -> None:
    """Make sure that a model's own loss of labels per position is the one that is differentiated.

    Args:
        model: Its parameters, or some, have gradients.
        batch: Tensors by name.
        outputs: Of :func:`default_forward` on the batch.

    Raises:
        CurvatureError: For some example its gradient at the logits has another direction than that
            of the softmax's cross-entropy: CTC, for example, class weights, or labels at padding
            that the loss leaves out.
    """
    if _probe_labels(model, batch["labels"]) is None:
        return
    with torch.enable_grad():
        output = model(**batch)
    loss, logits = getattr(output, "loss", None), output.logits
    if loss is None or not loss.requires_grad or not logits.requires_grad:
        return
    (own,) = torch.autograd.grad(loss, logits, allow_unused=True)
    if own is None:  # of logits that it computes anew
        return
    (residual,) = logit_gradients(outputs, Labels.EMPIRICAL, range(len(logits)), 0)
    own = wide(own)[:, : residual.shape[1]]
    least = 0.98 if torch.finfo(logits.dtype).eps > 1e-4 else 0.999
    cosine = functional.cosine_similarity(own.flatten(1), residual.flatten(1), eps=1e-30)
    both = own.flatten(1).any(1) & residual.flatten(1).any(1)
    if bool((cosine[both] < least).any()):
        raise CurvatureError(
            f"the loss of {type(model).__name__} is not the cross-entropy of its logits and labels "
            "at each position (it is CTC, weighs classes, or leaves out positions that are not "
            "labelled -100); give `forward=` a function whose logits and labels are those of the "
            "loss"
        )


def _labels(batch: Mapping[str, Tensor]) -> Tensor:
    if batch.get("labels") is None:
        raise CurvatureError(
            f"the batch has no 'labels' (it has {', '.join(sorted(batch))}); "
            "let the collator add them"
        )
    return batch["labels"]


def _probe_labels(model: nn.Module, labels: Tensor) -> Tensor | None:
    """Make labels that tell, by the model's own loss, whether it shifts them; None if it has none.

    An encoder–decoder gets the labels as they are: it makes its decoder's inputs of them, and
    compares logits and labels of the same position.
    """
    if labels.ndim < 2 or labels.is_floating_point():
        return None
    parameters = inspect.signature(getattr(model, "forward", model)).parameters.values()
    if not any(p.name == "labels" or p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return labels
    probe = torch.full_like(labels, -100)
    probe[:, 0] = 1
    return probe


def _first_attended(inputs: Mapping[str, Tensor], labels: Tensor) -> int:
    """Return the first position that any example attends to: more than 0 of left padding alone."""
    attended = inputs.get("attention_mask")
    if attended is None or attended.shape != labels.shape:
        return 0
    return int(attended.bool().any(0).int().argmax())


def _loss_from(
    model: nn.Module, inputs: Mapping[str, Tensor], probe: Tensor, start: int
) -> Tensor | None:
    """Return the loss of the probe without the padding that some losses mask."""
    length = probe.shape[1]
    cut = {
        name: value[:, start:].contiguous()
        if value.ndim > 1 and value.shape[1] == length
        else value
        for name, value in inputs.items()
    }
    with torch.no_grad():
        loss: Tensor | None = getattr(
            model(**cut, labels=probe[:, : length - start].contiguous()), "loss", None
        )
    return loss


def _shifts(model: nn.Module, loss: Tensor | None) -> bool:
    """Whether a loss of first positions alone is a mean over nothing, so that none has a label."""
    if loss is not None and not bool(loss):
        raise CurvatureError(
            f"{type(model).__name__} does not tell by its loss whether it compares logits with the "
            "labels of the same or of the next position; give `forward=` a function that aligns "
            "them"
        )
    return loss is not None and bool(loss.isnan())


def _residual(probabilities: Tensor, labels: Tensor, decided: Tensor) -> Tensor:
    target = torch.zeros_like(probabilities).scatter_(-1, labels[..., None], 1.0)
    return (probabilities - target) * decided[..., None]


def _sample(probabilities: Tensor, keys: Sequence[int], seed: int) -> Tensor:
    """Invert the cumulative distribution at uniforms that depend on seed and key alone."""
    decisions = range(probabilities.shape[1:-1].numel())
    # Not torch's generator: on a CPU it uses only the lower 32 bits of its seed.
    generators = [Random(f"{seed} {key}") for key in keys]
    uniform = torch.tensor([[generator.random() for _ in decisions] for generator in generators])
    uniform = uniform.reshape(probabilities.shape[:-1])
    cumulative = probabilities.cumsum(-1)
    threshold = uniform.to(cumulative) * cumulative[..., -1]
    drawn = torch.searchsorted(cumulative, threshold[..., None], right=True)[..., 0]
    return drawn.clamp(max=probabilities.shape[-1] - 1)


def _exact(probabilities: Tensor, decided: Tensor) -> Iterator[Tensor]:
    classes = probabilities.shape[-1]
    scaled = probabilities.sqrt() * decided[..., None]
    for label in range(classes):
        if not bool(scaled[..., label].any()):
            continue
        residual = probabilities.clone()
        residual[..., label] -= 1.0
        residual = residual * scaled[..., label, None]
        if residual.ndim == 2:
            yield residual
            continue
        for position in range(residual.shape[1]):
            alone = torch.zeros_like(residual)
            alone[:, position] = residual[:, position]
            yield alone
