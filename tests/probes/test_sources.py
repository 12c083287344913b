"""Probes drawn from tables of tokens, and those that a language model writes itself."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import models
from tiny.data import pad_lists
from transformers import BertTokenizerFast, DataCollatorWithPadding

from hf_kfc import ConsolidationPrior, CurvatureArguments, Probes
from hf_kfc.errors import PriorError, ProbeError
from hf_kfc.probes import TokenTable

OLD = [{"input_ids": ids} for ids in ([5, 6, 7, 5, 6], [5, 6, 8], [5, 6, 7], [9, 5])]


def test_a_table_has_what_enough_examples_have_and_nothing_else():
    table = TokenTable.count(OLD, min_examples=2)
    assert table.tokens == {5: 5, 6: 4, 7: 2}
    assert table.pairs == {5: {6: 4}, 6: {7: 2}}
    # the same for whatever the rare tokens are
    other = [
        {"input_ids": [3 if token in (8, 9) else token for token in row["input_ids"]]}
        for row in OLD[:2]
    ] + OLD[2:]
    assert TokenTable.count(other, min_examples=2) == table
    nested = [{"input_ids": [row["input_ids"], [5]]} for row in OLD]
    assert TokenTable.count(nested, min_examples=2).tokens == {5: 9, 6: 4, 7: 2}
    with pytest.raises(ProbeError, match="no tokens"):
        TokenTable.count(OLD, min_examples=5)


def test_texts_are_drawn_in_the_table_s_proportions():
    table = TokenTable({1: 3.0, 2: 1.0}, {1: {2: 1.0, 3: 3.0}, 2: {1: 1.0}}, 2)
    texts = table.draw(4000, 3, seed=1)
    starts = Counter(text[0] for text in texts)
    assert starts[1] / 4000 == pytest.approx(0.75, abs=0.03)
    pairs = Counter(pair for text in texts for pair in pairwise(text))
    assert pairs[1, 3] / (pairs[1, 2] + pairs[1, 3]) == pytest.approx(0.75, abs=0.03)
    assert {second for first, second in pairs if first == 2} == {1}
    assert {second for first, second in pairs if first == 3} == {1, 2}  # as at a start
    assert texts == table.draw(4000, 3, seed=1) != table.draw(4000, 3, seed=2)
    assert {len(text) for text in table.draw(50, (2, 4))} == {2, 3, 4}
    assert {token for text in table.draw(50, 3, without=[2]) for token in text} == {1, 3}
    with pytest.raises(ProbeError, match="but special ones"):
        table.draw(1, 1, without=[1, 2])


def test_probes_of_a_table_hold_its_tokens_alone():
    model = models.classifier()
    table = TokenTable.count(OLD, min_examples=2)
    probes = Probes.from_tokens(model, table, pad_lists(), count=20, length=(2, 5), min_examples=2)
    tokens = {token for row in probes.rows for token in row["input_ids"]}
    assert tokens == {5, 6, 7}
    assert probes.provenance.name == "tokens"
    assert probes.provenance.settings["min_examples"] == 2
    assert probes.provenance.counts == {"tokens": 3, "pairs": 2, "kept": 20}
    with pytest.raises(ProbeError, match="entries of 2 examples"):
        Probes.from_tokens(model, table, pad_lists(), count=20, length=3)


def test_uniform_tokens_need_no_table():
    model = models.classifier()
    model.config.pad_token_id = 0
    probes = Probes.from_tokens(model, None, pad_lists(), count=200, length=4)
    tokens = {token for row in probes.rows for token in row["input_ids"]}
    assert tokens == set(range(1, models.VOCABULARY))
    assert probes.provenance.name == "uniform tokens"


def test_a_tokenizer_s_special_tokens_stand_around_texts_and_nowhere_else(tmp_path: Path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmno"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    collator = DataCollatorWithPadding(tokenizer)
    probes = Probes.from_tokens(models.classifier(), None, collator, count=30, length=6)
    for row in probes.rows:
        (first, *text, last) = row["input_ids"]
        assert (first, last, len(text)) == (2, 3, 6)
        assert min(text) >= 5


def test_texts_longer_than_a_model_are_refused(tmp_path: Path):
    model, words = models.gpt2(n_positions=8), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    around = DataCollatorWithPadding(BertTokenizerFast(str(tmp_path / "vocab.txt")))
    for collator, length, longest in ((pad_lists(), (4, 9), 9), (around, 7, 9)):
        said = f"length is {length}, with special tokens {longest}, and GPT2LMHeadModel has 8 posi"
        with pytest.raises(ProbeError, match=re.escape(said)):
            Probes.from_tokens(model, None, collator, count=10, length=length)
    assert len(Probes.from_tokens(model, None, pad_lists(), count=10, length=(4, 8))) == 10


def test_a_prior_tells_the_frequency_of_tokens_that_enough_examples_have():
    model = models.classifier()
    labelled = [{**row, "labels": 0} for row in OLD]

    def collate(rows: Any) -> Any:
        return {**pad_lists()(rows), "labels": torch.tensor([row["labels"] for row in rows])}

    prior = ConsolidationPrior.estimate(
        model, labelled, collate, CurvatureArguments(labels="exact"), task="old"
    )
    table = prior.token_table(2)
    assert table.tokens.keys() == {5, 6, 7}
    assert table.tokens[5] / table.tokens[7] == pytest.approx(5 / 2)
    probes = Probes.from_tokens(model, prior, pad_lists(), count=9, length=4, min_examples=2)
    assert {token for row in probes.rows for token in row["input_ids"]} == {5, 6, 7}
    with pytest.raises(PriorError, match="no embedding that tells"):
        ConsolidationPrior.l2(model, task="old").token_table(2)


class Tokenizer(SimpleNamespace):
    """As much of a tokenizer as generation asks for."""

    all_special_ids: tuple[int, ...] = ()
    unk_token_id = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("a") + 1 for letter in text]}


TOKENIZER: Any = Tokenizer(bos_token_id=0, eos_token_id=None, pad_token_id=0)


def writer(scale: float = 1.0) -> Any:
    model = models.gpt2(seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model.train()


def test_a_language_model_writes_its_own_probes():
    model = writer()
    state = torch.random.get_rng_state()
    probes = Probes.generate(model, TOKENIZER, count=12, max_length=9, batch_size=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert len(probes) == 12
    assert all(row["input_ids"][0] == 0 and len(row["input_ids"]) == 9 for row in probes.rows)
    again = Probes.generate(model, TOKENIZER, count=12, max_length=9, batch_size=5)
    other = Probes.generate(model, TOKENIZER, count=12, max_length=9, batch_size=5, seed=1)
    assert probes.fingerprint == again.fingerprint != other.fingerprint
    assert probes.provenance.name == "generated"
    assert probes.provenance.counts["kept"] == 12


def test_texts_follow_the_model_s_own_distribution():
    model = writer()
    texts = Probes.generate(model, TOKENIZER, count=60, max_length=9, batch_size=600).rows
    found = torch.tensor([row["input_ids"] for row in texts])[:, 1]
    expected = model.eval()(torch.tensor([[0]])).logits[0, 0].softmax(-1)
    share = torch.bincount(found, minlength=len(expected)) / len(found)
    assert 0.5 * (share - expected).abs().sum() < 0.2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("begin_suppress_tokens", [1, 2, 3]),
        ("bad_words_ids", [[token] for token in range(1, 9)]),
        ("do_sample", False),
        ("encoder_repetition_penalty", 9.0),
        ("epsilon_cutoff", 0.2),
        ("eta_cutoff", 0.2),
        ("exponential_decay_length_penalty", [1, 9.0]),
        ("forced_bos_token_id", 5),
        ("forced_eos_token_id", 5),
        ("guidance_scale", 2.0),
        ("max_new_tokens", 3),
        ("max_time", 1e-9),
        ("min_length", 12),
        ("min_new_tokens", 12),
        ("min_p", 0.9),
        ("no_repeat_ngram_size", 1),
        ("num_beams", 3),
        ("num_return_sequences", 2),
        ("output_attentions", True),
        ("output_scores", True),
        ("prompt_lookup_num_tokens", 2),
        ("remove_invalid_values", True),
        ("repetition_penalty", 50.0),
        ("return_dict_in_generate", True),
        ("sequence_bias", [[[4], 50.0]]),
        ("stop_strings", ["a"]),
        ("suppress_tokens", list(range(1, 9))),
        ("temperature", 0.01),
        ("top_k", 1),
        ("top_p", 0.1),
        ("typical_p", 0.1),
        ("use_cache", False),
        ("watermarking_config", {"greenlist_ratio": 0.1, "bias": 50.0}),
    ],
)
def test_no_generation_setting_of_the_model_has_a_say(field, value):
    options: Any = {"count": 12, "max_length": 9, "batch_size": 5}
    expected = Probes.generate(writer(), TOKENIZER, **options)
    model = writer()
    setattr(model.generation_config, field, value)
    before = model.generation_config
    assert Probes.generate(model, TOKENIZER, **options).fingerprint == expected.fingerprint
    assert model.generation_config is before
    assert getattr(before, field) == value


def test_generation_settings_come_back_after_an_error_and_under_an_adapter(monkeypatch):
    model = writer()
    model.generation_config.num_beams = 3
    before = model.generation_config
    adapted: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
    assert len(Probes.generate(adapted, TOKENIZER, count=4, max_length=9)) == 4
    assert model.generation_config is before

    def fails(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "forward", fails)
    with pytest.raises(KeyboardInterrupt):
        Probes.generate(model, TOKENIZER, count=4, max_length=9)
    assert model.generation_config is before
    assert before.num_beams == 3


def test_prompts_of_uneven_length_are_continued_in_turn():
    probes = Probes.generate(
        writer(), TOKENIZER, count=6, max_length=8, prompts=["abc", [4]], batch_size=4
    )
    assert [row["input_ids"][:1] for row in probes.rows] == [[1], [4]] * 3
    assert all(row["input_ids"][:3] == [1, 2, 3] for row in probes.rows[::2])
    # as each would be continued alone: padding on the left has no say
    model = writer(1e3).eval()  # nearly certain of the next token
    probes = Probes.generate(model, TOKENIZER, count=2, max_length=8, prompts=["abc", [4]])
    for row, start in zip(probes.rows, ([1, 2, 3], [4]), strict=True):
        ids = torch.tensor([start])
        while ids.shape[1] < len(row["input_ids"]):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert row["input_ids"] == ids[0].tolist()


class Ending(Tokenizer):
    """It puts an end after each text, as some of Llama's do."""

    all_special_ids = (9,)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [*super().__call__(text)["input_ids"], 9]}


