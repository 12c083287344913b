import pytest
import torch
from safetensors.torch import load_file
from tiny.priors import prior as sample_prior

from hf_kfc.commands.inspect import spectrum_of, summarise_layers
from hf_kfc.curvature import (
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    KroneckerSum,
    LowRankKronecker,
)
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors.privacy import without_rare_inputs

Q, P = 3, 4


def moment(size: int) -> torch.Tensor:
    rows = torch.randn(size + 2, size, dtype=torch.float64)
    return rows.T @ rows


def basis(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q


def operators() -> dict[str, object]:
    torch.manual_seed(0)
    wide = torch.rand(Q, P, dtype=torch.float64)
    return {
        "identity": Identity(torch.tensor(0.7, dtype=torch.float64)),
        "diagonal": Diagonal(wide),
        "kronecker": Kronecker(moment(P), moment(Q)),
        "embedding": Kronecker(torch.rand(P, dtype=torch.float64), moment(Q)),
        "eigen": KroneckerEigen(basis(P), basis(Q), wide),
        "low_rank": LowRankKronecker(
            *(t.double() for t in (torch.randn(P, 2), torch.rand(P), torch.randn(Q, 1))),
            torch.rand(Q, dtype=torch.float64),
        ),
    }


def sums() -> dict[str, KroneckerSum]:
    torch.manual_seed(0)
    moments = [torch.stack([moment(size) for _ in range(3)]) for size in (P, Q)]
    rates = torch.rand(3, P, dtype=torch.float64)
    return {"sum": KroneckerSum(*moments), "sum_of_embeddings": KroneckerSum(rates, moments[1])}


@pytest.mark.parametrize("kind", [*operators(), *sums()])
def test_spectra_are_those_of_the_dense_matrix(kind):
    operator = (operators() | sums())[kind]
    found = spectrum_of(operator, (Q, P))
    values = torch.linalg.eigvalsh(operator.matrix(Q, P))
    damped = torch.linalg.eigvalsh(operator.damped(0.1).matrix(Q, P))
    rank = values.sum() ** 2 / values.square().sum()
    assert found.largest == pytest.approx(float(values.max()))
    assert found.median == pytest.approx(float(values.median()))
    assert found.effective_rank == pytest.approx(float(rank))
    assert found.condition == pytest.approx(float(damped.max() / damped.min()))


def test_of_a_large_sum_the_largest_eigenvalue_and_the_rank_are_known():
    torch.manual_seed(0)
    rates = torch.rand(2, 700, dtype=torch.float64)
    moments = torch.stack([moment(Q), moment(Q)])
    found = spectrum_of(KroneckerSum(rates, moments), (Q, 700))
    # Each column of Δ stands alone: F is one matrix [q, q] for each.
    columns = torch.einsum("tp,tqr->pqr", rates, moments)
    values = torch.linalg.eigvalsh(columns).flatten()
    assert found.largest == pytest.approx(float(values.max()), rel=1e-4)
    assert found.effective_rank == pytest.approx(float(values.sum() ** 2 / values.square().sum()))
    assert (found.median, found.condition) == (None, None)
    nothing = spectrum_of(KroneckerSum(rates, 0 * moments), (Q, 700))
    assert (nothing.largest, nothing.effective_rank) == (0, 0)


@pytest.mark.parametrize(
    "operator",
    [Diagonal(torch.zeros(Q, P)), Kronecker(torch.eye(P), torch.zeros(Q, Q))],
    ids=["diagonal", "kronecker"],
)
def test_a_curvature_of_nothing_has_no_condition(operator):
    found = spectrum_of(operator, (Q, P))
    assert (found.largest, found.median, found.effective_rank) == (0, 0, 0)
    assert found.condition is None


def test_sizes_are_those_of_what_is_stored(tmp_path):
    prior = sample_prior()  # two of its layers share an A
    prior.save_pretrained(tmp_path / "prior")
    tensors = load_file(tmp_path / "prior" / "prior.safetensors")
    layers = {layer.name: layer for layer in summarise_layers(prior)}
    assert sum(layer.bytes for layer in layers.values()) == sum(t.nbytes for t in tensors.values())
    assert layers["query"].bytes == layers["key"].bytes + 4 * 25
    assert layers["query"].parameters == 15
    assert layers["query"].shape == (3, 5)


def test_inspect_tells_provenance_layers_and_sizes(tier, run):
    prior = ConsolidationPrior.from_pretrained(tier.prior)
    values = run("inspect", tier.prior, "--json").values
    assert values["prior"] == str(tier.prior)
    assert values["fingerprint"] == prior.fingerprint
    assert values["provenance"] == prior.provenance.to_dict()
    assert [layer["name"] for layer in values["layers"]] == [b.name for b in prior.curvature.blocks]
    parameters = sum(layer["parameters"] for layer in values["layers"])
    assert values["bytes_of_parameters"] == 4 * parameters
    assert values["layers"][0]["tokens_kept"] == 1.0

    result = run("inspect", tier.prior)
    assert result.status == 0
    lines = result.out.splitlines()
    assert any(line.split() == ["task", "symptoms"] for line in lines)
    (covered,) = {layer["operator"] for layer in values["layers"]}
    assert any(line.split() == ["coverage", covered, str(parameters)] for line in lines)
    assert any(line.split() == ["anchor_metrics", "accuracy", "0.5"] for line in lines)
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("layer ")) :][:6]
    assert len({len(line) for line in table[:5]}) == 1  # aligned
    ratio = values["bytes"] / values["bytes_of_parameters"]
    assert f"{ratio:.2f} times" in lines[-1]


def test_the_share_of_tokens_kept_is_told(tier, run, tmp_path):
    public = without_rare_inputs(ConsolidationPrior.from_pretrained(tier.prior))
    public.save_pretrained(tmp_path / "public")
    values = run("inspect", tmp_path / "public", "--json").values
    block = public.curvature.blocks[0]
    (shape,) = block.shapes.values()
    assert 0 < len(block.inputs) < shape[0]
    assert values["layers"][0]["tokens_kept"] == len(block.inputs) / shape[0]
    assert values["bytes_of_parameters"] > 4 * sum(la["parameters"] for la in values["layers"])
