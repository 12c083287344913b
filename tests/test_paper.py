"""What is counted on paper of causal models is what the library stores and multiplies."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.curvature import moments
from hf_kfc.training import ConsolidationPenalty

ROOT = Path(__file__).parents[1]
SPEED = ROOT / "benchmarks" / "speed"
PAGE = ROOT / "docs" / "explanation" / "speed.md"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SPEED)
    return importlib.import_module(name)


@pytest.mark.parametrize("tied", [True, False])
def test_what_stands_on_paper_is_what_is_stored_and_multiplied(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 160}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config |= {"vocab_size": 9000, "tie_word_embeddings": tied}  # more than have a G
    batch, length, rank = 4, 8, 3
    expected = script("paper", monkeypatch).counted(config, rank, batch * length)
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    assert sum(p.numel() for p in model.parameters()) == expected["parameters"]
    ids = torch.randint(9000, (10 * batch, length), generator=torch.Generator().manual_seed(0))
    texts = [{"input_ids": row, "labels": row, "attention_mask": row**0} for row in ids]
    with FlopCounterMode(display=False) as counter:
        model(**default_collate(texts[:batch])).loss.backward()
    assert counter.get_flop_counts()["Global"][torch.ops.aten.mm] == 2 * expected["plain"]

    product, multiplied = moments._add_product, []  # in place, which the counter does not see

    def noted(total: Any, left: Any, right: Any) -> None:
        multiplied.append(left.numel() * right.shape[1])
        product(total, left, right)

    monkeypatch.setattr(moments, "_add_product", noted)
    settings, taken = CurvatureArguments(curvature_batch_size=batch), list[float]()
    for batches in (9, 10):  # looks for what batches change come in the 8th and the 16th
        multiplied.clear()
        with FlopCounterMode(display=False) as counter:
            prior = ConsolidationPrior.estimate(
                model, texts[: batches * batch], default_collate, settings, task="task"
            )
        passes = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
        taken.append(passes // 2 + sum(multiplied))
    assert taken[1] - taken[0] == expected["estimate"]

    small = prior.compress(rank=rank, dtype=torch.bfloat16)
    assert numbers_of(prior) == {torch.float32: expected["factors"]}
    assert numbers_of(small) == {torch.bfloat16: expected["factors of low rank"]}
    others = ["model.embed_tokens", "model.layers.1.*", "model.norm", *["lm_head"] * (not tied)]
    layer = prior.without(others)
    assert numbers_of(layer) == {torch.float32: expected["factors of a layer"]}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    for name, own in (("penalty", prior), ("penalty of low rank", small)):
        penalty = ConsolidationPenalty(model, [own], [1.0], 0.1)
        penalty()  # costs are counted in a first one
        with FlopCounterMode(display=False) as counter:
            penalty()
        assert counter.get_total_flops() == 2 * expected[name]


def numbers_of(prior: ConsolidationPrior) -> dict[torch.dtype, int]:
    """Numbers of a curvature by their dtype; what layers share counts once."""
    states = (block.operator.state() for block in prior.curvature.blocks)
    tensors = {t.data_ptr(): t for state in states for t in state.values() if t.numel()}
    counts = Counter[torch.dtype]()
    for tensor in tensors.values():
        counts[tensor.dtype] += tensor.numel()
    return dict(counts)


def test_the_page_shows_what_stands_on_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    results = json.loads((SPEED / "results" / "paper-cpu.json").read_text("utf-8"))
    sizes = results["sizes"]
    paper = script("paper", monkeypatch)
    assert paper.rows_of(sizes["rank"], sizes["tokens of a step"]) == results["rows"]
    table = script("tables", monkeypatch).markdown(results["rows"])
    assert table in PAGE.read_text("utf-8")
