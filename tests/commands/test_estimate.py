import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny import models
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5ForConditionalGeneration,
)

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.commands import estimate as estimate_command
from hf_kfc.curvature.checkpoint import CurvatureCheckpoint
from hf_kfc.ranking import train_tokenizer

TEXTS = ["the good film", "bad and long", "yes", "maybe the film was good after all"]
WORDS = [text.split() for text in TEXTS]
SENTIMENT = {"negative": 0, "positive": 1}
TAGS = {"O": 0, "B-THING": 1, "I-THING": 2}


def bert(
    kind: Any, tokenizer: PreTrainedTokenizerBase, label2id: dict[str, int]
) -> PreTrainedModel:
    names = {number: name for name, number in label2id.items()}
    model: PreTrainedModel = models.bert(
        kind,
        vocab_size=len(tokenizer),
        max_position_embeddings=12,
        label2id=label2id,
        id2label=names,
    )
    return model


def gpt2(tokenizer: PreTrainedTokenizerBase, _: Any = None) -> PreTrainedModel:
    return models.gpt2(vocab_size=len(tokenizer), n_positions=12)


def llama(tokenizer: PreTrainedTokenizerBase, _: Any = None) -> PreTrainedModel:
    model: PreTrainedModel = models.llama(
        LlamaForSequenceClassification, vocab_size=len(tokenizer), num_labels=2
    )
    return model


def tokenizer_of(*, padding: bool = True) -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(TEXTS, vocab_size=100)
    if padding:
        return tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, unk_token="[UNK]", eos_token="[SEP]"
    )


def lines(path: Path, **columns: list[Any]) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fingerprint(model: Path, kind: Any, examples: list[dict[str, Any]], collator: Any) -> str:
    """Return that of the prior that one's own code would make."""
    loaded = kind.from_pretrained(model)
    loaded.config.pad_token_id = collator.tokenizer.pad_token_id
    prior = ConsolidationPrior.estimate(
        loaded, examples, collator, CurvatureArguments(), task="task"
    )
    return prior.fingerprint


@pytest.mark.parametrize("labels", [[1, 0, 1, 1], ["positive", "Negative", "positive", "POSITIVE"]])
def test_a_classifier_from_lines_of_json(saved, run, tmp_path, labels):
    tokenizer = tokenizer_of()
    model = saved(bert(BertForSequenceClassification, tokenizer, SENTIMENT), tokenizer)
    data = lines(tmp_path / "reviews.jsonl", number=[1, 2, 3, 4], text=TEXTS, label=labels)
    output = tmp_path / "prior"
    result = run("estimate", "--model", model, "--dataset", data, "--output", output, "--json")
    assert result.status == 0, result.err
    examples = [
        {**tokenizer(text), "labels": label}
        for text, label in zip(TEXTS, [1, 0, 1, 1], strict=True)
    ]
    expected = fingerprint(
        model, BertForSequenceClassification, examples, DataCollatorWithPadding(tokenizer)
    )
    assert result.values["fingerprint"] == expected
    prior = ConsolidationPrior.from_pretrained(output)
    assert (prior.fingerprint, prior.task) == (expected, "reviews")
    assert prior.provenance.base_model == str(model)
    loaded = BertForSequenceClassification.from_pretrained(model)
    assert sum(result.values["coverage"].values()) == loaded.num_parameters()
    assert result.values["coverage"]["free to move"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model", "prior", "reviews.jsonl"}


def test_pairs_options_of_the_curvature_and_what_is_free_to_move(saved, run, tmp_path):
    tokenizer = tokenizer_of()
    model = saved(bert(BertForSequenceClassification, tokenizer, SENTIMENT), tokenizer)
    rows = zip(TEXTS, reversed(TEXTS), [1, 0, 1, 1], strict=True)
    text = "premise,hypothesis,gold\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    (tmp_path / "pairs.csv").write_text(text)
    words = ("--model", model, "--dataset", tmp_path / "pairs.csv", "--label_column", "gold")
    words += ("--curvature", "diagonal", "--ignore", "LayerNorm", "--task", "pairs")
    result = run("estimate", *words, "--output", tmp_path / "prior")
    assert result.status == 0, result.err
    examples = [
        {**tokenizer(a, b, truncation=True, max_length=12), "labels": c}
        for a, b, c in zip(TEXTS, reversed(TEXTS), [1, 0, 1, 1], strict=True)
    ]
    expected = ConsolidationPrior.estimate(
        BertForSequenceClassification.from_pretrained(model),
        examples,
        DataCollatorWithPadding(tokenizer),
        CurvatureArguments(curvature="diagonal", ignore=["LayerNorm"]),
        task="pairs",
    )
    assert ConsolidationPrior.from_pretrained(tmp_path / "prior").fingerprint == (
        expected.fingerprint
    )
    table = {line.split("  ")[0]: line.split() for line in result.out.splitlines()}
    assert table["free to move"][-2:] == ["48", f"{48 / loaded_size(model):.1%}"]
    assert "task 'pairs', 4 examples" in result.out


def loaded_size(model: Path) -> int:
    return int(BertForSequenceClassification.from_pretrained(model).num_parameters())


def test_a_tagger_whose_tags_the_data_counts_otherwise(saved, run, tmp_path):
    tokenizer = tokenizer_of()
    model = saved(bert(BertForTokenClassification, tokenizer, TAGS), tokenizer)
    names = ["I-THING", "O", "B-THING"]
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=names)),
        }
    )
    tags = [["O", "B-THING", "I-THING", "O", "O", "O", "O"][: len(words)] for words in WORDS]
    numbered = [[names.index(tag) for tag in row] for row in tags]
    made = datasets.Dataset.from_dict({"tokens": WORDS, "ner_tags": numbered}, features=features)
    datasets.DatasetDict(train=made, test=made.select([0])).save_to_disk(tmp_path / "data")
    words = ("--model", model, "--dataset", tmp_path / "data", "--output", tmp_path / "prior")
    result = run("estimate", *words)
    assert result.status == 0, result.err
    examples = []
    for words_of, tags_of in zip(WORDS, tags, strict=True):
        encoded = tokenizer(words_of, is_split_into_words=True)
        numbers, before = [], None
        for word in encoded.word_ids():
            first = word is not None and word != before
            numbers.append(TAGS[tags_of[word]] if first else -100)
            before = word
        examples.append({**encoded, "labels": numbers})
    expected = fingerprint(
        model, BertForTokenClassification, examples, DataCollatorForTokenClassification(tokenizer)
    )
    assert ConsolidationPrior.from_pretrained(tmp_path / "prior").fingerprint == expected


