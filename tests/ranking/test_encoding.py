import json
import logging
import subprocess
import sys
from unicodedata import normalize

import datasets
import pytest
from transformers import AutoTokenizer

from hf_kfc.errors import DataError
from hf_kfc.ranking.encoding import encode_candidates, train_tokenizer
from hf_kfc.ranking.schema import FEATURES

WORDS = [f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
TEXTS = [" ".join(WORDS), "pain ache nausea head heart left right"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=400)


def make_dataset(mention="head ache", left="", right="", names=("pain", "nausea"), label=0):
    row = {
        "id": "one",
        "document": "d",
        "mention": mention,
        "left": left,
        "right": right,
        "candidate_ids": [str(i) for i in range(len(names))],
        "candidate_names": list(names),
        "label": label,
    }
    return datasets.Dataset.from_list(
        [row], features=datasets.Features({k: FEATURES[k] for k in row})
    )


def test_pair_has_marked_mention_then_name(tokenizer):
    data = make_dataset(left="left", right="right", label=1)
    row = encode_candidates(data, tokenizer)[0]
    decoded = [tokenizer.decode(ids) for ids in row["input_ids"]]
    assert decoded == [
        "[CLS] left [SEP] head ache [SEP] right [SEP] pain [SEP]",
        "[CLS] left [SEP] head ache [SEP] right [SEP] nausea [SEP]",
    ]
    assert row["token_type_ids"] == [[0] * 8 + [1] * 2] * 2
    assert row["labels"] == 1
    assert row["id"] == "one"
    assert set(row) == {"id", "input_ids", "token_type_ids", "labels"}


def test_special_tokens_agree_with_the_tokenizers_own_pair(tokenizer):
    row = encode_candidates(make_dataset(left="left", right="right"), tokenizer)[0]
    own = tokenizer("left [SEP] head ache [SEP] right", "pain")
    assert row["input_ids"][0] == own["input_ids"]
    assert row["token_type_ids"][0] == own["token_type_ids"]


@pytest.mark.parametrize(
    ("left", "right", "kept_left", "kept_right"),
    [
        (WORDS[:13], WORDS[13:], WORDS[10:13], WORDS[13:16]),  # both cut, far ends first
        (WORDS[:1], WORDS[13:], WORDS[:1], WORDS[13:18]),  # the short side lends its share
        (WORDS[:13], WORDS[13:14], WORDS[8:13], WORDS[13:14]),
        (WORDS[:2], WORDS[2:4], WORDS[:2], WORDS[2:4]),  # nothing to cut
    ],
)
def test_context_is_cut_away_from_the_mention(tokenizer, left, right, kept_left, kept_right):
    data = make_dataset(left=" ".join(left), right=" ".join(right), names=("pain", "ache head"))
    # 3 special tokens, 2 marks, 2 of the mention, 2 of the longer name, 6 of context
    row = encode_candidates(data, tokenizer, max_length=15, max_name_length=3)[0]
    text = " ".join(["[CLS]", *kept_left, "[SEP] head ache [SEP]", *kept_right, "[SEP]"])
    assert [tokenizer.decode(ids) for ids in row["input_ids"]] == [
        f"{text} pain [SEP]",
        f"{text} ache head [SEP]",
    ]
    assert max(map(len, row["input_ids"])) <= 15


def test_cut_names_and_mentions_are_counted(tokenizer, caplog):
    long = " ".join(WORDS[:9])
    data = make_dataset(mention=long, left="left", names=(long, "pain", "ache ache ache"))
    with caplog.at_level(logging.WARNING):
        row = encode_candidates(data, tokenizer, max_length=12, max_name_length=2)[0]
    assert [tokenizer.decode(ids) for ids in row["input_ids"]] == [
        f"[CLS] [SEP] {' '.join(WORDS[:5])} [SEP] [SEP] {name} [SEP]"
        for name in (" ".join(WORDS[:2]), "pain", "ache ache")
    ]
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "2 candidate names were cut to 2 tokens",
        "1 of 1 mentions were cut",
    ]


