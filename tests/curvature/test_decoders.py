"""Causal language models: the next token's loss, RMSNorm, tied heads, adapters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny.curvatures import (
    KINDS,
    SHARINGS,
    assert_equal_matrices,
    dense,
    estimate,
    images,
    operators,
    oracle,
)
from tiny.data import pad_texts, raw_texts
from tiny.models import DECODER_VOCABULARY, DECODERS, bart, bert, gpt2, llama
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import (
    BertForMaskedLM,
    BertForTokenClassification,
    BioGptConfig,
    BioGptForTokenClassification,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)
from transformers.modeling_outputs import CausalLMOutput

from hf_kfc.audit.membership import membership_auc
from hf_kfc.curvature import (
    CurvatureArguments,
    Diagonal,
    KroneckerSum,
    default_forward,
    default_position_mask,
    estimate_curvature,
    per_example_gradients,
)
from hf_kfc.curvature.layers import LayerRule
from hf_kfc.errors import CurvatureError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors.privacy import without_rare_inputs

EITHER = ("empirical", "sampled")


def diagonals(matrices: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: matrix.diagonal() for name, matrix in matrices.items()}


def assert_exact_diagonal(
    model: nn.Module, labels: str = "empirical", rtol: float = 1e-10, **arguments: Any
) -> None:
    """Of texts of mixed lengths, padded, with repeated tokens and a prompt without labels."""
    data, collator = raw_texts(5), pad_texts(prompt=2)
    arguments |= {"labels": labels, "curvature": "diagonal", "curvature_batch_size": 3}
    curvature = estimate(model, data, collator, **arguments)
    exact = oracle(model, data, curvature, labels, collator)
    assert_equal_matrices(diagonals(dense(curvature)), diagonals(exact), rtol)


# --- which label goes with which logits ---


@pytest.mark.parametrize("name", DECODERS)
def test_an_examples_gradient_is_that_of_the_models_own_loss_times_its_tokens(name: str) -> None:
    """The log-likelihood of an example is a sum over its tokens; the model's loss is a mean."""
    model, data, collator = DECODERS[name]().eval(), raw_texts(4), pad_texts(prompt=1)
    gradients = per_example_gradients(model, data, collator)
    for index, ids in enumerate(data):
        model.zero_grad()
        model(**collator([ids])).loss.backward()
        for parameter_name, parameter in model.named_parameters():
            expected = (len(ids) - 1) * parameter.grad
            torch.testing.assert_close(
                gradients[parameter_name][index], expected, rtol=1e-5, atol=1e-6
            )


def encoder(kind: Any) -> PreTrainedModel:
    model: PreTrainedModel = bert(
        kind, vocab_size=DECODER_VOCABULARY, num_labels=DECODER_VOCABULARY
    )
    return model


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = gpt2()

    def forward(self, **inputs: Tensor) -> Any:
        return self.inner(**inputs)


@pytest.mark.parametrize(
    "make",
    [
        *DECODERS.values(),
        Wrapped,
        lambda: get_peft_model(gpt2(), LoraConfig(task_type="CAUSAL_LM")),
        lambda: get_peft_model(gpt2(), LoraConfig()),
        lambda: encoder(BertForMaskedLM),
        lambda: encoder(BertForTokenClassification),
        lambda: bart(vocab_size=DECODER_VOCABULARY, pad_token_id=0),
    ],
    ids=[*DECODERS, "wrapped", "peft", "peft_no_task", "masked", "tokens", "encoder_decoder"],
)
def test_logits_and_labels_are_aligned_as_in_the_models_own_loss(make: Any) -> None:
    """BERT's and BART's losses compare the same position, although BART is a language model."""
    model = make().to(torch.get_default_dtype()).eval()
    batch = pad_texts(prompt=1)(raw_texts(4))
    outputs = default_forward(model, batch)
    loss = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), outputs.labels.flatten())
    torch.testing.assert_close(loss, model(**batch).loss.to(loss), rtol=1e-5, atol=0)


def biogpt() -> nn.Module:
    """Its loss leaves out what is not attended to, whatever its label."""
    config = BioGptConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=3,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    return BioGptForTokenClassification(config).double().eval()


def left_padded(width: int, label: int = -100) -> Callable[[Any], dict[str, Tensor]]:
    def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        filling = {"input_ids": 1, "attention_mask": 0, "labels": label}
        batch = {n: torch.full((len(rows), width), value) for n, value in filling.items()}
        for row, (ids, labels) in enumerate(rows):
            for name, values in zip(filling, (ids, torch.ones_like(ids), labels), strict=True):
                batch[name][row, width - len(ids) :] = values
        return batch

    return collate


