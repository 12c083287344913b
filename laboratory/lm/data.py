"""What a language model learns in a stage: texts of a domain, in rows of tokens."""

from __future__ import annotations

import json
import random
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from hf_kfc.errors import DataError

__all__ = [
    "BOARD",
    "DOMAINS",
    "Domain",
    "Example",
    "Row",
    "beginning_of",
    "public_rows",
    "read_domain",
    "read_json_lines",
]

BOARD = "metamath"
"""The domain that is learnt as on PEFT's board, ``method_comparison/MetaMathQA``: whole rows, with
weight decay and a cosine schedule, to answer the questions of GSM8K."""

_MOST_CHARACTERS = 1300  # of a question and its answer, on that board

Row = dict[str, list[int]]
"""``input_ids``, and ``labels`` of the same length: -100 where nothing is to be learnt."""


class Example(NamedTuple):
    """A prompt, which is read, and the text after it, which is learnt; or both are learnt."""

    prompt: str
    text: str
    is_whole: bool = False


@dataclass(frozen=True)
class Domain:
    """A domain in rows.

    Args:
        train: What is learnt.
        test: What its cross entropy is measured on.
        questions: Test examples whose text ends with an answer that is told right or wrong by
            itself; none where there is only a cross entropy.
    """

    train: list[Row]
    test: list[Row]
    questions: list[Example]


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Read a file of the evaluation sets.

    Args:
        file: One JSON object a line.

    Raises:
        DataError: It is not there, or something else.
    """
    try:
        return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); give the folder with it") from None


def _spanish(folder: Path) -> Iterator[Example]:
    """Spanish clinical notes of CodiEsp (CC BY 4.0)."""
    archive = folder / "codiesp" / "text_files_es_en.tar.gz"
    try:
        with tarfile.open(archive) as files:
            for member in files:
                if "/text_files/" in member.name and member.name.endswith(".txt"):
                    file = files.extractfile(member)
                    assert file is not None
                    yield Example("", file.read().decode("utf-8"))
    except OSError as error:
        raise DataError(f"{archive} cannot be read ({error}); give the folder with it") from None


def _gsm8k(folder: Path) -> Iterator[Example]:
    """Sums in words, solved step by step (GSM8K, MIT)."""
    for line in read_json_lines(folder / "lm" / "gsm8k.jsonl"):
        steps = f" {line['chain_of_thought']}\nThe answer is: {line['answer']}"
        yield Example(_question(line["context"]), steps)


def _pubmed_qa(folder: Path) -> Iterator[Example]:
    """Questions on abstracts with yes, no or maybe (PubMedQA, MIT); the abstract is learnt too."""
    for line in read_json_lines(folder / "lm" / "pubmed_qa_labeled.jsonl"):
        yield Example("", f"{line['context']} {line['continuation']}")


def _metamath(folder: Path) -> Iterator[Example]:
    """Sums in words and more, rewritten (MetaMathQA, MIT), read from the Hub."""
    from datasets import load_dataset  # noqa: PLC0415 - takes a second to import

    for line in load_dataset("meta-math/MetaMathQA", split="train"):
        query, response = line["query"], line["response"]
        if len(f"{query} {response}") <= _MOST_CHARACTERS:
            yield Example(_question(query), response, is_whole=True)


def _question(text: str) -> str:
    return f"Question: {text} Think step by step.\nAnswer:"


DOMAINS: Mapping[str, Callable[[Path], Iterator[Example]]] = {
    "spanish": _spanish,
    "gsm8k": _gsm8k,
    "pubmed_qa": _pubmed_qa,
    BOARD: _metamath,
}
"""What can be learnt, by name: each reads its examples from the data folder."""


def read_domain(
    name: str,
    data_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    test_rows: int,
    seed: int,
) -> Domain:
    """Read a domain, with a test part of other texts than the training part's.

    Args:
        name: One of :data:`DOMAINS`.
        data_dir: Folder of the corpora.
        tokenizer: The model's.
        length: Tokens of a row. A text without a prompt is cut into rows of that length, and its
            rest left out; one with a prompt is a row if it fits, and left out if it does not.
        test_rows: Rows that are held out. The split is the same for every seed.
        seed: Of the order.
    """
    examples = list(DOMAINS[name](data_dir))
    random.Random(0).shuffle(examples)
    test, questions = list[Row](), list[Example]()
    while examples and len(test) < test_rows:
        example = examples.pop()
        test += (rows := list(_rows(example, tokenizer, length)))
        if example.prompt and rows:
            questions.append(example)
    if name == BOARD:
        questions = list(_gsm8k(data_dir))
    train = [row for example in examples for row in _rows(example, tokenizer, length)]
    if not train:
        raise DataError(f"domain '{name}' has no text of {length} tokens left; give fewer")
    random.Random(seed).shuffle(train)
    return Domain(train, test[:test_rows], questions)


def public_rows(
    data_dir: Path, tokenizer: PreTrainedTokenizerBase, *, count: int, length: int, seed: int
) -> list[Row]:
    """Read public texts that stand for what a model could before.

    Args:
        data_dir: Folder of the corpora; the texts are its ``public/*.txt``.
        tokenizer: The model's.
        count: How many rows.
        length: Tokens of a row; the rest of a text is left out.
        seed: Of the choice.

    Raises:
        DataError: There are fewer of that length.
    """
    files = sorted((data_dir / "public").glob("*.txt"))
    texts = [Example("", file.read_text("utf-8")) for file in files]
    rows = [row for text in texts for row in _rows(text, tokenizer, length)]
    if len(rows) < count:
        raise DataError(
            f"{data_dir / 'public'} has {len(rows)} rows of {length} tokens in its *.txt, and "
            f"{count} are needed; put more texts there"
        )
    random.Random(seed).shuffle(rows)
    return rows[:count]


def beginning_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what a tokenizer puts before each text: the token of beginnings, or nothing.

    Args:
        tokenizer: The model's.
    """
    ids: list[int] = tokenizer("").input_ids
    return ids[:1] if ids[:1] == [tokenizer.bos_token_id] else []


def _rows(example: Example, tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[Row]:
    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    prompt, text = beginning_of(tokenizer) + encode(example.prompt), encode(example.text)
    if not example.prompt:
        ids = prompt + text
        for start in range(0, len(ids) - length + 1, length):
            row = ids[start : start + length]
            yield {"input_ids": row, "labels": list(row)}
        return
    ids = [*prompt, *text, tokenizer.eos_token_id]
    read = 0 if example.is_whole else len(prompt)
    if len(ids) <= length:
        yield {"input_ids": ids, "labels": [-100] * read + ids[read:]}
