"""What a language model still can: cross entropies, choices and answers."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data import Example, Row, beginning_of, read_json_lines

__all__ = ["Evaluation"]

_CHOICES = ("piqa", "arc_easy")
_BATCH_TOKENS = 2048


class Evaluation:
    """The abilities of a model, measured on public sets and on rows.

    Args:
        folder: With the sets, one JSON object a line.
        tokenizer: The model's.
        lambada: Texts of LAMBADA, drawn with a fixed seed; None for all.
        choices: Questions of PIQA and of ARC-easy each; None for all, 0 for no such sets.
        articles: Of Wikipedia, read from the Hub.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        lambada: int | None,
        choices: int | None,
        articles: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.lambada = _drawn(folder / "lambada_openai.jsonl", lambada)
        sets = _CHOICES if choices != 0 else ()
        self._choices = {name: _drawn(folder / f"{name}.jsonl", choices) for name in sets}
        self._beginning = beginning_of(tokenizer)
        self._articles = [self._begun(text)[:768] for text in _wikipedia(articles)]

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """Measure general ability.

        Args:
            model: In evaluation mode.

        Returns:
            ``cross_entropy`` of a token of LAMBADA's texts in nats; ``lambada``, the share of last
            words that greedy decoding finds; of each set of questions the share of those whose
            right choice has the highest log-likelihood per character, and under ``_loss`` the mean
            −log probability of the right one among the choices; ``wikipedia``, a cross entropy.
        """
        contexts = [self._begun(example["context"]) for example in self.lambada]
        words = [self._ids(f" {example['continuation']}") for example in self.lambada]
        scores = _scores(model, [c + w for c, w in zip(contexts, words, strict=True)])
        right = [bool(s[1][-len(w) :].all()) for s, w in zip(scores, words, strict=True)]
        found = {"cross_entropy": _mean_loss(scores), "lambada": sum(right) / len(right)}
        for name, examples in self._choices.items():
            found |= self._chosen(model, name, examples)
        if self._articles:
            found["wikipedia"] = _mean_loss(_scores(model, self._articles))
        return found

    def cross_entropy(self, model: PreTrainedModel, rows: Sequence[Row]) -> float:
        """Return the mean cross entropy of the labelled tokens, in nats.

        Args:
            model: In evaluation mode.
            rows: Whose last tokens are labelled, or all.
        """
        counts = [sum(label >= 0 for label in row["labels"][1:]) for row in rows]
        scores = _scores(model, [row["input_ids"] for row in rows])
        return _mean_loss([(s[0][-n:], s[1]) for s, n in zip(scores, counts, strict=True) if n])

    @torch.no_grad()
    def answers(
        self, model: PreTrainedModel, questions: Sequence[Example], max_new_tokens: int
    ) -> float:
        """Return the share of questions whose answer greedy decoding gets right.

        The answer is the last number of a text, as in PEFT's ``method_comparison``.

        Args:
            model: In evaluation mode.
            questions: With the right answer at the end of each text.
            max_new_tokens: Where an answer is cut.
        """
        right, generate = 0, getattr(model, "generate")  # noqa: B009 - of no type
        for start in range(0, len(questions), 16):
            batch = questions[start : start + 16]
            prompts = {"input_ids": [self._begun(example.prompt) for example in batch]}
            inputs = self.tokenizer.pad(prompts, padding_side="left", return_tensors="pt")
            inputs = inputs.to(model.device)
            found = generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            texts = self.tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], True)
            for text, example in zip(texts, batch, strict=True):
                number = _last_number(text)
                right += number is not None and number == _last_number(example.text)
        return right / len(questions)

    def _chosen(
        self, model: PreTrainedModel, name: str, examples: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        rows, parts = list[list[int]](), list[tuple[int, int]]()
        for example in examples:
            query = self._begun(f"{example['query'].rstrip()}\nAnswer:")
            for choice in example["choices"]:
                rows.append(query + (ids := self._ids(f" {choice}")))
                parts.append((len(ids), len(choice)))
        pairs = list(zip(_scores(model, rows), parts, strict=True))
        sums = torch.tensor([float(score[0][-tokens:].sum()) for score, (tokens, _) in pairs])
        by_length = sums / torch.tensor([max(1, characters) for _, (_, characters) in pairs])
        right, loss, start = 0, 0.0, 0
        for example in examples:
            own, gold = slice(start, start := start + len(example["choices"])), example["gold"]
            right += int(by_length[own].argmax()) == gold
            loss -= float(sums[own].log_softmax(0)[gold])
        return {name: right / len(examples), f"{name}_loss": loss / len(examples)}

    def _begun(self, text: str) -> list[int]:
        return self._beginning + self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


_Scores = tuple[Tensor, Tensor]
"""Of every token of a row but the first its log-probability, and whether it is the likeliest."""


@torch.no_grad()
def _scores(model: PreTrainedModel, rows: Sequence[list[int]]) -> list[_Scores]:
    found = dict[int, _Scores]()
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    while order:
        size = max(1, _BATCH_TOKENS // len(rows[order[0]]))
        batch, order = order[:size], order[size:]
        ids = pad_sequence([torch.tensor(rows[n]) for n in batch], batch_first=True)
        mask = pad_sequence([torch.ones(len(rows[n])).long() for n in batch], batch_first=True)
        ids = ids.to(model.device)
        logits = model(input_ids=ids, attention_mask=mask.to(model.device)).logits[:, :-1].float()
        values = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
        best = logits.argmax(-1) == ids[:, 1:]
        for place, number in enumerate(batch):
            end = len(rows[number]) - 1
            found[number] = values[place, :end].cpu(), best[place, :end].cpu()
    return [found[number] for number in range(len(rows))]


def _mean_loss(scores: Sequence[_Scores]) -> float:
    return -float(torch.cat([values for values, _ in scores]).mean())


def _last_number(text: str) -> float | None:
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def _drawn(file: Path, limit: int | None) -> list[dict[str, Any]]:
    lines = read_json_lines(file)
    random.Random(0).shuffle(lines)
    return lines[:limit]


def _wikipedia(count: int) -> list[str]:
    """The articles that PEFT's ``method_comparison`` measures forgetting on: 100 of them there."""
    if not count:
        return []
    from datasets import load_dataset  # noqa: PLC0415 - takes a second to import

    articles = load_dataset("HuggingFaceFW/finewiki", split="train", streaming=True)
    return [article["text"] for article in articles.take(count)]
