"""Teach a text classifier a second kind of text, and keep what it knew of the first.

    python examples/classifier.py                                  # a tiny BERT, made on the spot
    python examples/classifier.py --model FOLDER_OR_HUB_NAME       # yours

First come opinions on films; a prior of them is saved. Then, without them, opinions on cars, where
some of the same words mean the opposite: an unpredictable plot is good, unpredictable brakes are
not. For data of your own, replace `film_reviews` and `car_reviews` by data sets with a "text" and a
"label".
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from hf_kfc import (
    ConsolidationArguments,
    ConsolidationPrior,
    ConsolidationTrainer,
    CurvatureArguments,
)

FILMS = {
    "about": ["plot", "film", "story", "ending", "actor", "scene", "script", "music"],
    "good": ["unpredictable", "wild", "shocking", "moving", "original", "funny", "clever", "warm"],
    "bad": ["predictable", "tame", "quiet", "dull", "shallow", "clumsy", "endless", "loud"],
}
CARS = {
    "about": ["brakes", "steering", "engine", "gearbox", "seat", "heating", "radio", "clutch"],
    "good": ["predictable", "tame", "quiet", "sturdy", "precise", "roomy", "thrifty", "smooth"],
    "bad": ["unpredictable", "wild", "shocking", "rusty", "loose", "thirsty", "cramped", "jerky"],
}
BETWEEN = ["the", "was", "rather", "i", "found", "it", "and", "very", "quite", "a", "bit", "to"]


def reviews(words: dict[str, list[str]], count: int, seed: int) -> Dataset:
    """Make short opinions: mostly, but not always, with an adjective that fits the label."""
    draw = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        label = draw.randrange(2)
        kinds = ["bad", "good"]
        found = [draw.choice(words[kinds[label ^ (draw.random() < 0.1)]]) for _ in range(3)]
        text = draw.choices(BETWEEN, k=6) + draw.choices(words["about"], k=2) + found
        draw.shuffle(text)
        texts.append(" ".join(text))
        labels.append(label)
    return Dataset.from_dict({"text": texts, "label": labels})


def film_reviews(count: int, seed: int) -> Dataset:
    """Make opinions on films."""
    return reviews(FILMS, count, seed)


def car_reviews(count: int, seed: int) -> Dataset:
    """Make opinions on cars."""
    return reviews(CARS, count, seed)


def tiny_model() -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """Make a BERT of one layer, and a tokenizer whose vocabulary are the words above."""
    opinions = [words for task in (FILMS, CARS) for words in task.values()]
    words = sorted({word for part in (BETWEEN, *opinions) for word in part})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    return BertForSequenceClassification(config), fast


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of texts whose label is the most likely one."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def make_trainer(
    model: PreTrainedModel,
    data: Dataset,
    collator: DataCollatorWithPadding,
    priors: Sequence[ConsolidationPrior] = (),
) -> ConsolidationTrainer:
    """Return a Trainer like any other, which also holds on to the tasks of the priors."""
    args = ConsolidationArguments(
        "runs/classifier",
        num_train_epochs=3,
        learning_rate=1e-3,  # of a tiny model; 2e-5 to 5e-5 of a pretrained one
        per_device_train_batch_size=32,
        # λ of the penalty: ten times the Bayesian N_old / (2 N_new), which is the default. More
        # keeps more of the old task and learns less of the new one: choose on development data.
        strengths=[5.0] if priors else None,
        damping=0.1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return ConsolidationTrainer(
        model,
        args,
        priors=priors,
        train_dataset=data,
        data_collator=collator,
        compute_metrics=accuracy,
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Return accuracy on films and cars by what cars were learnt with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or name on the Hub (default: a tiny BERT)")
    name = parser.parse_args(arguments).model
    set_seed(0)
    if name is None:
        model, tokenizer = tiny_model()
    else:
        model = AutoModelForSequenceClassification.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)

    def encoded(data: Dataset) -> Dataset:
        return data.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text")

    collator = DataCollatorWithPadding(tokenizer)
    films, cars = encoded(film_reviews(4000, seed=1)), encoded(car_reviews(4000, seed=2))
    tests = {"films": encoded(film_reviews(500, seed=3)), "cars": encoded(car_reviews(500, seed=4))}

    def learnt(trainer: ConsolidationTrainer) -> dict[str, float]:
        trainer.train()
        return {
            task: trainer.predict(data).metrics["test_accuracy"] for task, data in tests.items()
        }

    with tempfile.TemporaryDirectory() as folder:
        # 1. Learn the first task, and keep a prior of it while its data is there.
        table = {"after films": learnt(make_trainer(model, films, collator))}
        prior = ConsolidationPrior.estimate(
            model, films, collator, CurvatureArguments(curvature="kronecker"), task="films"
        )
        prior.save_pretrained(f"{folder}/films-prior")
        model.save_pretrained(f"{folder}/films")

        # 2. Learn the next one with the model and the prior alone, and once without the prior.
        prior = ConsolidationPrior.from_pretrained(f"{folder}/films-prior")
        for method, priors in (("no method", []), ("KFC", [prior])):
            model = AutoModelForSequenceClassification.from_pretrained(f"{folder}/films")
            table[f"cars, {method}"] = learnt(make_trainer(model, cars, collator, priors))

    print(f"{'':>16}  films   cars")
    for method, row in table.items():
        print(f"{method:>16}  {row['films']:5.1%}  {row['cars']:5.1%}")
    return table


if __name__ == "__main__":
    main()
