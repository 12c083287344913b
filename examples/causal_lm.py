"""Teach a language model a second kind of text, and keep what it knew of the first.

    python examples/causal_lm.py                                # a tiny Llama, made on the spot
    python examples/causal_lm.py --model FOLDER_OR_HUB_NAME     # yours

First come recipes for the kitchen; a prior of them is saved. Then, without them, come directions
for medicines, which begin alike. For data of your own, replace `recipes` and `directions` by lists
of texts.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import tempfile
from collections.abc import Sequence

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
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
from hf_kfc.training import bayesian_strength

KITCHEN = [
    ["cups", "spoons", "pinches", "slices"],
    ["flour", "milk", "butter", "sugar", "salt", "bread", "cheese", "rice"],
    ["stir", "bake", "fry", "chop", "serve", "whisk"],
    ["slowly", "in a pan", "until golden", "with care", "before dinner"],
]
PHARMACY = [
    ["tablets", "drops", "spoons", "capsules"],
    ["aspirin", "syrup", "iron", "salt", "cortisone", "insulin", "zinc", "quinine"],
    ["rest", "swallow", "drink", "inhale", "stop", "wait"],
    ["with water", "before dinner", "for a week", "at night", "slowly"],
]
NUMBERS = ["one", "two", "three", "four"]


def texts(words: Sequence[Sequence[str]], count: int, seed: int) -> list[str]:
    """Make sentences such as "take two cups of milk and stir slowly", one or two a text."""
    draw = random.Random(seed)

    def sentence() -> str:
        unit, thing, verb, how = map(draw.choice, words)
        return f"take {draw.choice(NUMBERS)} {unit} of {thing} and {verb} {how} ."

    return [" ".join(sentence() for _ in range(draw.choice([1, 2]))) for _ in range(count)]


def recipes(count: int, seed: int) -> list[str]:
    """Make recipes for the kitchen."""
    return texts(KITCHEN, count, seed)


def directions(count: int, seed: int) -> list[str]:
    """Make directions for medicines."""
    return texts(PHARMACY, count, seed)


def tiny_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Make a Llama of two layers, and a tokenizer of the words above."""
    words = sorted({word for text in recipes(500, 0) + directions(500, 0) for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    return LlamaForCausalLM(config), fast


def make_trainer(
    model: PreTrainedModel,
    data: Dataset,
    collator: DataCollatorForLanguageModeling,
    priors: Sequence[ConsolidationPrior] = (),
) -> ConsolidationTrainer:
    """Return a Trainer like any other, which also holds on to the tasks of the priors."""
    # A language model's loss is a mean over tokens, not texts: the Bayesian strength beside it, the
    # default, is N_old / (2 M_new), M_new being the tokens of the new data that are predicted. More
    # keeps more of the old texts and learns less of the new ones: choose on development data.
    tokens = sum(len(text["input_ids"]) - 1 for text in data)
    strengths = [50 * bayesian_strength(prior, tokens) for prior in priors]
    args = ConsolidationArguments(
        "runs/causal_lm",
        num_train_epochs=3,
        learning_rate=3e-3,  # of a tiny model; 1e-5 to 5e-5 of a pretrained one
        per_device_train_batch_size=32,
        strengths=strengths or None,
        damping=0.1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return ConsolidationTrainer(
        model, args, priors=priors, train_dataset=data, data_collator=collator
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Return perplexity on recipes and directions by what directions were learnt with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or name on the Hub (default: a tiny Llama)")
    name = parser.parse_args(arguments).model
    set_seed(0)
    if name is None:
        model, tokenizer = tiny_model()
    else:
        model = AutoModelForCausalLM.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def encoded(texts: list[str]) -> Dataset:
        return Dataset.from_dict({"input_ids": tokenizer(texts)["input_ids"]})

    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)  # labels −100 on padding
    train = {"recipes": encoded(recipes(2000, seed=1)), "directions": encoded(directions(2000, 2))}
    test = {"recipes": encoded(recipes(300, seed=3)), "directions": encoded(directions(300, 4))}

    def learnt(trainer: ConsolidationTrainer) -> dict[str, float]:
        trainer.train()
        return {
            task: math.exp(trainer.predict(data).metrics["test_loss"])
            for task, data in test.items()
        }

    with tempfile.TemporaryDirectory() as folder:
        # 1. Learn the first kind of text, and keep a prior of it while the texts are there.
        table = {"after recipes": learnt(make_trainer(model, train["recipes"], collator))}
        ConsolidationPrior.estimate(
            model,
            train["recipes"],
            collator,
            CurvatureArguments(curvature="kronecker", labels="sampled"),
            task="recipes",
        ).save_pretrained(f"{folder}/recipes-prior")

        # 2. Learn the next one with the model and the prior alone, and once without the prior.
        prior = ConsolidationPrior.from_pretrained(f"{folder}/recipes-prior")
        for method, priors in (("no method", []), ("KFC", [prior])):
            trainer = make_trainer(copy.deepcopy(model), train["directions"], collator, priors)
            table[f"directions, {method}"] = learnt(trainer)

    print(f"{'perplexity':>22}  recipes  directions")
    for method, row in table.items():
        print(f"{method:>22}  {row['recipes']:7.2f}  {row['directions']:10.2f}")
    return table


if __name__ == "__main__":
    main()