def test_a_prompt_is_gone_on_with_before_the_end_that_its_tokenizer_adds():
    given: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 9, "pad_token_id": 0}
    found = [
        Probes.generate(writer(), kind(**given), count=6, max_length=8, prompts=["abc", [4, 9]])
        for kind in (Tokenizer, Ending)
    ]
    assert found[0].fingerprint == found[1].fingerprint
    assert [row["input_ids"][:2] for row in found[1].rows[1::2]] == [[4, 9]] * 3  # as it is given


def test_texts_that_repeat_the_training_data_are_dropped_and_counted():
    model = writer()
    free = Probes.generate(model, TOKENIZER, count=40, max_length=9, batch_size=40)
    secret = [row["input_ids"] for row in free.rows[:15]]
    probes = Probes.generate(
        model,
        TOKENIZER,
        count=40,
        max_length=9,
        batch_size=40,
        ngram=6,
        drop_repeats_of=[{"input_ids": secret[0]}, *secret[1:]],
    )
    known = {tuple(text[i : i + 6]) for text in secret for i in range(4)}
    for row in probes.rows:
        text = row["input_ids"]
        assert not known & {tuple(text[i : i + 6]) for i in range(len(text) - 5)}
    counts = probes.provenance.counts
    assert counts["repeats"] >= 15
    assert counts["compared with"] == 15
    assert counts["generated"] == 80
    assert (
        Probes.generate(
            model, TOKENIZER, count=40, max_length=9, batch_size=40, drop_repeats_of=secret
        ).fingerprint
        == free.fingerprint
    )  # of 13 tokens in a row there are none


