"""Readable help, errors and the number of processes of scripts."""

import sys
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace

import pytest
from transformers import BertConfig, TrainingArguments

from hf_kfc.errors import ConsolidationError, HfKfcError
from hf_kfc.ranking import CnnConfig, LearningArguments, ScriptParser, check_processes, scripts


@dataclass
class Arguments:
    needed: str = field(metadata={"help": "What has no default of its own."})
    number: int = field(default=1, metadata={"help": "A number."})


def parse(monkeypatch, *arguments: str, **defaults: object) -> tuple:
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    return ScriptParser(Arguments, description="Two\n\n    lines", **defaults).parse()


def test_a_script_may_have_a_default_where_the_dataclass_has_none(monkeypatch, capsys):
    assert parse(monkeypatch, "--number", "7", needed="x") == (Arguments("x", 7),)
    with pytest.raises(SystemExit) as stop:
        parse(monkeypatch)
    assert stop.value.code == 2
    assert "--needed" in capsys.readouterr().err.splitlines()[-1]


def test_help_keeps_the_text_and_tells_defaults(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(monkeypatch, "--help", needed="x")
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Two\n\n    lines\n" in out
    assert "(default: x)" in out
    assert "A number. (default: 1)" in out


def test_an_unknown_argument_is_named(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(monkeypatch, "--nosuch", "1", needed="x")
    assert stop.value.code == 2
    assert "unrecognized arguments: --nosuch 1" in capsys.readouterr().err.splitlines()[-1]


def test_learning_arguments_are_fields_of_training_arguments(tmp_path):
    learning = LearningArguments(num_train_epochs=2, gradient_accumulation_steps=4, use_cpu=True)
    arguments = TrainingArguments(str(tmp_path), **asdict(learning))
    assert (arguments.num_train_epochs, arguments.gradient_accumulation_steps) == (2, 4)


@pytest.mark.parametrize(
    ("config", "given", "rate"),
    [
        (None, None, 3e-3),
        (CnnConfig(vocab_size=9, hidden_size=4), None, 3e-3),
        (BertConfig(vocab_size=9, hidden_size=4), None, 5e-5),
        (BertConfig(vocab_size=9, hidden_size=4), 0.01, 0.01),
    ],
)
def test_the_learning_rate_suits_the_kind_of_ranker_and_is_told(
    tmp_path, caplog, config, given, rate
):
    """At a CNN's rate a pretrained encoder loses what it has learnt."""
    if config is not None:
        config.save_pretrained(tmp_path)
    learning = LearningArguments(learning_rate=given)
    with caplog.at_level("INFO", "hf_kfc"):
        learning.settle(config and str(tmp_path))
    assert learning.learning_rate == rate
    assert (f"learning_rate is {rate}" in caplog.text) == (given is None)


def test_a_model_that_is_nowhere_is_told(tmp_path):
    with pytest.raises(HfKfcError, match=r"model '.*nothing' "):
        LearningArguments().settle(str(tmp_path / "nothing"))


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["num_train_epochs", "learning_rate", "logging_steps"])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ConsolidationError, match=f"{name} is {value}; give a positive number"):
        LearningArguments(**{name: value})


LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no"}
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    for name in (*LAUNCHED, *ADDRESS, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def set_all(values: dict[str, str], started: int) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(
            scripts, "PartialState", lambda cpu: SimpleNamespace(num_processes=started)
        )

    return set_all


@pytest.mark.parametrize(
    ("values", "started"),
    [
        ({}, 1),
        (LAUNCHED, 1),  # accelerate launch with one process
        (ADDRESS, 1),  # a cluster that sets it for everything
        (LAUNCHED | ADDRESS | {"WORLD_SIZE": "2"}, 2),
        (LAUNCHED | ADDRESS | {"WORLD_SIZE": "1"}, 1),
        (ADDRESS | {"WORLD_SIZE": "4"}, 4),  # torchrun
    ],
)
def test_as_many_processes_as_asked_for_are_fine(values, started, environment):
    environment(values, started)
    check_processes()


@pytest.mark.parametrize(
    ("values", "started", "message"),
    [
        (LAUNCHED | ADDRESS, 1, "several processes were asked for and one was started"),
        (LAUNCHED | ADDRESS | {"WORLD_SIZE": "2"}, 1, "2 processes were asked for and 1 run"),
    ],
)
def test_fewer_processes_than_asked_for_are_refused(values, started, message, environment):
    environment(values, started)
    with pytest.raises(ConsolidationError, match=message):
        check_processes()
