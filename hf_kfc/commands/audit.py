"""Show what a prior tells of the data it was estimated on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..audit import EmbeddingAudit, Separation, audit_tokens, membership_auc, span_auc
from ..errors import PriorError
from ..priors import ConsolidationPrior
from ..priors.privacy import MIN_EXAMPLES
from .examples import load_examples, prepare
from .formats import Choices
from .loading import load_model, load_tokenizer
from .report import Report, Table

__all__ = ["report"]

_SHOWN = 20


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
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    audits = audit_tokens(prior, base)
    tests, span = _attacks(prior, options) if options.model else ([], None)
    values = {
        "prior": str(prior.source or options.prior),
        "min_examples": prior.provenance.min_examples,
        "dropped_inputs": prior.provenance.dropped_inputs,
        "embeddings": [_values(audit, tokenizer) for audit in audits],
        "membership": [asdict(test) for test in tests],
        "rare_tokens": span and asdict(span),
    }
    parts = [_left_out(prior), _table(audits)]
    parts += [_spelled(audit, tokenizer) for audit in audits if audit.readable]
    tables = [*_table_of("members told from non-members by", tests)]
    tables += _table_of(f"in fewer than {MIN_EXAMPLES}, told from absent", [span] if span else [])
    return Report(values, [*parts, *tables])


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


def _table(audits: Sequence[EmbeddingAudit]) -> Table | str:
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
    return Table(rows)


def _spelled(audit: EmbeddingAudit, tokenizer: PreTrainedTokenizerBase | None) -> str:
    tokens = audit.readable[:_SHOWN]
    words = _strings(audit, tokens, tokenizer) or [str(token) for token in tokens]
    return f"readable in {audit.name}, the rarest first: {' '.join(words)}" + (
        " ..." if len(audit.readable) > _SHOWN else ""
    )


def _table_of(title: str, tests: Sequence[Separation]) -> list[Table]:
    rows = [(title, "AUC", "95 % from", "to")]
    rows += [(t.score, f"{t.auc:.3f}", f"{t.low:.3f}", f"{t.high:.3f}") for t in tests]
    return [Table(rows)] if tests else []


def _attacks(
    prior: ConsolidationPrior, options: argparse.Namespace
) -> tuple[list[Separation], Separation | None]:
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    choices = Choices(max_length=options.max_length)
    members, others = (
        prepare(load_examples(name), model, tokenizer, choices)
        for name in (options.members, options.non_members)
    )
    tests = membership_auc(
        prior,
        model,
        members.dataset,
        others.dataset,
        members.data_collator,
        forward=members.forward,
        position_mask=members.position_mask,
    )
    return tests, span_auc(prior, model, members.dataset, members.data_collator)
