"""Every trainable parameter has a rule, or is named in the refusal."""

from typing import Any

import pytest
import torch
from tiny.models import bert
from torch import nn
from transformers import BertForMaskedLM

from hf_kfc.curvature import PAPER_IGNORE, find_layers
from hf_kfc.errors import CurvatureError


class Holder(nn.Module):
    def __init__(self, **modules: Any) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        for name, module in modules.items():
            setattr(self, name, module)


class OtherBilinear(nn.Bilinear):
    pass


class SameLinear(nn.Linear):
    """Another name, and nothing else."""


class SameEmbedding(nn.Embedding):
    pass


def tied_embedding(**settings: Any) -> nn.Module:
    model = Holder(decoder=nn.Linear(2, 5, bias=False), words=nn.Embedding(5, 2, **settings))
    model.decoder.weight = model.words.weight
    return model


def tied_convolution() -> nn.Module:
    model = Holder(a=nn.Conv1d(2, 3, 1, bias=False), b=nn.Linear(2, 3, bias=False))
    model.b.weight = model.a.weight
    return model


class GatedNorm(nn.RMSNorm):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.gate = nn.Parameter(torch.ones(size))


def tied_weight_only() -> nn.Module:
    model = Holder(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    model.b.weight = model.a.weight
    return model


def half_frozen() -> nn.Module:
    model = Holder(a=nn.Linear(2, 2))
    model.a.bias.requires_grad_(False)
    return model


def linear_with_a_scale() -> nn.Module:
    model = Holder(a=nn.Linear(2, 2))
    model.a.scale = nn.Parameter(torch.ones(2))
    return model


def masked_lm() -> nn.Module:
    return BertForMaskedLM(bert().config)


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown": (lambda: Holder(x=nn.Bilinear(2, 2, 2)), r"x\.weight, x\.bias \(Bilinear\)"),
    "parameter": (lambda: Holder(x=nn.Parameter(torch.ones(2))), r"x \(Holder\)"),
    "added": (
        linear_with_a_scale,
        r"a\.weight, a\.bias, a\.scale \(Linear with parameters scale added",
    ),
    "max_norm": (lambda: Holder(x=nn.Embedding(5, 2, max_norm=1.0)), r"x\.weight .*max_norm=1"),
    "by_frequency": (
        lambda: Holder(x=nn.Embedding(5, 2, scale_grad_by_freq=True)),
        r"x\.weight .*scale_grad_by_freq=True",
    ),
    "tied_kinds": (
        tied_convolution,
        r"a\.weight \(tied between a: Conv1d and b: Linear, which no rule covers: freeze or untie",
    ),
    "tied_max_norm": (
        lambda: tied_embedding(max_norm=1.0),
        r"decoder\.weight \(Linear and Embedding with max_norm=1",
    ),
    "tied_weight": (
        tied_weight_only,
        r"a\.weight, .*\(tied between a: Linear and b: Linear, which do not share all parameters",
    ),
    "norm": (lambda: Holder(x=GatedNorm(2)), r"x\.weight, x\.gate \(GatedNorm"),
    "half_frozen": (half_frozen, r"a\.weight \(only a part"),
    "transposed": (lambda: Holder(x=nn.ConvTranspose1d(2, 2, 1)), r"x\.weight, x\.bias \(Conv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_parameter(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(CurvatureError, match=message):
        find_layers(make())


def test_all_problems_are_named_at_once() -> None:
    model = Holder(x=nn.Bilinear(2, 2, 2), y=nn.Parameter(torch.ones(2)))
    with pytest.raises(CurvatureError) as caught:
        find_layers(model)
    assert all(name in str(caught.value) for name in ("x.weight", "x.bias", "y (Holder)"))
    assert "head" not in str(caught.value)


@pytest.mark.parametrize("name", ["unknown", "parameter", "transposed"])
def test_ignoring_lifts_the_refusal(name: str) -> None:
    make, _ = REFUSED[name]
    layers, ignored = find_layers(make(), ["x*"])
    assert [layer.name for layer in layers] == ["head"]
    assert ignored and all(i.startswith("x") for i in ignored)


def test_a_refusal_of_many_is_short() -> None:
    kinds = [type(f"Kind{number}" + "x" * 30, (OtherBilinear,), {}) for number in range(40)]
    model = Holder(**{f"x{number}": kind(2, 2, 2) for number, kind in enumerate(kinds * 3)})
    with pytest.raises(
        CurvatureError, match=r"x0\.weight, x0\.bias, .* and 3 more \(Kind0x"
    ) as caught:
        find_layers(model)
    assert len(str(caught.value)) < 1000
    assert "other parameters" in str(caught.value)


def test_a_module_is_ignored_by_its_path() -> None:
    model = bert()
    _, ignored = find_layers(model, ["bert.encoder.layer.0.attention"])
    assert ignored == sorted(n for n, _ in model.named_parameters() if "layer.0.attention." in n)


def test_a_subclass_that_computes_the_same_has_the_rule_of_its_parent() -> None:
    layers, _ = find_layers(Holder(x=SameLinear(2, 2), y=SameEmbedding(3, 2)))
    assert [type(layer.rule).__name__ for layer in layers[1:]] == ["LinearRule", "EmbeddingRule"]


def test_a_weight_made_anew_by_its_module_has_no_rule() -> None:
    model = Holder(x=nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(CurvatureError, match=r"original0, .*ParametrizationList"):
        find_layers(model)


def test_the_bias_of_a_tied_head_is_a_block_of_its_own() -> None:
    layers, _ = find_layers(masked_lm())
    found = {layer.name: type(layer.rule).__name__ for layer in layers}
    assert found["bert.embeddings.word_embeddings"] == "TiedEmbeddingRule"
    assert found["cls.predictions.bias"] == "BiasRule"


def test_half_ignored_layer_is_refused() -> None:
    with pytest.raises(CurvatureError, match=r"head\.weight \(only a part"):
        find_layers(Holder(), ["*.bias"])


def test_the_nearest_name_is_a_hint() -> None:
    with pytest.raises(CurvatureError, match=r"\(the nearest is 'LayerNorm'\)"):
        find_layers(bert(), ["LayerNrom"])


@pytest.mark.parametrize("pattern", ["LayerNrom", "heads.*", "Head", "bias"])
def test_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(CurvatureError, match=f"'{pattern}' matches no parameter"):
        find_layers(Holder(), [pattern])


def test_the_papers_choice_leaves_normalisation_out() -> None:
    model = bert()
    layers, ignored = find_layers(model, PAPER_IGNORE)
    assert ignored == sorted(n for n, _ in model.named_parameters() if "LayerNorm" in n)
    assert len(ignored) == 6
    covered = {name for layer in layers for name in layer.shapes}
    assert covered | set(ignored) == {n for n, _ in model.named_parameters()}
    assert not covered & set(ignored)


def test_ignoring_a_class_takes_what_is_inside_it() -> None:
    _, ignored = find_layers(bert(), ["BertEmbeddings"])
    assert len(ignored) == 5
    assert all(name.startswith("bert.embeddings.") for name in ignored)


def test_frozen_parameters_are_left_out() -> None:
    model = Holder(a=nn.Linear(2, 2), x=nn.Bilinear(2, 2, 2))
    model.x.requires_grad_(False)
    model.a.requires_grad_(False)
    layers, ignored = find_layers(model)
    assert [layer.name for layer in layers] == ["head"]
    assert ignored == []


def test_layers_are_in_the_models_order_with_the_weight_first() -> None:
    model = Holder(b=nn.LayerNorm(2), a=nn.Conv1d(2, 3, 1))
    layers, _ = find_layers(model)
    assert [layer.name for layer in layers] == ["head", "b", "a"]
    assert list(layers[2].shapes) == ["a.weight", "a.bias"]


def test_fully_tied_layers_are_one() -> None:
    model = Holder(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    model.b.weight, model.b.bias = model.a.weight, model.a.bias
    layers, _ = find_layers(model)
    assert [layer.name for layer in layers] == ["head", "a"]
    assert list(layers[1].modules) == ["a", "b"]


def test_a_head_tied_to_its_embedding_is_one_layer() -> None:
    layers, _ = find_layers(tied_embedding())
    assert [layer.name for layer in layers] == ["head", "decoder"]
    assert list(layers[1].shapes) == ["decoder.weight"]
    assert list(layers[1].modules) == ["decoder", "words"]
    assert layers[1].shape == (2, 5)
