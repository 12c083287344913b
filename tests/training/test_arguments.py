"""The arguments are checked, and are those of a command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

from hf_kfc.errors import ConsolidationError
from hf_kfc.training import ConsolidationArguments


def parse(*words: str) -> ConsolidationArguments:
    parser = HfArgumentParser(ConsolidationArguments)
    (args,) = parser.parse_args_into_dataclasses(["--use_cpu", *words])
    assert isinstance(args, ConsolidationArguments)
    return args


def test_command_line(tmp_path: Path) -> None:
    args = parse("--output_dir", str(tmp_path), "--strengths", "0.5", "1", "--damping", "0.2")
    assert args.strengths == [0.5, 1.0]
    assert args.damping == 0.2


def test_defaults(tmp_path: Path) -> None:
    args = parse("--output_dir", str(tmp_path))
    assert args.strengths is None
    assert args.damping == 0.1
    assert (args.penalty_dtype, args.penalty_every) == ("float32", 1)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Strength λ of the penalty, one number for all priors or one for each" in text
    assert "Relative damping of the curvature" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"penalty_dtype": "float16"}, r"penalty_dtype 'float16' is not one of float32, bfloat16"),
        (
            {"penalty_every": 0},
            r"penalty_every 0 is not a whole number ≥ 1; correct `penalty_every`",
        ),
    ],
)
def test_how_the_penalty_is_computed_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConsolidationError, match=message):
        ConsolidationArguments(str(tmp_path), use_cpu=True, **changes)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf])
def test_refusals(tmp_path: Path, value: float) -> None:
    with pytest.raises(ConsolidationError, match=r"strengths .* is not a list of numbers ≥ 0"):
        ConsolidationArguments(str(tmp_path), use_cpu=True, strengths=[1.0, value])
    with pytest.raises(ConsolidationError, match=r"damping .* is not a number ≥ 0"):
        ConsolidationArguments(str(tmp_path), use_cpu=True, damping=value)


def test_zero_is_allowed(tmp_path: Path) -> None:
    args = ConsolidationArguments(str(tmp_path), use_cpu=True, strengths=[0.0], damping=0.0)
    assert (args.strengths, args.damping) == ([0.0], 0.0)
