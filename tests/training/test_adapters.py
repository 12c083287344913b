"""A prior of a plain model on the same model with LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import models
from tiny.models import RANKERS, ranking_bert
from tiny.priors import make_prior
from tiny.reference import dense, reference_step, vector
from tiny.trainings import DATA, LEARNING_RATE, assert_near, make_trainer
from torch import Tensor, nn
from transformers import (
    BertForMultipleChoice,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
)

from hf_kfc.curvature import Layout
from hf_kfc.errors import ConsolidationError, PriorError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training import ConsolidationPenalty
from hf_kfc.training.adapters import names_for
from hf_kfc.training.fitting import fit
from hf_kfc.training.terms import LowRankTerm

peft = pytest.importorskip("peft")


def gpt2() -> GPT2LMHeadModel:
    return models.gpt2(seed=0)


def llama() -> LlamaForCausalLM:
    model: LlamaForCausalLM = models.llama(seed=0)
    return model


TARGETS: dict[Callable[[], PreTrainedModel], list[str]] = {
    ranking_bert: ["query", "dense"],
    gpt2: ["c_attn", "c_proj"],
    llama: ["q_proj", "down_proj"],
}


def adapted(model: PreTrainedModel, targets: list[str], rank: int = 2, **changes: Any) -> Any:
    """The model with adapters that are not zero."""
    torch.manual_seed(1)
    kinds = {"task_type": None} | changes
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=rank, lora_alpha=3, target_modules=targets, **kinds)
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return wrapped


def dense_value(
    prior: ConsolidationPrior, strength: float, damping: float, model: nn.Module
) -> Tensor:
    """λ ΔᵀFΔ by plain autograd, in float64, with every weight put together from PEFT's parts.

    The names are found by PEFT's own rule: what it calls the modules of the model that it wraps.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    total = torch.zeros((), dtype=torch.float64)
    for block in prior.curvature.blocks:
        tensors = {}
        for name in block.shapes:
            path, _, kind = name.rpartition(".")
            module = base.get_submodule(path)
            if hasattr(module, "modules_to_save"):
                module = module.modules_to_save["default"]
            value = getattr(getattr(module, "base_layer", module), kind).double()
            if hasattr(module, "lora_A") and kind == "weight":
                low_rank = module.lora_B["default"].weight @ module.lora_A["default"].weight
                low_rank = low_rank.T if block.layout is Layout.IN_OUT else low_rank
                value = value + module.scaling["default"] * low_rank.double()
            tensors[name] = value - prior.anchor[name].double()
        delta = vector(block, tensors)
        total = total + strength * (delta @ dense(block.operator, *block.shape, damping) @ delta)
    return total


def assert_equals_autograd(
    model: Any, prior: ConsolidationPrior, damping: float
) -> dict[str, Tensor]:
    """Value and gradients of the penalty are those of the dense quadratic form."""
    penalty = ConsolidationPenalty(model, [prior], [0.7], damping)
    value, _ = penalty()
    value.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    reference = dense_value(prior, 0.7, damping, model)
    torch.testing.assert_close(value.detach(), reference.detach(), rtol=1e-9, atol=0)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(reference, list(trained.values()))
    assert found.keys() == trained.keys()
    for name, wanted in zip(trained, expected, strict=True):
        torch.testing.assert_close(found[name], wanted, rtol=1e-9, atol=1e-12, msg=name)
    return found


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("rank", [2, 30], ids=["without_forming", "by_forming"])
@pytest.mark.parametrize("distance", [0.0, 0.1], ids=["at_the_anchor", "away_from_it"])
@pytest.mark.parametrize("kind", ["kronecker", "low_rank", "mixed"])
@pytest.mark.parametrize("make", TARGETS, ids=lambda make: make.__name__)
def test_value_and_gradient(
    make: Callable[[], PreTrainedModel], kind: str, distance: float, rank: int, damping: float
) -> None:
    plain = make()
    own = "kronecker" if kind == "low_rank" else kind
    prior = make_prior(plain, own, distance=distance, ignore=ignored(plain))
    if kind == "low_rank":
        prior = prior.compress(rank=1)
        assert "low_rank_kronecker" in {block.operator.kind for block in prior.curvature.blocks}
    model = adapted(plain, TARGETS[make], rank).double()
    fit(prior, model)
    gradients = assert_equals_autograd(model, prior, damping)
    assert all("lora_" in name for name in gradients)
    assert all(bool((gradient != 0).all()) for gradient in gradients.values())


