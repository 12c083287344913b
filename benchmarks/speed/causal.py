"""What curvature costs of a causal language model: an estimate, its bytes, a step, its memory.

    python benchmarks/speed/causal.py                        # SmolLM2-135M
    python benchmarks/speed/causal.py --texts 64 --tokens 64 --repetitions 2
    python benchmarks/speed/causal.py --model FOLDER
    python benchmarks/speed/causal.py --what estimate        # or training: the rest alone
    python benchmarks/speed/causal.py --precision float32    # where a processor has no bfloat16

Texts are made up, of one length and with token ids by a law of Zipf. Seconds are those of the
process on the CPU, for a round takes minutes and the machine may have other work: nothing here runs
in two threads. ``plain`` is a forward and backward pass with the gradients of all parameters, in
float32, in batches of 8 texts; a step is one of ``trainer.train()`` in bfloat16 mixed precision, or
in float32.
Peak memory is of a fresh process that loads the model and the prior and trains six steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import alternate, command_line, goal, ratio, rows_of, start, write
from memory import peak_memory
from size import MIB, POINTED, bytes_of
from torch.utils.data import default_collate
from training import WARM_UP, train
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from workload import Example, batches_of, parameter_bytes, zipf_tokens

from hf_kfc import ConsolidationPrior, CurvatureArguments, Probes
from hf_kfc.priors.privacy import without_rare_inputs

BATCH, STEP_BATCH, STEPS = 8, 4, 4
TOP_K = 256  # next tokens that a probe keeps
UNIT = "seconds of the process on the CPU"
ESTIMATES: Mapping[str, dict[str, Any]] = {
    "Kronecker": {},
    "Kronecker, bfloat16 products": {"products": "bfloat16"},
    "diagonal": {"curvature": "diagonal"},
}
EVERY_4TH = {"penalty_every": 4}
TWO = {"probe_batch_size": 2}


class SetUp(NamedTuple):
    """How steps are trained.

    Args:
        prior: Its folder.
        settings: Fields of ConsolidationArguments.
        share: Tokens of a probe over those of a text.
    """

    prior: str | None = None
    settings: Mapping[str, Any] = {}
    share: float = 1.0


STEPS_WITH: Mapping[str, SetUp] = {
    "plain": SetUp(),
    "as estimated": SetUp("whole"),
    "as estimated, every 4th step": SetUp("whole", EVERY_4TH),
    "published": SetUp("published"),
    "published, every 4th step": SetUp("published", EVERY_4TH),
    "published, every 4th step, probes": SetUp("published", EVERY_4TH | TWO),
    "published, every 4th step, probes of three quarters": SetUp(
        "published", EVERY_4TH | TWO, 0.75
    ),
    "published, every 4th step, three probes in every 2nd": SetUp(
        "published",
        EVERY_4TH | {"probe_batch_size": 3, "probe_every": 2},
    ),
    "published, every 4th step, one probe": SetUp("published", EVERY_4TH | {"probe_batch_size": 1}),
}
"""What is measured; probes are made up too."""
PUBLISHED = "published, every 4th step"
REMEMBERED = ("plain", "as estimated, every 4th step", PUBLISHED)
WITH_PROBES = (f"{PUBLISHED}, probes", f"{PUBLISHED}, probes of three quarters")
STEP_GOALS = {PUBLISHED: 1.15} | dict.fromkeys(WITH_PROBES, 1.5)


def chosen(names: Iterable[str], arguments: argparse.Namespace) -> list[str]:
    """Return what is measured: all, or plain and those asked for."""
    return [n for n in names if arguments.only is None or n == "plain" or n in arguments.only]


def model_of(name: str, tiny: bool) -> PreTrainedModel:
    """Load the model, or make a tiny one."""
    if not tiny:
        from laboratory.lm.models import load_model  # noqa: PLC0415 - needs the repository's root

        return load_model(name)[0].eval()
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**sizes | heads)).eval()


def texts_of(model: PreTrainedModel, count: int, tokens: int) -> list[Example]:
    """Draw texts."""
    rows = zipf_tokens((count, tokens), model.config.vocab_size, torch.Generator().manual_seed(0))
    return [
        {"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in rows
    ]


def estimated(model: PreTrainedModel, texts: list[Example], **settings: Any) -> ConsolidationPrior:
    """Estimate a prior."""
    arguments = CurvatureArguments(curvature_batch_size=BATCH, **settings)
    return ConsolidationPrior.estimate(model, texts, default_collate, arguments, task="task")


def plain(model: PreTrainedModel, texts: list[Example]) -> None:
    """One forward and backward pass of each batch."""
    for batch in batches_of(texts, BATCH, str(model.device)):
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)


def on_the_cpu(work: Callable[[], object]) -> Callable[[], float]:
    """Make a contestant of a function: the process's own seconds."""

    def contestant() -> float:
        begin = time.process_time()
        work()
        return time.process_time() - begin

    return contestant


def step_of(name: str, model: PreTrainedModel, folder: Path, tokens: int, precision: str) -> float:
    """Train some steps as one set-up does, and return the process's seconds of one."""
    prior, penalty, share = STEPS_WITH[name]
    probes = None
    if rows := penalty.get("probe_batch_size"):
        texts = texts_of(model, rows * (WARM_UP + STEPS), round(share * tokens))
        probes = Probes.from_dataset(model, texts, default_collate, top_k=TOP_K)
    return train(
        model,
        texts_of(model, STEP_BATCH * (WARM_UP + STEPS), tokens),
        batch_size=STEP_BATCH,
        steps=STEPS,
        device=str(model.device),
        priors=None if prior is None else [ConsolidationPrior.from_pretrained(folder / prior)],
        probes=probes,
        bf16=precision == "bfloat16",
        now=time.process_time,
        penalty_dtype=precision,
        **penalty,
    )[0]


