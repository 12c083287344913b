"""Show what a prior tells of the data it was estimated on.

    hf-kfc audit runs/tier1/prior --tokenizer runs/tier1
    hf-kfc audit org/tier1-kfc --base google-bert/bert-base-uncased
    hf-kfc audit org/tier1-kfc --model org/tier1 --members train --non_members test

First, the tokens that could be read off it. Second, with --model, --members and --non_members, a
membership test: how well examples that the prior was estimated on are told from others. Examples
are a folder that datasets.Dataset.save_to_disk made: ranking examples, or encoded ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import datasets
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..chain import split_revision
from ..errors import ConsolidationError, DataError, PriorError
from ..priors import ConsolidationPrior
from ..priors.audit import EmbeddingAudit, audit_tokens
from ..priors.membership import Separation, membership_auc
from ..ranking import FEATURES, CandidateCollator, encode_candidates
from .loading import load_model
from .report import Report, aligned

__all__ = ["add_arguments", "report"]

_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("prior", metavar="PRIOR", help="Folder or repository of the prior.")
    parser.add_argument(
        "--base", metavar="MODEL", help="The model that training began from: shows moved rows."
    )
    parser.add_argument("--tokenizer", metavar="MODEL", help="Its tokenizer spells the tokens.")
    parser.add_argument(
        "--model", metavar="MODEL", help="The prior's model, to test examples with."
    )
    parser.add_argument("--members", help="Folder of examples the prior was estimated on.")
    parser.add_argument("--non_members", help="Folder of like examples that it was not.")
    parser.add_argument(
        "--max_length",
        type=int,
        default=96,
        help="The most tokens of text and candidate name together, as in training (default: 96).",
    )


def report(options: argparse.Namespace) -> Report:
    """Audit a prior.

    Args:
        options: The parsed command line.

    Raises:
        HfKfcError: Something is missing or damaged, or does not fit the prior.
    """
    tested = [options.model, options.members, options.non_members]
    if any(tested) and not all(tested):
        raise PriorError("a membership test needs --model, --members and --non_members; give all")
    prior = ConsolidationPrior.from_pretrained(options.prior, revision=options.revision)
    base = load_model(options.base) if options.base else None
    tokenizer = _tokenizer(options.tokenizer) if options.tokenizer else None
    audits = audit_tokens(prior, base)
    tests = _membership(prior, options) if options.model else []
    values = {
        "prior": str(prior.source or options.prior),
        "min_examples": prior.provenance.min_examples,
        "dropped_inputs": prior.provenance.dropped_inputs,
        "embeddings": [_values(audit, tokenizer) for audit in audits],
        "membership": [asdict(test) for test in tests],
    }
    parts = [_left_out(prior), _table(audits)]
    parts += [_spelled(audit, tokenizer) for audit in audits if audit.readable]
    return Report(values, "\n\n".join([*parts, *_tests_table(tests)]))


def _values(audit: EmbeddingAudit, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    values = asdict(audit) | {"readable": audit.readable}
    return values | {"tokens": _strings(audit, audit.readable, tokenizer)}


def _strings(
    audit: EmbeddingAudit, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase | None
) -> list[str] | None:
    """Spell tokens; None where the embedding is not one of the tokenizer's words."""
    if tokenizer is None or audit.vocabulary < len(tokenizer):
        return None
    found = tokenizer.convert_ids_to_tokens(list(tokens))
    return [
        str(number if token is None else token) for number, token in zip(tokens, found, strict=True)
    ]


def _left_out(prior: ConsolidationPrior) -> str:
    least = prior.provenance.min_examples
    if least is None:
        return "nothing was left out: publishing leaves out tokens of few examples, this is before"
    dropped = ", ".join(f"{n:,} of {name}" for name, n in prior.provenance.dropped_inputs.items())
    return f"left out, because in fewer than {least} examples: {dropped or 'no tokens'}"


def _table(audits: Sequence[EmbeddingAudit]) -> str:
    if not audits:
        return "no embedding is known in this prior; --base shows those of an L2 prior"
    rows = [("embedding", "tokens", "covered", "seen", "moved", "readable", "counts of examples")]
    rows += [
        (
            audit.name,
            f"{audit.vocabulary:,}",
            f"{audit.covered:,}",
            f"{len(audit.seen):,}",
            "-" if audit.moved is None else f"{len(audit.moved):,}",
            f"{len(audit.readable):,}",
            "yes" if audit.counts else "no",
        )
        for audit in audits
    ]
    return aligned(rows)


def _spelled(audit: EmbeddingAudit, tokenizer: PreTrainedTokenizerBase | None) -> str:
    tokens = audit.readable[:_SHOWN]
    words = _strings(audit, tokens, tokenizer) or [str(token) for token in tokens]
    return f"readable in {audit.name}, the rarest first: {' '.join(words)}" + (
        " ..." if len(audit.readable) > _SHOWN else ""
    )


def _tests_table(tests: Sequence[Separation]) -> list[str]:
    rows = [("members told from non-members by", "AUC", "95 % from", "to")]
    rows += [(t.score, f"{t.auc:.3f}", f"{t.low:.3f}", f"{t.high:.3f}") for t in tests]
    return [aligned(rows)] if tests else []


def _membership(prior: ConsolidationPrior, options: argparse.Namespace) -> list[Separation]:
    model, tokenizer = load_model(options.model), _tokenizer(options.model)
    members, others = (
        _examples(folder, tokenizer, options.max_length)
        for folder in (options.members, options.non_members)
    )
    return membership_auc(prior, model, members, others, CandidateCollator(tokenizer))


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    path, revision = split_revision(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ConsolidationError(
            f"the tokenizer of '{name}' cannot be loaded ({str(error).strip()}); give a folder or "
            "repository that has one"
        ) from None
    return tokenizer


def _examples(folder: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> datasets.Dataset:
    try:
        found = datasets.load_from_disk(folder)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no examples ({error}); give a folder that save_to_disk made"
        ) from None
    if isinstance(found, datasets.DatasetDict):
        splits = ", ".join(f"{folder}/{split}" for split in found)
        raise DataError(f"{folder} holds several splits; give one of {splits}")
    if {"input_ids", "labels"} <= set(found.column_names):
        return found
    if lacking := set(FEATURES) - set(found.column_names):
        raise DataError(
            f"{folder} has no column {', '.join(sorted(lacking))}; give ranking examples, or "
            "encoded ones with input_ids and labels"
        )
    return encode_candidates(found, tokenizer, max_length)
