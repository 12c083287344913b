"""Gradients of layers' outputs, as they arrive in a backward pass."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from hf_kfc.curvature.capture import Use, capture, differentiate
from hf_kfc.curvature.discovery import survey
from hf_kfc.curvature.positions import Positions


class Twice(nn.Module):
    """The second layer is used twice, the last one in vain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x).relu_())
        self.idle(hidden)
        return self.second(hidden.tanh()).sin()


Made = tuple[Tensor, dict[str, list[Use]]]


@pytest.fixture
def made() -> Made:
    model = Twice()
    layers = survey(model).layers
    model.requires_grad_(False)
    with capture(layers, Positions(torch.ones(4, dtype=torch.bool))) as uses:
        logits = model(torch.randn(4, 3))
    return logits, uses


def test_each_layer_has_its_gradients_once(made: Made) -> None:
    logits, uses = made
    weights = torch.randn_like(logits)
    edges = [use.edge for own in uses.values() for use in own]
    expected = torch.autograd.grad(logits, edges, weights, retain_graph=True, allow_unused=True)
    taken: dict[str, list[Tensor | None]] = {}

    def take(name: str, gradients: list[Tensor | None]) -> None:
        assert name not in taken
        taken[name] = gradients

    for retain in (True, False):  # what was registered is gone after the first
        taken.clear()
        differentiate(logits, weights, uses, take, retain_graph=retain)
        found = [gradient for name in uses for gradient in taken[name]]
        assert [g is None for g in found] == [g is None for g in expected]
        assert taken["idle"] == [None]
        pairs = zip(found, expected, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs if a is not None and b is not None)


def test_no_more_than_one_layers_gradients_are_held(made: Made) -> None:
    logits, uses = made
    held: list[weakref.ref[Tensor]] = []

    def take(name: str, gradients: list[Tensor | None]) -> None:
        assert not any(other() is not None for other in held)
        held.extend(weakref.ref(g) for g in gradients if g is not None)

    differentiate(logits, torch.ones_like(logits), uses, take)
    assert len(held) == 3


def test_an_error_comes_through_and_leaves_nothing_behind(made: Made) -> None:
    logits, uses = made

    def refuse(name: str, gradients: list[Tensor | None]) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError, match="second"):
        differentiate(logits, torch.ones_like(logits), uses, refuse, retain_graph=True)
    differentiate(logits, torch.ones_like(logits), uses, lambda name, gradients: None)


def test_scores_without_a_graph_have_no_gradients(made: Made) -> None:
    logits, uses = made
    taken: list[tuple[str, list[Tensor | None]]] = []
    differentiate(logits.detach(), logits, uses, lambda *own: taken.append(own))
    assert taken == [(name, [None] * len(own)) for name, own in uses.items()]
