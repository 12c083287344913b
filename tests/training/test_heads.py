"""A head that ``ignore`` leaves free: probes of another one ask what this model does not answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny.data import labelled, pad
from tiny.models import classifier
from tiny.trainings import make_trainer
from torch import nn
from transformers import BertForSequenceClassification

from hf_kfc import ConsolidationPrior, ConsolidationTrainer, Probes
from hf_kfc.errors import ConsolidationError, ProbeError

ROWS = labelled()


def pad_inputs(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad texts, whose labels nobody needs."""
    padded = pad([row | {"labels": torch.tensor(0)} for row in rows])
    return {name: value for name, value in padded.items() if name != "labels"}


CHANGES: dict[str, Any] = {
    "kind": ConsolidationTrainer,
    "data_collator": pad,
    "probe_collator": pad_inputs,
    "train_dataset": ROWS,
    "penalty_ignore": ["classifier"],
    "max_steps": 1,
}


@pytest.fixture(scope="module")
def prior() -> ConsolidationPrior:
    """Of a classifier of three, with probes."""
    model = classifier()
    prior = ConsolidationPrior.estimate(model, ROWS, pad, task="old")
    return prior.with_probes(Probes.from_dataset(model, ROWS, pad_inputs))


def under_a_new_head(labels: int) -> BertForSequenceClassification:
    """The same model below a head that is drawn anew."""
    model = classifier(labels)
    nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(5))
    return model


class Wrapped(nn.Module):
    """A model inside of another, as in sentence-transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, **batch: Any) -> Any:
        """Run the model inside."""
        return self.inner(**batch)


def adapted(model: BertForSequenceClassification) -> nn.Module:
    """With adapters below a head that is trained whole."""
    config = peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize(
    ("labels", "wrap", "path"),
    [
        (2, lambda model: model, "classifier"),
        (3, lambda model: model, "classifier"),
        (3, Wrapped, "inner.classifier"),
        (3, adapted, "classifier"),
    ],
    ids=["fewer", "as_many", "wrapped", "adapted"],
)
def test_probes_of_another_head_are_left_out(
    labels: int,
    wrap: Callable[[nn.Module], nn.Module],
    path: str,
    prior: ConsolidationPrior,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It would answer as the old one did, whatever the new labels say."""
    rows = [row | {"labels": row["labels"] % labels} for row in ROWS]
    changes = CHANGES | {"train_dataset": rows, "penalty_ignore": [path]}
    trainer = make_trainer(tmp_path, [prior], wrap(under_a_new_head(labels)), **changes)
    assert not trainer.probes
    assert "The probes of 'old' are left out: the head that `ignore` leaves free" in caplog.text
    trainer.train()
    assert "probe_loss" not in trainer.state.log_history[0]


def test_probes_stay_where_the_head_has_only_moved(
    prior: ConsolidationPrior, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier()
    weight = model.classifier.weight
    with torch.no_grad():
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(6))
    trainer = make_trainer(tmp_path, [prior], model, **CHANGES)
    assert list(trainer.probes) == ["old"]
    assert "left out" not in caplog.text


@pytest.mark.parametrize(("wrap", "path"), [(lambda m: m, ""), (Wrapped, "inner.")])
def test_probes_stay_where_something_below_the_head_is_free(
    wrap: Callable[[nn.Module], nn.Module], path: str, prior: ConsolidationPrior, tmp_path: Path
) -> None:
    """However far it is: it answers the same question."""
    model = classifier()
    nn.init.normal_(model.bert.pooler.dense.weight, generator=torch.Generator().manual_seed(7))
    changes = CHANGES | {"penalty_ignore": [f"{path}bert.pooler"]}
    assert make_trainer(tmp_path, [prior], wrap(model), **changes).probes


def test_probes_of_fewer_classes_say_how_to_do_without(
    prior: ConsolidationPrior, tmp_path: Path
) -> None:
    """Of a head that has got rows the first ones are held, and the probes know these alone."""
    model = classifier(4)
    changes = CHANGES | {"penalty_ignore": None, "added_rows": ["classifier"]}
    trainer = make_trainer(tmp_path, [prior], model, **changes)
    with pytest.raises(ProbeError, match=r"take `prior\.with_probes\(None\)`"):
        trainer.train()


def test_a_budget_without_probes_is_refused(prior: ConsolidationPrior, tmp_path: Path) -> None:
    changes = CHANGES | {"forgetting_budget": 0.1}
    with pytest.raises(ConsolidationError, match="`forgetting_budget` is measured on probes"):
        make_trainer(tmp_path, [prior.with_probes(None)], classifier(), **changes)


def test_a_budget_that_nothing_measures_is_told(
    prior: ConsolidationPrior, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = CHANGES | {"forgetting_budget": 0.1, "probe_held_out": 0.0}
    make_trainer(tmp_path, [prior], classifier(), **changes).train()
    assert "No probes are held out: a budget of 0.1 nats goes by those that are" in caplog.text
