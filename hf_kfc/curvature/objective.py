"""What is differentiated: the scores of a batch, as the loss of a model of transformers reads them.

Labels say what it is: classes (of an example, of each position, of the next position), numbers,
several binary labels, or where an answer starts and ends. The model's own loss, where it has
one, is asked whether that is right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from ..errors import CurvatureError
from .frozen_linear import is_plain
from .likelihood import Family, Outputs

__all__ = [
    "ENDS",
    "Forward",
    "PositionMask",
    "answers",
    "attended",
    "default_forward",
    "default_position_mask",
    "has_answers",
    "named",
    "parameters_of",
    "refuse_classes",
]


Forward = Callable[[nn.Module, Mapping[str, Tensor]], Outputs]
PositionMask = Callable[[Mapping[str, Tensor]], Tensor | Mapping[str, Tensor]]


def default_position_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """Say which positions of a batch count: the attended tokens.

    Args:
        batch: Tensors by name: ``attention_mask`` [N, ..., T] is used where it is, see
            :func:`attended`; without it every position counts, also those labelled −100.

    Returns:
        Boolean tensor [N], [N, T] or [N, C, T].

    Raises:
        CurvatureError: No mask, and no labels to count the examples by.
    """
    if "attention_mask" in batch:
        return attended(batch["attention_mask"], batch.get("input_ids"))
    labels = batch["start_positions"] if has_answers(batch) else _labels(batch)
    one_each = has_answers(batch) or labels.is_floating_point()
    return torch.ones_like(
        labels[:, 0] if one_each and labels.ndim > 1 else labels, dtype=torch.bool
    )


def attended(mask: Tensor, ids: Tensor | None) -> Tensor:
    """Say which tokens a mask attends to, also one of pairs of tokens or one added to scores.

    Args:
        mask: Not 0 at attended tokens, [N, ..., T]; of pairs of them, [N, T, T] or [N, H, T, T],
            where the last are attended to; or added, 0 there and far below elsewhere.
        ids: The tokens, [N, ..., T].

    Returns:
        Boolean tensor; in the shape of the tokens where they are given.
    """
    is_added = mask.is_floating_point() and not bool((mask > 0).any())
    found = mask > -1 if is_added else mask.bool()
    if ids is None or mask.ndim <= ids.ndim:
        return found
    return found.reshape(*ids.shape[:-1], -1, mask.shape[-1]).any(-2)


def default_forward(model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
    """Run a Hugging Face model, and say what its scores are of.

    Integer labels are classes. Numbers are regression where there is one score for each example,
    or the config's ``problem_type`` says so, and else several binary labels: Gaussian and
    Bernoulli, as the losses of transformers are (see :class:`~hf_kfc.curvature.Family`).
    ``start_positions`` and ``end_positions`` are two decisions over an example's positions, of
    which padding is none; a position outside of them is no decision.

    A causal language model scores the **next** token: its own loss compares the logits of
    position t with the label of position t + 1, and so does this. Whether a model does is asked
    of the model, not of its name: of a batch in which only first positions are labelled such a
    loss has nothing to say.

    Args:
        model: Called with the batch less ``labels``, unless they are one per position and it has a
            loss of its own, or it does not run without.
        batch: Tensors by name; ``labels`` is required, or where the answers start and end.

    Returns:
        Logits and labels; of a causal language model the labels of next positions, -100 at the
        last one.

    Raises:
        CurvatureError: No labels, no logits, or logits that are not scores of the labels.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)
        >>> ids = torch.tensor([[3, 1, 4, 1, 5]])
        >>> outputs = default_forward(GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids})
        >>> outputs.logits.shape, outputs.labels.tolist()
        (torch.Size([1, 5, 20]), [[1, 4, 1, 5, -100]])
    """
    inputs = dict(batch)
    if has_answers(batch):
        found = named(model(**{n: value for n, value in inputs.items() if n not in ENDS}))
        return answers(model, found, batch, batch.get("attention_mask"))
    labels = _labels(inputs)
    del inputs["labels"]
    probe, asked, shifts = _probe_labels(model, labels), False, False
    if probe is not None and (start := _first_attended(inputs, labels)):
        shifts = _shifts(model, _loss_from(model, inputs, probe, start))
    elif asked := probe is not None:
        inputs["labels"] = probe
    elif (own := parameters_of(model).get("labels")) and own.default is own.empty:
        inputs["labels"] = labels  # it always computes its loss
    output = named(_run(model, inputs, labels))
    logits = getattr(output, "logits", None)
    if logits is not None and labels.shape == (*logits.shape[:-1], 1) != logits.shape:
        labels = labels[..., 0]
    family = None if logits is None else _family(model, logits, labels)
    if logits is None or family is None:
        _refuse_shapes(model, None if logits is None else logits.shape, labels)
    if family is not Family.CATEGORICAL:
        return Outputs(logits, labels.reshape(logits.shape), family)
    if shifts or (asked and _shifts(model, getattr(output, "loss", None))):
        return Outputs(logits, torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1))
    return Outputs(logits, labels)


ENDS = ("start_positions", "end_positions")


def has_answers(batch: Mapping[str, Tensor]) -> bool:
    """Say if the labels of a batch are where answers start and end."""
    return batch.get("labels") is None and all(batch.get(name) is not None for name in ENDS)


def answers(
    model: nn.Module, output: Any, batch: Mapping[str, Tensor], attended: Tensor | None
) -> Outputs:
    """Make two decisions over the attended positions of where answers start and end.

    The labels are read as by transformers: none below 0, and no decision outside of the text.
    """
    scores = [getattr(output, name, None) for name in ("start_logits", "end_logits")]
    labels = torch.stack([batch[name].reshape(-1) for name in ENDS], dim=1)
    shape = None if scores[0] is None else scores[0].shape
    if any(x is None for x in scores) or (attended is not None and attended.shape != shape):
        _refuse_shapes(model, shape, labels)
    logits = torch.stack([x for x in scores if x is not None], dim=1)  # [N, 2, T]
    length = logits.shape[-1]
    labels = labels.clamp(min=0)
    inside = labels < length
    if attended is not None:
        offered = attended.bool()
        logits = logits.masked_fill(~offered[:, None], torch.finfo(logits.dtype).min)
        inside = inside & offered.gather(1, labels.clamp(max=length - 1))
    return Outputs(logits, labels.masked_fill(~inside, -100))


def _family(model: nn.Module, logits: Tensor, labels: Tensor) -> Family | None:
    """Return what a model's scores are of, as transformers tells it; None if of no such labels."""
    config, single = getattr(model, "config", None), logits.shape[-1] == 1
    per_example = logits.ndim == 2  # the problem types are of sequence and image classifiers
    problem = getattr(config, "problem_type", None) if per_example else None
    if problem is None and labels.is_floating_point():
        problem = "regression" if single else "multi_label_classification"
    elif problem is None and per_example and single and getattr(config, "num_labels", None) == 1:
        problem = "regression"
    if problem in ("regression", "multi_label_classification"):
        fits = labels.shape in (logits.shape, logits.shape[:-1] if single else logits.shape)
        family = Family.GAUSSIAN if problem == "regression" else Family.BERNOULLI
        return family if fits else None
    of_classes = not labels.is_floating_point() and not single
    return Family.CATEGORICAL if of_classes and labels.shape == logits.shape[:-1] else None