def ignored(model: nn.Module) -> list[str]:
    """What has no rule: Llama's normalisation layers."""
    return ["*norm*"] if isinstance(model, LlamaForCausalLM) else []


@pytest.mark.parametrize(
    ("distance", "rank", "method"),
    [(0.0, 2, "_without_forming"), (0.0, 30, "_by_forming"), (0.1, 2, "_by_forming")],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_which_products_are_formed(
    distance: float, rank: int, method: str, compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = [], getattr(LowRankTerm, method)

    def noted(term: LowRankTerm, *args: Any) -> Any:
        calls.append(term.names[0])
        return original(term, *args)

    monkeypatch.setattr(LowRankTerm, method, noted)
    prior = make_prior(ranking_bert(), "kronecker", distance=distance)
    prior = prior.compress(rank=1) if compressed else prior
    ConsolidationPenalty(adapted(ranking_bert(), ["query"], rank), [prior], [1.0], 0.1)()
    assert len(calls) == 2


def test_modules_to_save_and_trained_biases() -> None:
    plain = ranking_bert()
    prior = make_prior(plain, "kronecker", distance=0.0)
    model = adapted(plain, ["query"], modules_to_save=["classifier"], bias="lora_only").double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    fit(prior, model)
    gradients = assert_equals_autograd(model, prior, 0.1)
    assert sum("modules_to_save" in name for name in gradients) == 2
    assert sum("base_layer.bias" in name for name in gradients) == 2


def test_copies_of_a_tied_weight_are_held_where_they_are_tied_too() -> None:
    plain = gpt2()
    prior = make_prior(plain, "kronecker", distance=0.0)
    for copied, ignore in ((["wte"], []), (["wte", "lm_head"], ["lm_head"])):
        apart = adapted(gpt2(), ["c_attn"], modules_to_save=copied)
        with pytest.raises(ConsolidationError, match=r"a copy of .*wte.weight that lm_head.weight"):
            fit(prior, apart, ignore)
        fit(prior, apart, ["*.wte", "lm_head"])
    tied = {"modules_to_save": ["wte", "lm_head"], "ensure_weight_tying": True}
    model = adapted(plain, ["c_attn"], **tied).double()
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.add_(0.1)
    gradients = assert_equals_autograd(model, prior, 0.1)
    assert sum("modules_to_save" in name for name in gradients) == 1


def test_adapters_in_a_model_that_is_not_wrapped() -> None:
    plain = ranking_bert()
    prior = make_prior(plain, "kronecker", distance=0.0)
    plain.add_adapter(peft.LoraConfig(r=2, target_modules=["query"]))
    for name, parameter in plain.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    fit(prior, plain)
    assert_equals_autograd(plain.double(), prior, 0.1)


def test_a_prior_of_the_adapters_themselves() -> None:
    model = adapted(ranking_bert(), ["query"])
    prior = ConsolidationPrior.l2(model, task="old")
    fit(prior, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    value, _ = ConsolidationPenalty(model, [prior], [2.0], 0.0)()
    value.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert value.item() == pytest.approx(2 * sum(p.numel() for p in trained))
    assert all(bool((p.grad - 4 < 1e-5).all()) for p in trained if p.grad is not None)


def test_two_priors_and_a_frozen_rest() -> None:
    """The one at whose anchor the model stands and an older one; the rest is not gathered."""
    plain = ranking_bert()
    priors = [make_prior(plain, "kronecker", seed=s, distance=d) for s, d in ((1, 0.1), (2, 0.0))]
    model = adapted(plain, ["query"]).double()
    penalty = ConsolidationPenalty(model, priors, [0.7, 0.2], 0.1)
    _, values = penalty()
    references = [dense_value(p, s, 0.1, model) for p, s in zip(priors, (0.7, 0.2), strict=True)]
    torch.testing.assert_close(values, torch.stack(references).detach(), rtol=1e-9, atol=0)
    layer = next(layer for layer in penalty._layers if "word_embeddings" in layer[0].names[0])
    assert [term.stays for term in layer] == [False, True]


# Refusals


def test_what_an_adapter_trains_must_be_known() -> None:
    plain = ranking_bert()
    prior = make_prior(plain, ignore=["bert.pooler.*"])
    fit(prior, adapted(ranking_bert(), ["query", "pooler.dense"]))  # ignored is known of
    only = make_prior(plain.bert.encoder.layer[0])
    with pytest.raises(PriorError, match=r"the prior knows nothing of .*query\.weight"):
        fit(only, adapted(ranking_bert(), ["query"]))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (
            lambda: adapted(ranking_bert(), ["query"], use_dora=True),
            r"variant of LoRA \(DoraLinear",
        ),
        (lambda: adapted(ranking_bert(), ["query"], lora_bias=True), "has a bias"),
        (lambda: adapted(ranking_bert(), ["word_embeddings"]), "is a lora Embedding"),
        (lambda: adapted(RANKERS["cnn"](), ["convolution"]), "is a lora Conv1d"),
        (lambda: adapted(gpt2(), ["lm_head"]), "another module shares"),
        (
            lambda: peft.get_peft_model(
                ranking_bert(), peft.LoHaConfig(r=2, target_modules=["query"])
            ),
            "is a loha Linear",
        ),
    ],
    ids=["dora", "bias", "embedding", "convolution", "tied", "loha"],
)
def test_refused(make: Callable[[], Any], problem: str) -> None:
    model = make()
    plain = model.get_base_model()
    makers = {BertForMultipleChoice: ranking_bert, GPT2LMHeadModel: gpt2}
    prior = make_prior(makers.get(type(plain), RANKERS["cnn"])())
    with pytest.raises(ConsolidationError, match=rf"the adapter of .* {problem}.*; use one plain"):
        fit(prior, model)


def test_several_merged_and_disabled_are_refused() -> None:
    prior = make_prior(ranking_bert())
    model = adapted(ranking_bert(), ["query"])
    model.merge_adapter()
    with pytest.raises(ConsolidationError, match="is merged into the weight"):
        names_for(model, prior)
    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(ConsolidationError, match="is disabled"):
        names_for(model, prior)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["query"]))
    names_for(model, prior)  # the second one is not active
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ConsolidationError, match="is one of 2 active ones"):
        names_for(model, prior)


