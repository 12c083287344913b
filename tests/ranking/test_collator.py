import pytest
import torch
from tiny import models

from hf_kfc.errors import DataError
from hf_kfc.ranking.collator import CandidateCollator
from hf_kfc.ranking.encoding import train_tokenizer
from hf_kfc.ranking.loss import masked_logits, ranking_loss


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a small text"], vocab_size=60)


@pytest.fixture
def collator(tokenizer):
    return CandidateCollator(tokenizer)


def make_example(lengths, label=0, offset=5):
    return {
        "input_ids": [[offset + (3 * i + j) % 40 for j in range(n)] for i, n in enumerate(lengths)],
        "token_type_ids": [[0] * (n - 2) + [1] * 2 for n in lengths],
        "labels": label,
    }


UNEVEN = [make_example([4, 6], 1), make_example([5, 3, 7, 4], 3, 9), make_example([3, 3, 4], 2, 7)]


def bert(attention):
    return models.bert(
        seed=0,
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        intermediate_size=32,
        max_position_embeddings=512,
        attn_implementation=attention,
    ).eval()


def cnn():
    return models.cnn(seed=0, vocab_size=60, hidden_size=16).eval()


MODELS = {
    "bert-eager": lambda: bert("eager"),
    "bert-sdpa": lambda: bert("sdpa"),
    "cnn": cnn,
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def split(batch):
    """The model's inputs, the labels and the candidate mask."""
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "candidate_mask")}
    return inputs, batch["labels"], batch["candidate_mask"]


def test_shapes_and_values(collator):
    batch = collator(UNEVEN)
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "input_ids": ((3, 4, 7), torch.int64),
        "attention_mask": ((3, 4, 7), torch.int64),
        "token_type_ids": ((3, 4, 7), torch.int64),
        "candidate_mask": ((3, 4), torch.bool),
        "labels": ((3,), torch.int64),
    }
    assert batch["labels"].tolist() == [1, 3, 2]
    assert batch["candidate_mask"].sum(1).tolist() == [2, 4, 3]
    for row, example in enumerate(UNEVEN):
        for column, ids in enumerate(example["input_ids"]):
            padding = [0] * (7 - len(ids))
            types = example["token_type_ids"][column]
            assert batch["input_ids"][row, column].tolist() == ids + padding
            assert batch["token_type_ids"][row, column].tolist() == types + padding
            assert batch["attention_mask"][row, column].tolist() == [1] * len(ids) + padding
            assert batch["candidate_mask"][row, column]
    padded = batch["attention_mask"][~batch["candidate_mask"]]
    assert padded.tolist() == [[1] + [0] * 6] * 3
    assert (batch["input_ids"][~batch["candidate_mask"]] == 0).all()


def test_the_tokenizers_padding_id_is_used(tokenizer):
    other = train_tokenizer(["a small text"], vocab_size=60)
    other.pad_token = "[MASK]"
    batch = CandidateCollator(other)(UNEVEN)
    assert batch["input_ids"][0, 0, -1] == other.mask_token_id
    other.pad_token = None
    with pytest.raises(DataError, match="no padding token"):
        CandidateCollator(other)


def test_no_token_types_if_the_examples_have_none(collator):
    examples = [{k: v for k, v in e.items() if k != "token_type_ids"} for e in UNEVEN]
    assert "token_type_ids" not in collator(examples)


@pytest.mark.parametrize("label", [2, -1, -100])
def test_label_without_candidate_is_refused(collator, label):
    bad = make_example([3, 3], label) | {"id": "doc-7"}
    with pytest.raises(DataError, match=rf"doc-7 has the label {label} but 2"):
        collator([UNEVEN[1], bad])


def test_examples_without_labels_make_the_same_batch_without_them(collator):
    bare = [{k: v for k, v in e.items() if k != "labels"} for e in UNEVEN]
    batch, whole = collator(bare), collator(UNEVEN)
    assert whole.pop("labels").tolist() == [1, 3, 2]
    assert batch.keys() == whole.keys()
    assert all(torch.equal(batch[name], whole[name]) for name in batch)


def test_labels_of_some_examples_alone_are_refused(collator):
    bare = {k: v for k, v in UNEVEN[0].items() if k != "labels"} | {"id": "doc-7"}
    with pytest.raises(DataError, match="doc-7 has no label where others of the batch"):
        collator([UNEVEN[1], bare])


def test_single_candidate_is_refused(collator):
    with pytest.raises(DataError, match="number 1 of the batch has 1 candidate"):
        collator([UNEVEN[0], make_example([3])])


def test_padding_changes_neither_logits_nor_loss(collator, model):
    inputs, labels, mask = split(collator(UNEVEN))
    logits = model(**inputs).logits
    assert logits.isfinite().all()
    losses = []
    for row, example in enumerate(UNEVEN):
        alone, label, _ = split(collator([example]))
        expected = model(**alone).logits
        torch.testing.assert_close(logits[row][mask[row]], expected[0], rtol=1e-5, atol=1e-6)
        losses.append(ranking_loss(expected, label))
    together = ranking_loss(logits, labels, mask)
    torch.testing.assert_close(together, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)
    assert not torch.isclose(together, ranking_loss(logits, labels))  # the mask matters


def test_padded_candidates_leave_every_parameter_gradient_as_it_was(collator, model):
    def gradients(batches):
        model.zero_grad()
        for batch in batches:
            inputs, labels, mask = split(batch)
            loss = ranking_loss(model(**inputs).logits, labels, mask)
            (loss * len(labels) / len(UNEVEN)).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    together = gradients([collator(UNEVEN)])
    alone = gradients([collator([example]) for example in UNEVEN])
    assert together.keys() == alone.keys()
    for name, gradient in together.items():
        assert gradient.isfinite().all(), name
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_masked_candidates_have_exactly_no_probability_and_no_gradient(dtype):
    logits = torch.tensor([[1.0, -2.0, 50.0], [0.5, 3.0, -1.0]], dtype=dtype, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    probabilities = masked_logits(logits, mask).softmax(-1)
    assert probabilities[0, 2] == 0
    assert (probabilities * probabilities.float().clamp_min(1e-30).log()).isfinite().all()
    assert (probabilities * masked_logits(logits, mask)).isfinite().all()
    ranking_loss(logits, torch.tensor([0, 1]), mask).backward()
    assert logits.grad[0, 2] == 0
    assert (logits.grad[mask] != 0).all()


def test_loss_is_the_mean_over_examples():
    logits = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    expected = (torch.tensor(2.0).log() + torch.tensor(3.0).log()) / 2
    torch.testing.assert_close(ranking_loss(logits, torch.tensor([0, 1]), mask), expected)
