"""An estimate that was killed goes on where it was, to the same bits; or says why not."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from tiny.curvatures import KINDS, assert_equal_matrices, dense, offered_forward, offered_positions
from tiny.data import choices, pad_choices
from tiny.models import bert, bert_without_a_rule
from torch import Tensor
from torch import distributed as dist

from hf_kfc.curvature import Curvature, CurvatureArguments, estimate_curvature, passes
from hf_kfc.curvature.checkpoint import CurvatureCheckpoint
from hf_kfc.errors import CurvatureError, HfKfcError
from hf_kfc.priors import ConsolidationPrior

EXAMPLES = 10
FIRST_LOOKS = 2 + EXAMPLES + 1  # discovery reads two, identity all, and one of them again
FORK = multiprocessing.get_context("fork")  # torch is loaded already


class Mortal(list[Any]):
    """Data whose reader dies at its n-th example."""

    def __init__(self, data: list[Any], lives: int, die: Callable[[], None]) -> None:
        super().__init__(data)
        self.lives, self.die = lives, die

    def __getitem__(self, index: Any) -> Any:
        if self.lives == 0:
            self.die()
        self.lives -= 1
        return super().__getitem__(index)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class StopError(Exception):
    pass


def interrupt() -> None:
    raise StopError


class Bar:
    """A bar that remembers what it showed."""

    made: ClassVar[list["Bar"]] = []

    def __init__(self, **settings: Any) -> None:
        self.settings, self.n = settings, settings["initial"]
        self.shown = [self.n]
        self.made.append(self)

    def update(self, more: int) -> None:
        self.n += more
        self.shown.append(self.n)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def make() -> tuple[Any, list[Any]]:
    torch.manual_seed(0)
    return bert(), choices(EXAMPLES)


def run(folder: Path | None, data: list[Any] | None = None, **arguments: Any) -> Curvature:
    """Estimate, and keep the progress after every batch."""
    model, examples = make()
    model = arguments.pop("model", model)
    seconds = arguments.pop("seconds", 0.0)
    arguments = {"curvature": "kronecker_eigen", "curvature_batch_size": 2} | arguments
    return estimate_curvature(
        model,
        examples if data is None else data,
        pad_choices(),
        CurvatureArguments(**arguments),
        forward=offered_forward,
        position_mask=offered_positions,
        checkpoint_dir=folder,
        checkpoint_seconds=seconds,
    )


def tensors(curvature: Curvature) -> dict[str, Tensor]:
    return {
        f"{b.name} {name}": tensor
        for b in curvature.blocks
        for name, tensor in (*b.operator.state().items(), ("examples", b.input_examples))
        if tensor is not None
    }


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def interrupted(folder: Path, done: int, **arguments: Any) -> None:
    """Leave in a folder what a run leaves that read so many examples."""
    unused = EXAMPLES - arguments.get("max_curvature_examples", EXAMPLES)
    with pytest.raises(StopError):
        run(folder, Mortal(make()[1], FIRST_LOOKS - unused + done, interrupt), **arguments)


# --- going on ---


@pytest.mark.parametrize("done", [1, 5, 8, 13, 19])
def test_killed_and_continued_is_the_same_to_the_bit(done: int, tmp_path: Path) -> None:
    """By SIGKILL, in the middle of a batch, in the first pass and in the second."""
    folder = tmp_path / "progress"
    process = FORK.Process(
        target=lambda: run(folder, Mortal(make()[1], FIRST_LOOKS + done, kill_myself))
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert folder.exists() == (done >= 2)
    data = Mortal(make()[1], 100, interrupt)
    continued = run(folder, data)
    assert_same_bits(tensors(continued), tensors(run(None)))
    assert 100 - data.lives == FIRST_LOOKS + 2 * EXAMPLES - done // 2 * 2, "work was done again"
    assert not folder.exists()


@pytest.mark.parametrize("labels", ["sampled", "exact"])
@pytest.mark.parametrize("curvature", KINDS)
def test_every_kind_goes_on(curvature: str, labels: str, tmp_path: Path) -> None:
    arguments = {"curvature": curvature, "labels": labels, "max_curvature_examples": 7}
    interrupted(tmp_path / "progress", 5, **arguments)
    interrupted(tmp_path / "progress", 2, **arguments)  # and goes on twice
    continued = run(tmp_path / "progress", **arguments)
    assert_same_bits(tensors(continued), tensors(run(None, **arguments)))


@pytest.mark.parametrize("curvature", KINDS)
def test_what_no_rule_covers_goes_on_too(curvature: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bert_without_a_rule()
    reads = FIRST_LOOKS + 5
    with pytest.raises(StopError):
        run(tmp_path, Mortal(make()[1], reads, interrupt), model=model, curvature=curvature)
    data = Mortal(make()[1], 100, interrupt)
    continued = run(tmp_path, data, model=model, curvature=curvature)
    whole = run(None, model=model, curvature=curvature)
    assert_same_bits(tensors(continued), tensors(whole))
    again = EXAMPLES if curvature == "kronecker_eigen" else 0
    assert 100 - data.lives == FIRST_LOOKS + EXAMPLES - 4 + again, "work was done again"


def process(rank: int, folder: Path, lives: int | None, result: Path) -> None:
    store = dist.FileStore(str(result.with_suffix(".store")), 2)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    passes.tqdm = Bar
    data = make()[1]
    curvature = run(folder, data if lives is None else Mortal(data, lives, kill_myself))
    shown = [bar.shown for bar in Bar.made]
    torch.save((tensors(curvature), shown), result.with_suffix(f".{rank}"))
    dist.destroy_process_group()


def run_two(
    folder: Path, lives: list[int | None], result: Path, until: Callable[[], bool] | None = None
) -> None:
    """Start two processes; if one dies, kill the other, which waits for it, at some point."""
    processes = [
        FORK.Process(target=process, args=(rank, folder, n, result)) for rank, n in enumerate(lives)
    ]
    for p in processes:
        p.start()
    if until is not None:
        (mortal,) = (p for p, n in zip(processes, lives, strict=True) if n is not None)
        mortal.join(60)
        deadline = time.monotonic() + 60
        while not until() and time.monotonic() < deadline:
            time.sleep(0.02)
        for p in processes:
            p.kill()
    for p in processes:
        p.join(60)


def examples_in(path: Path) -> int:
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["done"])


def test_two_processes_that_got_differently_far(tmp_path: Path) -> None:
    """One is killed in the first pass, the other waits for it; then one in the second pass."""
    folder = tmp_path / "progress"
    first, second = (
        [folder / f"{name}-0000{rank}-of-00002.safetensors" for rank in (1, 2)]
        for name in ("curvature", "eigenvalues")
    )
    share = EXAMPLES // 2
    run_two(
        folder,
        [FIRST_LOOKS + 3, None],
        tmp_path / "first",
        until=lambda: examples_in(first[1]) == share,
    )
    assert [examples_in(path) for path in first + second] == [2, share, 0, 0]
    run_two(
        folder,
        [None, FIRST_LOOKS + 2],
        tmp_path / "second",
        until=lambda: examples_in(second[0]) == share,
    )
    assert [examples_in(path) for path in first + second] == [share, share, share, 2]
    with pytest.raises(CurvatureError, match="other number of processes; delete"):
        run(folder)
    run_two(folder, [None, None], tmp_path / "third")
    assert not folder.exists()
    run_two(tmp_path / "whole", [None, None], tmp_path / "fourth")
    for rank in range(2):
        continued, bars = torch.load(tmp_path / f"third.{rank}")
        expected, whole_bars = torch.load(tmp_path / f"fourth.{rank}")
        assert_same_bits(continued, expected)
        assert whole_bars == [[0, 4, 8, 10]] * 2, "a bar counts the examples of both processes"
        assert bars == [[10], [10] if rank == 0 else [4, 8, 10]]


def test_other_eigenbases_begin_the_second_pass_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another machine may give eigenvectors another sign."""
    expected = dense(run(None))
    interrupted(tmp_path, EXAMPLES + 4)
    eigh = torch.linalg.eigh

    def other(factor: Tensor) -> Any:
        found = eigh(factor)
        return torch.return_types.linalg_eigh((found.eigenvalues, -found.eigenvectors))

    monkeypatch.setattr(torch.linalg, "eigh", other)
    actual = run(tmp_path)
    assert "begins anew" in caplog.text
    assert_equal_matrices(dense(actual), expected)


