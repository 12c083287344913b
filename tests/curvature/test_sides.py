"""Encoder-decoder models: the source's positions count for some layers, the target's for others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import models
from tiny.curvatures import assert_equal_matrices, images, oracle
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BartForConditionalGeneration,
    BartForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hf_kfc.curvature import (
    Curvature,
    CurvatureArguments,
    default_position_mask,
    estimate_curvature,
)

Rows = list[tuple[Tensor, Tensor]]


def t5(tied: bool = False) -> nn.Module:
    return models.t5(vocab_size=30, pad_token_id=0, tie_word_embeddings=tied).eval()


def bart(kind: Any = BartForConditionalGeneration) -> nn.Module:
    model: nn.Module = models.bart(
        kind,
        vocab_size=30,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    return model.eval()


def whisper() -> nn.Module:
    config = WhisperConfig(
        vocab_size=60,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=12,
        decoder_ffn_dim=12,
        num_mel_bins=4,
        max_source_positions=8,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config).double().eval()


def texts(sources: tuple[int, ...], targets: tuple[int, ...]) -> Rows:
    return [
        (torch.randint(3, 30, (s,)), torch.randint(3, 30, (t,)))
        for s, t in zip(sources, targets, strict=True)
    ]


def pad(rows: Rows) -> dict[str, Tensor]:
    sources, targets = zip(*rows, strict=True)
    return {
        "input_ids": pad_sequence(list(sources), True, 1),
        "attention_mask": pad_sequence([torch.ones_like(s) for s in sources], True, 0),
        "labels": pad_sequence(list(targets), True, -100),
    }


def estimate(model: nn.Module, rows: Any, collate: Any = pad, **arguments: Any) -> Curvature:
    hooks = {k: arguments.pop(k) for k in ("position_mask",) if k in arguments}
    return estimate_curvature(model, rows, collate, CurvatureArguments(**arguments), **hooks)


LENGTHS = {
    "one_length": ((6, 3, 2), (6, 4, 6)),
    "short_targets": ((6, 3, 2), (4, 2, 3)),
    "full_sources": ((5, 5, 5), (5, 3, 4)),
}


@pytest.mark.parametrize("kind", ["kronecker", "kronecker_eigen"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("make", [t5, bart])
def test_the_batch_size_does_not_matter(
    make: Callable[[], nn.Module], lengths: str, kind: str
) -> None:
    model, rows = make(), texts(*LENGTHS[lengths])
    one, two, three = (
        images(estimate(model, rows, curvature=kind, curvature_batch_size=size))
        for size in (1, 2, 3)
    )
    assert_equal_matrices(three, two, rtol=1e-8)
    # What a batch has only one of, a table of relative positions, keeps its factor alone.
    shared = one.keys() & three.keys()
    assert len(one.keys() - shared) <= 2
    assert_equal_matrices({n: three[n] for n in shared}, {n: one[n] for n in shared}, rtol=1e-8)


def test_each_layer_has_the_mask_of_what_it_reads() -> None:
    model, rows = t5(), texts((6, 3, 2), (6, 4, 6))
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda m, x, out, n=name: seen.update({n: x[0].detach()}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"  # it is tied
    ]
    batch = pad(rows)
    model(**batch)
    for handle in handles:
        handle.remove()
    target, source = batch["labels"] != -100, batch["attention_mask"].bool()
    found = {b.name: b.operator.input_moment() for b in estimate(model, rows).blocks}
    checked = 0
    for name, x in seen.items():
        of_source = name.startswith("encoder") or "EncDecAttention.k" in name
        mask = source if of_source or "EncDecAttention.v" in name else target
        torch.testing.assert_close(found[name], x[mask].T @ x[mask] / mask.sum())
        checked += 1
    assert checked > 15


def test_a_target_without_a_mask_of_its_source() -> None:
    model = whisper()
    rows = [
        (torch.randn(4, 16, dtype=torch.float64), torch.randint(5, 60, (length,)))
        for length in (3, 10, 4)
    ]

    def collate(batch: Rows) -> dict[str, Tensor]:
        return {
            "input_features": torch.stack([x for x, _ in batch]),
            "labels": pad_sequence([y for _, y in batch], True, -100),
        }

    one, three = (images(estimate(model, rows, collate, curvature_batch_size=n)) for n in (1, 3))
    assert_equal_matrices(three, one, rtol=1e-8)


def test_a_decoder_that_reads_the_source_again() -> None:
    model = bart(BartForSequenceClassification)
    rows = [
        {"x": torch.cat([x, torch.tensor([2])]), "y": torch.tensor(n % 3)}
        for n, (x, _) in enumerate(texts((6, 3, 2), (1, 1, 1)))
    ]

    def collate(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        sources = [e["x"] for e in batch]
        return {
            "input_ids": pad_sequence(sources, True, 1),
            "attention_mask": pad_sequence([torch.ones_like(s) for s in sources], True, 0),
            "labels": torch.stack([e["y"] for e in batch]),
        }

    one, three = (images(estimate(model, rows, collate, curvature_batch_size=n)) for n in (1, 3))
    assert_equal_matrices(three, one, rtol=1e-8)


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_its_exact_diagonal(tied: bool) -> None:
    model, rows = t5(tied), texts((6, 3), (4, 6))
    estimated = estimate(model, rows, curvature="diagonal")
    assert estimated.parameters.keys() == dict(model.named_parameters()).keys()
    exact = oracle(model, rows, estimated, collator=pad)
    for block in estimated.blocks:
        q, p = block.shape
        expected = exact[block.name].diagonal().reshape(q, p)
        torch.testing.assert_close(block.operator.state()["diagonal"], expected)


def test_masks_by_module() -> None:
    model, rows = t5(), texts((6, 3, 2), (6, 4, 6))

    def masks(batch: Any) -> dict[str, Tensor]:
        source = default_position_mask(batch)
        target = batch["labels"] != -100
        return {"encoder.*": source, "*EncDecAttention.[kv]": source, "*": target}

    assert_equal_matrices(
        images(estimate(model, rows, position_mask=masks, ignore=["shared"])),
        images(estimate(model, rows, ignore=["shared"])),
    )


def test_a_layer_without_a_mask_has_its_diagonal() -> None:
    model, rows = t5(), texts((6, 3, 2), (6, 4, 6))

    def masks(batch: Any) -> dict[str, Tensor]:
        return {"encoder.*": default_position_mask(batch)}

    kinds = {b.name: b.operator.kind for b in estimate(model, rows, position_mask=masks).blocks}
    assert kinds["encoder.block.0.layer.0.SelfAttention.q"] == "kronecker"
    assert kinds["decoder.block.0.layer.0.SelfAttention.q"] == "diagonal"
