"""Trainers of TRL and sentence-transformers, and Optuna's search, where these are installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny.data import labelled, pad
from tiny.models import VOCABULARY, bert, classifier, text_llama
from tiny.priors import prior_of
from tiny.trainings import Recorder, gradients
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertForMaskedLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training import (
    ConsolidationArguments,
    ConsolidationConfig,
    ConsolidationMixin,
    ConsolidationTrainer,
)

CONFIG = ConsolidationConfig(strengths=[0.7], damping=0.0)
GRADIENT = 2 * 0.7 * 0.1
LENGTHS = (3, 9, 2, 7, 5, 4, 8, 6)


def tokenizer() -> PreTrainedTokenizerFast:
    """Words are ``w3`` to ``w19``."""
    special = {"[PAD]": 0, "[UNK]": 1, "[END]": 2}
    words = special | {f"w{number}": number for number in range(len(special), VOCABULARY)}
    model = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]"
    )


def sentences(seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    return [
        " ".join(f"w{n}" for n in torch.randint(3, VOCABULARY, (size,), generator=generator))
        for size in LENGTHS
    ]


def from_disk(folder: Path) -> LlamaForCausalLM:
    """TRL reads the model's folder again."""
    text_llama().save_pretrained(folder / "model")
    model = LlamaForCausalLM.from_pretrained(folder / "model")
    assert isinstance(model, LlamaForCausalLM)
    return model


def mixed(ours: bool, base: type) -> tuple[type, ...]:
    return (ConsolidationMixin, base) if ours else (base,)


