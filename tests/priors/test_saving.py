"""Saving: a prior stands there whole or not at all, and never in place of anything else."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from tiny.priors import Tensors, assert_equal_priors, prior

from hf_kfc.errors import PriorError
from hf_kfc.files import replace_directory
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors import files as files_module
from hf_kfc.priors.card import prior_card

from .forging import SHARD, refusal, write_config

# --- Whole or not at all -------------------------------------------------------------------------


class Interruption(BaseException):
    """Like KeyboardInterrupt, which pytest keeps for itself."""


def write_a_part_and_raise(tensors: Tensors, folder: Path, **_: Any) -> None:
    save_file(tensors, folder / "prior-00001-of-00002.safetensors")
    raise Interruption


def raise_while_moving_in(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    """Fail between moving the older prior out and the new one in."""
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if to == target and ".partial" in self.name:
            raise Interruption
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)


def raise_while_moving_out(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if self == target:
            raise Interruption
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)


def raise_after_moving_out(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        moved = rename(self, to)
        if self == target:
            raise Interruption
        return moved

    monkeypatch.setattr(Path, "rename", failing)


def raise_while_writing(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(files_module, "save_torch_state_dict", write_a_part_and_raise)


def raise_while_describing(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def failing(*_: Any) -> None:
        raise Interruption

    monkeypatch.setattr(files_module, "describe", failing)


FAILURES = [
    raise_while_writing,
    raise_while_describing,
    raise_while_moving_out,
    raise_after_moving_out,
    raise_while_moving_in,
]


@pytest.mark.parametrize("fail", FAILURES)
def test_interrupted_replacement_keeps_the_older_prior(
    fail: Callable[[pytest.MonkeyPatch, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "prior"
    prior(seed=1).save_pretrained(target)
    with monkeypatch.context() as patch:
        fail(patch, target)
        with pytest.raises(Interruption):
            prior().save_pretrained(target)
    assert list(tmp_path.iterdir()) == [target]
    assert_equal_priors(ConsolidationPrior.from_pretrained(target), prior(seed=1))
    prior().save_pretrained(target)
    assert list(tmp_path.iterdir()) == [target]
    assert_equal_priors(ConsolidationPrior.from_pretrained(target), prior())


@pytest.mark.parametrize(
    "fail", [raise_while_writing, raise_while_describing, raise_while_moving_in]
)
def test_interrupted_first_save_leaves_nothing(
    fail: Callable[[pytest.MonkeyPatch, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail(monkeypatch, tmp_path / "prior")
    with pytest.raises(Interruption):
        prior().save_pretrained(tmp_path / "prior")
    assert list(tmp_path.iterdir()) == []


def test_impossible_shard_size_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unit"):
        prior().save_pretrained(tmp_path / "prior", max_shard_size="big")
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_json_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    made = prior()
    made.provenance = replace(made.provenance, anchor_metrics={"accuracy": float("nan")})
    with pytest.raises(PriorError, match="would hold NaN or infinite values; give finite metrics"):
        made.save_pretrained(tmp_path / "prior")
    assert list(tmp_path.iterdir()) == []


def _kill(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _write_a_part_and_die(tensors: Tensors, folder: Path, **_: Any) -> None:
    half = dict(list(tensors.items())[: len(tensors) // 2])
    save_file(half, folder / "prior-00001-of-00002.safetensors")
    _kill()


def save_and_die(new: ConsolidationPrior, target: Path, when: str) -> None:
    """Replace a prior and be killed on the way."""
    rename = Path.rename
    if when == "writing":
        files_module.save_torch_state_dict = _write_a_part_and_die  # type: ignore[assignment]
    elif when == "describing":
        files_module.describe = _kill
    else:
        Path.rename = lambda self, to: _kill() if to == target else rename(self, to)  # type: ignore[method-assign]
    new.save_pretrained(target)


def killed(folder: Path, when: str) -> Path:
    """Make a prior, and let a process be killed while it replaces it."""
    target = folder / "prior"
    prior(seed=1).save_pretrained(target)
    process = get_context("fork").Process(target=save_and_die, args=(prior(), target, when))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    return target


@pytest.mark.parametrize("when", ["writing", "describing"])
def test_killed_while_writing(when: str, tmp_path: Path) -> None:
    target = killed(tmp_path, when)
    assert_equal_priors(ConsolidationPrior.from_pretrained(target), prior(seed=1))
    (partial,) = set(tmp_path.iterdir()) - {target}  # no process can clean up after SIGKILL
    assert partial.name.startswith(".prior.partial-")
    assert refusal(partial).startswith("no prior at ")
    prior().save_pretrained(target)
    assert_equal_priors(ConsolidationPrior.from_pretrained(target), prior())


def test_killed_between_moving_out_and_in(tmp_path: Path) -> None:
    """The one moment without a prior in place: both are whole, beside it."""
    target = killed(tmp_path, "moving")
    assert not target.exists()
    replaced = target.with_name(".prior.replaced")
    assert_equal_priors(ConsolidationPrior.from_pretrained(replaced), prior(seed=1))
    (partial,) = target.parent.glob(".prior.partial-*")
    assert_equal_priors(ConsolidationPrior.from_pretrained(partial), prior())
    # The next attempt begins by putting the older one back, even if it then fails itself.
    with pytest.raises(KeyboardInterrupt), replace_directory(target):
        raise KeyboardInterrupt
    assert_equal_priors(ConsolidationPrior.from_pretrained(target), prior(seed=1))
    assert not replaced.exists()


# --- Never over anything else --------------------------------------------------------------------


def refuse_to_save(target: Path, reason: str) -> None:
    before = {p: p.read_bytes() for p in target.parent.rglob("*") if p.is_file()}
    with pytest.raises(PriorError) as error:
        prior().save_pretrained(target)
    assert str(error.value) == (
        f"{target} {reason}, which saving would delete; choose another folder"
    )
    assert {p: p.read_bytes() for p in target.parent.rglob("*") if p.is_file()} == before


def test_refuses_to_replace_another_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    refuse_to_save(target, "holds thesis.txt")
    (target / "thesis.txt").unlink()
    write_config(target, {"model_type": "bert"})
    refuse_to_save(target, "holds config.json but no prior")


def test_refuses_to_delete_what_was_put_beside_a_prior(folder: Path) -> None:
    (folder / "notes.md").write_text("mine")
    (folder / ".git").mkdir()
    refuse_to_save(folder, "holds .git, notes.md")


def test_a_card_is_saved_beside_it_and_replaced_with_it(tmp_path: Path) -> None:
    prior(seed=1).save_pretrained(tmp_path / "prior")
    prior().save_pretrained(tmp_path / "prior")
    own = prior_card(prior(), "prior")
    assert (tmp_path / "prior" / "README.md").read_text("utf-8") == own
    assert ModelCard(own).data.library_name == "hf_kfc"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("mine")
    refuse_to_save(tmp_path / "other", "holds README.md but no prior")


def test_refuses_to_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("a file")
    refuse_to_save(tmp_path / "target", "is a file")


def test_saves_to_an_empty_folder_and_makes_parents(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        prior().save_pretrained(str(target))
        assert_equal_priors(ConsolidationPrior.from_pretrained(str(target)), prior())


def test_replaces_all_files_of_an_older_prior(tmp_path: Path) -> None:
    prior(seed=1).save_pretrained(tmp_path / "prior", max_shard_size="1KB")
    prior().save_pretrained(tmp_path / "prior")
    assert {p.name for p in (tmp_path / "prior").iterdir()} == {"README.md", "config.json", SHARD}
    assert [p.name for p in tmp_path.iterdir()] == ["prior"]


def test_a_link_to_a_prior_stays_a_link(tmp_path: Path) -> None:
    prior(seed=1).save_pretrained(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    prior().save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert {p.name for p in tmp_path.iterdir()} == {"real", "link"}
    assert_equal_priors(ConsolidationPrior.from_pretrained(tmp_path / "real"), prior())


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    prior().save_pretrained("work/../prior")
    assert_equal_priors(ConsolidationPrior.from_pretrained("prior"), prior())
    assert {p.name for p in tmp_path.iterdir()} == {"work", "prior"}