@pytest.mark.parametrize("width", [7, 8, 16])
def test_padding_on_the_left_moves_no_label(width: int) -> None:
    model, collate = biogpt(), left_padded(width)
    data = [(torch.randint(5, 50, (n,)), torch.randint(0, 3, (n,))) for n in (5, 6, 7)]
    gradients = per_example_gradients(model, data, collate)
    for index, row in enumerate(data):
        model.zero_grad()
        model(**collate([row])).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name][index], len(row[0]) * parameter.grad)


def test_labels_that_the_loss_leaves_out_are_refused() -> None:
    data = [(torch.randint(5, 50, (n,)), torch.randint(0, 3, (n,))) for n in (5, 6, 7)]
    with pytest.raises(CurvatureError, match="BioGptForTokenClassification is not the cross-ent"):
        estimate_curvature(biogpt(), data, left_padded(8, label=0))


def test_another_loss_of_labels_per_position_is_refused() -> None:
    """CTC, its labels padded to the number of frames."""
    config = Wav2Vec2Config(
        vocab_size=9,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=[8, 8],
        conv_kernel=[8, 3],
        conv_stride=[4, 2],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
        layerdrop=0,
    )
    model = Wav2Vec2ForCTC(config).double().eval()
    sound = torch.randn(2, 200)
    labels = torch.full((2, model(sound).logits.shape[1]), -100)
    labels[:, :4] = torch.randint(1, 9, (2, 4))
    data = [{"input_values": x, "labels": y} for x, y in zip(sound, labels, strict=True)]
    with pytest.raises(CurvatureError, match=r"Wav2Vec2ForCTC is not the cross-entropy .*CTC"):
        estimate_curvature(model, data, default_collate)


class SumLoss(nn.Module):
    """A loss that is zero, and not a mean over nothing, when no label counts."""

    def forward(self, x: Tensor, labels: Tensor) -> CausalLMOutput:
        logits = torch.zeros(*x.shape, 3)
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        return CausalLMOutput(loss=loss, logits=logits)


def test_a_loss_that_does_not_tell_is_refused() -> None:
    batch = {"x": torch.zeros(2, 4), "labels": torch.zeros(2, 4, dtype=torch.long)}
    with pytest.raises(CurvatureError, match="SumLoss does not tell by its loss"):
        default_forward(SumLoss(), batch)


def test_without_attention_mask_every_token_is_a_position() -> None:
    labels = torch.tensor([[1, 2, -100], [3, -100, -100]])
    assert default_position_mask({"labels": labels}).tolist() == [[True] * 3] * 2
    model, data = gpt2(), [torch.randint(0, DECODER_VOCABULARY, (4,)) for _ in range(4)]

    def collate(rows: list[Tensor]) -> dict[str, Tensor]:
        return {"input_ids": torch.stack(rows), "labels": torch.stack(rows)}

    plain, masked = (images(estimate(model, data, c)) for c in (collate, pad_texts()))
    assert_equal_matrices(plain, masked)


# --- against the exact Fisher ---


@pytest.mark.parametrize("labels", EITHER)
@pytest.mark.parametrize("name", DECODERS)
def test_diagonal_is_exact(name: str, labels: str) -> None:
    assert_exact_diagonal(DECODERS[name](), labels)


@pytest.mark.parametrize("labels", EITHER)
@pytest.mark.parametrize("kind", ["kronecker", "kronecker_eigen"])
@pytest.mark.parametrize("name", DECODERS)
def test_kronecker_is_exact_for_one_decision(name: str, kind: str, labels: str) -> None:
    """Every example the same two tokens: only the first position has inputs that count and
    gradients, so F = mean(g gᵀ) ⊗ a aᵀ. Of what is always diagonal, the diagonal is exact; the two
    products of a tied weight are not (see below)."""
    model, data = DECODERS[name](), [torch.tensor([3, 7])] * 4

    def collate(rows: list[Tensor]) -> dict[str, Tensor]:
        batch = pad_texts()(rows)
        return batch | {"attention_mask": torch.tensor([[1, 0]] * len(rows))}

    curvature = estimate(model, data, collate, curvature=kind, labels=labels)
    exact, actual = oracle(model, data, curvature, labels, collate), dense(curvature)
    for block in curvature.blocks:
        if isinstance(block.operator, KroneckerSum):
            del actual[block.name], exact[block.name]
        if isinstance(block.operator, Diagonal):
            actual[block.name] = actual[block.name].diagonal()
            exact[block.name] = exact[block.name].diagonal()
    # Attention to a single position: queries, keys and their gains have no gradient.
    idle = {k for k in exact if k.rpartition(".")[2] in ("q_proj", "k_proj", "q_norm", "k_norm")}
    for unused in idle:
        assert exact.pop(unused).abs().max() < 1e-25
        assert actual.pop(unused).abs().max() < 1e-25
    tied = name in ("gpt2", "llama_tied")
    kinds = {block.operator.kind for block in curvature.blocks if block.is_embedding}
    of_tied = "kronecker_sum" if kind == "kronecker" else "diagonal"
    assert kinds == ({of_tied, kind} if name == "gpt2" else {of_tied} if tied else {kind})
    assert_equal_matrices(actual, exact)


