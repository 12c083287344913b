import runpy
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import DataError, HfKfcError
from hf_kfc.experiments import (
    DataArguments,
    GridArguments,
    LearningArguments,
    RankerArguments,
    Tier1Arguments,
    Tier2Arguments,
    command_line,
)

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
OWN = {"tier1": Tier1Arguments, "tier2": Tier2Arguments, "grid": GridArguments}
SHARED = (RankerArguments, DataArguments, LearningArguments, CurvatureArguments)


def run(recipe: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_every_recipe_is_tested():
    assert {path.stem for path in RECIPES.glob("*.py")} == set(OWN)


@pytest.mark.parametrize("recipe", OWN)
def test_help_explains_every_argument(recipe, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "10000")  # one line for each argument
    assert run(recipe, monkeypatch, "--help") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line.strip() for line in captured.out.split("options:")[1].splitlines()]
    for argument in (f for arguments in (OWN[recipe], *SHARED) for f in fields(arguments)):
        start = next(i for i, line in enumerate(lines) if line.startswith(f"--{argument.name} "))
        text = argument.metadata["help"]
        assert len(text) > 15
        assert any(text in line for line in lines[start : start + 2]), argument.name
    assert f"accelerate launch recipes/{recipe}.py" in captured.out  # to be copied
    assert "(default: 0.1)" in captured.out
    assert "(default: None)" not in captured.out
    assert all(line.count("(default") <= 1 for line in lines)


@pytest.mark.parametrize("recipe", OWN)
def test_unknown_argument_is_named_before_anything_is_done(recipe, monkeypatch, capsys):
    required = ["--old_task", "x", "--task", "x", "--results", "x"] if recipe == "grid" else []
    assert run(recipe, monkeypatch, *required, "--nosuch", "1") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unrecognized arguments: --nosuch 1" in captured.err.splitlines()[-1]


def test_missing_argument_is_named(monkeypatch, capsys):
    assert run("grid", monkeypatch, "--task", "patients") == 2
    assert "--old_task" in capsys.readouterr().err.splitlines()[-1]


@dataclass
class Arguments:
    number: int = field(default=1, metadata={"help": "A number."})

    def __post_init__(self) -> None:
        if self.number == 13:
            raise DataError("number is 13; give another")


def call(function, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    command_line(function, (Arguments,), "Text.")


def test_arguments_are_parsed_and_passed_on(monkeypatch, capsys):
    seen = []
    call(seen.append, monkeypatch, "--number", "7")
    assert seen == [Arguments(7)]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def raise_library_error(_: Arguments) -> None:
    raise HfKfcError("file x:3 is\nwrong; correct it")


@pytest.mark.parametrize(
    ("number", "line"),
    [
        ("1", "error: file x:3 is wrong; correct it\n"),
        ("13", "error: number is 13; give another\n"),
    ],
)
def test_an_error_of_the_library_is_one_line_and_status_1(number, line, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        call(raise_library_error, monkeypatch, "--number", number)
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line)


def test_any_other_error_keeps_its_traceback(monkeypatch):
    def fail(_: Arguments) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        call(fail, monkeypatch)