def fine_tuning(
    ours: bool,
    folder: Path,
    priors: Sequence[ConsolidationPrior],
    bases: Callable[[bool, type], tuple[type, ...]] = mixed,
    settings: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> Any:
    trl = pytest.importorskip("trl")
    rows = Dataset.from_dict({"text": sentences(1)})
    return type("Trainer", bases(ours, trl.SFTTrainer), {})(
        model=from_disk(folder),
        args=trl.SFTConfig(str(folder), shuffle_dataset=False, **{**ARGUMENTS, **settings}),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer(),
        **more,
        **({"priors": priors, "consolidation": CONFIG} if ours else {}),
    )


def preferences(
    ours: bool,
    folder: Path,
    priors: Sequence[ConsolidationPrior],
    bases: Callable[[bool, type], tuple[type, ...]] = mixed,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    trl = pytest.importorskip("trl")
    texts = dict(zip(("prompt", "chosen", "rejected"), map(sentences, (1, 2, 3)), strict=True))
    rows = Dataset.from_dict(texts)
    return type("Trainer", bases(ours, trl.DPOTrainer), {})(
        model=from_disk(folder),
        args=trl.DPOConfig(str(folder), **{**ARGUMENTS, **settings}),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer(),
        **({"priors": priors, "consolidation": CONFIG} if ours else {}),
    )


def embeddings(
    ours: bool,
    folder: Path,
    priors: Sequence[ConsolidationPrior],
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """A prior of the encoder, on the model that wraps it."""
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    classifier().bert.save_pretrained(folder / "encoder")
    tokenizer().save_pretrained(folder / "encoder")
    encoder = modules.Transformer(str(folder / "encoder"))
    model = library.SentenceTransformer(modules=[encoder, modules.Pooling(8)], device="cpu")
    rows = {"one": sentences(1), "two": sentences(2), "label": [0.1 * n for n in range(8)]}
    args = library.SentenceTransformerTrainingArguments(str(folder), **{**ARGUMENTS, **settings})
    loss = losses.CosineSimilarityLoss(model)
    return of_sentences(ours, library.SentenceTransformerTrainer, args, loss, rows, priors)


def sparse_embeddings(
    ours: bool,
    folder: Path,
    priors: Sequence[ConsolidationPrior],
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """A prior of a masked language model, on SPLADE, whose regularizers a callback schedules."""
    library = pytest.importorskip("sentence_transformers")
    kind = pytest.importorskip("sentence_transformers.sparse_encoder")
    losses = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    inner = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    masked_model().save_pretrained(folder / "encoder")
    tokenizer().save_pretrained(folder / "encoder")
    encoder = inner.Transformer(str(folder / "encoder"), transformer_task="fill-mask")
    model = library.SparseEncoder(modules=[encoder, modules.SpladePooling()], device="cpu")
    rows = {"one": sentences(1), "two": sentences(2)}
    loss = losses.SpladeLoss(model, losses.SparseMultipleNegativesRankingLoss(model), 0.1, 0.1)
    args = kind.SparseEncoderTrainingArguments(str(folder), **{**ARGUMENTS, **settings})
    return of_sentences(ours, kind.SparseEncoderTrainer, args, loss, rows, priors)


def of_sentences(
    ours: bool,
    base: type,
    args: Any,
    loss: Any,
    rows: Mapping[str, list[Any]],
    priors: Sequence[ConsolidationPrior],
) -> Any:
    """A trainer of sentence-transformers, of the model that its loss has."""
    data = Dataset.from_dict(dict(rows))
    return type("Trainer", mixed(ours, base), {})(
        model=loss.model,
        args=args,
        train_dataset=data,
        eval_dataset=data,
        loss=loss,
        **({"priors": priors, "consolidation": CONFIG} if ours else {}),
    )


def masked_model() -> Any:
    return bert(BertForMaskedLM, seed=0)


ARGUMENTS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "optim": "sgd",
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
}
KINDS: dict[str, tuple[Any, Any]] = {
    "sft": (fine_tuning, text_llama),
    "dpo": (preferences, text_llama),
    "embeddings": (embeddings, lambda: classifier().bert),
    "sparse embeddings": (sparse_embeddings, masked_model),
}


WAYS: dict[str, dict[str, Any]] = {
    "accumulated": {},
    "not accumulated": {"gradient_accumulation_steps": 1},
    "tokens of this process alone": {"average_tokens_across_devices": False},
    "checkpointed activations": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "evaluated every step": {"eval_strategy": "steps", "eval_steps": 1},
    "smoothed labels": {"label_smoothing_factor": 0.1},
    "noise on embeddings": {"neftune_noise_alpha": 5.0},
}
ONLY = {"smoothed labels": ("sft",), "noise on embeddings": ("sft", "dpo")}
"""The others have losses of their own, or no embeddings where the Trainer looks for them."""
CASES = [
    pytest.param(*kind, settings, id=f"{name}-{way}")
    for way, settings in WAYS.items()
    for name, kind in KINDS.items()
    if name in ONLY.get(way, KINDS)
]


def trained(trainer: Any, **how: Any) -> Any:
    trainer.recorder = Recorder()
    trainer.add_callback(trainer.recorder)
    trainer.train(**how)
    return trainer


@pytest.mark.parametrize(("make", "model", "settings"), CASES)
def test_without_priors_it_is_their_trainer(
    make: Any, model: Any, settings: Any, tmp_path: Path
) -> None:
    plain, ours = (
        trained(make(ours, tmp_path / str(ours), (), settings=settings)) for ours in (False, True)
    )
    steps = 8 // (2 * {**ARGUMENTS, **settings}["gradient_accumulation_steps"])
    assert len(plain.recorder.steps) == len(ours.recorder.steps) == steps
    for step in range(steps):
        assert torch.equal(gradients(plain, step), gradients(ours, step))
    for expected, found in zip(plain.state.log_history, ours.state.log_history, strict=True):
        assert expected.keys() == found.keys()
        assert expected.get("eval_loss") == found.get("eval_loss")


@pytest.mark.parametrize(("make", "model", "settings"), CASES)
def test_the_penalty_counts_once(make: Any, model: Any, settings: Any, tmp_path: Path) -> None:
    plain, ours = (
        trained(make(ours, tmp_path / str(ours), [prior_of(model())], settings=settings))
        for ours in (False, True)
    )
    assert_penalty(plain, ours)


@pytest.mark.parametrize(("make", "model"), KINDS.values(), ids=KINDS)
def test_a_resumed_training_is_the_whole_one(make: Any, model: Any, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1}
    whole, resumed = (
        make(True, tmp_path, [prior_of(model())], settings=settings) for _ in range(2)
    )
    trained(whole)
    trained(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert len(resumed.recorder.steps) == 1
    assert torch.equal(gradients(whole, 1), gradients(resumed, 0))


def assert_penalty(plain: Any, ours: Any) -> None:
    (_, task), (_, both) = plain.recorder.steps[0], ours.recorder.steps[0]
    for name, gradient in both.items():  # an encoder's pooler has no task here
        penalty = gradient - task.get(name, 0.0)
        expected = torch.full_like(penalty, GRADIENT)
        torch.testing.assert_close(penalty, expected, rtol=1e-4, atol=1e-5, msg=name)
    logs = [[log for log in one.state.log_history if "loss" in log] for one in (plain, ours)]
    assert logs[1][0]["task_loss"] == pytest.approx(logs[0][0]["loss"], rel=1e-4)


# Ways in which people change what these compute


def positional(
    self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
) -> Any:
    own = super(type(self).own, self)
    loss, outputs = own.compute_loss(model, inputs, True, num_items_in_batch)
    return (3 * loss, outputs) if return_outputs else 3 * loss


def by_keyword(self: Any, model: Any, inputs: Any, **kwargs: Any) -> Any:
    loss = super(type(self).own, self).compute_loss(
        model=model, inputs=inputs, return_outputs=False, **kwargs
    )
    return 3 * loss


@pytest.mark.parametrize("outermost", [True, False])
@pytest.mark.parametrize("compute_loss", [positional, by_keyword])
@pytest.mark.parametrize(("make", "model"), list(KINDS.values())[:2], ids=list(KINDS)[:2])
def test_an_overridden_loss_keeps_the_penalty(
    make: Any, model: Any, compute_loss: Any, outermost: bool, tmp_path: Path
) -> None:
    """Whether the mixin stands over it or below."""

    def bases(ours: bool, base: type) -> tuple[type, ...]:
        if ours and outermost:
            mixed = type("Consolidated", (ConsolidationMixin, base), {})
            own: Any = type("Own", (mixed,), {"compute_loss": compute_loss})
        else:
            own = type("Own", (base,), {"compute_loss": compute_loss})
        own.own = own
        return (ConsolidationMixin, own) if ours and not outermost else (own,)

    plain, ours = (
        trained(make(ours, tmp_path / str(ours), [prior_of(model())], bases=bases))
        for ours in (False, True)
    )
    assert_penalty(plain, ours)


def test_a_loss_function_keeps_the_penalty(tmp_path: Path) -> None:
    def weighted(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> Any:
        logits, wanted = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        return 3 * loss / num_items_in_batch

    plain, ours = (
        trained(
            fine_tuning(
                ours, tmp_path / str(ours), [prior_of(text_llama())], compute_loss_func=weighted
            )
        )
        for ours in (False, True)
    )
    assert_penalty(plain, ours)


def rewarded(ours: bool, folder: Path, priors: Sequence[ConsolidationPrior]) -> Any:
    """GRPO divides its loss itself, ``loss_is_scaled_for_ga``; one seed draws the same answers."""
    trl = pytest.importorskip("trl")
    bases = (ConsolidationMixin, trl.GRPOTrainer) if ours else (trl.GRPOTrainer,)
    settings = ARGUMENTS | {"num_generations": 2, "max_completion_length": 4, "beta": 0.0}
    return type("Trainer", bases, {})(
        model=from_disk(folder),
        reward_funcs=lambda completions, **_: [float(len(c) % 3) for c in completions],
        args=trl.GRPOConfig(str(folder), **settings),
        train_dataset=Dataset.from_dict({"prompt": sentences(1)}),
        processing_class=tokenizer(),
        **({"priors": priors, "consolidation": CONFIG} if ours else {}),
    )


@pytest.mark.parametrize("beside", [False, True])
def test_optuna_tries_different_penalties(beside: bool, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    settings = {**ARGUMENTS, "learning_rate": 0.0, "eval_strategy": "epoch"}
    given: dict[str, Any] = {} if beside else {"strengths": 1.0, "damping": 0.0}
    trainer = ConsolidationTrainer(
        None,
        (TrainingArguments if beside else ConsolidationArguments)(
            str(tmp_path), **settings, **given
        ),
        priors=[prior_of(classifier())],
        consolidation=ConsolidationConfig(strengths=1.0, damping=0.0) if beside else None,
        model_init=lambda _: classifier(),
        train_dataset=labelled(),
        eval_dataset=labelled(),
        data_collator=pad,
    )
    suggested, found = [], []

    def space(trial: Any) -> dict[str, Any]:
        suggested.append(trial.suggest_float("strengths", 0.1, 10.0))
        return {"strengths": suggested[-1], "damping": trial.suggest_int("damping", 0, 1)}

    def objective(_: Any) -> float:
        found.append(next(e["penalty"] for e in trainer.state.log_history if "penalty" in e))
        assert trainer.strengths == suggested[-1:]
        return float(found[-1])

    trainer.hyperparameter_search(space, objective, n_trials=3, backend="optuna")
    one = 0.01 * classifier().num_parameters()
    for strength, penalty in zip(dict.fromkeys(suggested), found, strict=True):
        assert penalty / (strength * one) in (pytest.approx(1.0), pytest.approx(2.0))


def test_a_trainer_that_scales_its_own_loss(tmp_path: Path) -> None:
    plain, ours = (
        trained(rewarded(ours, tmp_path / str(ours), [prior_of(text_llama())]))
        for ours in (False, True)
    )
    assert any(gradient.abs().max() > 1e-4 for gradient in plain.recorder.steps[0][1].values())
    assert_penalty(plain, ours)