def test_a_causal_model_whose_tokenizer_has_no_padding(saved, run, tmp_path):
    tokenizer = tokenizer_of(padding=False)
    model = saved(gpt2(tokenizer), tokenizer)
    (tmp_path / "books.txt").write_text("\n".join(TEXTS))
    words = ("--model", model, "--dataset", tmp_path / "books.txt", "--output", tmp_path / "prior")
    result = run("estimate", *words)
    assert result.status == 0, result.err
    tokenizer.pad_token = tokenizer.eos_token
    examples = [{**tokenizer(t), "labels": tokenizer(t)["input_ids"]} for t in TEXTS]
    expected = fingerprint(
        model, GPT2LMHeadModel, examples, DataCollatorForTokenClassification(tokenizer)
    )
    assert ConsolidationPrior.from_pretrained(tmp_path / "prior").fingerprint == expected


def test_blank_lines_are_left_out_and_nothing_else_is_refused(saved, run, tmp_path, caplog):
    tokenizer = tokenizer_of(padding=False)
    tokenizer._tokenizer.post_processor = None  # as GPT-2's: no token but the text's
    model = saved(gpt2(tokenizer), tokenizer)
    prints = []
    for name, texts in (("plain", TEXTS), ("gaps", [TEXTS[0], "", *TEXTS[1:], " "])):
        data, output = lines(tmp_path / f"{name}.jsonl", text=texts), tmp_path / name
        result = run("estimate", "--model", model, "--dataset", data, "--output", output)
        assert result.status == 0, result.err
        prints.append(ConsolidationPrior.from_pretrained(output).fingerprint)
    assert prints[0] == prints[1]
    assert "2 of 6 examples have no token and are left out" in caplog.text
    blank = lines(tmp_path / "blank.jsonl", text=["", " "])
    words = ("--model", model, "--dataset", blank, "--output", tmp_path / "none")
    result = run("estimate", *words)
    assert (result.status, (tmp_path / "none").exists()) == (1, False)
    assert "no example has a token; look at the columns of the text" in result.err


