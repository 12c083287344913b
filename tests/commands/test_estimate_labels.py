"""Labels as data sets write them: several of an example, and classes that are floats."""

import datasets
import pytest
from transformers import BertForSequenceClassification, DataCollatorWithPadding

from hf_kfc import ConsolidationPrior

from .test_estimate import SENTIMENT, TAGS, TEXTS, bert, fingerprint, lines, tokenizer_of


@pytest.mark.parametrize("problem", ["multi_label_classification", None])
@pytest.mark.parametrize("kind", [int, float, bool])
@pytest.mark.parametrize("column", ["label", "labels"])
def test_several_labels_of_an_example(saved, run, tmp_path, problem, kind, column):
    tokenizer = tokenizer_of()
    classifier = bert(BertForSequenceClassification, tokenizer, TAGS)
    classifier.config.problem_type = problem
    model = saved(classifier, tokenizer)
    given = [[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]]
    rows = [[kind(number) for number in row] for row in given]
    data = lines(tmp_path / "task.jsonl", text=TEXTS, **{column: rows})
    result = run("estimate", "--model", model, "--dataset", data, "--output", tmp_path / "prior")
    assert result.status == 0, result.err
    examples = [
        {**tokenizer(text), "labels": [float(number) for number in row]}
        for text, row in zip(TEXTS, given, strict=True)
    ]
    expected = fingerprint(
        model, BertForSequenceClassification, examples, DataCollatorWithPadding(tokenizer)
    )
    assert ConsolidationPrior.from_pretrained(tmp_path / "prior").fingerprint == expected


@pytest.mark.parametrize("problem", ["regression", None])
@pytest.mark.parametrize("column", ["label", "labels"])
def test_whole_floats_are_classes_unless_numbers_are_learnt(saved, run, tmp_path, problem, column):
    """Pandas makes floats of the classes of a table with gaps."""
    tokenizer = tokenizer_of()
    names = {"score": 0} if problem else SENTIMENT
    classifier = bert(BertForSequenceClassification, tokenizer, names)
    classifier.config.problem_type = problem
    model = saved(classifier, tokenizer)
    data = lines(tmp_path / "task.jsonl", **{"text": TEXTS, column: [1.0, 0.0, 1.0, 1.0]})
    result = run("estimate", "--model", model, "--dataset", data, "--output", tmp_path / "prior")
    assert result.status == 0, result.err
    kind = float if problem else int
    examples = [
        {**tokenizer(text), "labels": kind(label)}
        for text, label in zip(TEXTS, [1, 0, 1, 1], strict=True)
    ]
    expected = fingerprint(
        model, BertForSequenceClassification, examples, DataCollatorWithPadding(tokenizer)
    )
    assert ConsolidationPrior.from_pretrained(tmp_path / "prior").fingerprint == expected


def test_lists_that_do_not_fit_the_model_name_their_column(saved, run, tmp_path):
    tokenizer = tokenizer_of()
    classifier = bert(BertForSequenceClassification, tokenizer, SENTIMENT)
    named = datasets.List(datasets.ClassLabel(names=list(SENTIMENT)))  # which of them are given
    for number, (problem, kind, labels, said) in enumerate([
        ("single_label_classification", None, [[1, 0]] * 4, "column labels holds lists, and the"),
        ("multi_label_classification", None, [1] * 4, "column labels holds 1, and the model needs"),
        ("multi_label_classification", named, [[1, 0]] * 4, "column labels holds [1, 0], and the"),
    ]):  # fmt: skip
        classifier.config.problem_type = problem
        model, data = saved(classifier, tokenizer), tmp_path / f"data{number}"
        made = datasets.Dataset.from_dict({"text": TEXTS, "labels": labels})
        (made.cast_column("labels", kind) if kind else made).save_to_disk(data)
        words = ("--model", model, "--dataset", data, "--output", tmp_path / "prior")
        result = run("estimate", *words)
        assert (result.status, said in result.err) == (1, True), result.err
