import re
import runpy
import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import DataError, HfKfcError
from laboratory import (
    DataArguments,
    GridArguments,
    LearningArguments,
    PermutationArguments,
    PublishArguments,
    RankerArguments,
    StreamArguments,
    Tier1Arguments,
    Tier2Arguments,
    Tier3Arguments,
    command_line,
)
from laboratory.prepare import PrepareArguments
from laboratory.report import ReportArguments
from laboratory.toys import ToyArguments

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
LEARNING = (RankerArguments, DataArguments, LearningArguments, CurvatureArguments)
ARGUMENTS = {
    "prepare": (PrepareArguments,),
    "tier1": (Tier1Arguments, *LEARNING, PublishArguments),
    "tier2": (Tier2Arguments, *LEARNING, PublishArguments),
    "tier3": (Tier3Arguments, *LEARNING, PublishArguments),
    "grid": (GridArguments, *LEARNING),
    "permutations": (PermutationArguments, *LEARNING),
    "report": (ReportArguments,),
    "stream": (StreamArguments, *LEARNING),
    "toys": (ToyArguments,),
}
WITHOUT_LAUNCHER = ("prepare", "report", "toys")  # they train nothing, or toys alone
REQUIRED = {
    "grid": ("--old_task", "x", "--task", "x", "--results", "x"),
    "permutations": ("--results", "x"),
    "prepare": ("--output_dir", "x", "--task", "notes"),
    "report": ("--results", "x"),
    "stream": ("--results", "x"),
}


def run(recipe: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_every_recipe_is_tested():
    assert {path.stem for path in RECIPES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("recipe", ARGUMENTS)
def test_help_explains_every_argument(recipe, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "10000")  # one line for each argument
    assert run(recipe, monkeypatch, "--help") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line.strip() for line in captured.out.split("options:")[1].splitlines()]
    for argument in (f for arguments in ARGUMENTS[recipe] for f in fields(arguments)):
        start = next(i for i, line in enumerate(lines) if line.startswith(f"--{argument.name} "))
        text = argument.metadata["help"]
        assert len(text) > 15
        assert any(text in line for line in lines[start : start + 2]), argument.name
    launcher = "python" if recipe in WITHOUT_LAUNCHER else "accelerate launch"
    assert f"{launcher} recipes/{recipe}.py" in captured.out  # to be copied
    assert ("(default: 0.1)" in captured.out) == (LearningArguments in ARGUMENTS[recipe])
    assert "(default: None)" not in captured.out
    assert all(line.count("(default") <= 1 for line in lines)


@pytest.mark.parametrize("recipe", ARGUMENTS)
def test_unknown_argument_is_named_before_anything_is_done(recipe, monkeypatch, capsys):
    assert run(recipe, monkeypatch, *REQUIRED.get(recipe, ()), "--nosuch", "1") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unrecognized arguments: --nosuch 1" in captured.err.splitlines()[-1]


def test_missing_argument_is_named(monkeypatch, capsys):
    assert run("grid", monkeypatch, "--task", "patients") == 2
    assert "--old_task" in capsys.readouterr().err.splitlines()[-1]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The recipes that a page calls, each with its arguments."""
    text = page.read_text(encoding="utf-8").replace("\\\\\n", "\\\n").replace("\\\n", " ")
    found = re.findall(
        r"^ *(?:\w+=\S+ )*(?:accelerate|python) .*?recipes/(\w+)\.py(.*)$", text, re.M
    )
    return [(recipe, shlex.split(arguments)) for recipe, arguments in found]


PAGES = [ROOT / "README.md", ROOT / "docs" / "guides" / "hub.md", *sorted(RECIPES.glob("*.py"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_to_be_copied_are_understood(page, monkeypatch):
    found, called = commands(page), []
    assert found
    for recipe, arguments in found:
        module = f"laboratory.{recipe}" if recipe in WITHOUT_LAUNCHER else "laboratory"
        monkeypatch.setattr(f"{module}.run_{recipe}", lambda *given: called.append(given))
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *arguments])
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
        assert tuple(map(type, called.pop())) == ARGUMENTS[recipe]


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
