"""Provenance: where a prior comes from, complete in the object and in the file."""

import json
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from reprlib import repr as short
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny.layers import Mlp
from tiny.models import bert
from tiny.priors import PROVENANCE, model
from torch.utils.data import default_collate
from transformers import BertForMultipleChoice

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import PriorError
from hf_kfc.priors import ConsolidationPrior, Provenance

LIBRARIES = ("hf_kfc", "torch", "transformers", "datasets", "accelerate", "safetensors")


def classifier() -> Mlp:
    """A model that says what it was made of."""
    made = Mlp()
    made.config = SimpleNamespace(_name_or_path="org/model", _commit_hash="abc123")
    return made


def estimated(**settings: Any) -> ConsolidationPrior:
    data = [{"x": torch.randn(4), "labels": torch.tensor(i % 3)} for i in range(7)]
    arguments = CurvatureArguments(
        curvature="kronecker", labels="exact", sharing="reduce", max_curvature_examples=5
    )
    return ConsolidationPrior.estimate(
        classifier(), data, default_collate, arguments, task="old", **settings
    )


def test_of_an_estimate() -> None:
    made = estimated(anchor_metrics={"accuracy": np.float32(0.5), "loss": torch.tensor(1.25)})
    assert made.provenance == Provenance(
        task="old",
        base_model="org/model",
        base_revision="abc123",
        num_examples=7,  # N_old counts the task's examples, also where fewer were looked at
        curvature="kronecker",
        labels="exact",
        sharing="reduce",
        anchor_metrics={"accuracy": 0.5, "loss": 1.25},
        library_versions={name: version(name) for name in LIBRARIES},
    )
    assert made.curvature.num_examples == 5


def test_in_the_file(tmp_path: Path) -> None:
    estimated(anchor_metrics={"accuracy": np.float32(0.5)}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format"] == "hf_kfc.prior"
    assert config["format_version"] == 2
    assert config["num_curvature_examples"] == 5
    assert config["provenance"] == {
        "task": "old",
        "base_model": "org/model",
        "base_revision": "abc123",
        "num_examples": 7,
        "curvature": "kronecker",
        "labels": "exact",
        "sharing": "reduce",
        "anchor_metrics": {"accuracy": 0.5},
        "min_examples": None,
        "dropped_inputs": {},
        "min_token_examples": 0,
        "merged": {},
        "merge_damping": None,
        "approximation_errors": {},
        "library_versions": {name: version(name) for name in LIBRARIES},
    }


def test_is_what_was_saved_and_not_what_is_installed(tmp_path: Path) -> None:
    made = estimated()
    past = replace(made.provenance, library_versions={"torch": "1.0"}, task="ältere Aufgabe")
    ConsolidationPrior(made.anchor, made.curvature, past).save_pretrained(tmp_path)
    assert ConsolidationPrior.from_pretrained(tmp_path).provenance == past


def test_of_a_saved_model(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "model")
    loaded = BertForMultipleChoice.from_pretrained(tmp_path / "model")
    loaded.config._commit_hash = "abc123"
    provenance = ConsolidationPrior.l2(loaded, task="old").provenance
    assert provenance.base_model == str(tmp_path / "model")
    assert provenance.base_revision == "abc123"

    provenance = ConsolidationPrior.l2(bert(), task="old").provenance
    assert provenance.base_model == "BertForMultipleChoice"
    assert provenance.base_revision is None


def test_of_l2_without_data() -> None:
    assert ConsolidationPrior.l2(model(), task="old").provenance == Provenance(
        "old", base_model="Model"
    )
    provenance = Provenance("old")
    assert (provenance.num_examples, provenance.curvature) == (0, "identity")
    assert (provenance.labels, provenance.sharing) == (None, None)


def test_of_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_kfc.priors.provenance._LIBRARIES", ("torch", "no-such-library"))
    assert Provenance("old").library_versions == {
        "torch": version("torch"),
        "no-such-library": "unknown",
    }


def test_round_trip_through_json() -> None:
    values = json.loads(json.dumps(PROVENANCE.to_dict()))
    assert set(values) == {field.name for field in fields(Provenance)}
    assert Provenance.from_dict(values) == PROVENANCE
    assert PROVENANCE.problems() == []


def test_unknown_and_missing_fields_are_all_named() -> None:
    values = PROVENANCE.to_dict() | {"colour": "red", "size": 1}
    del values["labels"], values["task"]
    with pytest.raises(PriorError) as refusal:
        Provenance.from_dict(values)
    assert str(refusal.value).split("; ") == [
        "provenance has no task",
        "provenance has no labels",
        "provenance has an unknown colour",
        "provenance has an unknown size",
    ]


def test_priors_from_before_later_fields_are_read() -> None:
    values = PROVENANCE.to_dict()
    for name in ("merged", "merge_damping", "approximation_errors", "min_token_examples"):
        del values[name]
    assert Provenance.from_dict(values) == PROVENANCE


@pytest.mark.parametrize("values", [None, [], "old"])
def test_something_else(values: Any) -> None:
    with pytest.raises(PriorError, match="expected an object"):
        Provenance.from_dict(values)


WRONG: dict[str, list[Any]] = {
    "task": [None, 1],
    "base_model": [None],
    "base_revision": [1],
    "num_examples": [-1, 1.0, True, None, 10**300, 2**53],
    "curvature": [None],
    "labels": [1],
    "sharing": [[]],
    "anchor_metrics": [None, {"f1": "high"}, {1: 0.5}, {"f1": float("inf")}, {"f1": 10**400}],
    "min_examples": [-1, 1.5, "10", 10**300],
    "dropped_inputs": [None, {"words": "3"}, {"words": -1}, {"words": 10**400}],
    "min_token_examples": [None, -1, 1.5, "10", 10**300],
    "merged": [None, ["old"], {"old": "1"}, {"old": -1.0}, {"old": True}, {"old": 10**400}],
    "merge_damping": [-0.1, "0.1", True, float("inf")],
    "approximation_errors": [None, {"words": None}, {"words": -0.1}, {"words": float("nan")}],
    "library_versions": [None, {"torch": 2}],
}


def test_every_field_is_checked() -> None:
    assert set(WRONG) == {field.name for field in fields(Provenance)}
    for name, values in WRONG.items():
        for value in values:
            wrong: Any = replace(PROVENANCE, **{name: value})
            (problem,) = wrong.problems()
            assert problem.startswith(f"provenance: field {name} is {short(value)}, expected ")
