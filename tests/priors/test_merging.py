"""Merged priors against the penalties that they stand for, as dense matrices in float64."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.priors import assert_equal_priors
from torch import Tensor

from hf_kfc.curvature import (
    Block,
    Curvature,
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    KroneckerSum,
    Layout,
)
from hf_kfc.errors import PriorError
from hf_kfc.priors import ConsolidationPrior, Provenance
from hf_kfc.priors.privacy import without_rare_inputs
from hf_kfc.training import bayesian_strength

DAMPING = 0.1
TOKENS = 6


def moment(size: int) -> Tensor:
    rows = torch.randn(2 * size, size) + torch.randn(size)
    return rows.T @ rows / len(rows)


def prior(
    seed: int, *, tokens: Sequence[int] | None = None, dtype: torch.dtype = torch.float64
) -> ConsolidationPrior:
    """An embedding, two linear layers that share inputs, a normalisation layer."""
    torch.manual_seed(seed)
    shared = moment(5)
    operators = {
        "words": (Layout.IN_OUT, {"words.weight": (TOKENS, 4)}, Kronecker(_rates(), moment(4))),
        "query": (Layout.OUT_IN, _linear("query"), Kronecker(shared, moment(3))),
        "key": (Layout.OUT_IN, _linear("key"), Kronecker(shared, moment(3))),
        "norm": (
            Layout.ELEMENTWISE,
            {"norm.weight": (4,), "norm.bias": (4,)},
            Diagonal(torch.rand(4, 2)),
        ),
    }
    blocks = [
        Block(name, layout, shapes, operator.to(dtype=dtype))
        for name, (layout, shapes, operator) in operators.items()
    ]
    if dtype != torch.float64:  # `to` has made a copy of the shared factor
        query, key = (block.operator.state() for block in blocks[1:3])
        blocks[2] = replace(blocks[2], operator=Kronecker(query["A"], key["G"]))
    words = replace(blocks[0], input_examples=torch.arange(float(TOKENS)) + 8)
    blocks[0] = words if tokens is None else words.of_inputs(torch.tensor(tokens))
    curvature = Curvature(tuple(blocks), 10 + seed, ("head.weight",))
    shapes = [item for block in curvature.blocks for item in block.anchor_shapes.items()]
    anchor = {name: torch.randn(shape).to(dtype) for name, shape in shapes}
    provenance = Provenance(
        f"task{seed}",
        "org/model",
        num_examples=100 * (seed + 1),
        curvature="kronecker",
        labels="exact",
        sharing="expand",
        anchor_metrics={"accuracy": 0.5 + seed / 10},
    )
    return ConsolidationPrior(anchor, curvature, provenance)


def _rates() -> Tensor:
    return torch.rand(TOKENS) + 0.1


def _linear(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (3, 4), f"{name}.bias": (3,)}


@pytest.fixture(autouse=True)
def float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def penalties(
    priors: Sequence[ConsolidationPrior], weights: Sequence[float], values: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """By block, Σ w_i (θ−θ_i)ᵀF_i(θ−θ_i) of damped F_i, and its gradient 2Σ w_i F_i (θ−θ_i)."""
    found = {}
    for number, first in enumerate(priors[0].curvature.blocks):
        value, gradient = torch.zeros(()), torch.zeros(())
        for one, weight in zip(priors, weights, strict=True):
            block = one.curvature.blocks[number]
            delta = (block.join(block.covered(values)) - block.join(one.anchor)).reshape(-1)
            F = block.operator.to(dtype=torch.float64).damped(DAMPING).matrix(*block.shape)
            value = value + weight * delta @ F @ delta
            gradient = gradient + 2 * weight * F @ delta
        found[first.name] = value, gradient
    return found


def somewhere(seed: int = 9) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(shape) for name, shape in prior(0).curvature.parameters.items()}


def mean_anchor(
    priors: Sequence[ConsolidationPrior], weights: Sequence[float]
) -> dict[str, Tensor]:
    return {
        name: torch.stack([w * p.anchor[name] for p, w in zip(priors, weights, strict=True)]).sum(0)
        / sum(weights)
        for name in priors[0].anchor
    }


SHARES = [1 / 6, 2 / 6, 3 / 6]
EQUAL = [1 / 3, 1 / 3, 1 / 3]


def test_an_exact_merge_is_the_sum_of_the_penalties_up_to_a_constant() -> None:
    priors = [prior(seed) for seed in range(3)]
    merged = ConsolidationPrior.merge(priors, rank=3, damping=DAMPING)
    points = [somewhere(seed) for seed in (7, 8, 9)]
    differences: dict[str, list[float]] = {}
    for values in points:
        exact, found = penalties(priors, SHARES, values), penalties([merged], [1.0], values)
        for name, (value, gradient) in exact.items():
            torch.testing.assert_close(found[name][1], gradient, rtol=1e-6, atol=1e-6)
            differences.setdefault(name, []).append(float(value - found[name][0]))
    for constants in differences.values():
        assert constants == pytest.approx([constants[0]] * 3, rel=1e-6)
        assert constants[0] > 0  # what the priors disagree on
    assert set(merged.provenance.approximation_errors.values()) == {0.0}
    assert isinstance(merged.curvature.blocks[0].operator, KroneckerSum)


@pytest.mark.parametrize("rank", [1, 2])
def test_of_less_rank_the_gradient_is_exact_at_the_mean_of_the_anchors(rank: int) -> None:
    priors = [prior(seed) for seed in range(3)]
    merged = ConsolidationPrior.merge(priors, rank=rank, damping=DAMPING)
    mean = mean_anchor(priors, SHARES)
    exact, found = penalties(priors, SHARES, mean), penalties([merged], [1.0], mean)
    for name, (_, gradient) in exact.items():
        torch.testing.assert_close(
            found[name][1], gradient, rtol=0, atol=1e-6 * float(gradient.norm())
        )
    for number, block in enumerate(merged.curvature.blocks):
        F = torch.stack(
            [
                w * p.curvature.blocks[number].operator.matrix(*block.shape)
                for p, w in zip(priors, SHARES, strict=True)
            ]
        ).sum(0)
        error = float((block.operator.matrix(*block.shape) - F).norm() / F.norm())
        assert merged.provenance.approximation_errors[block.name] == pytest.approx(error, abs=1e-7)
    errors = merged.provenance.approximation_errors
    assert errors["norm"] == 0 < errors["query"]


def test_bayesian_strengths_add_up() -> None:
    priors = [prior(seed) for seed in range(3)]
    merged = ConsolidationPrior.merge(priors, rank=3)
    assert merged.provenance.num_examples == 600
    assert merged.curvature.num_examples == 12  # of the last; others may be the same ones
    for number, block in enumerate(merged.curvature.blocks):
        expected = torch.stack(
            [
                bayesian_strength(p, 50) * p.curvature.blocks[number].operator.matrix(*block.shape)
                for p in priors
            ]
        ).sum(0)
        found = bayesian_strength(merged, 50) * block.operator.matrix(*block.shape)
        torch.testing.assert_close(found, expected)


def test_weights_of_ones_own() -> None:
    priors = [prior(seed) for seed in range(2)]
    merged = ConsolidationPrior.merge(priors, weights=[0.5, 2], damping=DAMPING)
    values = somewhere()
    exact, found = penalties(priors, [0.5, 2.0], values), penalties([merged], [1.0], values)
    for name, (_, gradient) in exact.items():
        torch.testing.assert_close(found[name][1], gradient, rtol=1e-6, atol=1e-6)
    assert merged.provenance.merged == {"task0": 0.5, "task1": 2.0}


def test_priors_may_be_given_in_any_form() -> None:
    one = prior(0)
    for given in ([one], one, iter([one])):
        merged = ConsolidationPrior.merge(given)  # type: ignore[arg-type]
        assert merged.provenance.merged == {"task0": 1.0}
    with pytest.raises(PriorError, match="a str cannot be merged; give priors, as from_pretrained"):
        ConsolidationPrior.merge([one, "runs/prior"])  # type: ignore[list-item]


def test_provenance_tells_what_was_merged() -> None:
    first = ConsolidationPrior.merge([prior(0), prior(1)], rank=1, damping=0.3)
    origin = first.provenance
    assert (origin.task, origin.merge_damping) == ("task0+task1", 0.3)
    assert origin.merged == pytest.approx({"task0": 1 / 3, "task1": 2 / 3})
    assert (origin.curvature, origin.labels, origin.sharing) == ("kronecker", "exact", "expand")
    assert origin.base_model == ""  # no model has these parameters
    assert origin.anchor_metrics == {"task0: accuracy": 0.5, "task1: accuracy": 0.6}
    assert first.curvature.ignored == ("head.weight",)

    other = prior(2)
    other.provenance = replace(other.provenance, labels="empirical")
    second = ConsolidationPrior.merge([first, other], rank=1, damping=0.3)
    origin = second.provenance
    assert origin.task == "task0+task1+task2"
    assert origin.merged == pytest.approx({"task0": 1 / 6, "task1": 2 / 6, "task2": 3 / 6})
    assert origin.labels == "exact+empirical"
    assert origin.anchor_metrics.keys() == {f"task{n}: accuracy" for n in range(3)}
    # the error of the first merge counts in the second
    fresh = replace(first.provenance, approximation_errors={})
    alone = ConsolidationPrior(first.anchor, first.curvature, fresh)
    for name, known in first.provenance.approximation_errors.items():
        last = ConsolidationPrior.merge([alone, other], rank=1).provenance.approximation_errors
        expected = known + last[name] + known * last[name]
        assert origin.approximation_errors[name] == pytest.approx(expected)


def test_a_merge_is_off_by_no_more_than_it_says() -> None:
    """Compressed, merged, and merged again: the errors are a bound of the whole."""
    exact = [prior(seed) for seed in range(3)]
    small = [p.compress(rank=1) for p in exact[:2]]
    first = ConsolidationPrior.merge(small, rank=1)
    merged = ConsolidationPrior.merge([first, exact[2]], rank=1)
    for number, block in enumerate(merged.curvature.blocks):
        F = torch.stack(
            [
                w * p.curvature.blocks[number].operator.matrix(*block.shape)
                for p, w in zip(exact, SHARES, strict=True)
            ]
        ).sum(0)
        error = float((block.operator.matrix(*block.shape) - F).norm() / F.norm())
        assert error <= merged.provenance.approximation_errors[block.name] + 1e-12


def test_layers_that_share_inputs_still_do(tmp_path: Path) -> None:
    for rank in (1, 2, 3):
        merged = ConsolidationPrior.merge([prior(seed) for seed in range(3)], rank=rank)
        _, query, key, _ = merged.curvature.blocks
        assert query.operator.state()["A"] is key.operator.state()["A"]
    merged.save_pretrained(tmp_path / "prior")
    loaded = ConsolidationPrior.from_pretrained(tmp_path / "prior")
    _, query, key, _ = loaded.curvature.blocks
    assert query.operator.state()["A"] is key.operator.state()["A"]


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_merged_prior_is_a_prior_as_any_other(rank: int, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    priors = [prior(seed, dtype=torch.float32) for seed in range(3)]
    merged = ConsolidationPrior.merge(priors, rank=rank)
    assert {value.dtype for value in merged.anchor.values()} == {torch.float32}
    merged.save_pretrained(tmp_path / "prior")
    loaded = ConsolidationPrior.from_pretrained(tmp_path / "prior")
    assert_equal_priors(loaded, merged)
    assert loaded.fingerprint == merged.fingerprint
    again = ConsolidationPrior.merge([loaded, prior(3, dtype=torch.float32)], rank=rank)
    assert again.provenance.num_examples == 1000


def test_one_prior_alone_stays_what_it_is() -> None:
    one = prior(0)
    merged = ConsolidationPrior.merge([one])
    values = somewhere()
    exact, found = penalties([one], [1.0], values), penalties([merged], [1.0], values)
    for name, (value, _) in exact.items():
        torch.testing.assert_close(found[name][0], value)


# --- Tokens --------------------------------------------------------------------------------------


def test_tokens_that_a_prior_does_not_cover_have_frequency_zero_in_it() -> None:
    one, other = prior(0, tokens=[0, 2, 3]), prior(1, tokens=[2, 5])
    merged = ConsolidationPrior.merge([one, other], rank=2, damping=DAMPING)
    words = merged.curvature.blocks[0]
    assert words.inputs is not None
    assert words.inputs.tolist() == [0, 2, 3, 5]
    factors = [p.curvature.blocks[0].operator.state() for p in (one, other)]
    spread = [torch.zeros(TOKENS), torch.zeros(TOKENS)]
    spread[0][[0, 2, 3]], spread[1][[2, 5]] = factors[0]["A"], factors[1]["A"]
    expected = torch.stack(
        [
            w * torch.kron(f["G"], A[words.inputs].diag())
            for w, f, A in zip((1 / 3, 2 / 3), factors, spread, strict=True)
        ]
    ).sum(0)
    torch.testing.assert_close(words.operator.matrix(4, 4), expected)
    # of a token that one prior covers the anchor is its own, and else between the two
    found = merged.anchor["words.weight"]
    for row, owner, own in ((0, one, 0), (2, one, 2), (3, other, 1)):
        torch.testing.assert_close(found[row], owner.anchor["words.weight"][own])
    assert not torch.allclose(found[1], one.anchor["words.weight"][1])
    assert words.input_examples is not None
    assert words.input_examples.tolist() == [8, 10, 11, 13]


def test_tokens_of_all_priors_together_are_all(tmp_path: Path) -> None:
    whole, part = prior(0), prior(1, tokens=[2, 5])
    for priors in ([whole, part], [prior(0, tokens=[0, 1, 3, 4]), part]):
        merged = ConsolidationPrior.merge(priors, rank=1)
        assert merged.curvature.blocks[0].inputs is None
        assert merged.anchor["words.weight"].shape == (TOKENS, 4)
    merged.save_pretrained(tmp_path / "prior")
    assert ConsolidationPrior.from_pretrained(tmp_path / "prior").fingerprint == merged.fingerprint


def test_a_prior_merged_with_itself_publishes_no_more_tokens() -> None:
    """Tokens of 8 and 9 examples stay in 8 and 9 however often the same examples are counted."""
    local = prior(0)
    kept = without_rare_inputs(local, 10).curvature.blocks[0].inputs
    assert kept is not None
    assert len(kept) < TOKENS
    for others in ([prior(1)], [local], [local, local, local]):
        public = without_rare_inputs(ConsolidationPrior.merge([local, *others], rank=1), 10)
        assert torch.equal(public.curvature.blocks[0].inputs, kept)  # type: ignore[arg-type]
        assert public.provenance.min_examples == 10
        assert public.provenance.dropped_inputs == {"words": TOKENS - len(kept)}


def test_what_one_prior_was_made_of_is_in_the_merged_one() -> None:
    def of(count: int) -> ConsolidationPrior:
        made = prior(count)
        origin = replace(made.provenance, min_token_examples=count)
        return ConsolidationPrior(made.anchor, made.curvature, origin)

    for counts, least in (((10, 12), 10), ((10, 0), 0)):
        merged = ConsolidationPrior.merge([of(count) for count in counts], rank=1)
        assert merged.provenance.min_token_examples == least


def test_a_vocabulary_that_is_only_claimed_takes_no_memory() -> None:
    made = prior(0, tokens=[0, 2, 5])
    words = made.curvature.blocks[0]
    claimed = replace(words, shapes={"words.weight": (2**50, 4)})
    curvature = replace(made.curvature, blocks=(claimed, *made.curvature.blocks[1:]))
    huge = ConsolidationPrior(made.anchor, curvature, made.provenance)
    merged = ConsolidationPrior.merge([huge, huge], rank=1)
    expected = ConsolidationPrior.merge([made, made], rank=1)
    torch.testing.assert_close(merged.anchor, expected.anchor, rtol=0, atol=0)


def test_published_priors_are_merged_to_one_that_can_be_published() -> None:
    """Tokens are left out that none of them covers; nothing more than they tell is told."""
    one = without_rare_inputs(prior(0), 10)
    other = without_rare_inputs(prior(1), 12)
    merged = ConsolidationPrior.merge([one, other], rank=1)
    assert merged.provenance.min_examples == 10
    assert merged.provenance.dropped_inputs == {"words": 2}
    public = without_rare_inputs(merged, 10)
    assert public.fingerprint == merged.fingerprint
    local = ConsolidationPrior.merge([one, prior(1)], rank=1)
    assert local.provenance.min_examples is None
    assert local.curvature.blocks[0].input_examples is None
    with pytest.raises(PriorError, match="does not tell in how many examples the tokens of words"):
        without_rare_inputs(local, 10)


# --- Without damping, and what does not converge -------------------------------------------------


def singular(name: str, A: Tensor, G: Tensor, anchor: Tensor) -> ConsolidationPrior:
    block = Block("layer", Layout.OUT_IN, {"layer.weight": tuple(anchor.shape)}, Kronecker(A, G))
    provenance = Provenance(name, num_examples=10, curvature="kronecker")
    return ConsolidationPrior({"layer.weight": anchor}, Curvature((block,), 10), provenance)


def test_without_damping_free_directions_stay_at_the_mean(caplog: Any) -> None:
    one = singular("a", torch.tensor([1.0, 0, 0]).diag(), torch.eye(2), torch.zeros(2, 3))
    other = singular("b", torch.tensor([3.0, 0, 0]).diag(), torch.eye(2), torch.full((2, 3), 4.0))
    for rank in (1, 2):
        merged = ConsolidationPrior.merge([one, other], rank=rank, damping=0.0)
        assert merged.anchor["layer.weight"].tolist() == [pytest.approx([3, 2, 2])] * 2
    assert not caplog.records


def test_an_anchor_that_is_not_reached_is_told_and_finite(caplog: Any) -> None:
    """Of three tasks with nothing in common, an F of rank 2 has nothing of the least."""
    torch.manual_seed(0)
    axes = torch.eye(3)
    priors = [
        singular(task, axes[n].diag(), size * axes[n].diag(), torch.randn(3, 3))
        for n, (task, size) in enumerate({"a": 1.0, "b": 1.0, "c": 0.1}.items())
    ]
    with caplog.at_level(logging.WARNING):
        merged = ConsolidationPrior.merge(priors, rank=2, damping=0.0)
    (record,) = caplog.records
    assert record.getMessage().startswith("the merged anchor of layer gives the penalty another")
    found, mean = merged.anchor["layer.weight"], mean_anchor(priors, EQUAL)["layer.weight"]
    expected = mean.clone()
    for n in (0, 1):
        expected[n, n] = priors[n].anchor["layer.weight"][n, n]
    torch.testing.assert_close(found, expected)


# --- What cannot be merged -----------------------------------------------------------------------


def with_operators(one: ConsolidationPrior, **operators: Any) -> ConsolidationPrior:
    blocks = tuple(
        replace(b, operator=operators.get(b.name, b.operator)) for b in one.curvature.blocks
    )
    return ConsolidationPrior(one.anchor, replace(one.curvature, blocks=blocks), one.provenance)


def test_priors_of_other_parameters_are_refused_all_at_once() -> None:
    one, other = prior(0), prior(1)
    words, query, key, norm = other.curvature.blocks
    renamed = replace(norm, name="LayerNorm")
    wide = replace(
        query,
        shapes={"query.weight": (2, 4), "query.bias": (2,)},
        operator=Kronecker(moment(5), moment(2)),
    )
    anchor = other.anchor | {"query.weight": torch.zeros(2, 4), "query.bias": torch.zeros(2)}
    curvature = replace(other.curvature, blocks=(words, wide, key, renamed))
    with pytest.raises(PriorError) as refusal:
        ConsolidationPrior.merge([one, ConsolidationPrior(anchor, curvature, other.provenance)])
    assert str(refusal.value) == (
        "priors of 'task0', 'task1' cannot be merged, they must be of one model: only 'task0' "
        "covers norm; only 'task1' covers LayerNorm; query is query.weight [3, 4] and query.bias "
        "[3] as out_in in 'task0' and query.weight [2, 4] and query.bias [2] as out_in in 'task1'"
    )


def test_kinds_without_a_common_sum_are_refused() -> None:
    eigen = KroneckerEigen(torch.eye(5), torch.eye(3), torch.rand(3, 5))
    priors = [with_operators(prior(seed), query=eigen) for seed in range(2)]
    with pytest.raises(PriorError, match="query cannot be merged: curvatures of kind kronecker_ei"):
        ConsolidationPrior.merge(priors)
    identity = with_operators(prior(0), norm=Identity())
    with pytest.raises(PriorError, match=r"norm cannot be merged: .* of kind diagonal and id"):
        ConsolidationPrior.merge([identity, prior(1)])


def test_wrong_arguments_are_refused() -> None:
    priors = [prior(0), prior(1)]
    for message, words in (
        ("no priors to merge", {"priors": []}),
        ("1 weights are given for 2 priors", {"weights": [1.0]}),
        ("weight 0.0 is not a number above 0", {"weights": [1.0, 0.0]}),
        ("weight nan is not a number above 0", {"weights": [1.0, float("nan")]}),
        ("damping -0.1 is not a number of at least 0", {"damping": -0.1}),
        ("rank 0 is no number of Kronecker products", {"rank": 0}),
    ):
        with pytest.raises(PriorError, match=message):
            ConsolidationPrior.merge(**({"priors": priors} | words))
    priors[1].provenance = replace(priors[1].provenance, num_examples=0)
    with pytest.raises(PriorError, match="task 'task1' tells no number of examples; give weights"):
        ConsolidationPrior.merge(priors)
    assert ConsolidationPrior.merge(priors, weights=[1, 1]).provenance.num_examples == 100


def test_l2_priors_are_merged_with_weights() -> None:
    source = torch.nn.Linear(3, 2)
    priors = [ConsolidationPrior.l2(source, task="a")]
    with torch.no_grad():
        source.weight += 1
    priors.append(ConsolidationPrior.l2(source, task="b"))
    merged = ConsolidationPrior.merge(priors, weights=[1, 3])
    expected = priors[0].anchor["weight"] + 0.75
    torch.testing.assert_close(merged.anchor["weight"], expected)
    assert {float(b.operator.state()["scale"]) for b in merged.curvature.blocks} == {4.0}
