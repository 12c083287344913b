"""Teach an entity linker a second corpus, keep what it knew of the first, and link with it.

    python examples/linker.py                                # a tiny CNN, made on the spot
    python examples/linker.py --model FOLDER_OR_HUB_NAME     # a pretrained encoder of yours

A mention ("my swollen knee") is linked to a concept by ranking candidates that retrieval finds by
their names. First come articles, then forum posts, whose authors say "swelling" where the articles
say inflammation, while it is oedema to the articles. The corpora here are made up; one of your own
is a class like `MadeUp`, or files that a reader of hf_kfc.ranking.corpora knows.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, set_seed

from hf_kfc import ConsolidationArguments, ConsolidationPrior, CurvatureArguments
from hf_kfc.ranking import (
    CandidateCollator,
    CnnConfig,
    CnnForMultipleChoice,
    Concept,
    EntityLinker,
    Mention,
    RankingConsolidationTrainer,
    compute_metrics,
    encode_candidates,
    load_pretrained,
    ranking_forward,
    ranking_position_mask,
    train_tokenizer,
)
from hf_kfc.ranking.corpora.builder import CandidateRankingBuilder

ORGANS = ["kidney", "knee", "eye", "liver", "throat", "skin", "hip", "lung", "ear", "jaw"]
# What is meant: how articles and how posts put it.
ARTICLES = {
    "inflammation": ["inflammation", "irritation"],
    "oedema": ["swelling", "oedema"],
    "pain": ["pain", "tenderness"],
    "bleeding": ["haemorrhage", "bleeding"],
    "weakness": ["weakness", "fatigue"],
}
POSTS = {
    "inflammation": ["swelling", "burning"],
    "oedema": ["water", "puffiness"],
    "pain": ["ache", "irritation"],
    "bleeding": ["blood", "leaking"],
    "weakness": ["tenderness", "wobbling"],
}
AROUND = {
    "articles": "we studied patients with in a cohort of treated and observed cases",
    "posts": "my doctor says i have had this for weeks and it will not go away",
}


class MadeUp(CandidateRankingBuilder):
    """A corpus: where mentions stand and what they mean, and the concepts that there are."""

    style = "articles"
    spoken = ARTICLES

    def _mentions(self, split: str, counts: Any, problems: Any) -> Iterator[Mention]:
        draw, words = random.Random(f"{self.style} {split}"), AROUND[self.style].split()
        for number in range({"train": 2000, "validation": 100, "test": 500}[split]):
            organ, meaning = draw.choice(ORGANS), draw.choice(list(self.spoken))
            left, right = (" ".join(draw.choices(words, k=4)) for _ in range(2))
            said = meaning if draw.random() < 0.9 else draw.choice(list(self.spoken))  # they err
            text = f"{organ} {draw.choice(self.spoken[said])}"
            concept = f"{organ}-{meaning}"  # left, text and right are the document, spaces too
            yield Mention(f"{split}-{number}", text, f"{left} ", f" {right}", concept)

    def _concepts(self, problems: Any) -> Iterable[Concept]:
        for organ in ORGANS:
            for meaning in self.spoken:
                yield Concept(f"{organ}-{meaning}", f"{meaning} of {organ}")


class MadeUpPosts(MadeUp):
    """The same concepts in the words of another kind of author."""

    style = "posts"
    spoken = POSTS


def prepare(builder: type[MadeUp], cache: str) -> MadeUp:
    """Make ranking examples: a mention in its context, and five candidates, one of them gold."""
    corpus = builder(cache_dir=f"{cache}/{builder.style}", num_candidates=5, names_from=[])
    corpus.download_and_prepare()
    return corpus


def make_trainer(
    model: PreTrainedModel,
    data: Dataset,
    collator: CandidateCollator,
    priors: Sequence[ConsolidationPrior] = (),
) -> RankingConsolidationTrainer:
    """Return a Trainer of rankers that also holds on to the tasks of the priors."""
    args = ConsolidationArguments(
        "runs/linker",
        num_train_epochs=5,
        # 2e-5 to 5e-5 of a large encoder, up to 4e-4 of a few layers of a small one
        learning_rate=3e-3 if isinstance(model, CnnForMultipleChoice) else 5e-5,
        per_device_train_batch_size=32,
        # λ of the penalty; the default is the Bayesian N_old / (2 N_new), here 0.5. More keeps
        # more of the old task and learns less of the new one: choose on development data.
        strengths=[80.0] if priors else None,
        damping=0.1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return RankingConsolidationTrainer(
        model,
        args,
        priors=priors,
        train_dataset=data,
        data_collator=collator,
        compute_metrics=compute_metrics,
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Return accuracy on articles and posts by what posts were learnt with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or name on the Hub (default: a tiny CNN)")
    name = parser.parse_args(arguments).model
    set_seed(0)

    with tempfile.TemporaryDirectory() as folder:
        built = {"articles": prepare(MadeUp, folder), "posts": prepare(MadeUpPosts, folder)}
        corpora = {task: corpus.as_dataset() for task, corpus in built.items()}
        if name is None:
            parts = ("left", "mention", "right", "candidate_names")
            rows = [row for data in corpora.values() for row in data["train"]]
            tokenizer = train_tokenizer(str(row[part]) for row in rows for part in parts)
            model = CnnForMultipleChoice(CnnConfig(vocab_size=len(tokenizer), hidden_size=32))
        else:
            model, tokenizer = load_pretrained(name)
        train, test = (
            {task: encode_candidates(data[split], tokenizer, 48) for task, data in corpora.items()}
            for split in ("train", "test")
        )
        collator = CandidateCollator(tokenizer)

        def learnt(trainer: RankingConsolidationTrainer) -> dict[str, float]:
            trainer.train()
            return {t: trainer.predict(data).metrics["test_accuracy"] for t, data in test.items()}

        # 1. Learn the first corpus, and keep a prior of it while it is there.
        table = {"after articles": learnt(make_trainer(model, train["articles"], collator))}
        ConsolidationPrior.estimate(
            model,
            train["articles"],
            collator,
            CurvatureArguments(curvature="kronecker"),
            task="articles",
            forward=ranking_forward,  # leaves padded candidates out of the softmax
            position_mask=ranking_position_mask,
        ).save_pretrained(f"{folder}/articles-prior")

        # 2. Learn the next one with the model and the prior alone, and once without the prior.
        prior = ConsolidationPrior.from_pretrained(f"{folder}/articles-prior")
        for method, priors in (("no method", []), ("KFC", [prior])):
            trainer = make_trainer(copy.deepcopy(model), train["posts"], collator, priors)
            table[f"posts, {method}"] = learnt(trainer)

        # 3. Text in, concepts out: the model beside the ontology, with candidates as in training.
        linker = EntityLinker(
            trainer.model, tokenizer, built["posts"].ontology, num_candidates=5, max_length=48
        )
        text = "i have had this knee puffiness for weeks"
        (mention,) = linker(text, [(16, 30)])

    print(f"{'':>16}  articles  posts")
    for method, row in table.items():
        print(f"{method:>16}  {row['articles']:8.1%}  {row['posts']:5.1%}")
    print(f"{mention.text!r} is {mention.name!r} with a probability of {mention.probability:.2f}")
    return table


if __name__ == "__main__":
    main()
