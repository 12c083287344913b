"""The anchor's outputs are kept exactly, and divergences from them are what the formulas say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from tiny import data, models
from tiny.data import lists_of_tokens as texts
from tiny.data import pad_lists as pad
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizerFast,
    DataCollatorForLanguageModeling,
)

from hf_kfc import Probes
from hf_kfc.curvature import Family, Outputs
from hf_kfc.errors import CurvatureError, ProbeError
from hf_kfc.probes import unlabelled_forward
from hf_kfc.ranking import CandidateCollator, ranking_forward

Forward = Callable[[nn.Module, dict[str, Tensor]], Outputs]


def pairs() -> list[dict[str, Any]]:
    return [{**row, "labels": row["input_ids"][::-1][:-1] or [1]} for row in texts()]


CASES: dict[str, tuple[Callable[[], Any], Callable[[], list[dict[str, Any]]]]] = {
    "classes": (models.classifier, texts),
    "labels": (
        lambda: models.bert(
            BertForSequenceClassification,
            seed=0,
            num_labels=4,
            problem_type="multi_label_classification",
        ),
        texts,
    ),
    "number": (lambda: models.classifier(labels=1), texts),
    "tokens' classes": (
        lambda: models.bert(BertForTokenClassification, seed=0, num_labels=5),
        texts,
    ),
    "answers": (lambda: models.bert(BertForQuestionAnswering, seed=0), texts),
    "masked": (lambda: models.bert(BertForMaskedLM, seed=0), texts),
    "gpt2": (lambda: models.gpt2(seed=0, vocab_size=models.VOCABULARY), texts),
    "llama": (models.text_llama, texts),
    "t5": (models.text_t5, pairs),
    "bart": (lambda: models.bart(seed=0), pairs),
}
RANKERS = list(models.RANKERS)


def ranking_pad(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return CandidateCollator(SimpleNamespace(pad_token_id=0))(rows)  # type: ignore[arg-type]


@pytest.fixture(params=[*CASES, *RANKERS])
def case(request: pytest.FixtureRequest) -> tuple[Any, list[dict[str, Any]], Any, dict[str, Any]]:
    if request.param in RANKERS:
        model, rows = models.RANKERS[request.param](), data.make_examples(6)
        return model, rows, ranking_pad, {"forward": ranking_forward}
    make, rows = CASES[request.param]
    return make(), rows(), pad(), {}


def moved(model: nn.Module, by: float = 0.2) -> nn.Module:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model.eval()


def everything(probes: Probes) -> range:
    return range(len(probes))


def test_at_the_anchor_loss_gradient_and_changed_decisions_are_zero(case):
    model, rows, collate, options = case
    model = model.double().train()
    probes = Probes.from_dataset(model, rows, collate, **options)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    found = probes.loss(model.eval(), everything(probes), collate, **options)
    found.loss.backward()
    assert found.loss.abs() < 1e-12
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) < 1e-9
    assert not found.changed.any()
    assert found.owners.unique().tolist() == list(everything(probes))


def test_the_result_depends_neither_on_batches_nor_on_their_order(case):
    model, rows, collate, options = case
    model = model.double()
    once = Probes.from_dataset(model, rows, collate, batch_size=1, **options)
    many = Probes.from_dataset(model, rows, collate, batch_size=64, **options)
    assert once.num_decisions == many.num_decisions
    moved(model)
    whole = many.loss(model, everything(many), collate, **options)
    back = once.loss(model, list(everything(many))[::-1], collate, **options)
    parts = [once.loss(model, [i], collate, **options) for i in everything(many)]
    assert whole.loss > 1e-3
    torch.testing.assert_close(torch.cat([part.each for part in parts]), whole.each)
    torch.testing.assert_close(back.loss, whole.loss)
    torch.testing.assert_close(whole.each.mean(), whole.loss.detach())
    assert torch.equal(torch.cat([part.changed for part in parts]), whole.changed)


@pytest.mark.parametrize("name", CASES)
def test_padding_on_either_side_and_more_of_it_changes_nothing(name):
    make, rows = CASES[name]
    model = make().double()
    right = Probes.from_dataset(model, rows(), pad())
    left = Probes.from_dataset(model, rows(), pad("left", extra=3))
    moved(model)
    expected = right.loss(model, everything(right), pad()).each
    for collate in (pad("left"), pad("right", extra=2)):
        torch.testing.assert_close(left.loss(model, everything(left), collate).each, expected)


@pytest.mark.parametrize(
    "form",
    [
        lambda seen: seen.float(),
        lambda seen: (1 - seen.float()) * -1e4,
        lambda seen: seen[:, None, None],
        lambda seen: seen[:, :, None] & seen[:, None],
    ],
    ids=["numbers", "added", "of heads", "of pairs"],
)
def test_a_mask_of_any_form_tells_the_same_decisions(form):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 4)

        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=self.embedding(input_ids))

    seen = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]]).bool()
    batch = {"input_ids": torch.ones(3, 4, dtype=torch.long), "attention_mask": form(seen)}
    assert torch.equal(unlabelled_forward(Tagger(), batch).decided, seen)


def test_divergences_are_those_worked_out_by_hand(case):
    model, rows, collate, options = case
    model = model.double().eval()
    probes = Probes.from_dataset(model, rows, collate, **options)
    forward = options.get("forward", unlabelled_forward)
    expected, changed = [], []
    singles = [probes.batch([i], collate)[0] for i in everything(probes)]
    with torch.no_grad():
        old = [forward(model, single) for single in singles]
        moved(model, 0.6)
        new = [forward(model, single) for single in singles]
    for before, after in zip(old, new, strict=True):
        assert probes.family is before.family
        a, b = before.logits[0], after.logits[0]
        kept = before.decided[0].reshape(-1)
        if probes.family is Family.GAUSSIAN:
            expected.append((a - b).square().reshape(-1))
            changed.append(torch.zeros(a.numel(), dtype=torch.bool))
        elif probes.family is Family.BERNOULLI:
            p, q = torch.distributions.Bernoulli(logits=a), torch.distributions.Bernoulli(logits=b)
            expected.append(torch.distributions.kl_divergence(p, q).reshape(-1))
            changed.append(((a > 0) != (b > 0)).reshape(-1))
        else:
            lines = a.reshape(len(kept), -1)[kept], b.reshape(len(kept), -1)[kept]
            p, q = (x.softmax(-1) for x in lines)
            ratio = torch.where(p > 0, p / q, 1.0)
            expected.append((p * ratio.log()).sum(-1))
            changed.append(p.argmax(-1) != q.argmax(-1))
    found = probes.loss(model, everything(probes), collate, **options)
    torch.testing.assert_close(found.each, torch.cat(expected))
    assert torch.equal(found.changed, torch.cat(changed))
    assert probes.family is Family.GAUSSIAN or found.changed.any()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_is_that_of_finite_differences(temperature):
    model = models.classifier().double()
    probes = Probes.from_dataset(model, texts(), pad())
    weight = moved(model).classifier.weight

    def loss():
        return probes.loss(model, everything(probes), pad(), temperature=temperature).loss

    loss().backward()
    step = 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0] += sign * step
            values.append(float(loss()))
            weight[0, 0] -= sign * step
    assert float(weight.grad[0, 0]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_temperature_is_of_the_distributions_as_they_are_kept(top_k):
    """T²·KL of softmax(z/T): of three classes of all, with the others as one."""
    model = models.classifier(labels=5).double().eval()
    probes = Probes.from_dataset(model, texts(), pad(), top_k=top_k)
    inputs, _ = probes.batch(everything(probes), pad())
    with torch.no_grad():
        old = model(**inputs).logits.softmax(-1)
        new = moved(model, 0.6)(**inputs).logits.softmax(-1)
    if top_k:
        kept = old.topk(top_k).indices
        old, new = (
            torch.cat([p.gather(1, kept), p.gather(1, kept).sum(1, keepdim=True)], 1)
            for p in (old, new)
        )
        old[:, -1], new[:, -1] = 1 - old[:, -1], 1 - new[:, -1]
    p, q = ((x ** (1 / 3)) / (x ** (1 / 3)).sum(-1, keepdim=True) for x in (old, new))
    expected = 9 * (p * (p / q).log()).sum(-1).mean()
    at_one, at_three = (
        probes.loss(model, everything(probes), pad(), temperature=t) for t in (1.0, 3.0)
    )
    assert float(at_three.loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert torch.equal(at_one.each, at_three.each)


def test_a_temperature_leaves_out_what_is_padded_and_masked_and_goes_to_the_variance_of_scores():
    model, rows = models.RANKERS["cnn"](), data.make_examples(6)
    model = model.double().eval()
    probes = Probes.from_dataset(model, rows, ranking_pad, forward=ranking_forward)
    alone = [probes.batch([i], ranking_pad)[0] for i in everything(probes)]
    with torch.no_grad():
        old = [ranking_forward(model, single).logits[0] for single in alone]
        moved(model, 0.02)
        new = [ranking_forward(model, single).logits[0] for single in alone]
        how = {"forward": ranking_forward, "temperature": 10.0}
        found = float(probes.loss(model, everything(probes), ranking_pad, **how).loss)
    variances = [(b - a).var(unbiased=False) / 2 for a, b in zip(old, new, strict=True)]
    assert len({len(own) for own in old}) > 1
    assert found == pytest.approx(float(torch.stack(variances).mean()), rel=0.05)


@pytest.mark.parametrize("name", ["masked", "llama", "t5"])
def test_what_is_kept_of_many_classes_gives_a_lower_bound_that_is_tight_for_all(name):
    make, rows = CASES[name]
    model = make().double()
    kept = {k: Probes.from_dataset(model, rows(), pad(), top_k=k) for k in (1, 3, 19, 20)}
    assert [kept[k].mean_rest > 0 for k in kept] == [True, True, True, False]
    assert kept[1].mean_rest > kept[3].mean_rest > kept[19].mean_rest
    found = {}
    moved(model)
    for k, probes in kept.items():
        model.zero_grad()
        found[k] = probes.loss(model, everything(probes), pad())
        found[k].loss.backward()
    exact = Probes.loss(kept[20], model, everything(kept[20]), pad())
    assert bool((found[1].each <= found[3].each + 1e-12).all())
    assert bool((found[3].each <= exact.each + 1e-12).all())
    assert found[1].loss < found[3].loss < exact.loss
    # of 20 classes, 19 and the rest are all
    torch.testing.assert_close(found[19].each, exact.each)
    for few in (found[1], found[3]):
        assert torch.equal(few.changed, exact.changed)


def test_of_kept_classes_the_gradient_at_the_anchor_is_zero():
    model = models.text_llama().double()
    probes = Probes.from_dataset(model, texts(), pad(), top_k=3)
    found = probes.loss(model.eval(), everything(probes), pad())
    found.loss.backward()
    assert found.loss.abs() < 1e-12
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) < 1e-9


def test_certain_outputs_have_finite_divergences_and_gradients():
    model = models.text_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    for top_k in (None, 3):
        probes = Probes.from_dataset(model, texts(), pad(), top_k=top_k)
        found = probes.loss(model, everything(probes), pad())
        found.loss.backward()
        assert abs(found.loss.item()) < 1e-3
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        model.zero_grad()


@pytest.mark.parametrize("offered", [3, 4])
def test_classes_that_may_not_be_take_no_part_in_what_is_kept(offered):
    """Three are kept and the others are one more, so that up to four are all."""

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> Outputs:
        outputs = unlabelled_forward(model, batch)
        logits = outputs.logits.masked_fill(torch.arange(20) >= offered, -torch.inf)
        return outputs._replace(logits=logits)

    model, values, gradients = models.text_llama().double(), [], []
    made = [Probes.from_dataset(model, texts(), pad(), top_k=k, forward=forward) for k in (3, None)]
    moved(model)
    for probes in made:
        model.zero_grad()
        found = probes.loss(model, everything(probes), pad(), forward=forward)
        found.loss.backward()
        values.append(found.each)
        gradients.append(model.lm_head.weight.grad.clone())
    assert float(values[0].mean()) > 0.01
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_a_large_vocabulary_is_cut_by_itself():
    model = models.llama(seed=0, vocab_size=1100)
    probes = Probes.from_dataset(model, texts(), pad())
    assert probes.batch([0], pad())[1].scores.shape[1] == 64
    assert 0 < probes.mean_rest < 1
    small = Probes.from_dataset(models.text_llama(), texts(), pad())
    assert small.batch([0], pad())[1].scores.shape[1] == models.VOCABULARY


def test_masked_candidates_are_kept_out_and_padded_ones_do_not_count():
    model, rows = models.ranking_cnn(), data.make_examples(6)
    probes = Probes.from_dataset(model, rows, ranking_pad, forward=ranking_forward)
    _, targets = probes.batch(range(6), ranking_pad)
    counts = [len(row["input_ids"]) for row in rows]
    assert targets.sizes.tolist() == counts
    mass = targets.scores.exp().sum(1)
    torch.testing.assert_close(mass, torch.ones(6))

    def wider(batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return {
            name: functional.pad(value, (0, 0) * (value.ndim - 2) + (0, 2))
            for name, value in ranking_pad(batch).items()
        }

    moved(model)
    expected = probes.loss(model, range(6), ranking_pad, forward=ranking_forward)
    found = probes.loss(model, range(6), wider, forward=ranking_forward)
    torch.testing.assert_close(found.each, expected.each)


def test_columns_that_the_model_does_not_read_and_labels_are_left_out():
    rows = [{**row, "labels": 1, "idx": 7, "attention_mask": [1] * 3} for row in texts()[:1]]
    probes = Probes.from_dataset(models.classifier(), rows, pad())
    assert probes.rows[0] == {"input_ids": rows[0]["input_ids"], "attention_mask": [1] * 3}


def test_rows_are_as_they_were_given_to_any_depth():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, **batch: Tensor) -> Any:
            return SimpleNamespace(logits=self.scale * torch.ones(2, 3))

    rows = [
        {"a": 3, "b": [1, 2], "c": [[1], [], [300, 2]], "d": torch.rand(2, 3), "e": [True]},
        {"a": -1, "b": [], "c": [[]], "d": torch.rand(4, 3), "e": [False, True]},
    ]
    probes = Probes.from_dataset(
        Sum(), rows, lambda rows: {"a": torch.tensor([r["a"] for r in rows])}, columns=list("abcde")
    )
    for row, kept in zip(rows, probes.rows, strict=True):
        assert torch.equal(kept.pop("d"), row["d"])
        assert kept == {name: value for name, value in row.items() if name != "d"}
        assert type(kept["e"][0]) is bool
    assert probes.rows[-1]["b"] == []
    chosen = probes.select([1])
    assert [len(chosen), chosen.rows[0]["c"], len(chosen.rows[0]["d"])] == [1, [[]], 4]


def test_a_split_is_the_same_for_the_same_seed_and_loses_none():
    model = models.text_llama()
    probes = Probes.from_dataset(model, texts(), pad())
    rest, held_out = probes.split(0.25, seed=1)
    again, _ = probes.split(2, seed=1)
    assert (len(rest), len(held_out)) == (6, 2)
    assert rest.fingerprint == again.fingerprint != probes.split(2, seed=2)[0].fingerprint
    ids = sorted(str(row["input_ids"]) for part in (rest, held_out) for row in part.rows)
    assert ids == sorted(str(row["input_ids"]) for row in texts())
    moved(model)
    whole = probes.loss(model, everything(probes), pad())
    order = [str(row["input_ids"]) for row in probes.rows]
    for i, row in enumerate(held_out.rows):
        own = whole.each[whole.owners == order.index(str(row["input_ids"]))]
        torch.testing.assert_close(held_out.loss(model, [i], pad()).each, own)
    for share in (0, 8, 1.0, -0.5, 9):
        with pytest.raises(ProbeError, match="held_out"):
            probes.split(share)


def test_max_probes_chooses_by_the_seed():
    model = models.classifier()
    chosen = Probes.from_dataset(model, texts(), pad(), max_probes=3, seed=4)
    again = Probes.from_dataset(model, texts(), pad(), max_probes=3, seed=4)
    other = Probes.from_dataset(model, texts(), pad(), max_probes=3, seed=5)
    assert len(chosen) == 3
    assert chosen.provenance.counts == {"examples": 8}
    assert chosen.fingerprint == again.fingerprint != other.fingerprint


def test_digests_and_fingerprint_tell_one_anchor_and_one_set_from_another():
    model = models.classifier()
    probes = Probes.from_dataset(model, texts(), pad())
    assert probes.anchor_digests.keys() == dict(model.named_parameters()).keys()
    with torch.no_grad():
        model.classifier.bias[0] += 1
    other = Probes.from_dataset(model, texts(), pad())
    different = {
        n for n in probes.anchor_digests if probes.anchor_digests[n] != other.anchor_digests[n]
    }
    assert different == {"classifier.bias"}
    assert probes.fingerprint != other.fingerprint
    assert probes.provenance.name == "dataset"
    assert probes.provenance.model == "BertForSequenceClassification"


def test_a_model_in_half_precision_is_its_own_anchor():
    model = models.classifier().to(torch.bfloat16)
    probes = Probes.from_dataset(model, texts(), pad())
    assert probes.batch([0], pad())[1].scores.dtype == torch.float32
    found = probes.loss(model.eval(), everything(probes), pad())
    assert found.loss.dtype == torch.float32
    assert found.loss.item() < 1e-4


def refused(match: str, model: nn.Module, rows: Any, collate: Any, **options: Any) -> None:
    with pytest.raises(ProbeError, match=match):
        Probes.from_dataset(model, rows, collate, **options)


@pytest.mark.parametrize(
    ("output", "given"),
    [
        (torch.ones(2, 3), "no `logits`"),
        (SimpleNamespace(logits=None), "no `logits`"),
        (SimpleNamespace(logits=torch.ones(2)), r"logits of shape \[2\]"),
    ],
    ids=["bare_tensor", "none", "one_number_each"],
)
def test_what_is_no_scores_is_told(output: Any, given: str) -> None:
    with pytest.raises(ProbeError, match=f"gave {given}; probes need"):
        unlabelled_forward(lambda **_: output, {"input_ids": torch.ones(2, 3)})


def test_what_cannot_be_kept_is_refused(tmp_path):
    model = models.classifier()
    refused("empty", model, [], pad())
    refused("no column of the examples", model, [{"text": "a"}], pad())
    refused("expected mappings", model, [[1, 2]], pad())
    refused("finite numbers", model, [{"input_ids": ["a"]}], pad())
    refused("example 1 has no 'input_ids'", model, [texts()[0], {"x": 1}], pad())
    refused("example 1 has no token", model, [texts()[0], {**texts()[0], "input_ids": []}], pad())
    refused("more than 31 bits", model, [{"input_ids": [2**40]}], pad())
    refused("lists in some rows", model, [{"input_ids": [1]}, {"input_ids": 1}], pad())
    refused("without labels .*by `probe_collator=` of a trainer", model, data.labelled(), data.pad)
    refused("decodes", models.text_t5(), texts(), pad())
    stream = datasets.Dataset.from_list(texts()).to_iterable_dataset()
    with pytest.raises(CurvatureError, match="stream"):
        Probes.from_dataset(model, stream, pad())
    with torch.no_grad():
        model.classifier.weight[0] = torch.nan
    refused("NaN or infinite", model, texts(), pad())

    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    )
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    random = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    rows = [{"input_ids": [5] * 12} for _ in range(4)]
    refused("at random", models.bert(BertForMaskedLM), rows, random)

    def blind(rows: Any) -> Any:
        return {"input_ids": pad()(rows)["input_ids"]}

    refused("no attention_mask", models.text_llama(), texts(), blind)


def test_another_model_than_the_anchor_is_refused():
    probes = Probes.from_dataset(models.classifier(), texts(), pad())
    with pytest.raises(ProbeError, match="decisions"):
        probes.loss(models.text_llama(), [0, 1], pad())
    with pytest.raises(ProbeError, match="another number of classes"):
        probes.loss(models.classifier(labels=4), [0, 1], pad())
    probes.check(models.classifier())
    with pytest.raises(ProbeError, match=r"tokens from 1 to 19, and \w+ has 5"):
        probes.check(models.bert(BertForSequenceClassification, vocab_size=5))


def test_a_decision_among_many_takes_520_bytes():
    model = models.gpt2(seed=0, vocab_size=2000)
    rows = [{"input_ids": ids.tolist()} for ids in torch.randint(2000, (4, 12))]
    _, tensors = Probes.from_dataset(model, rows, pad()).state()
    assert sum(tensor.nbytes for tensor in tensors.values()) / (4 * 12) == pytest.approx(520, abs=4)
