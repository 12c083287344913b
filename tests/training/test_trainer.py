"""What the trainer adds to training, leaves alone in evaluation, logs and refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from consolidation_cases import (
    FOR_EVALUATION,
    MODELS,
    Collator,
    DensePenalty,
    Recorder,
    arguments,
    assert_near,
    bert,
    cnn,
    make_examples,
    make_prior,
    reference_step,
    reference_task_loss,
)
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from hf_kfc.errors import ConsolidationError, PriorError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking.trainer import RankingTrainer
from hf_kfc.training import ConsolidationArguments, ConsolidationMixin, ConsolidationTrainer

DATA = make_examples()
HELD_OUT = [example | {"index": FOR_EVALUATION} for example in make_examples(7, seed=5)]


def make_trainer(
    folder: Path,
    priors: Sequence[ConsolidationPrior] = (),
    model: PreTrainedModel | None = None,
    kind: type[Trainer] = ConsolidationTrainer,
    data_collator: Any = None,
    *,
    train_dataset: Any = DATA,
    compute_loss_func: Any = None,
    **changes: Any,
) -> Any:
    """A trainer on the tiny data; ``trainer.recorder`` keeps the gradients."""
    recorder = Recorder()
    trainer = kind(
        cnn() if model is None else model,
        arguments(folder, **changes),
        train_dataset=train_dataset,
        eval_dataset=HELD_OUT,
        data_collator=data_collator or Collator(),
        compute_loss_func=compute_loss_func,
        callbacks=[recorder],
        **({"priors": priors} if issubclass(kind, ConsolidationMixin) else {}),
    )
    trainer.recorder = recorder
    return trainer


def trained(*args: Any, **kwargs: Any) -> Any:
    trainer = make_trainer(*args, **kwargs)
    trainer.train()
    return trainer


def penalty_gradients(
    model: nn.Module, priors: Sequence[ConsolidationPrior], strengths: Sequence[float]
) -> dict[str, Tensor]:
    named = dict(model.double().named_parameters())
    total = torch.stack(DensePenalty(priors, strengths, 0.1)(named)).sum()
    return dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))


# The gradient: see test_gradients.py for accumulation and processes


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("bert", {"bf16": True}),
        ("cnn", {"bf16": True}),
        ("bert", {"activation_checkpointing": True}),
        ("cnn", {"torch_compile": True, "torch_compile_backend": "eager"}),
    ],
    ids=["bert-bf16", "cnn-bf16", "bert-checkpointing", "cnn-compiled"],
)
def test_the_penalty_is_the_same_under(model: str, changes: dict[str, Any], tmp_path: Path) -> None:
    priors = [make_prior(MODELS[model](), "mixed")]
    (_, without), (_, with_penalty) = (
        trained(
            tmp_path,
            priors,
            MODELS[model](),
            strengths=[strength],
            max_steps=1,
            gradient_accumulation_steps=3,
            per_device_train_batch_size=2,
            **changes,
        ).recorder.steps[0]
        for strength in (0.0, 0.3)
    )
    for name, expected in penalty_gradients(MODELS[model](), priors, [0.3]).items():
        assert_near(with_penalty[name] - without[name], expected, name)


@pytest.mark.parametrize("data_collator", [None, Collator(masked=False)], ids=["mask", "no_mask"])
@pytest.mark.parametrize("kind", [RankingTrainer, ConsolidationTrainer])
def test_without_priors_it_is_plain_training(
    kind: type[Trainer], data_collator: Any, tmp_path: Path
) -> None:
    trainer = trained(
        tmp_path,
        (),
        bert(),
        kind,
        data_collator,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=10,
        num_train_epochs=1,
    )
    ((parameters, gradients),) = trainer.recorder.steps
    reference = reference_step(bert(), parameters, [[e] for e in DATA], lambda _: [torch.zeros(())])
    for name, gradient in gradients.items():
        assert_near(gradient, reference.gradients[name], name)
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert_near(torch.tensor(log["loss"]), torch.tensor(reference.task_loss), "loss")
    assert not any("penalty" in name or "task" in name for name in log)


class SquareTrainer(Trainer):
    """A Trainer with a loss of its own."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        outputs = model(**{k: v for k, v in inputs.items() if k != "candidate_mask"})
        loss = outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss


class ConsolidatedSquareTrainer(ConsolidationMixin, SquareTrainer):
    pass


def test_a_trainer_with_its_own_loss(tmp_path: Path) -> None:
    priors = [make_prior(cnn(), "mixed")]
    trainer = trained(
        tmp_path,
        priors,
        kind=ConsolidatedSquareTrainer,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )
    seen, model = trainer.data_collator.seen, cnn().double().eval()
    assert len(trainer.recorder.steps) == 3
    for start, (parameters, gradients) in zip((0, 4, 8), trainer.recorder.steps, strict=True):
        model.load_state_dict(parameters)
        model.zero_grad()
        batches = [
            Collator(masked=False)([DATA[i] for i in ids]) for ids in seen[start : start + 4]
        ]
        task = torch.stack([model(**batch).logits.square().mean() for batch in batches]).mean()
        (penalty,) = DensePenalty(priors, [0.3], 0.1)(dict(model.named_parameters()))
        (task + penalty).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert_near(gradients[name], parameter.grad, name)


