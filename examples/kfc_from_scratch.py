"""Kronecker-factored curvature (KFC) from scratch: a second task without forgetting the first.

    python examples/kfc_from_scratch.py

Plain PyTorch, nothing else: what the library does for any model is here written out for linear
layers. After the first task we keep, of each layer, three matrices and no data: its parameters W*,
the second moment A of its inputs, and the second moment G of its output gradients. Moving the
layer by D = W - W* then raises the old task's loss by about 1/2 tr(D' G D A), so that is what the
second task's loss is charged for. A test holds A, G, the penalty and its gradient against hf_kfc.

Source: McInerney et al. 2021, "Kronecker Factorization for Preventing Catastrophic Forgetting".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Task = tuple[Tensor, Tensor]  # inputs [examples, positions, features], labels [examples]
Factors = dict[str, tuple[Tensor, Tensor]]  # A [p, p] and G [q, q] of each layer


class Net(nn.Module):
    """Looks at several positions of an example with the same layer, and takes their mean."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [examples, classes]."""
        return self.head(torch.relu(self.hidden(x)).mean(1))


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that have a curvature, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def matrix(layer: nn.Linear) -> Tensor:
    """Return weight and bias as one matrix [q, p]: a bias is the weight of a constant input 1."""
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1)


def kronecker_factors(model: nn.Module, task: Task) -> Factors:
    """Return A and G of each layer at the model's present parameters, in one pass over the data.

    A is the mean of a a' over examples and positions, a being a layer's input. G is the mean over
    examples of the sum over positions of g g', g being the gradient of one example's own loss with
    respect to the layer's output (never of a loss averaged over a batch: that would be another
    matrix, and one that shrinks as the model converges).
    """
    factors: Factors = {}

    def keep(name: str, inputs: Tensor, output: Tensor) -> None:
        a = inputs.detach().flatten(0, -2)  # [examples * positions, p - 1]
        a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], dim=1)

        def with_gradient(gradient: Tensor) -> None:
            g = gradient.flatten(0, -2)  # [examples * positions, q]
            factors[name] = (a.T @ a / len(a), g.T @ g / len(task[1]))

        output.register_hook(with_gradient)

    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, n=name: keep(n, inputs[0], output))
        for name, layer in linear_layers(model).items()
    ]
    loss = cross_entropy(model(task[0]), task[1], reduction="sum")
    loss.backward()  # of a sum: each example's part of an output's gradient is its own
    model.zero_grad()
    for hook in hooks:
        hook.remove()
    return factors


def damped(factor: Tensor, damping: float) -> Tensor:
    """Return M + damping * (mean eigenvalue of M) * I: no direction is free, however rare."""
    return factor + damping * factor.trace() / len(factor) * torch.eye(len(factor)).to(factor)


def penalty(
    model: nn.Module, anchor: dict[str, Tensor], factors: Factors, strength: float, damping: float
) -> Tensor:
    """Return strength * sum over layers of tr(D' G D A), D being the distance from the anchor."""
    total = torch.zeros(())
    for name, layer in linear_layers(model).items():
        A, G = (damped(factor, damping) for factor in factors[name])
        D = matrix(layer) - anchor[name]
        total = total + strength * (D * (G @ D @ A)).sum()
    return total


def make_task(centres: Tensor, examples: int, generator: torch.Generator) -> Task:
    """Draw examples of several positions that lie around the centre of their class."""
    labels = torch.randint(len(centres), (examples,), generator=generator)
    noise = torch.randn(examples, 4, centres.shape[1], generator=generator)
    return centres[labels][:, None] + 3 * noise, labels


def learn(model: Net, task: Task, prior: tuple[dict[str, Tensor], Factors, float] | None) -> None:
    """Train on a task, held by a prior (anchor, factors, strength) if there is one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(60):
        loss = cross_entropy(model(task[0]), task[1])
        if prior is not None:
            loss = loss + penalty(model, *prior, damping=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(model: Net, task: Task) -> float:
    """Return the share of examples whose label is the most likely one."""
    return (model(task[0]).argmax(1) == task[1]).float().mean().item()


def main() -> dict[str, tuple[float, float]]:
    """Learn two tasks, and return accuracy on (old, new) by what the second was learnt with."""
    generator = torch.Generator().manual_seed(0)
    old_centres, new_centres = torch.randn(2, 4, 24, generator=generator)
    new_centres = new_centres + 2 * torch.randn(24, generator=generator)  # elsewhere, as a whole
    old, new = (make_task(c, 3000, generator) for c in (old_centres, new_centres))
    old_test, new_test = (make_task(c, 1000, generator) for c in (old_centres, new_centres))

    torch.manual_seed(0)
    model = Net(features=24, width=32, classes=4)
    learn(model, old, None)
    table = {"before": (accuracy(model, old_test), accuracy(model, new_test))}

    anchor = {name: matrix(layer).detach() for name, layer in linear_layers(model).items()}
    factors = kronecker_factors(model, old)  # the last time that old data is needed
    bayesian = len(old[1]) / (2 * len(new[1]))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for name, prior in (("no method", None), ("KFC", (anchor, factors, 10 * bayesian))):
        model.load_state_dict(start)
        learn(model, new, prior)
        table[name] = (accuracy(model, old_test), accuracy(model, new_test))

    print(f"{'':>10}  old task  new task")
    for name, (on_old, on_new) in table.items():
        print(f"{name:>10}  {on_old:8.1%}  {on_new:8.1%}")
    return table


if __name__ == "__main__":
    main()
