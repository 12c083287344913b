import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hf_kfc import ConsolidationPrior
from hf_kfc.commands import main

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("estimate", "inspect", "verify", "diff", "audit", "merge", "compress")


def test_the_script_is_installed_as_hf_kfc():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["hf-kfc"].partition(":")
    assert getattr(import_module(module), name) is main


def test_help_names_every_command(run):
    result = run("--help")
    assert result.status == 0
    assert "ORG/NAME@REVISION" in " ".join(result.out.split())
    for command in COMMANDS:
        assert any(line.strip().startswith(f"{command} ") for line in result.out.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_says_what_it_takes(command, run):
    result = run(command, "--help")
    assert result.status == 0
    # an example to be copied
    assert any(line.strip().startswith(f"hf-kfc {command} ") for line in result.out.splitlines())
    options = result.out.split("options:")[1]
    assert "--json" in options


@pytest.mark.parametrize("words", [(), ("look",), ("inspect",), ("inspect", "a", "--nosuch")])
def test_what_does_not_parse_is_status_2(words, run):
    result = run(*words)
    assert (result.status, result.out) == (2, "")


def test_an_error_of_the_library_is_one_line_and_status_1(run, tmp_path):
    result = run("inspect", tmp_path / "nothing")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert "nothing" in result.err


def test_a_full_disk_is_one_line_too(tier, run, tmp_path, monkeypatch):
    def save(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ConsolidationPrior, "save_pretrained", save)
    words = ("--dtype", "bfloat16", "--output", tmp_path / "small")
    result = run("compress", tier.prior, *words)
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1] == "error: [Errno 28] No space left on device"


def test_priors_and_models_are_read_from_the_hub_at_a_revision(tier, hub, tmp_path):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    for name, folder in (("org/tier-kfc", tier.prior), ("org/tier", tier.model)):
        api.create_repo(name)
        files = [CommitOperationAdd(path.name, path) for path in folder.iterdir()]
        api.create_commit(name, files, commit_message="Tier 1")
        api.create_tag(name, tag="v1")
        api.delete_file("config.json", name)  # the branch has moved on
    code = (
        "from hf_kfc.commands import main\n"
        "main('verify org/tier-kfc@v1 org/tier@v1'.split())\n"
        "main('inspect org/tier-kfc'.split())\n"
    )
    environment = hub.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    sha = api.model_info("org/tier-kfc", revision="v1").sha
    assert f"org/tier-kfc@{sha}: files whole" in ended.stdout, ended.stderr
    assert "equal to the model's parameters" in ended.stdout
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: no prior at org/tier-kfc")