class _LabelledRows(TorchFunctionMode):
    """Leaves rows without a label out of a loss: the softmax over a vocabulary takes long."""

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.cross_entropy and len(args) == 2 and all(map(is_plain, args)):
            scores, labels = args
            is_summed = kwargs.get("reduction", "mean") != "none"
            if is_summed and scores.ndim == 2 and labels.shape == scores.shape[:1]:
                kept = labels != kwargs.get("ignore_index", -100)
                args = scores[kept], labels[kept]
        return func(*args, **kwargs)


def _run(model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> Any:
    """Run a model; of labels that its loss cannot read, say what they should be."""
    try:
        with _LabelledRows():
            return model(**inputs)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if "labels" not in inputs:
            raise
        without = {name: value for name, value in inputs.items() if name != "labels"}
        try:
            logits = getattr(named(model(**without)), "logits", None)
        except TypeError:  # it does not run without
            raise error from None
        if logits is not None and logits.shape[:-1] == labels.shape:
            refuse_classes(labels, logits.shape[-1])
            if bool((inputs["labels"] == -100).any()):
                raise CurvatureError(
                    f"the loss of {type(model).__name__} does not leave out labels of -100 "
                    f"({error}); let it (ignore_index=-100) and put them where there is no label, "
                    "or give `forward=` a function that returns logits and such labels"
                ) from error
        if logits is None or not _are_whole_numbers_for_scores(logits.shape, labels):
            raise
        _refuse_shapes(model, logits.shape, labels)


def refuse_classes(labels: Tensor, classes: int) -> None:
    """Refuse labels that are no class, as where another number than -100 stands for none."""
    wrong = labels[(labels != -100) & ((labels < 0) | (labels >= classes))]
    if len(wrong) and not labels.is_floating_point():
        raise CurvatureError(
            f"label {int(wrong[0])} is none of {classes} classes; let the collator number classes "
            f"from 0 to {classes - 1}, and put -100 where there is no label"
        )


def _are_whole_numbers_for_scores(shape: Sequence[int], labels: Tensor) -> bool:
    """Whether labels are binary at each score, in integers: classes have a dimension less."""
    return tuple(shape) == tuple(labels.shape) and not labels.is_floating_point()


def _refuse_shapes(model: nn.Module, shape: Sequence[int] | None, labels: Tensor) -> NoReturn:
    if shape is not None and _are_whole_numbers_for_scores(shape, labels):
        raise CurvatureError(
            f"labels of shape {list(labels.shape)} are as many whole numbers as "
            f"{type(model).__name__} gives scores; several binary labels at once must be "
            "floats, so let the collator return labels.float()"
        )
    given = "no `logits`" if shape is None else f"logits of shape {list(shape)}"
    raise CurvatureError(
        f"{type(model).__name__} gave {given} for labels of shape {list(labels.shape)}; curvature "
        "needs one score per class, or per number where labels are numbers, so give `forward=` a "
        "function that returns them"
    )


def named(output: Any) -> Any:
    """Read a model's output as the Trainer does: a dict by names, a tuple as loss and scores.

    Args:
        output: What a forward pass returned; without labels a tuple has no loss.
    """
    if isinstance(output, Mapping):
        return SimpleNamespace(**output)
    if type(output) is not tuple or not output or not isinstance(output[0], Tensor):
        return output
    names = ("loss", "logits")[output[0].ndim > 0 :]
    return SimpleNamespace(**dict(zip(names, output, strict=False)))


def parameters_of(model: Any) -> Mapping[str, inspect.Parameter]:
    """Return what a model's forward takes, or that of the model that PEFT wraps."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(getattr(base, "forward", base)).parameters


def _labels(batch: Mapping[str, Tensor]) -> Tensor:
    if batch.get("labels") is None:
        raise CurvatureError(
            f"the batch has no 'labels' (it has {', '.join(sorted(batch))}); let the collator add "
            "them, or, where the loss compares the examples of a batch with each other, give "
            "`forward=` a function that scores each example by itself"
        )
    labels: Any = batch["labels"]
    if not isinstance(labels, Tensor) or not labels.ndim:
        raise CurvatureError(
            "labels of a batch are no tensor with a row for each example, but "
            f"{labels!r:.80}; let the collator make one"
        )
    return labels


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
        found = named(model(**cut, labels=probe[:, : length - start].contiguous()))
    loss: Tensor | None = getattr(found, "loss", None)
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
