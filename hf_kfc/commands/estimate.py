"""Make the prior of a model that has just learnt a data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..curvature import default_forward
from ..errors import ConsolidationError, HfKfcError
from ..priors import ConsolidationPrior, PushedPrior
from ..priors.card import prior_card
from ..priors.files import refuse_other_files
from ..priors.privacy import MIN_EXAMPLES
from ..priors.push import check_repository
from ..probes import Probes, pad_tokens, unlabelled_forward
from ..probes.inputs import said_twice
from .examples import load_examples, prepare
from .formats import Choices, Prepared
from .loading import load_model, load_tokenizer
from .options import curvature_arguments
from .report import Report, Table
from .texts import token_limit

__all__ = ["report"]

_WRITTEN = 128  # tokens of a text that the model writes itself
_STATEMENT = "The model wrote all texts itself; the curvature is of those that are its probes."


def report(options: argparse.Namespace) -> Report:
    """Estimate a prior, write it and, if asked to, publish it."""
    args = curvature_arguments(options)
    _refuse_unread(options)
    output: Path = options.output or Path(options.push_to_hub.rpartition("/")[2])
    refuse_other_files(output)
    model = load_model(options.model, torch.float32)
    nn.Module.to(model, _device(options.device))
    tokenizer = load_tokenizer(options.model)
    if options.push_to_hub:
        check_repository(options.push_to_hub)
    prepared, probes = _examples(options, model, tokenizer)
    prior = ConsolidationPrior.estimate(
        model,
        prepared.dataset,
        prepared.data_collator,
        args,
        task=options.task or (Path(options.dataset).stem if options.dataset else "general"),
        forward=prepared.forward,
        position_mask=prepared.position_mask,
        probes=probes,
        checkpoint_dir=output.absolute().parent / f".{output.name}.checkpoint",
    )
    published = _keep(prior, output, options)
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    coverage = prior.curvature.coverage
    coverage["free to move"] = total - sum(coverage.values())
    values = {
        "output": str(output),
        "published": published and str(published),
        "fingerprint": prior.fingerprint,
        "provenance": prior.provenance.to_dict(),
        "coverage": coverage,
        "ignored": list(prior.curvature.ignored),
    }
    rows = [("curvature", "parameters", "share")]
    rows += [(kind, f"{n:,}", f"{n / total:.1%}") for kind, n in coverage.items()]
    said = f"{output}: task '{prior.task}', {len(prepared.dataset):,} examples"
    return Report(
        values, [Table(rows), said + (f", published as {published}" if published else "")]
    )


def _keep(
    prior: ConsolidationPrior, output: Path, options: argparse.Namespace
) -> PushedPrior | None:
    """Write a prior and, if asked to, push it; of texts that the model wrote there is no secret."""
    least, card = MIN_EXAMPLES, None
    if options.generate:
        name = options.push_to_hub or output.name
        least, card = 0, prior_card(prior, name, data_statement=_STATEMENT)
    prior.save_pretrained(output, card=card)
    if not options.push_to_hub:
        return None
    try:
        return prior.push_to_hub(options.push_to_hub, min_examples=least, card=card)
    except (HfKfcError, OSError) as error:
        raise ConsolidationError(
            f"{error}; the prior is kept, and this publishes it without another estimate: hf-kfc "
            f"push {output} {options.push_to_hub} --min_examples {least}"
        ) from error


def _refuse_unread(options: argparse.Namespace) -> None:
    """Refuse what would have no say, before any work."""
    unread = ["drop_repeats_of"]
    if options.generate:
        of_any = () if options.drop_repeats_of else ("config", "split")
        unread = ["probes", "said_twice", "text_columns", "label_column", *of_any]
    if given := [f"--{name}" for name in unread if getattr(options, name)]:
        reason = "of --generate all texts are probes, and no such data set is read"
        raise ConsolidationError(
            f"{', '.join(given)}: {reason if options.generate else 'it is of --generate'}; leave "
            "that out"
        )


def _examples(
    options: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[Prepared, Probes | None]:
    """Encode the data set, or let the model write texts, which are probes too."""
    if options.said_twice and not (options.probes and _is_causal(model)):
        raise ConsolidationError(
            "--said_twice is for the --probes of a causal language model; give their number, or "
            "leave it out"
        )
    name = options.dataset or options.drop_repeats_of
    dataset = name and load_examples(name, options.config, options.split or "train")
    if options.dataset:
        choices = Choices(options.text_columns, options.label_column, options.max_length)
        prepared = prepare(dataset, model, tokenizer, choices)
        return prepared, _probes_of(prepared, model, tokenizer, options) if options.probes else None
    longest = token_limit(model, tokenizer, options.max_length or _WRITTEN)
    assert longest is not None
    probes = Probes.generate(
        model,
        tokenizer,
        count=options.generate,
        max_length=longest,
        seed=options.curvature_seed,
        drop_repeats_of=dataset,
    )
    texts = datasets.Dataset.from_list([dict(row) for row in probes.rows])
    return Prepared(texts, _next_tokens), probes


def _is_causal(model: PreTrainedModel) -> bool:
    return model.can_generate() and not model.config.is_encoder_decoder


def _probes_of(
    prepared: Prepared,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: argparse.Namespace,
) -> Probes:
    is_default = prepared.forward is default_forward
    examples = prepared.dataset
    if options.said_twice:
        begin, columns = tokenizer.bos_token_id, examples.column_names

        def twice(ids: list[int]) -> dict[str, list[int]]:
            return {"input_ids": said_twice(ids, begin)}

        examples = examples.map(twice, input_columns="input_ids", remove_columns=columns)
    return Probes.from_dataset(
        model,
        examples,
        prepared.data_collator,
        max_probes=options.probes,
        forward=unlabelled_forward if is_default else prepared.forward,
        source=Path(options.dataset).stem,
        seed=options.curvature_seed,
    )


def _next_tokens(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = pad_tokens(rows)
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def _device(name: str | None) -> torch.device:
    try:
        return torch.device(
            name or torch.accelerator.current_accelerator(check_available=True) or "cpu"
        )
    except RuntimeError as error:
        raise ConsolidationError(
            f"device '{name}' is unknown ({error}); give cpu or cuda"
        ) from None