def test_an_encoder_decoder_that_answers(saved, run, tmp_path):
    tokenizer = tokenizer_of()
    answerer = models.t5(vocab_size=len(tokenizer), pad_token_id=0)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    model = saved(answerer, tokenizer)
    answers = TEXTS[::-1]
    data = lines(tmp_path / "answers.jsonl", question=TEXTS, answer=answers)
    words = ("--model", model, "--dataset", data, "--label_column", "answer")
    result = run("estimate", *words, "--output", tmp_path / "prior")
    assert result.status == 0, result.err
    examples = [
        {**tokenizer(text), "labels": tokenizer(text_target=answer)["input_ids"]}
        for text, answer in zip(TEXTS, answers, strict=True)
    ]
    expected = fingerprint(
        model, T5ForConditionalGeneration, examples, DataCollatorForSeq2Seq(tokenizer)
    )
    assert ConsolidationPrior.from_pretrained(tmp_path / "prior").fingerprint == expected


def test_a_causal_classifier_is_run_in_batches_though_it_knows_no_padding(saved, run, tmp_path):
    tokenizer = tokenizer_of(padding=False)
    model = saved(llama(tokenizer), tokenizer)
    data = lines(tmp_path / "reviews.jsonl", text=TEXTS, label=[1, 0, 1, 1])
    alone, together = (tmp_path / name for name in ("alone", "together"))
    for output, size in ((alone, 1), (together, 4)):
        words = ("--model", model, "--dataset", data, "--curvature_batch_size", size)
        result = run("estimate", *words, "--output", output)
        assert result.status == 0, result.err
    one, other = map(ConsolidationPrior.from_pretrained, (alone, together))
    for block, same in zip(one.curvature.blocks, other.curvature.blocks, strict=True):
        for name, tensor in block.operator.state().items():
            torch.testing.assert_close(tensor, same.operator.state()[name])


def test_a_ranker_through_its_plugin(tier, run, tmp_path):
    words = ("--model", tier.model, "--dataset", tier.members, "--max_length", 64)
    result = run("estimate", *words, "--output", tmp_path / "prior", "--json")
    assert result.status == 0, result.err
    assert (
        result.values["fingerprint"] == ConsolidationPrior.from_pretrained(tier.prior).fingerprint
    )


def test_examples_that_anyone_may_have_are_probes(saved, run, tier, tmp_path):
    """Of a language model, a classifier and a ranker; the curvature is of all examples."""
    tokenizer = tokenizer_of()
    writer = saved(gpt2(tokenizer), tokenizer)
    (tmp_path / "books.txt").write_text("\n".join(TEXTS))
    encoded = {tuple(tokenizer(text)["input_ids"]) for text in TEXTS}
    for model, dataset, end, name in (
        (writer, tmp_path / "books.txt", (), "books"),
        (tier.model, tier.members, ("--max_length", 64), tier.members.stem),
    ):
        output = tmp_path / f"{name}-prior"
        words = ("estimate", "--model", model, "--dataset", dataset, "--probes", 3, *end)
        result = run(*words, "--output", output)
        assert result.status == 0, result.err
        prior = ConsolidationPrior.from_pretrained(output)
        assert (len(prior.probes), prior.probes.provenance.name) == (3, name)
        assert prior.curvature.num_examples > 3
        assert "labels" not in prior.probes.rows.columns
        if model == writer:
            assert {tuple(row["input_ids"]) for row in prior.probes.rows} < encoded


