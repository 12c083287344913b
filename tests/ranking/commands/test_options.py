"""The commands are found without their package, and wrong options are answered at once."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from hf_kfc.commands.plugins import plugin_commands
from hf_kfc.ranking.commands import options
from hf_kfc.ranking.formats.files import FORMATS

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("link", "score", "regressions")
WRONG = [
    ("link", "nowhere.jsonl", "--model", "m", "--output", "o.jsonl"),
    ("link", __file__, "--model", "m", "--output", f"{__file__}/o.jsonl"),
    ("link", __file__, "--output", "o.jsonl"),
    ("link", __file__, "--model", "m", "--output", "o.jsonl", "--format", "tsv"),
    ("link", __file__, "--model", "m", "--output", "o.jsonl", "--batch_size", "0"),
    ("link", __file__, "--model", "m", "--output", "o.jsonl", "--ontology", "nowhere.tsv"),
    ("score", __file__),
    ("score", __file__, __file__, "--nosuch"),
    ("score", __file__, __file__, "--seed", "-1"),
    ("regressions", "old", "new", "nowhere.jsonl"),
    ("regressions", "nowhere.jsonl", "new", __file__),
]


def test_the_commands_of_the_installed_plugin_are_found():
    assert {own.__name__ for own in plugin_commands()} >= set(NAMES)
    for place in options.COMMANDS.values():
        module, _, function = place.partition(":")
        assert callable(getattr(import_module(module), function))
    assert options.FORMATS == FORMATS


@pytest.mark.parametrize("command", NAMES)
def test_help_says_what_it_takes(command, run):
    assert f"    {command}" in run("--help").out
    result = run(command, "--help")
    assert result.status == 0
    assert any(line.strip().startswith(f"hf-kfc {command} ") for line in result.out.splitlines())
    assert "--json" in result.out


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_options_are_status_2(words, run):
    result = run(*words)
    assert (result.status, result.out) == (2, "")


def test_help_and_wrong_options_are_answered_without_slow_imports():
    code = (
        "import sys\nfrom hf_kfc.commands import main\n"
        f"for words in {[('--help',), ('link', '--help'), *WRONG]}:\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "slow = {'torch', 'transformers', 'datasets', 'numpy', 'hf_kfc.ranking'}\n"
        "assert not slow & set(sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr


def test_without_the_extra_the_commands_say_what_to_install(tmp_path):
    code = (
        "import importlib.util as util\nfound = util.find_spec\n"
        "util.find_spec = lambda name, *args: None if name == 'sklearn' else found(name, *args)\n"
        "from hf_kfc.commands import main\n"
        f"main(['score', {__file__!r}, {__file__!r}])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "error: hf_kfc.ranking needs sklearn; install them by pip install 'hf_kfc[ranking]'"
    )