@dataclass
class Seq2SeqConsolidationArguments(ConsolidationArguments, Seq2SeqTrainingArguments):
    pass


class Seq2SeqConsolidationTrainer(ConsolidationMixin, Seq2SeqTrainer):
    pass


def bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=20,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=16,
        dropout=0.0,
        init_std=0.3,
    )
    return BartForConditionalGeneration(config)


class ConsolidatedTrainer(ConsolidationMixin, Trainer):
    pass


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, initializer_range=0.3
    )
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, dropout, 0.0)
    return GPT2LMHeadModel(config)


def sequences(same: bool) -> list[dict[str, Tensor]]:
    """Sequences of uneven length: a mean over tokens is not one over examples."""
    torch.manual_seed(3)
    labels = [torch.randint(4, 20, (3 + index,)) for index in range(5)]
    return [
        {"input_ids": row if same else torch.randint(4, 20, (6,)), "labels": row} for row in labels
    ]


@pytest.mark.parametrize(
    ("make_model", "kind"), [(bart, Seq2SeqConsolidationTrainer), (gpt2, ConsolidatedTrainer)]
)
def test_language_models(make_model: Any, kind: Any, tmp_path: Path) -> None:
    prior = ConsolidationPrior.l2(make_model(), task="old")
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    data, recorder = sequences(same=make_model is gpt2), Recorder()
    args = Seq2SeqConsolidationArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        max_grad_norm=0.0,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=5,
        num_train_epochs=1,
        strengths=[2.0],
        damping=0.0,
    )
    kind(model, args, priors=[prior], train_dataset=data, callbacks=[recorder]).train()
    ((start, gradients),) = recorder.steps
    reference = make_model().double().eval()
    reference.load_state_dict(start, strict=False)
    losses = [reference(**{k: v[None] for k, v in row.items()}).loss for row in data]
    torch.stack(losses).mean().backward()
    for name, parameter in reference.named_parameters():
        delta = start[name].double() - prior.anchor[name]
        assert_near(gradients[name], parameter.grad + 2 * 2.0 * delta, name)


# Evaluation


@pytest.mark.parametrize("model", MODELS)
def test_no_penalty_in_evaluation(model: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        [make_prior(MODELS[model]())],
        MODELS[model](),
        per_device_eval_batch_size=3,
        per_device_train_batch_size=4,
    )
    for train_first in (False, True):
        if train_first:
            trainer.train()
        reference = MODELS[model]().double().eval()
        reference.load_state_dict(trainer.model.state_dict())
        expected = reference_task_loss(reference, HELD_OUT)
        metrics = trainer.evaluate()
        assert_near(torch.tensor(metrics["eval_loss"]), expected.detach(), "eval_loss")
        assert not any("penalty" in name for name in metrics)


def test_evaluation_is_the_plain_trainers(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "per_device_eval_batch_size": 1,
        "data_collator": Collator(masked=False),
    }
    ours = make_trainer(tmp_path, [make_prior(bert())], bert(), **changes).evaluate()
    plain = make_trainer(tmp_path, (), bert(), Trainer, **changes).evaluate()
    assert ours["eval_loss"] == plain["eval_loss"]


def test_prediction_step_is_unaffected(tmp_path: Path) -> None:
    batch = Collator()(HELD_OUT)
    with_prior = make_trainer(tmp_path, [make_prior(bert())], bert())
    with_prior.model.train()
    loss, logits, labels = with_prior.prediction_step(with_prior.model, batch, False)
    plain = make_trainer(tmp_path, (), bert(), RankingTrainer)
    expected = plain.prediction_step(plain.model, batch, False)
    for found, wanted in zip((loss, logits, labels), expected, strict=True):
        assert torch.equal(found, wanted)
    offered = batch["candidate_mask"]
    assert not offered.all()
    assert (logits[~offered] == torch.finfo(logits.dtype).min).all()
    assert (logits[offered] > -100).all()


# Logs