def test_a_language_models_probes_are_said_twice(saved, run, tmp_path):
    """The first half of each, after its first token if that is the one texts begin with."""
    tokenizer = tokenizer_of()
    tokenizer.bos_token = tokenizer.cls_token
    (tmp_path / "books.txt").write_text("\n".join(TEXTS))
    words = ("--dataset", tmp_path / "books.txt", "--probes", 4, "--said_twice")
    causal = saved(gpt2(tokenizer), tokenizer)
    result = run("estimate", "--model", causal, *words, "--output", tmp_path / "prior")
    assert result.status == 0, result.err
    probes = ConsolidationPrior.from_pretrained(tmp_path / "prior").probes
    expected = set()
    for text in TEXTS:
        first, *rest = tokenizer(text)["input_ids"]
        assert first == tokenizer.bos_token_id
        twice = (first, *rest[: (len(rest) + 1) // 2] * 2)
        expected.add(twice[: 1 + len(rest)])
    assert {tuple(row["input_ids"]) for row in probes.rows} == expected


@pytest.mark.parametrize(("bos", "positions"), [("[CLS]", 8), ("[CLS]", 7), (None, 8), (None, 7)])
def test_a_text_that_fills_the_model_is_said_twice_in_its_length(
    saved, run, tmp_path, bos, positions
):
    tokenizer = tokenizer_of()
    tokenizer.bos_token = bos
    (tmp_path / "books.txt").write_text("\n".join(f"{text} {text}" for text in TEXTS))
    model = saved(models.gpt2(vocab_size=len(tokenizer), n_positions=positions), tokenizer)
    words = ("--dataset", tmp_path / "books.txt", "--probes", 4, "--said_twice")
    result = run("estimate", "--model", model, *words, "--output", tmp_path / "prior")
    assert result.status == 0, result.err
    probes = ConsolidationPrior.from_pretrained(tmp_path / "prior").probes
    assert max(len(row["input_ids"]) for row in probes.rows) == positions


@pytest.mark.parametrize("words", [("--probes", 2), ()])
def test_only_the_probes_of_a_causal_model_are_said_twice(saved, run, tmp_path, words):
    tokenizer = tokenizer_of()
    bert_model = bert(BertForSequenceClassification, tokenizer, SENTIMENT)
    model = saved(bert_model if words else gpt2(tokenizer), tokenizer)
    data = lines(tmp_path / "data.jsonl", text=TEXTS, label=[0, 1, 0, 1])
    words += ("--said_twice", "--text_columns", "text", "--output", tmp_path / "prior")
    result = run("estimate", "--model", model, "--dataset", data, *words)
    assert result.status == 1
    assert "--said_twice is for the --probes of a causal language model" in result.err


def test_encoded_examples_are_taken_as_they_are(saved, run, tmp_path):
    tokenizer = tokenizer_of()
    model = saved(bert(BertForSequenceClassification, tokenizer, SENTIMENT), tokenizer)
    examples = [{**tokenizer(text), "labels": 1} for text in TEXTS]
    datasets.Dataset.from_list(examples).save_to_disk(tmp_path / "encoded")
    words = ("--dataset", tmp_path / "encoded", "--output", tmp_path / "prior", "--json")
    result = run("estimate", "--model", model, *words)
    expected = fingerprint(
        model, BertForSequenceClassification, examples, DataCollatorWithPadding(tokenizer)
    )
    assert result.values["fingerprint"] == expected


def test_what_was_killed_goes_on(tier, run, tmp_path, monkeypatch):
    kept = CurvatureCheckpoint.keep

    def keep_and_die(self, *args: Any, **kwargs: Any) -> None:
        kept(self, *args, **(kwargs | {"last": True}))
        raise KeyboardInterrupt

    words = ("--model", tier.model, "--dataset", tier.members, "--max_length", 64)
    words += ("--curvature_batch_size", 8, "--output", tmp_path / "prior")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CurvatureCheckpoint, "keep", keep_and_die)
        run("estimate", *words)
    assert [path.name for path in tmp_path.iterdir()] == [".prior.checkpoint"]
    seen = []
    restore = CurvatureCheckpoint.restore
    monkeypatch.setattr(
        CurvatureCheckpoint, "restore", lambda *args: seen.append(restore(*args)) or seen[-1]
    )
    assert run("estimate", *words).status == 0
    assert seen == [8]
    assert [path.name for path in tmp_path.iterdir()] == ["prior"]


def test_a_prior_is_published_and_kept(tier, run, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--model", tier.model, "--dataset", tier.members, "--max_length", 64)
    result = run("estimate", *words, "--push_to_hub", "org/tier-kfc", "--json")
    assert result.status == 0, result.err
    kept = ConsolidationPrior.from_pretrained(tmp_path / "tier-kfc")
    assert kept.fingerprint == result.values["fingerprint"]
    there = ConsolidationPrior.from_pretrained("org/tier-kfc")
    assert result.values["published"] == str(there.source)
    assert there.provenance.min_examples is not None
    assert kept.provenance.min_token_examples == 10
    again = ("--push_to_hub", "org/seen-kfc", "--min_token_examples", 0, "--json")
    result = run("estimate", *words, *again)  # 20 texts: A of a layer would span their rare tokens
    assert result.status == 1
    assert "inputs of" in result.err
    assert "estimate it with min_token_examples=10" in result.err


def test_a_prior_of_too_few_examples_is_not_published(saved, run, hub, tmp_path):
    tokenizer = tokenizer_of()
    model = saved(bert(BertForSequenceClassification, tokenizer, SENTIMENT), tokenizer)
    data = lines(tmp_path / "few.jsonl", text=TEXTS[:3], label=[0, 1, 0])
    result = run("estimate", "--model", model, "--dataset", data, "--push_to_hub", "org/few-kfc")
    assert result.status == 1
    assert "with 3 examples no token stands in min_token_examples=10" in result.err


def test_a_build_for_an_accelerator_that_is_not_there_runs_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def built_for(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr("torch.accelerator.current_accelerator", built_for)
    assert estimate_command._device(None) == torch.device("cpu")