def test_nothing_is_logged_when_everything_fits(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        encode_candidates(make_dataset(), tokenizer)
    assert not caplog.records


def test_several_processes_give_the_same(tokenizer):
    data = datasets.concatenate_datasets([make_dataset(mention=word) for word in WORDS[:4]])
    assert list(encode_candidates(data, tokenizer, num_proc=2)) == list(
        encode_candidates(data, tokenizer)
    )


def test_an_empty_dataset_is_refused(tokenizer):
    with pytest.raises(DataError, match="no examples"):
        encode_candidates(make_dataset().select([]), tokenizer)


def test_no_token_types_where_the_model_takes_none(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(
        tmp_path, model_input_names=["input_ids", "attention_mask"]
    )
    assert "token_type_ids" not in encode_candidates(make_dataset(), other).column_names


def test_errors_name_the_example(tokenizer):
    with pytest.raises(DataError, match="mention of example 'one'"):
        encode_candidates(make_dataset(mention=" "), tokenizer)
    with pytest.raises(DataError, match="name '' of example 'one'"):
        encode_candidates(make_dataset(names=("pain", "")), tokenizer)


def test_errors_about_lengths_and_the_tokenizer(tokenizer):
    with pytest.raises(DataError, match="need 38"):
        encode_candidates(make_dataset(), tokenizer, max_length=37)
    encode_candidates(make_dataset(), tokenizer, max_length=38)
    short = train_tokenizer(TEXTS, vocab_size=100)
    short.model_max_length = 64
    with pytest.raises(DataError, match="takes 64 tokens"):
        encode_candidates(make_dataset(), short)
    short.sep_token = None
    with pytest.raises(DataError, match="no separator"):
        encode_candidates(make_dataset(), short, max_length=64)


def test_tokenizer_has_berts_layout(tokenizer):
    assert tokenizer.pad_token_id == 0
    assert len(tokenizer) <= 400
    assert tokenizer.decode(tokenizer("Head ACHE")["input_ids"]) == "[CLS] head ache [SEP]"
    assert tokenizer.unk_token_id in tokenizer("\u4e00")["input_ids"]
    assert tokenizer.mask_token_id is not None


def test_tokenizer_round_trips(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    pair = ("head wordz", "nausea in the Heart")
    assert dict(loaded(*pair)) == dict(tokenizer(*pair))
    assert loaded.pad_token_id == 0
    assert loaded.sep_token_id == tokenizer.sep_token_id
    assert "token_type_ids" in loaded.model_input_names


def test_tokenizer_training_is_deterministic_across_processes(tokenizer):
    code = (
        "import json, sys\n"
        "from hf_kfc.ranking.encoding import train_tokenizer\n"
        "texts = json.load(sys.stdin)\n"
        "print(json.dumps(train_tokenizer(texts, vocab_size=400).get_vocab()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout) == tokenizer.get_vocab()


def test_word_pieces_are_ordinary_tokens(tokenizer):
    assert set(tokenizer.all_special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert tokenizer.tokenize("##a") == ["[UNK]", "[UNK]", "a"]
    assert "##a" in tokenizer.get_vocab()


def test_no_text_is_refused():
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["", " "])


def test_the_spelling_of_a_special_token_is_text(tokenizer):
    data = make_dataset(left="left [SEP] right", mention="[PAD]", names=("pain [SEP]", "[CLS]"))
    for ids, tail in zip(
        encode_candidates(data, tokenizer)[0]["input_ids"], (["[SEP]"], ["[SEP]"]), strict=True
    ):
        tokens = tokenizer.convert_ids_to_tokens(ids)
        assert tokens.count("[SEP]") == 4
        assert tokens.count("[CLS]") == tokens.count("[PAD]") + 1 == 1
        assert tokens[-1:] == tail
    assert tokenizer("left [SEP]")["input_ids"].count(tokenizer.sep_token_id) == 2  # as before


@pytest.mark.parametrize("text", ["बुखार", "ไข้หวัด", "ガンク"])
def test_a_trained_tokenizer_keeps_the_marks_that_are_letters(text):
    trained = train_tokenizer([f"{text} Tórax"] * 3, vocab_size=60)
    assert "".join(t.removeprefix("##") for t in trained.tokenize(text)) == normalize("NFD", text)
    assert trained.tokenize("TÓRAX") == trained.tokenize("torax")
    assert trained.unk_token not in trained.tokenize(text)


def test_one_text_in_the_place_of_a_list_is_refused():
    with pytest.raises(DataError, match=r"texts is the text 'head ache'; give a list"):
        train_tokenizer("head ache")
