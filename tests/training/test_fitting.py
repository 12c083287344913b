"""Where a prior's parameters are in a model that has changed since, and what is left free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.data import labelled, pad, texts
from tiny.models import classifier, text_llama
from tiny.priors import make_prior, prior_of
from tiny.trainings import gradients, train
from torch import nn
from transformers import BertConfig, BertForMaskedLM, Trainer

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError, PriorError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training import ConsolidationConfig, ConsolidationPenalty, ConsolidationTrainer
from hf_kfc.training.fitting import Patterns, fit


def penalty_gradients(
    model: nn.Module, prior: ConsolidationPrior, **changes: Any
) -> dict[str, torch.Tensor]:
    """Of λ = 1/2 and F = I: the displacements, by the model's names."""
    model.zero_grad()
    value, _ = ConsolidationPenalty(model, [prior], [0.5], 0.0, **changes)()
    value.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


# A head of other labels


def test_a_new_head_is_refused_with_a_way_on() -> None:
    with pytest.raises(PriorError) as refusal:
        fit(prior_of(classifier()), classifier(5))
    message = str(refusal.value)
    assert "classifier.weight has shape [5, 8], the prior's has [3, 8]" in message
    assert "`ignore` of the ConsolidationConfig" in message and "`added_rows`" in message


@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "identity"])
@pytest.mark.parametrize(
    "ignore", [["classifier"], ["classifier.*"], ["classifier.weight", "classifier.bias"]]
)
def test_a_new_head_left_free(ignore: list[str], kind: str, tmp_path: Path) -> None:
    prior, config = make_prior(classifier(), kind), ConsolidationConfig([0.7], ignore=ignore)
    plain, ours = (
        train(
            trainer, classifier(5), labelled(labels=5), tmp_path, [prior], config, learning_rate=0.0
        )
        for trainer in (Trainer, ConsolidationTrainer)
    )
    (_, expected), (_, found) = plain.recorder.steps[0], ours.recorder.steps[0]
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]) == name.startswith("classifier"), name
    assert ours.state.log_history[0]["penalty_old"] > 0


def test_a_head_of_another_name() -> None:
    """The prior's is gone, and the new one is not known."""
    model = classifier()
    model.verdict, model.classifier = nn.Linear(8, 2), nn.Identity()
    with pytest.raises(PriorError, match=r"no parameter classifier.*knows nothing of verdict"):
        fit(prior_of(classifier()), model)
    blocks = fit(prior_of(classifier()), model, ["classifier", "verdict"])
    assert not any("classifier" in name for block in blocks for name in block.names)


def test_a_part_of_a_layer_cannot_be_left_out() -> None:
    with pytest.raises(ConsolidationError, match=r"classifier\.bias and not all .* one curvature"):
        fit(make_prior(classifier()), classifier(), ["classifier.bias"])


def test_something_must_be_left(tmp_path: Path) -> None:
    with pytest.raises(PriorError, match="leaves nothing of the prior of task 'old'"):
        fit(prior_of(classifier()), classifier(), ["*"])


@pytest.mark.parametrize("name", ["ignore", "added_rows"])
def test_a_pattern_without_meaning(name: str, tmp_path: Path) -> None:
    config = ConsolidationConfig([1.0], **{name: ["bert.*", "clasifier"]})  # type: ignore[arg-type]
    with pytest.raises(ConsolidationError, match=f"'clasifier' in `{name}` means no parameter"):
        train(ConsolidationTrainer, classifier(), [], tmp_path, [prior_of(classifier())], config)


def test_patterns() -> None:
    model = classifier()
    for pattern in ("BertLayer", "bert.encoder", "bert.encoder.*", "*.query.weight"):
        patterns = Patterns(model, [pattern])
        assert "bert.encoder.layer.0.attention.self.query.weight" in patterns, pattern
        assert "classifier.weight" not in patterns and "bert.encoders.weight" not in patterns
    assert Patterns(model, ["bert", "x", "Linear"]).without(["bert.a", "b"]) == ["x", "Linear"]


# Rows that were added


@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "identity", "mixed"])
@pytest.mark.parametrize("make", [classifier, text_llama], ids=["bert", "llama"])
def test_new_tokens_are_free_and_old_ones_held(make: Any, kind: str) -> None:
    """Of the embedding, and of the output embedding that grows with it."""
    ignore = ["*norm*"] if make is text_llama else []
    prior, model = make_prior(make(), kind, ignore=ignore), make()
    before = penalty_gradients(model, prior)
    model.resize_token_embeddings(23)
    found = penalty_gradients(model, prior)
    assert found.keys() == before.keys()
    grown = [name for name in found if len(found[name]) == 23]
    assert len(grown) == (2 if make is text_llama else 1)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient[: len(before[name])], before[name], msg=name)
        assert not gradient[len(before[name]) :].any()


def test_new_tokens_of_a_prior_that_covers_a_part() -> None:
    prior = ConsolidationPrior.estimate(
        classifier(), labelled(), pad, CurvatureArguments(), task="old"
    )
    (block,) = [b for b in prior.curvature.blocks if b.name.endswith("word_embeddings")]
    kept = torch.tensor([2, 5, 7])
    part = block.of_inputs(kept)
    blocks = tuple(part if b is block else b for b in prior.curvature.blocks)
    ((name, _),) = block.shapes.items()
    anchor = {**prior.anchor, name: prior.anchor[name][kept] - 1}
    prior = ConsolidationPrior(anchor, type(prior.curvature)(blocks, 8), prior.provenance)
    model = classifier()
    model.resize_token_embeddings(23)
    rows = penalty_gradients(model, prior)[name].norm(dim=1).nonzero().flatten().tolist()
    assert rows and set(rows) <= {2, 5, 7}


