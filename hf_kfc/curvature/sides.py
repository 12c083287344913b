"""Encoder-decoder models: which layers see positions of the source, and which of the target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .discovery import Layer
from .graph import nodes_under
from .modes import learning
from .objective import attended

__all__ = ["find_sides", "has_sides", "masks_by_side"]

ENCODER, DECODER = "encoder", "decoder"


def has_sides(model: nn.Module) -> bool:
    """Say whether a model reads a source with an encoder and a target with a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def masks_by_side(batch: Mapping[str, Tensor], examples: int) -> dict[str, Tensor]:
    """Say which positions of source and target count.

    The source's are its attended tokens. The target's are those of ``decoder_attention_mask``, or
    those with a label, whose inputs are the labels moved by one; labels of the whole example are
    of models whose decoder reads the source again.

    Args:
        batch: Tensors by name.
        examples: In the batch.
    """
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    device = next(value.device for value in batch.values() if isinstance(value, Tensor))
    everything = torch.ones(examples, dtype=torch.bool, device=device)
    source = everything if mask is None else attended(mask, batch.get("input_ids"))
    if (target := batch.get("decoder_attention_mask")) is not None:
        return {ENCODER: source, DECODER: attended(target, batch.get("decoder_input_ids"))}
    if labels is not None and labels.ndim > 1 and not labels.is_floating_point():
        return {ENCODER: source, DECODER: labels != -100}
    return {ENCODER: source, DECODER: everything if "decoder_input_ids" in batch else source}


def find_sides(
    model: nn.Module, layers: Sequence[Layer], run: Callable[[], Any]
) -> dict[tuple[str, int], str]:
    """Find out whose positions each call of each layer has.

    What runs inside the encoder has the source's. Elsewhere a call has the target's if what it
    reads depends on the decoder's embeddings, in the graph of autograd, and otherwise the source's:
    keys and values of cross-attention, and what projects the encoder's output for them.

    Args:
        model: With an encoder and a decoder.
        layers: The layers.
        run: A forward pass of the model.

    Returns:
        ``encoder`` or ``decoder``, by the layer's name and the number of the call; empty if the
        model does not tell its encoder from its decoder.
    """
    encoder, decoder = _part(model, "get_encoder"), _part(model, "get_decoder")
    if encoder is None or decoder is None or encoder is decoder:
        return {}
    inside: list[str] = []
    calls: dict[str, list[tuple[str | None, Any]]] = defaultdict(list)
    roots = set[Any]()

    def enter(side: str, module: nn.Module, args: Any) -> None:
        inside.append(side)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        inside.pop()

    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        node = getattr(x, "grad_fn", None) if isinstance(x, Tensor) else None
        calls[name].append((inside[-1] if inside else None, node))

    def root(module: nn.Module, args: Any, output: Any) -> None:
        reads_ids = args and isinstance(args[0], Tensor) and not args[0].is_floating_point()
        if inside and inside[-1] == DECODER and reads_ids:
            roots.add(getattr(output, "grad_fn", None))

    handles = [
        encoder.register_forward_pre_hook(partial(enter, ENCODER)),
        encoder.register_forward_hook(leave),
        decoder.register_forward_pre_hook(partial(enter, DECODER)),
        decoder.register_forward_hook(leave),
        *(m.register_forward_hook(root) for m in model.modules() if not list(m.children())),
        *(
            module.register_forward_hook(partial(note, layer.name), with_kwargs=True)
            for layer in layers
            for module in layer.modules.values()
        ),
    ]
    frozen = (p for p in model.parameters() if not p.requires_grad and p.is_floating_point())
    try:
        with torch.enable_grad(), learning(frozen):  # so that the graph is whole
            run()
    finally:
        for handle in handles:
            handle.remove()
    roots.discard(None)
    if not roots:
        return {}
    return {
        (name, number): _side(side, node, roots)
        for name, own in calls.items()
        for number, (side, node) in enumerate(own)
    }


def _side(inside: str | None, node: Any, roots: Collection[Any]) -> str:
    if inside == ENCODER:
        return ENCODER
    if node is None:  # token ids, or a table of positions
        return DECODER if inside == DECODER else ENCODER
    return DECODER if any(below in roots for below in nodes_under([node])) else ENCODER


def _part(model: nn.Module, name: str) -> nn.Module | None:
    get = getattr(model, name, None)
    part = get() if callable(get) else None
    return part if isinstance(part, nn.Module) and part is not model else None