def peak_of(name: str, folder: Path) -> float:
    """Start this script anew for one set-up; return its peak memory in MiB."""
    command = [sys.executable, __file__, *sys.argv[1:], "--work", str(folder), "--setup", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_estimates(
    arguments: argparse.Namespace,
    model: PreTrainedModel,
    texts: list[Example],
    sizes: Mapping[str, Any],
) -> ConsolidationPrior | None:
    """Measure estimates beside plain passes, write the results, and return a Kronecker one."""
    made: dict[str, ConsolidationPrior] = {}

    def estimate(name: str) -> None:
        made[name] = estimated(model, texts, **ESTIMATES[name])

    work = {"plain": partial(plain, model, texts)}
    names = chosen(ESTIMATES, arguments)
    work |= {name: partial(estimate, name) for name in names}
    rounds = alternate(
        {name: on_the_cpu(own) for name, own in work.items()}, arguments.repetitions, uncounted=0
    )
    over_plain = {own: ratio(rounds, own, "plain")["median"] for own in names}
    write(
        arguments,
        f"causal-estimate-{arguments.texts}",
        sizes=sizes,
        rows=rows_of(rounds, "plain"),
        goals=[
            goal(f"estimate, {own}, over plain", value, at_most=1.25)
            for own, value in over_plain.items()
        ],
        rounds=rounds,
        unit=UNIT,
    )
    return made.get("Kronecker")


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--model", default="smollm2", help="folder or Hub name")
    parser.add_argument("--what", choices=("estimate", "training"), help="measure this alone")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[*ESTIMATES, *STEPS_WITH],
        help="measure these alone, beside plain: " + "; ".join([*ESTIMATES, *STEPS_WITH]),
    )
    parser.add_argument(
        "--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of training"
    )
    parser.add_argument("--texts", type=int, default=64, help="of the prior")
    parser.add_argument("--tokens", type=int, default=96, help="of a text")
    parser.add_argument("--rank", type=int, default=64, help="of the published prior, in bfloat16")
    for name in ("--work", "--setup"):  # of the processes that this one starts
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = start(parser, least=1)
    if arguments.tiny:
        arguments.texts, arguments.tokens, arguments.rank, arguments.repetitions = 8, 12, 4, 1
    return arguments


def main() -> None:
    """Measure and write the results."""
    arguments = parsed()
    if arguments.setup:
        folder = Path(arguments.work)
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        loaded.to(arguments.device)
        step_of(arguments.setup, loaded, folder, arguments.tokens, arguments.precision)
        print(json.dumps(peak_memory(arguments.device)))
        return
    model = model_of(arguments.model, arguments.tiny).to(arguments.device)
    texts = texts_of(model, arguments.texts, arguments.tokens)
    plain(model, texts[:BATCH])
    estimated(model, texts[:BATCH])  # memory that is touched for the first time takes seconds
    sizes = {
        "model": arguments.model,
        "model (MiB)": round(parameter_bytes(model) / MIB, 1),
        "texts": arguments.texts,
        "tokens of a text": arguments.tokens,
    }
    whole = None
    if arguments.what != "training":
        whole = measure_estimates(arguments, model, texts, sizes)
        if arguments.what:
            return
    whole = whole or estimated(model, texts)
    in_half = without_rare_inputs(whole).compress(dtype=torch.bfloat16)
    published = without_rare_inputs(whole).compress(rank=arguments.rank, dtype=torch.bfloat16)
    name = f"published, rank {arguments.rank}, bfloat16"
    priors = {"as estimated": whole, "published, bfloat16": in_half, name: published}
    model_bytes = parameter_bytes(model)
    of_priors = [
        {"prior": own, "MiB": total / MIB, POINTED: (total - anchor) / model_bytes}
        for own, (total, anchor) in ((n, bytes_of(prior)) for n, prior in priors.items())
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model.save_pretrained(folder / "model")
        whole.save_pretrained(folder / "whole")
        published.save_pretrained(folder / "published")
        del whole, in_half, published, priors
        given = model, folder, arguments.tokens, arguments.precision
        of_steps = alternate(
            {own: partial(step_of, own, *given) for own in chosen(STEPS_WITH, arguments)},
            arguments.repetitions,
            uncounted=0,
        )
        peaks = {own: peak_of(own, folder) for own in REMEMBERED if own in of_steps}
    over = {own: peak / peaks["plain"] for own, peak in peaks.items()}
    goals = [goal(f"bytes of '{name}' over the model's", of_priors[-1][POINTED], at_most=0.25)]
    goals += [
        goal(f"step, {own}, over plain", ratio(of_steps, own, "plain")["median"], at_most=most)
        for own, most in STEP_GOALS.items()
        if own in of_steps
    ]
    if PUBLISHED in over:
        goals.append(goal(f"peak memory, {PUBLISHED}, over plain", over[PUBLISHED], at_most=1.5))
    rows = [{"what": "step"} | row for row in rows_of(of_steps, "plain")]
    rows += [
        {"what": "peak memory", "contestant": own, "MiB": peak, "over plain": over[own]}
        for own, peak in peaks.items()
    ]
    rows += [{"what": "bytes", "contestant": row.pop("prior"), **row} for row in of_priors]
    write(
        arguments,
        "causal" if arguments.precision == "bfloat16" else f"causal-{arguments.precision}",
        sizes=sizes | {"texts of a step": STEP_BATCH, "training": arguments.precision},
        rows=rows,
        goals=goals,
        rounds=of_steps,
        unit=UNIT,
    )


if __name__ == "__main__":
    main()