# --- what is not gone on from ---


def other_model() -> Any:
    model = make()[0]
    with torch.no_grad():
        model.classifier.bias.add_(1e-9)
    return model


def other_data(place: int) -> list[Any]:
    data = make()[1]
    data[place]["label"] = 1 - data[place]["label"]
    return data


OTHERS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "model": (lambda: {"model": other_model()}, "parameters of the model"),
    "labels": (lambda: {"labels": "sampled"}, "argument labels"),
    "batches": (lambda: {"curvature_batch_size": 5}, "argument curvature_batch_size"),
    "fewer": (
        lambda: {"max_curvature_examples": 6},
        "argument max_curvature_examples, choice of examples, examples, first batch",
    ),
    "data": (lambda: {"data": other_data(0)}, "examples, first batch"),
    "a later example": (lambda: {"data": other_data(EXAMPLES - 3)}, "examples"),
    "more": (lambda: {"data": choices(EXAMPLES + 1)}, "choice of examples, examples, first batch"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_estimate_is_refused_by_what_differs(name: str, tmp_path: Path) -> None:
    interrupted(tmp_path, 5)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    change, what = OTHERS[name]
    with pytest.raises(CurvatureError, match=rf"another estimate, with other {what}; delete it"):
        run(tmp_path, **change())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damage", ["cut", "bit", "header"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    interrupted(tmp_path, 5)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-8]
    else:
        content[-5 if damage == "bit" else 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(CurvatureError, match=r"curvature-.*safetensors is damaged; delete it"):
        run(tmp_path)


def test_a_half_written_file_is_not_looked_at(tmp_path: Path) -> None:
    interrupted(tmp_path, 5)
    (path,) = tmp_path.iterdir()
    (tmp_path / f".{path.name}.partial").write_bytes(path.read_bytes()[:100])
    assert_same_bits(tensors(run(tmp_path)), tensors(run(None)))
    assert not tmp_path.exists()


def test_nothing_else_in_the_folder_is_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HfKfcError, match="file is not a folder"):
        run(tmp_path / "file" / "progress")


def test_a_full_disk_does_not_end_an_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("hf_kfc.curvature.checkpoint.save_file", full)
    assert_same_bits(tensors(run(tmp_path)), tensors(run(None)))
    assert "cannot be written (No space left on device)" in caplog.text


def test_it_is_written_only_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, bool]] = []
    keep = CurvatureCheckpoint.keep

    def noted(self: Any, what: str, sums: Any, done: int, *, last: bool = False) -> None:
        keep(self, what, sums, done, last=last)
        written.append((done, self._path(what).exists()))

    monkeypatch.setattr(CurvatureCheckpoint, "keep", noted)
    run(tmp_path, seconds=300.0, curvature="kronecker")
    assert written == [(2, False), (4, False), (6, False), (8, False), (10, True)]


def test_a_prior_takes_the_folder(tmp_path: Path) -> None:
    model, data = make()
    arguments = CurvatureArguments(curvature="kronecker_eigen")
    dying = Mortal(data, FIRST_LOOKS + EXAMPLES + 1, interrupt)
    for examples in (dying, data):
        with suppress(StopError):
            ConsolidationPrior.estimate(
                model, examples, pad_choices(), arguments, task="t", checkpoint_dir=tmp_path / "p"
            )
        assert (tmp_path / "p").exists() == (examples is dying)


# --- the bar ---


def test_the_bar_begins_where_the_estimate_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    interrupted(tmp_path, 5)
    run(tmp_path)
    assert [bar.shown for bar in Bar.made] == [[0, 2, 4], [4, 6, 8, 10], [0, 2, 4, 6, 8, 10]]
    assert {bar.settings["total"] for bar in Bar.made} == {EXAMPLES}
    assert {bar.settings["unit"] for bar in Bar.made} == {" examples"}