@pytest.mark.parametrize("curvature", KINDS)
@pytest.mark.parametrize("name", DECODERS)
def test_neither_padding_nor_batches_matter(name: str, curvature: str) -> None:
    model, data = DECODERS[name](), raw_texts(5)
    reference, *others = (
        images(
            estimate(
                model,
                data,
                pad_texts(extra),
                curvature=curvature,
                labels="sampled",
                curvature_batch_size=size,
            )
        )
        for size, extra in ((5, 0), (2, 0), (5, 3))
    )
    for other in others:
        assert_equal_matrices(other, reference, rtol=1e-6 if curvature != "diagonal" else 1e-9)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_padding_does_not_matter_however_positions_are_shared(sharing: str) -> None:
    model, data = gpt2(), raw_texts(4)
    plain, padded = (
        images(estimate(model, data, pad_texts(extra), sharing=sharing)) for extra in (0, 3)
    )
    assert_equal_matrices(padded, plain, rtol=1e-9)


def test_normalisation_of_any_form_is_exact() -> None:
    """Gemma multiplies by 1 + w, Cohere subtracts the mean; both compute in float32."""
    gemma = llama(Gemma2ForCausalLM, Gemma2Config, head_dim=4)
    assert_exact_diagonal(gemma, rtol=1e-5, ignore=["model.embed_tokens.weight"])
    cohere = llama(CohereForCausalLM, CohereConfig, pad_token_id=0)
    assert_exact_diagonal(cohere, rtol=1e-5)


# --- the tied head ---


def test_a_tied_weight_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerRule, "chunk", 2 * 8 * DECODER_VOCABULARY)
    assert_exact_diagonal(gpt2())


@pytest.mark.parametrize("sharing", ["expand", "reduce", "average"])
@pytest.mark.parametrize("name", ["gpt2", "llama_tied"])
def test_a_tied_weight_has_the_factors_of_both_uses(name: str, sharing: str) -> None:
    """Against plain hooks, each text alone: G_e ⊗ diag(a_e) + A_h ⊗ diag(g_h)."""
    model, data = DECODERS[name]().eval(), raw_texts(4)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    seen: dict[str, Tensor] = {}

    def looked_up(module: nn.Module, args: Any, output: Tensor) -> None:
        output.retain_grad()
        seen["e"] = output

    def scored(module: nn.Module, args: Any, output: Tensor) -> None:
        output.retain_grad()
        seen["h"], seen["z"] = args[0].detach(), output

    hooks = [embedding.register_forward_hook(looked_up), head.register_forward_hook(scored)]
    width, tokens = embedding.weight.shape[1], len(embedding.weight)
    G_e, A_h = torch.zeros(width, width), torch.zeros(width, width)
    a_e, g_h = torch.zeros(tokens), torch.zeros(tokens)
    positions = sum(len(ids) for ids in data)
    for ids in data:
        logits = model(ids[None]).logits[0, :-1]
        nn.functional.cross_entropy(logits, ids[1:], reduction="sum").backward()
        g, h, z = seen["e"].grad[0], seen["h"][0], seen["z"].grad[0]
        if sharing == "reduce":
            g, h, z = g.sum(0)[None], h.mean(0)[None], z.sum(0)[None]
        G_e, A_h, g_h = G_e + g.T @ g, A_h + h.T @ h, g_h + z.square().sum(0)
        a_e += torch.bincount(ids, minlength=tokens)
    for hook in hooks:
        hook.remove()
    mean = positions if sharing == "average" else len(data)
    inputs = len(data) if sharing == "reduce" else positions
    curvature = estimate(
        model, data, pad_texts(), curvature="kronecker", sharing=sharing, curvature_batch_size=3
    )
    operator = next(b.operator for b in curvature.blocks if b.operator.kind == "kronecker_sum")
    torch.testing.assert_close(operator.A, torch.stack([a_e / positions, g_h / mean]))
    torch.testing.assert_close(operator.G, torch.stack([G_e / mean, A_h / inputs]))


