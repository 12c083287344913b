"""Experts fused into one tensor: each has the curvature that it would have as layers of its own."""

from typing import Any

import pytest
import torch
from tiny.curvatures import assert_equal_matrices, dense, estimate, images, oracle
from tiny.layers import Logits, vectors
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import GptOssConfig, MixtralConfig, MixtralForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from hf_kfc.curvature import survey
from hf_kfc.curvature.layers.experts import tokens_in_order

EXPERTS, WIDTH, INNER, TOKENS = 3, 4, 5, 6
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_local_experts": EXPERTS,
    "experts_implementation": "eager",
}
KINDS: dict[str, tuple[type[nn.Module], Any]] = {
    "mixtral": (MixtralExperts, MixtralConfig),
    "gpt_oss": (GptOssExperts, GptOssConfig),  # transposed, with a bias
}


def experts(kind: str) -> nn.Module:
    module_class, config_class = KINDS[kind]
    module = module_class(config_class(**SIZES))
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double()


def by_position(x: Tensor) -> Tensor:
    """Position r goes to experts r and r + 1, in turn: [T, 2] of inputs [N, R, width]."""
    numbers = torch.arange(x.shape[1]) % EXPERTS
    return torch.stack([numbers, (numbers + 1) % EXPERTS], dim=1).repeat(len(x), 1)


def by_content(x: Tensor) -> Tensor:
    """To an expert or none, as the first entries tell."""
    return (x[..., :2].flatten(0, 1).abs() * 2).long().clamp(max=EXPERTS)


def weights_of(x: Tensor) -> Tensor:
    return x.flatten(0, 1)[:, :2].sigmoid()


def routed(choose: Any) -> Any:
    def run(model: nn.Module, x: Tensor) -> Tensor:
        out = model.experts(x.flatten(0, 1), choose(x), weights_of(x))
        return out.reshape(x.shape).tanh().square().sum(1)[:, :3]

    return run


class Apart(nn.Module):
    """The same with layers of their own, each of which sees the positions that it has."""

    def __init__(self, fused: Any, kind: str) -> None:
        super().__init__()
        self.apply_gate = fused._apply_gate
        self.ups, self.downs = nn.ModuleList(), nn.ModuleList()
        for number in range(EXPERTS):
            for layers, name in ((self.ups, "gate_up_proj"), (self.downs, "down_proj")):
                weight = getattr(fused, name)[number].detach()
                weight = weight.T if fused.is_transposed else weight
                layer = nn.Linear(weight.shape[1], weight.shape[0], bias=fused.has_bias)
                layer.weight.data.copy_(weight)
                if fused.has_bias:
                    layer.bias.data.copy_(getattr(fused, f"{name}_bias")[number])
                layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        routes = by_position(x)[: x.shape[1]]
        weights = weights_of(x).reshape(*x.shape[:2], 2)
        out = torch.zeros_like(x)
        for number, (up, down) in enumerate(zip(self.ups, self.downs, strict=True)):
            positions, slots = (routes == number).nonzero(as_tuple=True)
            own = down(self.apply_gate(up(x[:, positions]))) * weights[:, positions, slots, None]
            out = out.index_add(1, positions, own)
        return out.tanh().square().sum(1)[:, :3]


@pytest.mark.parametrize("sharing", ["expand", "reduce", "average"])
@pytest.mark.parametrize("labels", ["empirical", "exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_experts_have_the_factors_of_separate_layers(kind: str, labels: str, sharing: str) -> None:
    fused = experts(kind)
    data = vectors(4, TOKENS, WIDTH)
    arguments = {"labels": labels, "sharing": sharing}
    found = estimate(Logits(routed(by_position), experts=fused), data, **arguments)
    assert {block.operator.kind for block in found.blocks} == {"kronecker_stack"}
    apart = Logits(lambda m, x: m.layers(x), layers=Apart(fused, kind))
    separate = dense(estimate(apart, data, **arguments))
    expected = {
        f"experts.{name}": torch.block_diag(
            *(separate[f"layers.{own}.{e}"] for e in range(EXPERTS))
        )
        for name, own in (("gate_up_proj", "ups"), ("down_proj", "downs"))
    }
    assert_equal_matrices(dense(found), expected)


@pytest.mark.parametrize("sharing", ["expand", "reduce", "average"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_is_exact_at_one_token(kind: str, sharing: str) -> None:
    """One token in one expert, the same in all examples; the other experts move freely."""
    model = Logits(
        lambda m, x: m.experts(x, torch.ones(len(x), 1).long(), torch.ones(len(x), 1))[
            :, :3
        ].tanh(),
        experts=experts(kind),
    )
    data = [{**example, "x": torch.ones(WIDTH)} for example in vectors(3)]
    curvature = estimate(model, data, sharing=sharing)
    assert_equal_matrices(dense(curvature), oracle(model, data, curvature))


@pytest.mark.parametrize("kind", KINDS)
def test_diagonal_is_exact_where_content_chooses(kind: str) -> None:
    model, data = Logits(routed(by_content), experts=experts(kind)), vectors(5, TOKENS, WIDTH)
    if kind == "gpt_oss":  # knows no expert of number n
        data = [{**e, "x": e["x"].clamp(-1.2, 1.2)} for e in data]
    curvature = estimate(model, data, curvature="diagonal")
    exact = oracle(model, data, curvature)
    assert_equal_matrices(
        {name: matrix.diagonal() for name, matrix in dense(curvature).items()},
        {name: matrix.diagonal() for name, matrix in exact.items()},
    )


@pytest.mark.parametrize("sharing", ["expand", "reduce", "average"])
def test_neither_the_batch_size_nor_padding_matters(sharing: str) -> None:
    config = MixtralConfig(
        **SIZES,
        vocab_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    model = MixtralForCausalLM(config).double()

    def padded(length: int) -> list[dict[str, Tensor]]:
        generator, data = torch.Generator().manual_seed(0), []
        for tokens in (6, 3, 5):
            ids = torch.randint(3, 20, (tokens,), generator=generator)
            row = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
            fill = {"input_ids": 4, "labels": -100, "attention_mask": 0}
            data.append(
                {n: torch.cat([v, v.new_full((length - tokens,), fill[n])]) for n, v in row.items()}
            )
        return data

    whole = estimate(model, padded(6), default_collate, sharing=sharing)
    assert {"kronecker_stack"} <= {block.operator.kind for block in whole.blocks}
    for data, size in ((padded(6), 1), (padded(9), 2)):
        other = estimate(model, data, default_collate, sharing=sharing, curvature_batch_size=size)
        assert_equal_matrices(images(other), images(whole), rtol=1e-6)


def test_the_products_of_a_model_are_its_own_afterwards() -> None:
    module = experts("mixtral")
    x, routes = torch.randn(7, WIDTH), torch.tensor([[0, 2], [1, 3], [2, 1]]).repeat(3, 1)[:7]
    scores = torch.rand(7, 2)
    expected = module(x, routes, scores)
    with tokens_in_order([module]):
        assert module.config._experts_implementation == "hf_kfc"
        torch.testing.assert_close(module(x, routes, scores), expected)
    assert module.config._experts_implementation == "eager"


def test_experts_of_another_form_have_their_diagonal() -> None:
    module = experts("mixtral")
    module._is_expert_parallel = True
    assert set(survey(module).without_rule) == {"gate_up_proj", "down_proj"}
