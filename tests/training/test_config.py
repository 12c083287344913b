"""The settings are checked, saved and read, and stand beside any training arguments."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from hf_kfc.errors import ConsolidationError, HfKfcError, HubError
from hf_kfc.training import ConsolidationArguments, ConsolidationConfig
from hf_kfc.training.config import CONFIG_NAME


def test_saved_and_read(tmp_path: Path) -> None:
    config = ConsolidationConfig(
        strengths=[1, 0.5], damping=0.2, penalty_every=3, ignore=["head"], added_rows=["lm_head.*"]
    )
    config.save_pretrained(tmp_path / "run")
    assert ConsolidationConfig.from_pretrained(tmp_path / "run") == config
    text = (tmp_path / "run" / CONFIG_NAME).read_text("utf-8")
    assert json.loads(text)["strengths"] == [1, 0.5]


def test_arguments_yield_one(tmp_path: Path) -> None:
    args = ConsolidationArguments(str(tmp_path), strengths=2.0, damping=0.3, penalty_ignore=["a"])
    assert args.consolidation == ConsolidationConfig(strengths=[2.0], damping=0.3, ignore=["a"])
    args.damping = 0.5
    assert args.consolidation.damping == 0.5
    assert args.learning_rate == TrainingArguments(str(tmp_path)).learning_rate


@pytest.mark.parametrize(
    "strengths",
    [2, 2.0, [2.0], (2.0,), np.float32(2), np.array([2.0]), [np.float64(2)], torch.tensor(2.0)],
)
def test_one_number_is_a_strength(strengths: Any) -> None:
    config = ConsolidationConfig(strengths=strengths)
    assert config.strengths == [2.0]
    assert json.dumps(asdict(config)["strengths"]) in ("[2.0]", "[2]")


def test_numbers_of_numpy_are_saved(tmp_path: Path) -> None:
    config = ConsolidationConfig(damping=np.float64(0.5), penalty_every=np.int64(2))  # type: ignore[arg-type]
    config.save_pretrained(tmp_path)
    assert ConsolidationConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strengths": "high"}, r"strengths \['high'\] is not a list of numbers"),
        ({"strengths": {"old": 1.0}}, r"strengths \[{'old': 1.0}\] is not a list of numbers"),
        ({"strengths": [True]}, r"strengths \[True\] is not a list of numbers"),
        (
            {"strengths": -1.0},
            r"strengths \[-1\.0\] is not a list of numbers ≥ 0, one .*; correct `strengths`",
        ),
        ({"damping": "0.1"}, r"damping '0\.1' is not a number ≥ 0"),
        ({"damping": float("inf")}, "damping inf is not"),
        ({"penalty_dtype": "float16"}, "penalty_dtype 'float16' is not one of float32, bfloat16"),
        ({"penalty_dtype": ["float32"]}, r"penalty_dtype \['float32'\] is not one of"),
        ({"penalty_every": 0}, "penalty_every 0 is not a whole number ≥ 1"),
        ({"penalty_every": 2.5}, "penalty_every 2.5 is not a whole number ≥ 1"),
        ({"probe_temperature": 0}, "probe_temperature 0 is not a number from 0.1 to 10"),
        ({"ignore": "classifier"}, "ignore 'classifier' is not a list of patterns"),
        ({"damping": 10**400}, "damping 10+ is not a number ≥ 0"),
        ({"strengths": [10**400]}, r"strengths .* is not a list of numbers ≥ 0"),
        ({"added_rows": [3]}, r"added_rows \[3\] is not a list of patterns"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConsolidationError, match=message):
        ConsolidationConfig(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read .*; give a folder that save_pretrained made"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", r"is no ConsolidationConfig: unknown \[\]"),
        ('{"strength": 1}', r"unknown \['strength'\]; remove it or update hf_kfc"),
        ('{"damping": -1}', "damping -1 is not"),
    ],
)
def test_a_file_that_is_none(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / CONFIG_NAME).write_text(text)
    with pytest.raises(ConsolidationError, match=message):
        ConsolidationConfig.from_pretrained(tmp_path)


def test_a_device_is_not_read_for_ever_and_the_hub_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).symlink_to("/dev/zero")
    with pytest.raises(HfKfcError, match="is no regular file"):
        ConsolidationConfig.from_pretrained(tmp_path)
    with pytest.raises(
        HubError, match=r"consolidation_config\.json of a/b/c is not read \(Repo id"
    ):
        ConsolidationConfig.from_pretrained("a/b/c")
