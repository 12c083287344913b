"""The covariances that PEFT's CorDA reads from a prior are those that it would compute itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from tiny.data import pad_texts, raw_texts
from tiny.models import gpt2, text_llama
from torch import Tensor, nn

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.commands import main
from hf_kfc.errors import HfKfcError

Make = Callable[[], Any]


def wide_gpt2() -> Any:
    return gpt2(seed=0, dropout=0.0, vocab_size=20, initializer_range=0.3)


TARGETS: dict[str, tuple[Make, list[str]]] = {
    "llama": (text_llama, ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]),
    "gpt2": (wide_gpt2, ["c_attn", "c_fc", "c_proj"]),
}
"""GPT-2's layers have biases, and weights that are stored [in, out]."""


def prior_of_texts(make: Make, texts: list[Tensor], **settings: Any) -> ConsolidationPrior:
    args = CurvatureArguments(**settings)
    return ConsolidationPrior.estimate(make(), texts, pad_texts(), args, task="old")


def with_corda(make: Make, targets: list[str], method: str, file: Path, run: Any = None) -> Any:
    """The model with CorDA's adapters, by covariances of a file, or of what PEFT sees."""
    model = make()
    config = LoraConfig(
        r=2,
        target_modules=targets,
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=method, covariance_file=str(file)),
        fan_in_fan_out="c_attn" in targets,
    )
    preprocess_corda(model, config, run_model=run and (lambda: run(model)))
    return get_peft_model(model, config)


@pytest.mark.parametrize("method", ["ipm", "kpm"])
@pytest.mark.parametrize("kind", TARGETS)
def test_the_adapters_are_those_of_pefts_own_covariances(
    kind: str, method: str, tmp_path: Path
) -> None:
    (make, targets), (text, *_) = TARGETS[kind], raw_texts(1)
    prior = prior_of_texts(make, [text])
    assert prior.export_covariances(tmp_path / "ours.pt") >= len(targets)
    ours = with_corda(make, targets, method, tmp_path / "ours.pt")
    theirs = with_corda(
        make, targets, method, tmp_path / "made" / "theirs.pt", lambda model: model(text[None])
    )
    prior_of_texts(make, raw_texts(3)[2:]).export_covariances(tmp_path / "of-another.pt")
    other = with_corda(make, targets, method, tmp_path / "of-another.pt")
    found, expected, unlike = (model.state_dict() for model in (ours, theirs, other))
    assert sum("lora_A" in name for name in found) >= len(targets)
    for name, value in expected.items():
        if "lora_B" in name:  # singular vectors have no sign of their own
            down = name.replace("lora_B", "lora_A")
            one, two = (state[name] @ state[down] for state in (found, expected))
            assert (one - two).norm() < 2e-3 * two.norm()  # an inverse and an SVD in float32
            assert (one - unlike[name] @ unlike[down]).norm() > 0.05 * two.norm()
        elif "lora_A" not in name:
            assert (found[name] - value).norm() <= 2e-3 * value.norm()


@pytest.mark.parametrize("settings", [{}, {"curvature": "kronecker_eigen"}])
@pytest.mark.parametrize("kind", TARGETS)
def test_they_are_means_over_all_positions_of_all_texts(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    make, _ = TARGETS[kind]
    texts, model = raw_texts(5), make().eval()
    sums: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            rows = args[0].detach().flatten(0, -2).double()
            sums[name] = sums.get(name, torch.zeros(())) + rows.T @ rows

        return hook

    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head":
            module.register_forward_hook(note(name))
    for text in texts:
        model(text[None])
    prior_of_texts(make, texts, **settings).export_covariances(tmp_path / "covariances.pt")
    found = torch.load(tmp_path / "covariances.pt")
    assert sums.keys() <= found.keys() <= {*sums, "lm_head"}
    for name, total in sums.items():
        assert found[name].shape == total.shape
        if settings:  # of EKFAC A is known up to a factor, with other eigenvalues
            assert torch.linalg.eigvalsh(found[name])[0] > -1e-4
            continue
        expected = total / sum(len(text) for text in texts)
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-4, atol=1e-5)