# Training


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training(accumulation: int, tmp_path: Path) -> None:
    plain = ranking_bert()
    prior = make_prior(plain, "kronecker", distance=0.0)
    model = adapted(plain, ["query"], modules_to_save=["classifier"])
    trainer = make_trainer(
        tmp_path,
        [prior],
        model,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        max_steps=2,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "penalty" in entry]
    assert len(logs) == len(trainer.recorder.steps) == 2
    reference = adapted(ranking_bert(), ["query"], modules_to_save=["classifier"])
    seen = trainer.data_collator.seen
    for index, (parameters, gradients) in enumerate(trainer.recorder.steps):
        batches = seen[index * accumulation : (index + 1) * accumulation]
        step = reference_step(
            reference,
            parameters,
            [[DATA[i] for i in batch] for batch in batches],
            lambda _: [dense_value(prior, 0.3, 0.1, reference)],
        )
        assert_near(torch.tensor(logs[index]["penalty_old"]), torch.tensor(step.penalties[0]), "")
        assert gradients.keys() == step.gradients.keys()
        for name, gradient in gradients.items():
            assert_near(gradient, step.gradients[name], name)
    last = trainer.recorder.steps[-1]
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert_near(parameter, last[0][name] - LEARNING_RATE * last[1][name], name)
