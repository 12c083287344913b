"""Predicted and measured loss, on a model whose loss is a parabola."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from hf_kfc.curvature import Block, Curvature, Kronecker, Layout
from hf_kfc.priors import ConsolidationPrior, Provenance
from laboratory.data import TaskData
from laboratory.prediction import (
    Increase,
    Prediction,
    measure_prediction,
    save_prediction_figure,
)

TASK = TaskData("old", [{"split": "train"}] * 300, [], [{"split": "test"}] * 300)


def moment(size: int) -> Tensor:
    rows = torch.randn(size + 1, size)
    return rows.T @ rows / size


class Parabola:
    """A model at its anchor, in whose loss on training examples ½ΔᵀFΔ is exact.

    On test examples it is twice that. ``slope`` adds a gradient to both.
    """

    def __init__(self, slope: float = 0.0) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"words": nn.Embedding(6, 3), "dense": nn.Linear(3, 2)})
        self.model.requires_grad_(False)
        kept = torch.tensor([1, 4, 5])
        blocks = (
            Block(
                "words",
                Layout.IN_OUT,
                {"words.weight": (6, 3)},
                Kronecker(A=torch.rand(3), G=moment(3)),
                inputs=kept,
            ),
            Block(
                "dense",
                Layout.OUT_IN,
                {"dense.weight": (2, 3), "dense.bias": (2,)},
                Kronecker(A=moment(4), G=moment(2)),
            ),
        )
        self.curvature = Curvature(blocks, 7)
        values = {name: value.clone() for name, value in self.model.named_parameters()}
        anchor = {name: own for block in blocks for name, own in block.covered(values).items()}
        self.prior = ConsolidationPrior(anchor, self.curvature, Provenance("old"))
        self.start, self.slope, self.evaluated = values, slope, []
        self.trainer = SimpleNamespace(evaluate=self.evaluate)

    def evaluate(self, examples: list) -> dict[str, float]:
        self.evaluated.append(len(examples))
        now = dict(self.model.named_parameters())
        delta = {name: now[name] - value for name, value in self.start.items()}
        assert not delta["words.weight"][[0, 2, 3]].any()  # not covered: nothing is known of them
        linear = self.slope * sum(float(own.sum()) for own in delta.values())
        squares = {"train": 0.5, "test": 1.0}[examples[0]["split"]]
        return {"eval_loss": 3.0 + linear + squares * float(self.curvature.quadratic(delta))}


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_a_parabola_is_predicted_whatever_its_slope(slope):
    learned = Parabola(slope)
    prediction = measure_prediction(learned.prior, learned, TASK)
    assert [own.size for own in prediction.increases] == [0.1, 0.3, 1.0]
    for own in prediction.increases:
        assert own.training == pytest.approx(own.predicted, rel=1e-4)
        assert own.test == pytest.approx(2 * own.predicted, rel=1e-4)
    smallest, *_, largest = prediction.increases
    assert largest.predicted == pytest.approx(100 * smallest.predicted, rel=1e-4)
    assert smallest.predicted > 0
    for name, value in learned.model.named_parameters():
        assert torch.equal(value, learned.start[name])
    assert set(learned.evaluated) == {prediction.num_examples} == {256}


def test_noise_is_as_large_as_the_tensors_values():
    learned, sizes = Parabola(), []

    def evaluate(examples: list) -> dict[str, float]:
        now = dict(learned.model.named_parameters())
        moved = now["dense.weight"] - learned.start["dense.weight"]
        sizes.append(float(moved.square().mean() / learned.start["dense.weight"].square().mean()))
        return {"eval_loss": 0.0}

    learned.trainer.evaluate = evaluate
    small = measure_prediction(learned.prior, learned, TASK).increases[0]
    assert (small.training, small.test) == (0, 0)
    moved = [size**0.5 for size in sizes[::2]]  # every place is looked at with two splits
    assert moved.pop(0) == 0
    for index, size in enumerate((0.1, 0.3, 1.0)):
        for own in moved[4 * index : 4 * index + 4]:  # two directions, there and back
            assert 0.3 * size < own < 3 * size


def test_the_same_seed_gives_the_same_directions():
    def predicted(seed: int) -> float:
        learned = Parabola()
        return measure_prediction(learned.prior, learned, TASK, seed).increases[0].predicted

    assert predicted(0) == predicted(0) != predicted(1)


def test_the_model_is_put_back_after_an_error():
    learned = Parabola()
    original = learned.evaluate

    def evaluate(examples: list) -> dict[str, float]:
        if learned.evaluated:
            raise RuntimeError("out of memory")
        return original(examples)

    learned.trainer.evaluate = evaluate
    with pytest.raises(RuntimeError, match="out of memory"):
        measure_prediction(learned.prior, learned, TASK)
    for name, value in learned.model.named_parameters():
        assert torch.equal(value, learned.start[name])


PREDICTION = Prediction(
    256, 2, [Increase(0.03, 0.0012, 0.001, 0.1), Increase(0.1, 0.01, -0.002, 0.0)]
)


def test_table_and_files(tmp_path):
    assert PREDICTION.table().splitlines()[2:] == [
        "| 0.03 | 0.0012 | 0.001 | 0.1 |",
        "| 0.1 | 0.01 | -0.002 | 0 |",
    ]
    PREDICTION.save(tmp_path)
    assert Prediction.load(tmp_path) == PREDICTION
    assert PREDICTION.table() in PREDICTION.report("a.png")
    assert "](a.png)" in PREDICTION.report("a.png")


@pytest.mark.parametrize(
    "increases",
    [PREDICTION.increases, [Increase(0.1, 0.0, 0.0, 0.0)], [Increase(0.1, 0.0, -1.0, 0.0)]],
    ids=["usual", "zero", "negative"],
)
def test_picture_is_written_and_the_same_each_time(increases, tmp_path):
    for name in ("one.png", "two.png"):
        save_prediction_figure(Prediction(2, 1, increases), tmp_path / name)
    one = (tmp_path / "one.png").read_bytes()
    assert one.startswith(b"\x89PNG")
    assert one == (tmp_path / "two.png").read_bytes()  # or it would be published again
