"""The curvature written out in plain PyTorch is the library's."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.curvature import Outputs
from hf_kfc.training import ConsolidationPenalty

SCRIPT = Path(__file__).parents[2] / "examples" / "kfc_from_scratch.py"


@pytest.fixture(scope="module")
def scratch() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture
def model(scratch):
    torch.manual_seed(0)
    return scratch.Net(features=5, width=7, classes=3).double()


@pytest.fixture
def task(scratch):
    generator = torch.Generator().manual_seed(1)
    x, labels = scratch.make_task(torch.randn(3, 5, generator=generator), 20, generator)
    return x.double(), labels


def of_library(model, task) -> ConsolidationPrior:
    examples = list(zip(*task, strict=True))

    def collate(rows):
        return {"x": torch.stack([x for x, _ in rows]), "y": torch.stack([y for _, y in rows])}

    def forward(net, batch):
        return Outputs(net(batch["x"]), batch["y"])

    def all_positions(batch):
        return torch.ones(batch["x"].shape[:2], dtype=torch.bool)

    return ConsolidationPrior.estimate(
        model,
        examples,
        collate,
        CurvatureArguments(curvature_batch_size=8),
        task="old",
        forward=forward,
        position_mask=all_positions,
    )


def test_it_is_short_and_imports_torch_alone():
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert roots == {"__future__", "torch"}


def test_the_factors_are_those_of_the_library(scratch, model, task):
    factors = scratch.kronecker_factors(model, task)
    blocks = {block.name: block.operator for block in of_library(model, task).curvature.blocks}
    assert factors.keys() == blocks.keys() == {"hidden", "head"}
    for name, (A, G) in factors.items():
        assert A.abs().max() > 1e-3 and G.abs().max() > 1e-3
        assert_close(A, blocks[name].A)
        assert_close(G, blocks[name].G)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_the_penalty_and_its_gradient_are_those_of_the_library(scratch, model, task, damping):
    prior = of_library(model, task)
    factors = scratch.kronecker_factors(model, task)
    layers = scratch.linear_layers(model)
    anchor = {name: scratch.matrix(layer).detach() for name, layer in layers.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))

    def gradients(value):
        assert value > 1e-4
        return torch.autograd.grad(value, list(model.parameters()))

    ours = scratch.penalty(model, anchor, factors, strength=0.7, damping=damping)
    library, _ = ConsolidationPenalty(model, [prior], [0.7], damping)()
    assert_close(ours, library)
    for mine, theirs in zip(gradients(ours), gradients(library), strict=True):
        assert_close(mine, theirs)


def test_it_keeps_most_of_what_is_forgotten_without(scratch, capsys):
    table = scratch.main()
    old = {name: accuracy[0] for name, accuracy in table.items()}
    assert old["before"] - old["no method"] > 0.4
    assert old["before"] - old["KFC"] < 0.1
    assert table["KFC"][1] > table["no method"][1] - 0.05
    assert "old task" in capsys.readouterr().out
