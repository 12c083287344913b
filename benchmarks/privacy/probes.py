"""What probes of each source tell of the old data: members told from others by what stands in them.

    OMP_NUM_THREADS=1 python benchmarks/privacy/probes.py --texts gsm8k.jsonl

The texts are the questions of GSM8K's test set (MIT), one JSON object with a ``context`` a line. A
Llama of one layer reads 120 of them sixty times; 120 others are the non-members,
and 120 more are what anyone may have. Its tokenizer is trained on the last ones alone. Writes
probes.json and probes.md beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_kfc import ConsolidationPrior, Probes
from hf_kfc.audit import membership_auc
from hf_kfc.audit.membership import Separation
from hf_kfc.probes import TokenTable, pad_tokens
from hf_kfc.ranking.comparison import command, versions

PART, VOCABULARY, LONGEST, EPOCHS, RUN = 120, 600, 48, 60, 13

Rows = list[dict[str, Any]]


def read(path: Path, tokenizer_texts: slice) -> tuple[list[str], PreTrainedTokenizerFast]:
    """Read the texts, and train a tokenizer on some of them.

    Args:
        path: JSON lines with a ``context`` each.
        tokenizer_texts: Which.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["context"] for line in lines][: 3 * PART]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts[tokenizer_texts], vocab_size=VOCABULARY, special_tokens=["<s>", "</s>", "<pad>"]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    return texts, tokenizer


def rows_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Rows:
    """Make rows of texts, with BOS and EOS."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [{"input_ids": [begin, *tokenizer(t)["input_ids"][:LONGEST], end]} for t in texts]


def labelled(rows: Rows) -> dict[str, torch.Tensor]:
    """Collate rows whose tokens are their labels."""
    batch = pad_tokens(rows)
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def learnt(rows: Rows, size: int) -> LlamaForCausalLM:
    """Train a model on texts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    for _ in tqdm(range(EPOCHS), desc="training", unit="epoch"):
        order = torch.randperm(len(rows)).tolist()
        for start in range(0, len(rows), 30):
            model(**labelled([rows[i] for i in order[start : start + 30]])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def sources(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, old: Rows, free: Rows
) -> Iterator[tuple[str, Probes]]:
    """Make as many probes of each source."""
    from_old: Callable[..., Probes] = lambda rows, name: Probes.from_dataset(  # noqa: E731
        model, rows, pad_tokens, source=name
    )
    yield "the old texts themselves", from_old(old, "old texts")
    yield "a tenth of the old texts", from_old(old[: len(old) // 10], "old texts")
    yield "other texts of the same kind", from_old(free, "dataset")
    for least in (2, 10):
        table = TokenTable.count(old, min_examples=least)
        yield (
            f"tables of what {least} old texts have",
            Probes.from_tokens(
                model, table, pad_tokens, count=len(old), length=(20, 48), min_examples=least
            ),
        )
    yield (
        "uniform tokens",
        Probes.from_tokens(model, None, pad_tokens, count=len(old), length=(20, 48)),
    )
    for name, given, run in (
        ("the model's own texts", None, RUN),
        (f"the same, {RUN} tokens of an old text in a row dropped", old, RUN),
    ):
        options: dict[str, Any] = {"drop_repeats_of": given, "ngram": run}
        yield (
            name,
            Probes.generate(
                model, tokenizer, count=len(old), max_length=LONGEST, batch_size=60, **options
            ),
        )


def repeated(probes: Probes, texts: Rows) -> int:
    """Count the texts of which a probe has 13 tokens in a row."""
    known = {run for row in probes.rows for run in _runs(row["input_ids"])}
    return sum(not known.isdisjoint(_runs(row["input_ids"])) for row in texts)


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return (tuple(ids[i : i + RUN]) for i in range(len(ids) - RUN + 1))


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True)
    texts, tokenizer = read(parser.parse_args().texts, slice(2 * PART, None))
    old, others, free = (
        rows_of(texts[start : start + PART], tokenizer) for start in (0, PART, 2 * PART)
    )
    model = learnt(old, len(tokenizer))
    plain = ConsolidationPrior.l2(model, task="gsm8k")
    lines = [
        f"| probes | tokens | pairs of tokens | old texts with {RUN} tokens in a row in a probe |",
        "|---|---|---|---:|",
    ]
    found: dict[str, Any] = {}
    for name, probes in sources(model, tokenizer, old, free):
        tests = membership_auc(
            plain.with_probes(probes), model, old, others, labelled, batch_size=60
        )
        by_score = {test.score: test for test in tests}
        own = [by_score[key] for key in ("tokens in probes", "pairs of tokens in probes")]
        count = repeated(probes, old)
        found[name] = {
            "auc": [asdict(test) for test in own],
            "loss": asdict(by_score["loss"]),
            "repeated": count,
            "source": asdict(probes.provenance),
        }
        lines.append(f"| {name} | {' | '.join(map(_cell, own))} | {count} of {len(old)} |")
    loss = Separation(**found["uniform tokens"]["loss"])
    lines += ["", f"Told by the model's loss, without any probes: {_cell(loss)}."]
    results = {
        "settings": {"texts": PART, "vocabulary": VOCABULARY, "epochs": EPOCHS},
        "command": command(),
        "versions": versions(),
        "sources": found,
    }
    here = Path(__file__).parent
    (here / "probes.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (here / "probes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(test: Separation) -> str:
    return f"{test.auc:.2f} ({test.low:.2f} to {test.high:.2f})"


if __name__ == "__main__":
    main()