def test_gptqs_hessian_is_a_multiple(tmp_path: Path) -> None:
    """It is 2/n Σ x xᵀ of n texts, however they are batched (`add_batch` of its authors)."""
    model, name = text_llama().eval(), "model.layers.0.mlp.down_proj"
    texts = torch.randint(1, 9, (6, 7), generator=torch.Generator().manual_seed(0))
    hessian, seen = torch.zeros(()), 0

    def add_batch(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal hessian, seen
        (x,) = args
        hessian = hessian * (seen / (seen + len(x)))
        seen += len(x)
        rows = x.flatten(0, 1)
        hessian = hessian + 2 / seen * rows.T @ rows

    model.get_submodule(name).register_forward_hook(add_batch)
    with torch.no_grad():
        for batch in texts.split(4):
            model(batch)
    prior_of_texts(text_llama, list(texts)).export_covariances(tmp_path / "c.pt")
    expected = 2 * texts.shape[1] * torch.load(tmp_path / "c.pt")[name]
    torch.testing.assert_close(hessian, expected, rtol=1e-4, atol=1e-5)


def test_shared_factors_are_stored_once(tmp_path: Path) -> None:
    prior = prior_of_texts(text_llama, raw_texts(3))
    prior.save_pretrained(tmp_path / "prior")
    main(["export", str(tmp_path / "prior"), "--format", "corda", "--output", str(tmp_path / "c")])
    found = torch.load(tmp_path / "c")
    places = {name: tensor.untyped_storage().data_ptr() for name, tensor in found.items()}
    layer = "model.layers.0.self_attn."
    assert places[f"{layer}q_proj"] == places[f"{layer}v_proj"] != places[f"{layer}o_proj"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda prior: prior.compress(rank=2, dtype=torch.bfloat16), "of rank 2, in bfloat16"),
        (lambda prior: prior.compress(dtype=torch.bfloat16), "in bfloat16"),
        (lambda prior: ConsolidationPrior.merge([prior, other_texts()], rank=2), "mixed of 2 prod"),
        (lambda _: prior_of_texts(text_llama, raw_texts(3), curvature="kronecker_eigen"), "weigh"),
        (lambda _: prior_of_texts(text_llama, raw_texts(3), sharing="reduce"), "of the means of "),
    ],
    ids=["low rank", "bfloat16", "merged", "EKFAC", "reduce"],
)
def test_what_is_not_the_inputs_own_moments_is_told(
    change: Callable[[ConsolidationPrior], ConsolidationPrior],
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = prior_of_texts(text_llama, raw_texts(3))
    whole.export_covariances(tmp_path / "whole.pt")
    assert not caplog.records
    changed = change(whole)
    caplog.clear()
    changed.export_covariances(tmp_path / "changed.pt")
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith("Covariances of ") and said in told and "before it is" in told
    exact, found = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "changed"))
    assert max((found[n] - exact[n]).norm() / exact[n].norm() for n in exact) > 1e-3


def other_texts() -> ConsolidationPrior:
    return prior_of_texts(text_llama, raw_texts(6)[3:])


def test_a_prior_without_factors_leaves_no_file(tmp_path: Path) -> None:
    prior = prior_of_texts(text_llama, raw_texts(2), curvature="diagonal")
    with pytest.raises(HfKfcError, match="no second moments of inputs; estimate one with curv"):
        prior.export_covariances(tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(HfKfcError, match="is not a folder"):
        prior_of_texts(text_llama, raw_texts(2)).export_covariances(tmp_path / "file" / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_file_is_not_written_over(tmp_path: Path) -> None:
    prior, file = prior_of_texts(text_llama, raw_texts(2)), tmp_path / "c.pt"
    others: dict[str, Callable[[], Any]] = {
        "table": lambda: file.write_text("text,label\nfine,1\n"),
        "model": lambda: torch.save(text_llama().state_dict(), file),
        "list": lambda: torch.save([torch.eye(2)], file),
    }
    for name, write in others.items():
        write()
        before = file.read_bytes()
        with pytest.raises(HfKfcError, match=r"c\.pt is there and holds no covariances; give anot"):
            prior.export_covariances(file)
        assert file.read_bytes() == before, name
    file.write_bytes(b"")
    for texts in (raw_texts(2), raw_texts(3)):  # an older export may be replaced
        older = file.read_bytes()
        prior_of_texts(text_llama, texts).export_covariances(file)
        assert file.read_bytes() != older


def test_a_layer_that_has_no_factor_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = prior_of_texts(text_llama, raw_texts(3))
    count = whole.export_covariances(tmp_path / "whole.pt")
    assert "left out" not in caplog.text
    diagonal = prior_of_texts(text_llama, raw_texts(3), curvature="diagonal").curvature.blocks
    name = "model.layers.0.mlp.down_proj"
    (own,) = (block for block in diagonal if block.name == name)
    mixed = tuple(own if block.name == name else block for block in whole.curvature.blocks)
    curvature = replace(whole.curvature, blocks=mixed)
    prior = ConsolidationPrior(whole.anchor, curvature, whole.provenance)
    assert prior.export_covariances(tmp_path / "mixed.pt") == count - 1
    assert f"1 layers of prior 'old' have no second moment of inputs and are left out ({name}" in (
        caplog.text
    )
