"""The laboratory's commands: readable help, errors of one line, pages that tell them right."""

import re
import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest

from hf_kfc.errors import DataError, HfKfcError
from laboratory import __main__
from laboratory.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_LAUNCHER = ("report", "toys")  # they train nothing, or toys alone
REQUIRED = {
    "lm": ("--data_dir", "x", "--results", "x"),
    "grid": ("--old_task", "x", "--task", "x", "--results", "x"),
    "permutations": ("--results", "x"),
    "report": ("--results", "x"),
    "stream": ("--results", "x"),
    "toys": (),
}


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["laboratory", *words])
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_the_commands_are_told_and_others_refused(monkeypatch, capsys):
    for words in ((), ("--help",)):
        assert run(monkeypatch, *words) == 0
        out = capsys.readouterr().out
        assert re.findall(r"^    (\w+)  +\w", out, re.M) == list(COMMANDS)
    assert run(monkeypatch, "grids") == 2
    assert "unknown command 'grids'; choose from grid, permut" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_argument(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "10000")  # one line for each argument
    assert run(monkeypatch, command, "--help") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"usage: python -m laboratory {command} [-h]" in captured.out
    lines = [line.strip() for line in captured.out.split("options:")[1].splitlines()]
    _, classes, _ = COMMANDS[command]
    for argument in (f for own in classes for f in fields(own)):
        start = next(i for i, line in enumerate(lines) if line.startswith(f"--{argument.name} "))
        text = argument.metadata["help"]
        assert len(text) > 15
        assert any(text in line for line in lines[start : start + 2]), argument.name
    launcher = "python" if command in WITHOUT_LAUNCHER else "accelerate launch"
    assert f"{launcher} -m laboratory {command}" in captured.out  # to be copied
    has_tenth = any(argument.default == 0.1 for own in classes for argument in fields(own))
    assert ("(default: 0.1)" in captured.out) == has_tenth
    assert "(default: None)" not in captured.out
    assert all(line.count("(default") <= 1 for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_argument_is_named_before_anything_is_done(command, monkeypatch, capsys):
    assert run(monkeypatch, command, *REQUIRED[command], "--nosuch", "1") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unrecognized arguments: --nosuch 1" in captured.err.splitlines()[-1]


def test_missing_argument_is_named(monkeypatch, capsys):
    assert run(monkeypatch, "grid", "--task", "patients") == 2
    assert "--old_task" in capsys.readouterr().err.splitlines()[-1]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The commands of the laboratory that a page tells, each with its arguments."""
    text = page.read_text(encoding="utf-8").replace("\\\\\n", "\\\n").replace("\\\n", " ")
    found = re.findall(r"^ *(?:accelerate launch|python) -m laboratory (\w+)(.*)$", text, re.M)
    return [(command, shlex.split(arguments)) for command, arguments in found]


PAGES = [
    ROOT / "README.md",
    ROOT / "laboratory" / "README.md",
    *sorted((ROOT / "benchmarks").glob("*/README.md")),
    *sorted((ROOT / "laboratory").rglob("*.py")),
]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if commands(p)], ids=lambda page: page.parent.name
)
def test_commands_to_be_copied_are_understood(page, monkeypatch):
    for command, arguments in commands(page):
        called: list[object] = []
        _, classes, text = COMMANDS[command]
        entry = (lambda *given, to=called: to.extend(given), classes, text)
        monkeypatch.setitem(COMMANDS, command, entry)
        monkeypatch.setattr(sys, "argv", ["laboratory", command, *arguments])
        __main__.main()
        assert tuple(map(type, called)) == classes


@dataclass
class Arguments:
    number: int = field(default=1, metadata={"help": "A number."})

    def __post_init__(self) -> None:
        if self.number == 13:
            raise DataError("number is 13; give another")


def call(function, monkeypatch, *arguments):
    monkeypatch.setitem(COMMANDS, "made_up", (function, (Arguments,), "Text."))
    monkeypatch.setattr(sys, "argv", ["laboratory", "made_up", *arguments])
    __main__.main()


def test_arguments_are_parsed_and_passed_on(monkeypatch, capsys):
    seen = []
    call(seen.append, monkeypatch, "--number", "7")
    assert seen == [Arguments(7)]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def raise_library_error(_: Arguments) -> None:
    raise HfKfcError("file x:3 is wrong; correct it")


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