@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "identity", "kronecker_eigen"])
def test_a_head_with_added_labels(kind: str) -> None:
    prior, model = make_prior(classifier(), kind), classifier()
    before = penalty_gradients(model, prior)
    model.classifier = nn.Linear(8, 5)
    with torch.no_grad():
        model.classifier.weight[:3] = classifier().classifier.weight
        model.classifier.bias[:3] = classifier().classifier.bias
    found = penalty_gradients(model, prior, added_rows=["classifier"])
    for name in ("classifier.weight", "classifier.bias"):
        torch.testing.assert_close(found[name][:3], before[name])
        assert not found[name][3:].any()


def test_fewer_rows_are_refused() -> None:
    model = classifier()
    model.resize_token_embeddings(18)
    with pytest.raises(PriorError, match=r"has shape \[18, 8\], the prior's has \[20, 8\]"):
        fit(prior_of(classifier()), model)


# Names


def test_a_prior_of_the_base_model() -> None:
    prior, model = ConsolidationPrior.l2(classifier().bert, task="articles"), classifier()
    with pytest.raises(PriorError) as refusal:
        fit(prior, model)
    message = str(refusal.value)
    assert "knows nothing of classifier.weight, classifier.bias; it fits by the names" in message
    assert "the names that the model has after 'bert.'" in message and len(message) < 400
    blocks = fit(prior, model, ["classifier"])
    assert all(block.names == tuple(f"bert.{n}" for n in block.block.shapes) for block in blocks)
    assert len(blocks) == len(prior.curvature.blocks)


def test_a_prior_of_the_model_with_its_head() -> None:
    prior, model = prior_of(classifier()), classifier().bert
    with pytest.raises(PriorError, match=r"no parameter .*prior has after 'bert\.'"):
        fit(prior, model)
    blocks = fit(prior, model, ["classifier"])
    assert {n for block in blocks for n in block.names} == {n for n, _ in model.named_parameters()}


def test_another_head_on_the_same_base() -> None:
    """Here nothing but the head differs, and no prefix is looked for."""
    config = BertConfig.from_dict(classifier().config.to_dict())
    model = BertForMaskedLM(config)
    with pytest.raises(PriorError, match=r"no parameter bert\.pooler.*knows nothing of cls"):
        fit(prior_of(classifier()), model)
    assert fit(prior_of(classifier()), model, ["bert.pooler", "classifier", "cls"])


def test_a_wrapper_of_ones_own() -> None:
    model = nn.ModuleDict({"encoder": classifier(), "extra": nn.Linear(2, 2)})
    blocks = fit(prior_of(classifier()), model, ["extra"])
    assert all(name.startswith("encoder.") for block in blocks for name in block.names)


def test_the_base_of_a_classifier_in_another_wrapper() -> None:
    """``bert.`` is ``0.model.`` there, as in sentence-transformers; the old head is gone."""
    model = nn.ModuleDict({"0": nn.ModuleDict({"model": classifier().bert})})
    prior = prior_of(classifier())
    with pytest.raises(
        PriorError, match=r"no parameter classifier.weight.*'0.model.' in the place of 'bert.'"
    ):
        fit(prior, model)
    blocks = fit(prior, model, ["classifier"])
    own = dict(model.named_parameters())
    assert {name for block in blocks for name in block.names} == own.keys()
    for block in blocks:
        for theirs, ours in zip(block.block.shapes, block.names, strict=True):
            assert ours == theirs.replace("bert.", "0.model.", 1)


def test_two_copies_are_refused_with_both_prefixes() -> None:
    model = nn.ModuleDict({"question": classifier(), "answer": classifier()})
    with pytest.raises(PriorError, match=r"any of the prefixes 'question\.', 'answer\.'") as error:
        fit(prior_of(classifier()), model)
    assert len(str(error.value)) < 1000


def test_nothing_in_common() -> None:
    with pytest.raises(PriorError, match=r"and \d+ more; the prior knows nothing of") as error:
        fit(prior_of(classifier()), text_llama())
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("whole", [True, False])
def test_compiled(whole: bool, tmp_path: Path) -> None:
    """A compiled model, or a part of it, is the model."""
    prior = prior_of(classifier())
    model: Any = classifier()
    if whole:
        model = torch.compile(model, backend="eager")
    else:
        model.bert.encoder = torch.compile(model.bert.encoder, backend="eager")
    config = ConsolidationConfig([0.7], damping=0.0)
    compiled, plain = (
        train(
            ConsolidationTrainer,
            one,
            labelled(),
            tmp_path,
            [prior],
            config,
            max_steps=1,
            remove_unused_columns=False,  # the Trainer does not see a compiled model's signature
        )
        for one in (model, classifier())
    )
    torch.testing.assert_close(gradients(compiled), gradients(plain))
    if whole:
        made_of = ConsolidationPrior.l2(model, task="old")
        assert len(fit(made_of, classifier())) == len(made_of.curvature.blocks)


# Adapters


def test_prompt_tuning_is_refused_as_what_it_is(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    for config in (
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    ):
        model = peft.get_peft_model(text_llama(), config)
        name = config.peft_type.value.replace("_", " ").lower()
        with pytest.raises(ConsolidationError, match=f"{name} trains vectors beside.*use LoRA"):
            train(ConsolidationTrainer, model, texts(), tmp_path, [prior_of(text_llama())])


def test_a_prior_of_the_base_model_under_adapters() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    model = peft.get_peft_model(classifier(5), config)
    prior = ConsolidationPrior.l2(classifier().bert, task="articles")
    blocks = fit(prior, model, ["classifier"])
    assert len(blocks) == len(prior.curvature.blocks)
    assert sum(block.adapter is not None for block in blocks) == 1
