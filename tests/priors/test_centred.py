"""A prior whose positions are centred goes everywhere that any other does."""

from pathlib import Path

import pytest
import torch
from tiny.data import choices, pad_choices
from tiny.models import bert
from tiny.priors import assert_equal_priors
from torch import nn

from hf_kfc.curvature import Curvature, CurvatureArguments, Kronecker, relative_difference
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training.penalty import ConsolidationPenalty

KINDS = {"kronecker", "kronecker_sum", "diagonal"}


def estimate(model: nn.Module, seed: int = 0) -> ConsolidationPrior:
    torch.manual_seed(seed)
    arguments = CurvatureArguments(sharing="centred")
    return ConsolidationPrior.estimate(model, choices(6), pad_choices(), arguments, task=str(seed))


@pytest.fixture(name="made")
def made_prior() -> ConsolidationPrior:
    return estimate(bert())


def errors(actual: Curvature, expected: Curvature) -> dict[str, float]:
    """Relative errors of blocks, of those with any curvature."""
    found = {}
    for one, other in zip(expected.blocks, actual.blocks, strict=True):
        error = relative_difference(one.operator, other.operator, one.shape)
        if error is not None:
            found[one.name] = error
    return found


def test_saved_and_loaded(made: ConsolidationPrior, tmp_path: Path) -> None:
    assert {block.operator.kind for block in made.curvature.blocks} == KINDS
    assert made.provenance.sharing == "centred"
    made.save_pretrained(tmp_path)
    assert_equal_priors(ConsolidationPrior.from_pretrained(tmp_path), made)


def test_compressed(made: ConsolidationPrior, tmp_path: Path) -> None:
    """To factors of low rank too; what would not get smaller stays."""
    small = made.compress(rank=2, dtype=torch.bfloat16)
    kinds = {block.operator.kind for block in small.curvature.blocks}
    assert "low_rank_kronecker_sum" in kinds
    assert max(errors(small.curvature, made.curvature).values()) < 0.5
    assert (
        max(errors(made.compress(dtype=torch.bfloat16).curvature, made.curvature).values()) < 0.02
    )
    small.save_pretrained(tmp_path)
    assert_equal_priors(ConsolidationPrior.from_pretrained(tmp_path), small)


def test_merged(made: ConsolidationPrior) -> None:
    """With as many products as all have, the sum is exact.

    The nearest one product leaves √(1 − σ₁² / Σσ²) of it, so at most √¾ of four (Eckart and Young).
    """
    other = estimate(bert(), seed=1)
    exact, near = (ConsolidationPrior.merge([made, other], rank=rank) for rank in (4, 1))
    delta = {name: torch.randn_like(value) for name, value in made.anchor.items()}
    expected = sum(0.5 * prior.curvature.quadratic(delta) for prior in (made, other))
    torch.testing.assert_close(exact.curvature.quadratic(delta), expected)
    kinds = {type(b.operator) for b in near.curvature.blocks if b.operator.kronecker_terms()}
    assert kinds == {Kronecker}
    assert 0 < max(errors(near.curvature, exact.curvature).values()) <= 0.75**0.5


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_penalty_is_the_quadratic_form(made: ConsolidationPrior, damping: float) -> None:
    model = bert()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    parameters = dict(model.named_parameters())
    moved = {name: parameters[name] - value for name, value in made.anchor.items()}
    expected = sum(
        block.operator.damped(damping).quadratic(block.join(block.covered(moved)))
        for block in made.curvature.blocks
    )
    penalty = ConsolidationPenalty(model, [made], [2.0], damping=damping)()[0]
    torch.testing.assert_close(penalty, 2 * expected)
    penalty.backward()
    numeric = torch.autograd.grad(2 * expected, list(parameters.values()), allow_unused=True)
    for parameter, gradient in zip(parameters.values(), numeric, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient)
