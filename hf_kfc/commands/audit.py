"""Show what a prior tells of the data it was estimated on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..audit import (
    EmbeddingAudit,
    Frequencies,
    Separation,
    audit_tokens,
    difference_auc,
    frequencies_told,
    membership_auc,
    span_auc,
)
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
    """Audit a prior."""
    tested = [options.model, options.members, options.non_members]
    if any(tested) and not all(tested):
        raise PriorError("a membership test needs --model, --members and --non_members; give all")
    if bool(options.earlier) != bool(options.added) or (options.added and not options.model):
        raise PriorError(
            "a test of two revisions needs --earlier, --added and the membership test's options; "
            "give all"
        )
    prior = ConsolidationPrior.from_pretrained(options.prior)
    base = load_model(options.base) if options.base else None
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    audits = audit_tokens(prior, base)
    found = _attacks(prior, options) if options.model else _Found()
    values = {
        "prior": str(prior.source or options.prior),
        "min_examples": prior.provenance.min_examples,
        "dropped_inputs": prior.provenance.dropped_inputs,
        "probes": None if prior.probes is None else prior.probes.summary(),
        "embeddings": [
            asdict(audit)
            | {
                "readable": audit.readable,
                "tokens": _strings(audit, audit.readable, tokenizer),
            }
            for audit in audits
        ],
        "membership": [asdict(test) for test in found.membership],
        "rare_tokens": found.span and asdict(found.span),
        "added_tokens": found.difference and asdict(found.difference),
        "frequencies": [asdict(own) for own in found.frequencies],
    }
    parts = [_left_out(prior), *_probes(prior), _table(audits)]
    parts += [_spelled(audit, tokenizer) for audit in audits if audit.readable]
    tables = _table_of("members told from non-members by", found.membership)
    rare = [own for own in (found.span, found.difference) if own is not None]
    tables += _table_of(f"in fewer than {MIN_EXAMPLES}, told from absent", rare)
    return Report(values, [*parts, *tables, *_ranked(found.frequencies)])


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


def _probes(prior: ConsolidationPrior) -> list[str]:
    if prior.probes is None:
        return []
    return [
        f"readable word for word: the {len(prior.probes):,} probes "
        f"({prior.probes.provenance.name}), {prior.probes.num_decisions:,} decisions"
    ]


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


def _ranked(frequencies: Sequence[Frequencies]) -> list[Table]:
    rows = [("frequencies told by", "of", "rank correlation")]
    rows += [(own.what, f"{own.number:,}", f"{own.correlation:.3f}") for own in frequencies]
    return [Table(rows)] if frequencies else []


@dataclass
class _Found:
    """What the attacks come to."""

    membership: Sequence[Separation] = ()
    span: Separation | None = None
    difference: Separation | None = None
    frequencies: Sequence[Frequencies] = ()


def _attacks(prior: ConsolidationPrior, options: argparse.Namespace) -> _Found:
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    choices = Choices(max_length=options.max_length)
    members, others, added = (
        prepare(load_examples(name), model, tokenizer, choices) if name else None
        for name in (options.members, options.non_members, options.added)
    )
    assert members is not None
    assert others is not None
    data, collator = members.dataset, members.data_collator
    reading: dict[str, Any] = {"forward": members.forward, "position_mask": members.position_mask}
    found = _Found(
        membership_auc(prior, model, data, others.dataset, collator, **reading),
        span_auc(prior, model, data, collator),
        frequencies=frequencies_told(prior, model, data, collator, **reading),
    )
    if added is not None:
        earlier = ConsolidationPrior.from_pretrained(options.earlier)
        found.difference = difference_auc(prior, earlier, model, data, added.dataset, collator)
    return found
