"""Without priors it is the plain Trainer; with them the penalty counts once, on any base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch_two
from text_worker import CASES
from tiny.data import labelled, pad, pad_lists, texts
from tiny.models import bert, classifier, text_llama, text_t5
from tiny.priors import prior_of
from tiny.trainings import gradients, train
from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_kfc import Probes
from hf_kfc.errors import ConsolidationError
from hf_kfc.training import (
    ConsolidationArguments,
    ConsolidationConfig,
    ConsolidationMixin,
    ConsolidationTrainer,
)


class Consolidated(ConsolidationMixin, Trainer):
    pass


class ConsolidatedSeq2Seq(ConsolidationMixin, Seq2SeqTrainer):
    pass


CONFIG = ConsolidationConfig(strengths=[0.7], damping=0.0)
GRADIENT = 2 * 0.7 * 0.1
"""Of the penalty, in every parameter."""


class Scaled(Trainer):
    """It divides its loss itself, and says so."""

    loss_is_scaled_for_ga = True

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs.loss / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


class ConsolidatedScaled(ConsolidationMixin, Scaled):
    pass


BASES: dict[str, tuple[type[Trainer], type[Trainer], type[TrainingArguments]]] = {
    "plain": (Trainer, Consolidated, TrainingArguments),
    "plain_ours": (Trainer, Consolidated, ConsolidationArguments),
    "seq2seq": (Seq2SeqTrainer, ConsolidatedSeq2Seq, Seq2SeqTrainingArguments),
    "seq2seq_ours": (Seq2SeqTrainer, ConsolidatedSeq2Seq, ConsolidationArguments),
    "scaled": (Scaled, ConsolidatedScaled, TrainingArguments),
}
MODELS = [(text_llama, texts), (text_t5, texts), (classifier, labelled)]


def weighted(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A loss function of one's own, which is divided as the Trainer asks."""
    logits = outputs["logits"].flatten(0, -2)
    loss = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
    return 3 * loss / num_items_in_batch


def with_and_without_function(bases: Any, models: Any) -> list[Any]:
    """Each base with each model; a loss function only where it is called, and labels are spare."""
    return [
        pytest.param(*base, *model, func, id=f"{name}-{model[0].__name__}-{func and 'function'}")
        for name, base in bases.items()
        for model in models
        for func in (None, weighted)
        if not func or (name in ("plain", "seq2seq") and model[0] is not text_t5)
    ]


