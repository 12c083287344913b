"""Seconds of a training step: plain Trainer, probes a quarter of the batch, and one prior beside.

    python benchmarks/speed/probes.py --ranker encoder
    python benchmarks/speed/probes.py --ranker cnn --steps 20

Whole optimizer steps of ``trainer.train()``, data loading and optimizer included, after two that
are not counted; every run starts a new trainer. On a CPU a second is one of the process's own time,
so that other work on the machine does not count. What is forgotten is measured outside of the
counted steps; the seconds of one such measurement stand in a row of their own.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from common import alternate, command_line, goal, ratio, rows_of, start, write
from torch.utils.data import default_collate
from training import CANDIDATES, RANKERS, TOKENS, WARM_UP, examples_for, make_prior, ranker, train

from hf_kfc import Probes

LIMITS = {"encoder": 1.30, "cnn": 1.35}
HELD_OUT = 256
EVERY = 50


def main() -> None:
    """Measure and write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--ranker", choices=RANKERS, default="encoder", help="model to train")
    parser.add_argument("--batch_size", type=int, default=32, help="ranking examples of a step")
    parser.add_argument("--steps", type=int, default=4, help="counted steps of every run")
    arguments = start(parser)
    held_out = HELD_OUT
    if arguments.tiny:
        arguments.batch_size, arguments.steps, arguments.repetitions, held_out = 4, 4, 1, 4
    now = time.process_time if arguments.device == "cpu" else time.perf_counter

    model = ranker(arguments.ranker, arguments.tiny).to(arguments.device)
    size = arguments.batch_size // 4
    steps = WARM_UP + arguments.steps
    examples = examples_for(model, steps * arguments.batch_size, arguments.tiny)
    inputs = examples_for(model, steps * size + held_out, arguments.tiny, seed=7)
    probes = Probes.from_dataset(model, inputs, default_collate)
    settings: dict[str, Any] = {
        "probes": probes,
        "probe_batch_size": size,
        "probe_held_out": held_out / len(probes),
        "forgetting_every": 0,
    }
    prior = make_prior(model, 0, arguments.tiny)
    setups: dict[str, dict[str, Any]] = {
        "plain": {},
        "probes": {"priors": [], **settings},
        "probes and 1 prior": {"priors": [prior], **settings},
    }
    run = partial(
        train,
        model,
        examples,
        batch_size=arguments.batch_size,
        steps=arguments.steps,
        device=arguments.device,
        now=now,
    )

    def contestant(own: dict[str, Any]) -> float:
        return run(**own)[0]

    seconds = alternate(
        {name: partial(contestant, own) for name, own in setups.items()}, arguments.repetitions
    )
    _, trainer = run(**setups["probes"])
    begin = now()
    trainer._probing.measure()  # type: ignore[attr-defined]
    spent = now() - begin
    rows = rows_of(seconds, "plain")
    rows.append({"contestant": f"a measurement of {held_out} probes", "seconds": spent})
    steps_of_it = spent / rows[0]["seconds"]
    name = f"one in {EVERY} steps, over plain"
    rows.append({"contestant": name, "over plain": 1 + steps_of_it / EVERY})
    write(
        arguments,
        f"probes-{arguments.ranker}",
        sizes={
            "ranker": arguments.ranker,
            "width": model.config.hidden_size,
            "vocabulary": model.config.vocab_size,
            "batch": arguments.batch_size,
            "probes in a step": size,
            "candidates": CANDIDATES,
            "tokens": TOKENS,
            "steps of a run": arguments.steps,
        },
        rows=rows,
        goals=[
            goal(
                "step with probes a quarter of the batch, over plain",
                ratio(seconds, "probes", "plain")["median"],
                at_most=LIMITS[arguments.ranker],
            )
        ],
        rounds=seconds,
    )


if __name__ == "__main__":
    main()
