import re
import runpy
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from hf_kfc.curvature import CurvatureArguments
from laboratory import (
    DataArguments,
    LearningArguments,
    PublishArguments,
    RankerArguments,
    Tier1Arguments,
    Tier2Arguments,
    Tier3Arguments,
)
from laboratory.prepare import PrepareArguments

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
LEARNING = (RankerArguments, DataArguments, LearningArguments, CurvatureArguments)
ARGUMENTS = {
    "prepare": (PrepareArguments,),
    "tier1": (Tier1Arguments, *LEARNING, PublishArguments),
    "tier2": (Tier2Arguments, *LEARNING, PublishArguments),
    "tier3": (Tier3Arguments, *LEARNING, PublishArguments),
}
WITHOUT_LAUNCHER = ("prepare",)  # it trains nothing
REQUIRED = {
    "prepare": ("--output_dir", "x", "--task", "notes"),
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