@pytest.mark.parametrize(
    ("base", "ours", "settings", "make", "rows", "func"), with_and_without_function(BASES, MODELS)
)
def test_without_priors_every_step_is_the_plain_trainers(
    base: Any, ours: Any, settings: Any, make: Any, rows: Any, func: Any, tmp_path: Path
) -> None:
    own = Seq2SeqTrainingArguments if base is Seq2SeqTrainer else TrainingArguments
    plain, mine = (
        train(
            kind,
            make(),
            rows(),
            tmp_path,
            settings=form,
            more={"compute_loss_func": func},
            gradient_accumulation_steps=4,
        )
        for kind, form in ((base, own), (ours, settings))
    )
    assert len(plain.recorder.steps) == len(mine.recorder.steps) == 2
    for step in range(2):
        assert torch.equal(gradients(plain, step), gradients(mine, step))
    for expected, found in zip(plain.state.log_history, mine.state.log_history, strict=True):
        assert expected.keys() == found.keys()
        assert expected.get("loss") == found.get("loss")
    kinds = [type(callback) for callback in plain.callback_handler.callbacks]
    assert kinds == [type(callback) for callback in mine.callback_handler.callbacks]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(
    ("base", "ours", "settings", "make", "rows", "func"),
    with_and_without_function({k: BASES[k] for k in ("plain", "seq2seq", "scaled")}, MODELS[:1]),
)
def test_the_penalty_counts_once_and_the_task_as_ever(
    base: Any,
    ours: Any,
    settings: Any,
    make: Any,
    rows: Any,
    func: Any,
    accumulation: int,
    tmp_path: Path,
) -> None:
    """Also in the last step, of two micro-batches of three."""
    plain, mine = (
        train(
            kind,
            make(),
            rows(),
            tmp_path,
            [prior_of(make())],
            CONFIG,
            settings,
            {"compute_loss_func": func},
            gradient_accumulation_steps=accumulation,
            learning_rate=0.0,
        )
        for kind in (base, ours)
    )
    for step in range(len(plain.recorder.steps)):
        penalty = gradients(mine, step) - gradients(plain, step)
        torch.testing.assert_close(penalty, torch.full_like(penalty, GRADIENT))
    logs = [[log for log in one.state.log_history if "loss" in log] for one in (plain, mine)]
    for expected, log in zip(*logs, strict=True):
        assert log["task_loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert log["penalty"] == pytest.approx(0.7 * 0.01 * plain.model.num_parameters())


@pytest.mark.parametrize(("make", "rows"), MODELS[1:], ids=["t5", "classifier"])
def test_a_head_whose_loss_is_a_mean_over_the_micro_batch(
    make: Any, rows: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The Trainer multiplies it by the micro-batches (transformers#47688)."""
    trainer = train(
        Consolidated,
        make(),
        rows(),
        tmp_path,
        [prior_of(make())],
        CONFIG,
        gradient_accumulation_steps=8,
    )
    ((start, _),) = trainer.recorder.steps
    model = make()
    model.load_state_dict(start, strict=False)
    losses = torch.stack([model(**pad([row])).loss for row in rows()])
    losses.mean().backward()
    expected = [p.grad.flatten() + GRADIENT for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(gradients(trainer), torch.cat(expected), rtol=1e-4, atol=1e-6)
    (log,) = [log for log in trainer.state.log_history if "loss" in log]
    assert log["task_loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
    assert [m for m in caplog.messages if "mean over the micro-batch" in m] == caplog.messages[:1]


def test_a_first_micro_batch_without_labels_tells_nothing_of_a_loss(tmp_path: Path) -> None:
    """Of BERT's masked language model it is NaN, which is unequal to itself, with gradients of 0.

    Taken for a loss that is divided already, all micro-batches would count as often as there are.
    """
    model, rows = bert(BertForMaskedLM, seed=0, dropout=0.0), texts()[:4]
    rows[0] = {**rows[0], "labels": torch.full_like(rows[0]["labels"], -100)}
    trainer = train(
        Consolidated,
        model,
        rows,
        tmp_path,
        [prior_of(bert(BertForMaskedLM, seed=0, dropout=0.0))],
        CONFIG,
        gradient_accumulation_steps=4,
        train_sampling_strategy="sequential",
    )
    ((start, _),) = trainer.recorder.steps
    model = bert(BertForMaskedLM, seed=0, dropout=0.0).train()
    model.load_state_dict(start, strict=False)
    (sum(model(**pad([row])).loss for row in rows[1:]) / 4).backward()
    expected = [p.grad.flatten() + GRADIENT for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(gradients(trainer), torch.cat(expected), rtol=1e-4, atol=1e-6)


class Averaging(Trainer):
    """It keeps what its losses note until it logs, as those of TRL."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._metrics: Any = {"train": defaultdict(list), "eval": defaultdict(list)}

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mode = "train" if model.training else "eval"
        self._metrics[mode]["tokens"].append(int(inputs["labels"].ne(-100).sum()))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        logs |= {f"{mode}_{n}": sum(v) / len(v) for n, v in self._metrics[mode].items()}
        super().log(logs, start_time)
        self._metrics[mode].clear()


class ConsolidatedAveraging(ConsolidationMixin, Averaging):
    pass


def test_what_a_trainer_averages_until_it_logs_is_of_its_own_steps(tmp_path: Path) -> None:
    """Neither trying out the loss nor measuring what is forgotten has a part in it."""
    probes = Probes.from_dataset(text_llama(), texts(), pad_lists())
    plain, ours = (
        train(
            kind,
            text_llama(),
            texts(),
            tmp_path,
            [prior_of(text_llama())],
            ConsolidationConfig(strengths=[0.0], probe_weight=0.0, forgetting_every=1),
            more={"eval_dataset": texts()[:1], **more},
            gradient_accumulation_steps=2,
            logging_steps=2,
            eval_strategy="steps",
            eval_steps=2,
        )
        for kind, more in (
            (Averaging, {}),
            (ConsolidatedAveraging, {"probes": probes, "probe_collator": pad_lists()}),
        )
    )
    assert [log for log in ours.state.log_history if "forgetting" in log]
    for name in ("train_tokens", "eval_tokens"):
        of_each = [
            [(log["step"], log[name]) for log in trainer.state.log_history if name in log]
            for trainer in (plain, ours)
        ]
        assert of_each[0] == of_each[1] != []


@pytest.mark.parametrize("func", [None, weighted], ids=["own", "function"])
@pytest.mark.parametrize(("make", "rows"), [MODELS[0], MODELS[2]], ids=["llama", "classifier"])
def test_a_step_by_itself(make: Any, rows: Any, func: Any, tmp_path: Path) -> None:
    """Outside of ``train()`` it is a whole optimizer step, whose one micro-batch none divides."""
    held = {"priors": [prior_of(make())], "consolidation": CONFIG}
    args = TrainingArguments(str(tmp_path), use_cpu=True, gradient_accumulation_steps=4)
    found = list[dict[str, Any]]()
    for kind, given in ((Trainer, {}), (Consolidated, held)):
        trainer: Any = kind(make(), args, compute_loss_func=func, **given)
        trainer.training_step(trainer.model, pad(rows()), torch.tensor(20))
        found.append({name: p.grad for name, p in trainer.model.named_parameters()})
    plain, ours = found
    for name, gradient in plain.items():
        penalty = ours[name] - (0 if gradient is None else gradient)
        torch.testing.assert_close(penalty, torch.full_like(penalty, GRADIENT), msg=name)


def test_the_loss_is_tried_out_without_a_trace(tmp_path: Path) -> None:
    """Weights keep their gradients under autocast, and dropout draws the same masks."""
    plain, ours = (
        train(
            kind,
            text_llama(attention_dropout=0.2),
            texts(),
            tmp_path,
            [prior_of(text_llama())],
            ConsolidationConfig(strengths=[0.0]),
            gradient_accumulation_steps=4,
            bf16=True,
        )
        for kind in (Trainer, Consolidated)
    )
    assert torch.equal(gradients(plain), gradients(ours))


# Two processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return launch_two("training/text_worker", tmp_path_factory.mktemp("two_processes"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes(case: str, two_processes: dict[str, list[Any]]) -> None:
    """The Trainer multiplies the loss by the number of processes, as DDP takes the mean of it.

    That of the head whose loss is a mean over the micro-batch it multiplies in vain, and by the
    number of micro-batches.
    """
    too_much = {"mean": 4.0, "sharded": 2.0}.get(case, 1.0)
    first = None
    for rank in two_processes[case]:
        assert not isinstance(rank, str), rank
        plain, ours, logged = rank
        assert len(plain) == len(ours) == (4 if case == "sharded" else 2)
        (_, task), (_, both) = plain[0], ours[0]
        for name, gradient in both.items():
            penalty = gradient - task[name] / too_much
            expected = torch.full_like(penalty, GRADIENT)
            torch.testing.assert_close(penalty, expected, rtol=1e-4, atol=1e-5, msg=name)
        anchor = {name: value - 0.1 for name, value in ours[0][0].items()}
        values = [sum((now[n] - anchor[n]).square().sum() for n in anchor) for now, _ in ours]
        assert logged == pytest.approx([0.7 * float(value) for value in values], rel=1e-4)
        first = first or ours
        for name, gradient in ours[-1][1].items():
            assert torch.equal(gradient, first[-1][1][name])


# Who computes the loss


class Weighted(ConsolidationTrainer):
    """The usual customisation of a Trainer, which does not call ``super().compute_loss``."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, labels, torch.tensor([1.0, 3.0, 1.0]))
        return (loss, outputs) if return_outputs else loss


class Doubled(ConsolidationTrainer):
    """It changes the Trainer's loss; the penalty is not the Trainer's."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", [Weighted, Doubled])
def test_a_compute_loss_of_a_subclass_keeps_the_penalty(
    kind: Any, accumulation: int, tmp_path: Path
) -> None:
    without, having = (
        train(
            kind,
            classifier(),
            labelled(),
            tmp_path,
            [prior_of(classifier())],
            ConsolidationConfig(strengths=[strength], damping=0.0),
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        for strength in (0.0, 0.7)
    )
    penalty = gradients(having) - gradients(without)
    torch.testing.assert_close(penalty, torch.full_like(penalty, GRADIENT))
    assert having.state.log_history[0]["penalty"] > 0


def test_a_training_step_that_goes_past_it_is_refused(tmp_path: Path) -> None:
    class Own(ConsolidationTrainer):
        def training_step(self, model: nn.Module, inputs: Any, *_: Any) -> Tensor:
            loss = model(**inputs).loss
            loss.backward()
            return loss.detach()

    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConsolidationError, match=r"Own.training_step goes past.*super\(\)"):
        train(Own, model, labelled(), tmp_path, [prior_of(classifier())], CONFIG)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_two_losses_in_one_step_have_one_penalty(tmp_path: Path) -> None:
    class Twice(Trainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            once = self.compute_loss(model, dict(inputs))
            twice = self.compute_loss(model, dict(inputs))
            loss = (once + twice) / 2
            loss.backward()
            return loss.detach()

    class ConsolidatedTwice(ConsolidationMixin, Twice):
        pass

    plain, ours = (
        train(
            kind,
            classifier(),
            labelled(),
            tmp_path,
            [prior_of(classifier())],
            ConsolidationConfig(strengths=[1.4], damping=0.0),
        )
        for kind in (Twice, ConsolidatedTwice)
    )
    penalty = gradients(ours) - gradients(plain)
    torch.testing.assert_close(penalty, torch.full_like(penalty, GRADIENT))


class Hungry(TrainerCallback):
    """Runs out of memory in the middle of the third step of the first attempt."""

    def __init__(self) -> None:
        self.left: Iterator[bool] = iter([False, False, True])

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if next(self.left, False):
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_an_attempt_with_smaller_batches_begins_anew(tmp_path: Path) -> None:
    trainer = train(
        ConsolidationTrainer,
        classifier(),
        labelled(),
        tmp_path,
        [prior_of(classifier())],
        ConsolidationConfig(strengths=[1.0], damping=0.0),
        more={},
        auto_find_batch_size=True,
        per_device_train_batch_size=2,
        logging_steps=4,
    )
    trainer.recorder.steps.clear()
    trainer.add_callback(Hungry())
    trainer.train()
    assert trainer._train_batch_size < 2
    anchor, steps = trainer.priors[0].anchor, trainer.recorder.steps[2:]  # of the second attempt
    penalties = [
        sum(float((now[n] - anchor[n]).square().sum()) for n in anchor) for now, _ in steps
    ]
    assert len(penalties) == 8 and penalties[0] > 1.5 * penalties[7]
    found = [log["penalty"] for log in trainer.state.log_history if "penalty" in log]
    assert found == pytest.approx([sum(penalties[:4]) / 4, sum(penalties[4:]) / 4], rel=1e-4)


# Priors are taken in any form


def test_one_prior_and_the_place_of_one(tmp_path: Path) -> None:
    prior = prior_of(classifier())
    prior.save_pretrained(tmp_path / "prior")
    config = ConsolidationConfig(strengths=1.0)
    for given in (prior, tmp_path / "prior", [str(tmp_path / "prior")]):
        trainer: Any = ConsolidationTrainer(
            classifier(), TrainingArguments(str(tmp_path)), priors=given, consolidation=config
        )
        assert [one.fingerprint for one in trainer.priors] == [prior.fingerprint]
    for wrong, kind in (([3], "int"), (3, "int"), ({"old": prior}, "dict")):
        with pytest.raises(ConsolidationError, match=f"`priors` holds a {kind}; give Consolida"):
            ConsolidationTrainer(classifier(), TrainingArguments(str(tmp_path)), priors=wrong)  # type: ignore[arg-type]
    plain = ConsolidationTrainer(classifier(), TrainingArguments(str(tmp_path)), priors=None)
    assert plain.priors == []


def test_a_model_that_is_compiled_already(tmp_path: Path) -> None:
    """It works where no columns are dropped, which the Trainer chooses by the names of inputs."""
    prior, found = prior_of(classifier()), []
    for compiled in (False, True):
        model: Any = torch.compile(classifier(), backend="eager") if compiled else classifier()
        given = (ConsolidationTrainer, model, labelled(2), tmp_path, [prior], CONFIG)
        if compiled:
            with pytest.raises(ConsolidationError, match=r"compiled already.* torch_compile=True"):
                train(*given)
        found.append(gradients(train(*given, remove_unused_columns=False)))
    torch.testing.assert_close(found[1], found[0])