def logged(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def check_windows(
    trainer: Any, logs: list[dict[str, float]], steps: Sequence[Any], penalty: DensePenalty
) -> None:
    """Each log is the mean over its two optimizer steps."""
    for log, index in zip(logs, range(0, len(steps) - 1, 2), strict=True):
        window = steps[index : index + 2]
        values = torch.stack([torch.stack(penalty(parameters)) for parameters, _ in window])
        assert_near(torch.tensor(log["penalty"]), values.sum(1).mean(), "penalty")
        for task, value in zip(("first", "second"), values.mean(0), strict=True):
            assert_near(torch.tensor(log[f"penalty_{task}"]), value, task)
        assert log["task_loss"] + log["penalty"] == pytest.approx(log["loss"], abs=1e-9)
        assert log["task_loss"] > 0


def test_logs_are_means_over_their_window(tmp_path: Path) -> None:
    priors = [make_prior(cnn(), task="first"), make_prior(cnn(), "diagonal", task="second")]
    penalty = DensePenalty(priors, [0.3, 0.1], 0.1)
    trainer = make_trainer(
        tmp_path,
        priors,
        strengths=[0.3, 0.1],
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=1,
    )
    for _ in range(2):  # the fifth step of the first training belongs to no log of the second
        trainer.recorder.steps.clear()
        trainer.train()
        assert len(trainer.recorder.steps) == 5
        check_windows(trainer, logged(trainer), trainer.recorder.steps, penalty)
    assert not any(
        "penalty" in name
        for entry in trainer.state.log_history
        if "loss" not in entry
        for name in entry
    )


def test_tasks_of_one_name_are_numbered(tmp_path: Path) -> None:
    priors = [make_prior(cnn(), task=task, seed=i) for i, task in enumerate("aba")]
    trainer = trained(tmp_path, priors, max_steps=1)
    (log,) = logged(trainer)
    names = {name for name in log if name.startswith("penalty_")}
    assert names == {"penalty_a_0", "penalty_b", "penalty_a_2"}
    assert sum(log[name] for name in names) == pytest.approx(log["penalty"])


# Strengths


def test_default_strength_is_bayesian(tmp_path: Path) -> None:
    priors = [make_prior(cnn(), num_examples=30), make_prior(cnn(), num_examples=5)]
    assert make_trainer(tmp_path, priors, strengths=None).strengths == [1.5, 0.25]


def test_one_strength_is_for_all_priors(tmp_path: Path) -> None:
    priors = [make_prior(cnn())] * 3
    assert make_trainer(tmp_path, priors, strengths=[0.7]).strengths == [0.7] * 3
    assert make_trainer(tmp_path, priors, strengths=[1, 2, 3]).strengths == [1, 2, 3]


def test_wrong_number_of_strengths(tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError, match="2 strengths were given for 3 priors"):
        make_trainer(tmp_path, [make_prior(cnn())] * 3, strengths=[0.1, 0.2])


class Endless(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from DATA


@pytest.mark.parametrize("train_dataset", [None, Endless()], ids=["no_data", "endless"])
def test_no_bayesian_strength_without_a_number_of_examples(
    train_dataset: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConsolidationError, match="set `strengths`"):
        make_trainer(
            tmp_path,
            [make_prior(cnn())],
            train_dataset=train_dataset,
            strengths=None,
            max_steps=1,
        )


def test_no_bayesian_strength_of_a_prior_without_data(tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError, match=r"'old' has 0 examples.*set `strengths`"):
        make_trainer(tmp_path, [ConsolidationPrior.l2(cnn(), task="old")], strengths=None)


# Refusals


def test_plain_training_arguments(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ConsolidationError, match="TrainingArguments; give Consolidation"):
        ConsolidationTrainer(cnn(), args, priors=[make_prior(cnn())])


@pytest.mark.parametrize("priors", [[], [make_prior(cnn())]], ids=["no_priors", "priors"])
def test_compute_loss_func(priors: list[ConsolidationPrior], tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError, match="override compute_loss"):
        make_trainer(tmp_path, priors, compute_loss_func=lambda *_, **__: 0.0)


def test_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Accelerator, "distributed_type", property(lambda _: DistributedType.DEEPSPEED)
    )
    with pytest.raises(ConsolidationError, match=r"DeepSpeed.*use DDP or FSDP2"):
        make_trainer(tmp_path, [make_prior(cnn())])
    make_trainer(tmp_path)  # plain training is none of our business


def test_fsdp1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(version: int) -> None:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=version)
        monkeypatch.setattr(AcceleratorState, "fsdp_plugin", plugin, raising=False)

    use(1)
    with pytest.raises(ConsolidationError, match=r"FSDP1.*use fsdp_version=2"):
        make_trainer(tmp_path, [make_prior(cnn())])
    make_trainer(tmp_path)
    use(2)
    make_trainer(tmp_path, [make_prior(cnn())])


def test_priors_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(PriorError) as refusal:
        make_trainer(tmp_path, [make_prior(bert())])
    assert "no parameter bert.embeddings.word_embeddings.weight" in str(refusal.value)
    assert "knows nothing of convolution.weight" in str(refusal.value)


def test_prior_of_another_shape(tmp_path: Path) -> None:
    model = cnn()
    prior = make_prior(model)
    model.classifier = nn.Linear(8, 2)
    with pytest.raises(PriorError, match=r"classifier.weight has shape \[2, 8\].*\[1, 8\]"):
        make_trainer(tmp_path, [prior], model)


def test_a_trainable_parameter_that_no_prior_knows(tmp_path: Path) -> None:
    prior = make_prior(cnn())
    model = cnn()
    model.extra = nn.Linear(2, 2)
    with pytest.raises(PriorError, match=r"knows nothing of extra.weight"):
        make_trainer(tmp_path, [prior], model)
    model.extra.requires_grad_(False)
    make_trainer(tmp_path, [prior], model)


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_bad_numbers(value: float, tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError):
        make_trainer(tmp_path, [make_prior(cnn())], strengths=[value])
    with pytest.raises(ConsolidationError):
        make_trainer(tmp_path, [make_prior(cnn())], damping=value)