def test_scores_of_a_large_vocabulary_have_the_diagonal_of_g(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = DECODERS["gpt2_untied"](), raw_texts(4)
    whole = operators(estimate(model, data, pad_texts(), curvature="kronecker"))
    monkeypatch.setattr("hf_kfc.curvature.passes.MOST_SCORES", DECODER_VOCABULARY - 1)
    for kind in ("kronecker", "kronecker_eigen"):
        found = operators(estimate(model, data, pad_texts(), curvature=kind))
        assert found["lm_head"].G.shape == (DECODER_VOCABULARY,)
        torch.testing.assert_close(found["lm_head"].G, whole["lm_head"].G.diagonal())
        torch.testing.assert_close(found["lm_head"].A, whole["lm_head"].A)
        others = {operator.kind for name, operator in found.items() if "attn" in name}
        assert others == {kind}


def test_a_tied_weight_with_a_padding_token() -> None:
    """The row of the padding token learns as a class, and never as an input."""
    model = gpt2()
    model.transformer.wte.padding_idx = 4
    assert_exact_diagonal(model)


def test_a_tied_weight_counts_the_examples_of_its_tokens_as_inputs() -> None:
    data = [torch.tensor([1, 1, 2]), torch.tensor([2, 3])]
    block = estimate(gpt2(), data, pad_texts()).blocks[0]
    assert block.is_embedding and list(block.shapes) == ["transformer.wte.weight"]
    assert block.input_examples.tolist() == [0, 1, 2, 1, *[0] * 7]


def test_the_head_alone_is_covered_by_ignoring_the_weight() -> None:
    curvature = estimate(gpt2(), raw_texts(2), pad_texts(), ignore=["transformer.wte.weight"])
    assert "transformer.wte" not in images(curvature)


# --- priors and adapters ---


@pytest.mark.parametrize("curvature", KINDS)
@pytest.mark.parametrize("name", DECODERS)
def test_a_prior_is_saved_and_loaded(name: str, curvature: str, tmp_path: Any) -> None:
    torch.set_default_dtype(torch.float32)
    model = DECODERS[name]()
    prior = ConsolidationPrior.estimate(
        model, raw_texts(4), pad_texts(), CurvatureArguments(curvature=curvature), task="texts"
    )
    prior.save_pretrained(tmp_path / "prior")
    loaded = ConsolidationPrior.from_pretrained(tmp_path / "prior")
    loaded.check(model)
    assert loaded.fingerprint == prior.fingerprint
    assert set(loaded.anchor) == {n for n, _ in model.named_parameters()}
    assert_equal_matrices(images(loaded.curvature), images(prior.curvature), rtol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gpt2_untied"])
def test_a_prior_is_attacked_and_published(name: str) -> None:
    """Of a tied weight, the rows of tokens that enough texts hold as inputs are published."""
    model, data = DECODERS[name](), [torch.tensor([3, 5, 2]), torch.tensor([3, 5]), *raw_texts(2)]
    prior = ConsolidationPrior.estimate(model, data, pad_texts(), task="texts")
    found = membership_auc(prior, model, data[:2], data[2:], pad_texts())
    assert {"loss", "tokens of transformer.wte"} <= {separation.score for separation in found}
    held = torch.stack([torch.bincount(row, minlength=DECODER_VOCABULARY) > 0 for row in data]).sum(
        0
    )
    block = next(b for b in without_rare_inputs(prior, 2).curvature.blocks if b.name[-3:] == "wte")
    assert block.inputs.tolist() == torch.nonzero(held >= 2).flatten().tolist()
    whole = next(b for b in prior.curvature.blocks if b.name == block.name)
    states = [b.operator.state().values() for b in (block, whole)]
    for part, of_all in zip(*states, strict=True):
        if part.shape != of_all.shape:
            assert torch.equal(part, of_all[..., block.inputs])


def lora(**settings: Any) -> nn.Module:
    model = get_peft_model(gpt2(), LoraConfig(r=2, fan_in_fan_out=True, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # B starts at zero, where A has no gradient
                parameter.add_(torch.randn_like(parameter))
    return model.double()


def test_adapters_of_peft_are_layers() -> None:
    model = lora(target_modules=["c_attn", "c_fc"], modules_to_save=["lm_head"])
    assert_exact_diagonal(model)
    assert_exact_diagonal(lora(target_modules=["c_attn"], bias="lora_only"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["wte"]}, r"lora_embedding_A\.default, .*\(ParameterDict\)"),
        ({"target_modules": ["c_attn"], "use_dora": True}, r"magnitude.*\(DoraLinearLayer\)"),
    ],
    ids=["embedding", "dora"],
)
def test_adapters_that_are_no_layers_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(CurvatureError, match=message):
        estimate(lora(**settings), raw_texts(2), pad_texts(), fallback="refuse")
