import json
import shutil

import pytest
import torch
from tiny.models import bert, cnn
from transformers import (
    BertForMultipleChoice,
    BertModel,
    ModernBertConfig,
    ModernBertForMultipleChoice,
)

from hf_kfc.errors import HfKfcError
from hf_kfc.ranking.cnn import CnnForMultipleChoice
from hf_kfc.ranking.encoding import train_tokenizer
from hf_kfc.ranking.loading import load_pretrained

INPUT = {"input_ids": torch.tensor([[[3, 4, 5], [3, 6, 7]]])}


def load(path, **options):
    train_tokenizer(["some words"]).save_pretrained(path)
    return load_pretrained(path, **options)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    bert(vocab_size=30, num_hidden_layers=3).save_pretrained(path)
    return path


def test_all_layers_by_default(folder):
    saved = BertForMultipleChoice.from_pretrained(folder)
    loaded = load(folder)
    assert torch.equal(loaded(**INPUT).logits, saved(**INPUT).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_saved_in_16_bits_are_learnt_in_32(folder, tmp_path, dtype):
    BertForMultipleChoice.from_pretrained(folder).to(dtype).save_pretrained(tmp_path)
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float32}


def test_a_new_head_learns_without_dropout_and_a_ranker_keeps_its_own(tmp_path, caplog):
    caplog.set_level("INFO", "hf_kfc")
    with_dropout = {"vocab_size": 30, "hidden_dropout_prob": 0.1}
    ranker = bert(**with_dropout, attention_probs_dropout_prob=0.1)
    ranker.save_pretrained(tmp_path / "ranker")
    ranker.bert.save_pretrained(tmp_path / "encoder")
    for name, dropout in (("encoder", 0.0), ("ranker", 0.1)):
        caplog.clear()
        loaded = load(tmp_path / name)
        assert ("hidden_dropout_prob" in caplog.text) == (not dropout)
        assert loaded.config.hidden_dropout_prob == dropout
        assert loaded.config.attention_probs_dropout_prob == dropout
        draws = [torch.stack([loaded.train()(**INPUT).logits for _ in range(4)]) for _ in range(2)]
        assert torch.equal(*draws) == (not dropout)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_first_layers_are_kept(folder, layers):
    saved = BertForMultipleChoice.from_pretrained(folder)
    saved.bert.encoder.layer = saved.bert.encoder.layer[:layers]
    loaded = load(folder, num_layers=layers)
    assert loaded.config.num_hidden_layers == layers
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    assert torch.equal(loaded(**INPUT).logits, saved(**INPUT).logits)


def test_a_shortened_model_saves_and_loads_as_such(folder, tmp_path):
    short = load(folder, num_layers=1)
    short.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config.num_hidden_layers == 1
    assert torch.equal(again(**INPUT).logits, short(**INPUT).logits)


def test_an_encoder_with_a_list_of_layer_types_is_shortened_too(tmp_path):
    config = ModernBertConfig(
        vocab_size=30,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=4,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    ModernBertForMultipleChoice(config).save_pretrained(tmp_path / "long")
    short = load(tmp_path / "long", num_layers=2)
    short.save_pretrained(tmp_path / "short")
    again = load(tmp_path / "short")
    assert again.config.layer_types == config.layer_types[:2]
    assert torch.equal(again(**INPUT).logits, short(**INPUT).logits)


def test_a_bare_encoder_gets_a_head(folder, tmp_path):
    BertModel.from_pretrained(folder).save_pretrained(tmp_path)
    loaded = load(str(tmp_path), num_layers=2)
    assert isinstance(loaded, BertForMultipleChoice)
    saved = BertForMultipleChoice.from_pretrained(folder)
    word = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(loaded.state_dict()[word], saved.state_dict()[word])


@pytest.mark.parametrize("layers", [0, -1, 4])
def test_wrong_numbers_of_layers_are_refused(folder, layers):
    with pytest.raises(HfKfcError, match=f"num_layers is {layers}.*has 3;"):
        load(folder, num_layers=layers)


def test_the_cnn_loads_but_has_no_layers_to_choose(tmp_path):
    cnn().save_pretrained(tmp_path)
    assert type(load(tmp_path)) is CnnForMultipleChoice
    with pytest.raises(HfKfcError, match="the hf_kfc_cnn model has 0;"):
        load(tmp_path, num_layers=1)


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0},
        {"hidden_size": [1]},
        {"hidden_act": {}},
        {"vocab_size": None},
        {"num_hidden_layers": 10**12},
        {"num_labels": 10**12},
        {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "nosuch"},
    ],
    ids=str,
)
def test_a_config_that_anybody_wrote_is_refused(change, folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "model")
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(HfKfcError, match="cannot be loaded"):
        load(path)
