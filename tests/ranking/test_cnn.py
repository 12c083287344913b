import inspect

import pytest
import torch
from tiny.models import cnn
from transformers import AutoConfig, AutoModelForMultipleChoice

from hf_kfc.errors import HfKfcError
from hf_kfc.ranking.cnn import CnnConfig, CnnForMultipleChoice

CONFIG = {"vocab_size": 50, "hidden_size": 12}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return cnn(**CONFIG).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    types = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    return {
        "input_ids": torch.randint(1, 50, (3, 4, 7), generator=generator),
        "attention_mask": torch.ones(3, 4, 7, dtype=torch.long),
        "token_type_ids": types.expand(3, 4, 7).clone(),
    }


def test_the_papers_size_is_26_million():
    with torch.device("meta"):
        model = CnnForMultipleChoice(CnnConfig())
    count = sum(p.numel() for p in model.parameters())
    assert 25e6 < count < 27e6
    assert count == 30522 * 768 + (3 * 768 + 1) * 768 + (768 + 1) * 768 + (768 + 1)


def test_scores_follow_the_formula(model, batch):
    score = model(**batch).logits[1, 2]
    embedded = torch.nn.functional.pad(model.embeddings.weight[batch["input_ids"][1, 2]].T, (1, 1))
    weight, bias = model.convolution.weight, model.convolution.bias
    features = torch.stack(
        [torch.einsum("oik,ik->o", weight, embedded[:, t : t + 3]) + bias for t in range(7)]
    ).relu()
    hidden = (model.dense.weight @ features.max(0).values + model.dense.bias).relu()
    expected = (model.classifier.weight @ hidden + model.classifier.bias).squeeze()
    torch.testing.assert_close(score, expected)


def test_loss_is_the_cross_entropy_and_only_there_with_labels(model, batch):
    assert model(**batch).loss is None
    labels = torch.tensor([0, 3, 1])
    output = model(**batch, labels=labels)
    assert output.logits.shape == (3, 4)
    expected = -output.logits.log_softmax(-1)[torch.arange(3), labels].mean()
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("pad_id", [0, 7])
def test_more_padding_changes_nothing(model, batch, pad_id):
    def pad(tensor, value):
        return torch.nn.functional.pad(tensor, (0, 5), value=value)

    padded = {
        "input_ids": pad(batch["input_ids"], pad_id),
        "attention_mask": pad(batch["attention_mask"], 0),
        "token_type_ids": pad(batch["token_type_ids"], 1),
    }
    torch.testing.assert_close(model(**padded).logits, model(**batch).logits, rtol=1e-6, atol=1e-6)


def test_attention_mask_hides_tokens(model, batch):
    batch["attention_mask"][..., -1] = 0
    hidden = model(**batch).logits
    batch["input_ids"][..., -1] = 3
    torch.testing.assert_close(model(**batch).logits, hidden, rtol=0, atol=0)
    batch["input_ids"][..., -2] = 3
    assert not torch.allclose(model(**batch).logits, hidden)


def test_no_attention_mask_means_no_padding(model, batch):
    expected = model(**batch).logits
    del batch["attention_mask"]
    torch.testing.assert_close(model(**batch).logits, expected)


def test_a_row_with_one_token_and_no_name_is_finite(model, batch):
    batch["attention_mask"][0, 3, 1:] = 0
    logits = model(**batch, labels=torch.tensor([0, 3, 1]))
    logits.loss.backward()
    assert logits.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_padding_embedding_stays_zero(model, batch):
    assert (model.embeddings.weight[0] == 0).all()
    batch["input_ids"][..., 0] = 0
    model(**batch, labels=torch.tensor([0, 3, 1])).loss.backward()
    assert (model.embeddings.weight.grad[0] == 0).all()
    others = dict(model.named_parameters())
    del others["classifier.bias"]  # which shifts all candidates alike
    assert all((p.grad != 0).any() for p in others.values())


def test_initializer_range_sets_the_embeddings():
    model = cnn(vocab_size=5000, initializer_range=0.3)
    assert model.embeddings.weight.std().item() == pytest.approx(0.3, rel=0.05)


def test_token_types_change_nothing(model, batch):
    expected = model(**batch).logits
    del batch["token_type_ids"]
    assert torch.equal(model(**batch).logits, expected)


def test_even_kernels_are_refused():
    with pytest.raises(HfKfcError, match="kernel_size of the CnnConfig is 4"):
        cnn(**CONFIG, kernel_size=4)


def test_kernel_of_five_keeps_the_positions(batch):
    model = cnn(**CONFIG, kernel_size=5)
    assert model(**batch).logits.shape == (3, 4)


def test_saves_and_loads_through_the_auto_classes(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CnnConfig)
    for loader in (CnnForMultipleChoice, AutoModelForMultipleChoice):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is CnnForMultipleChoice
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    config = AutoConfig.for_model("hf_kfc_cnn", **CONFIG, kernel_size=5)
    assert AutoModelForMultipleChoice.from_config(config).convolution.kernel_size == (5,)


def test_input_embeddings_can_be_resized(model):
    assert model.get_input_embeddings() is model.embeddings
    model.resize_token_embeddings(60)
    assert model.embeddings.weight.shape == (60, 12)
    assert model.config.vocab_size == 60


def test_forward_takes_no_arbitrary_arguments():
    # Trainer would read them as a promise to scale the loss by the number of items.
    kinds = {p.kind for p in inspect.signature(CnnForMultipleChoice.forward).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_hooks_see_every_weight_at_work(model, batch):
    seen = {}
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_full_backward_hook(
                lambda module, _, out, name=name: seen.update({name: out[0].shape})
            )
    model(**batch, labels=torch.tensor([0, 3, 1])).loss.backward()
    assert seen == {
        "embeddings": (12, 7, 12),
        "convolution": (12, 12, 7),
        "dense": (12, 12),
        "classifier": (12, 1),
    }


def test_it_learns_which_names_are_gold(model, batch):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    labels = (batch["input_ids"] == batch["input_ids"].max()).any(-1).float().argmax(-1)
    for _ in range(60):
        optimizer.zero_grad()
        model.train()(**batch, labels=labels).loss.backward()
        optimizer.step()
    assert torch.equal(model.eval()(**batch).logits.argmax(-1), labels)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_halves_that_are_read_once_score_as_pairs(kernel_size):
    """Also where a half is shorter than the kernel reaches, and where every feature is negative."""
    torch.manual_seed(0)
    model = cnn(**CONFIG, kernel_size=kernel_size).eval()
    model.convolution.bias.data.normal_()
    sizes = [1, 2, 3, 4, 9]
    heads, tails = (torch.randint(1, 50, (len(sizes), 9)) for _ in range(2))
    lengths = torch.tensor(sizes)
    first = model.read(heads, lengths, is_first=True)
    second = model.read(tails, lengths, is_first=False)
    for i, head in enumerate(sizes):
        for j, tail in enumerate(sizes):
            pair = torch.cat([heads[i, :head], tails[j, :tail]])
            expected = model(pair[None, None]).logits[0]
            scores = model.join(first.of(torch.tensor([i])), second.of(torch.tensor([j])))
            torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


def test_who_watches_or_changes_a_part_gets_whole_pairs(model):
    class Other(CnnForMultipleChoice):
        pass

    assert model.reads_halves()
    assert not Other(CnnConfig(**CONFIG)).reads_halves()
    hook = model.dense.register_forward_hook(lambda *_: None)
    assert not model.reads_halves()
    hook.remove()
    torch.nn.utils.parametrizations.weight_norm(model.convolution)
    assert not model.reads_halves()
