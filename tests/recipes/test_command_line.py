"""The recipes' command lines: help that explains, and commands on the pages that are understood."""

import re
import runpy
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from recipe_runs import ROOT

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.ranking import (
    DataArguments,
    LearningArguments,
    OldDataArguments,
    PushArguments,
    ScriptParser,
)
from hf_kfc.training import PenaltySettings

LEARNING = (DataArguments, LearningArguments, CurvatureArguments, PushArguments)
LATER = (*LEARNING, OldDataArguments, PenaltySettings)
ARGUMENTS = {
    "tier1": ("Tier1Arguments", LEARNING),
    "tier2": ("Tier2Arguments", LATER),
    "tier3": ("Tier3Arguments", LATER),
    "prepare": ("PrepareArguments", ()),
}
REQUIRED = {"prepare": ("--output_dir", "x", "--task", "bc5cdr"), "tier3": ("--model", "x")}


def run(recipe: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize("recipe", ARGUMENTS)
def test_help_explains_every_argument(recipe, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "10000")  # one line for each argument
    assert run(recipe, monkeypatch, "--help") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    own, others = ARGUMENTS[recipe]
    own = runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"))[own]
    lines = [line.strip() for line in captured.out.split("options:")[1].splitlines()]
    for argument in (field for arguments in (own, *others) for field in fields(arguments)):
        start = next(i for i, line in enumerate(lines) if line.startswith(f"--{argument.name} "))
        text = argument.metadata["help"]
        assert len(text) > 15
        assert any(text in line for line in lines[start : start + 2]), argument.name
    launcher = "python" if recipe == "prepare" else "accelerate launch"
    assert f"\n    {launcher} recipes/{recipe}.py" in captured.out  # to be copied
    assert "(default: None)" not in captured.out
    assert all(line.count("(default") <= 1 for line in lines)


@pytest.mark.parametrize("recipe", ARGUMENTS)
def test_unknown_argument_is_named_before_anything_is_done(recipe, monkeypatch, capsys):
    assert run(recipe, monkeypatch, *REQUIRED.get(recipe, ()), "--nosuch", "1") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unrecognized arguments: --nosuch 1" in captured.err.splitlines()[-1]


def test_a_third_tier_needs_a_model(monkeypatch, capsys):
    assert run("tier3", monkeypatch) == 2
    assert "--model" in capsys.readouterr().err.splitlines()[-1]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The recipes that a page calls, each with its arguments."""
    text = page.read_text(encoding="utf-8").replace("\\\\\n", "\\\n").replace("\\\n", " ")
    found = re.findall(
        r"^ *(?:\w+=\S+ )*(?:accelerate|python) .*?recipes/(\w+)\.py(.*)$", text, re.M
    )
    return [(recipe, shlex.split(own)) for recipe, own in found if recipe in ARGUMENTS]


PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    *(ROOT / "recipes" / f"{recipe}.py" for recipe in ARGUMENTS),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_to_be_copied_are_understood(page, monkeypatch):
    for recipe, arguments in commands(page):
        parsed = []

        def parse(parser: ScriptParser, parsed: list = parsed) -> None:
            *_, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
            parsed.append(unknown)
            raise SystemExit(0)

        with monkeypatch.context() as patch:
            patch.setattr(ScriptParser, "parse", parse)
            assert run(recipe, patch, *arguments) == 0
        assert parsed == [[]], (recipe, arguments)


def test_the_recipes_pages_have_commands():
    assert all(commands(ROOT / "recipes" / f"{recipe}.py") for recipe in ARGUMENTS)
    assert commands(ROOT / "README.md")