def test_a_text_ends_where_the_model_ends_it():
    tokenizer: Any = Tokenizer(bos_token_id=0, eos_token_id=3, pad_token_id=7)
    rows = Probes.generate(writer(), tokenizer, count=30, max_length=12).rows
    ended = [row["input_ids"] for row in rows if len(row["input_ids"]) < 12]
    assert ended
    assert all(text.index(3) == len(text) - 1 for text in ended)


def test_a_text_ends_at_any_token_by_which_the_model_ends_one():
    model = writer(0.2)  # nearly uniform
    model.generation_config.eos_token_id = [3, 5]
    tokenizer: Any = Tokenizer(bos_token_id=0, eos_token_id=2, pad_token_id=7)
    rows = Probes.generate(model, tokenizer, count=30, max_length=12).rows
    ends = {2, 3, 5}
    assert {row["input_ids"][-1] for row in rows if len(row["input_ids"]) < 12} == ends
    assert all(ends.isdisjoint(row["input_ids"][:-1]) for row in rows)


def test_what_cannot_be_generated_is_refused():
    def refused(match: str, model: Any = None, tokenizer: Any = TOKENIZER, **options: Any) -> None:
        with pytest.raises(ProbeError, match=match):
            Probes.generate(model or writer(), tokenizer, **{"count": 5, "max_length": 8} | options)

    refused("no causal language model", models.text_t5())
    refused(
        "no BOS or EOS .* or in Python give prompts",
        tokenizer=Tokenizer(bos_token_id=None, eos_token_id=None),
    )
    refused("prompt has no tokens", prompts=[[]])
    refused("prompt has 9 tokens", prompts=[[1] * 9])
    refused("17 and GPT2LMHeadModel has 16 positions; lower it", max_length=17)
    refused("neither input_ids nor text", drop_repeats_of=[{"words": 1}])
    refused("1 of 5 texts are left .*duplicates", writer(1e4), temperature=1e-3)
