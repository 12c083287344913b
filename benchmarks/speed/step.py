"""Seconds of a training step: plain Trainer, one prior, ten priors, ten merged into one.

    python benchmarks/speed/step.py --ranker encoder
    python benchmarks/speed/step.py --ranker cnn --steps 20
    python benchmarks/speed/step.py --ranker encoder --bf16 --penalty_dtype bfloat16
    python benchmarks/speed/step.py --ranker cnn --steps 20 --penalty_every 4

Whole optimizer steps of ``trainer.train()``, data loading and optimizer included, after two that
are not counted; every run starts a new trainer. The plain step is that of the Trainer itself.
"""

from __future__ import annotations

from functools import partial

from common import alternate, command_line, goal, ratio, rows_of, start, write
from training import CANDIDATES, RANKERS, TOKENS, WARM_UP, examples_for, make_prior, ranker, train

from hf_kfc import ConsolidationPrior

PRIORS = 10
ONE = {"encoder": 1.05, "cnn": 1.15}


def main() -> None:
    """Measure and write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--ranker", choices=RANKERS, default="encoder", help="model to train")
    parser.add_argument("--batch_size", type=int, default=32, help="ranking examples of a step")
    parser.add_argument("--steps", type=int, default=4, help="counted steps of every run")
    parser.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    parser.add_argument(
        "--merge_ranks", type=int, nargs="+", default=[1, 4], help="ranks of the merged priors"
    )
    parser.add_argument("--penalty_dtype", help="of ConsolidationArguments (default: its own)")
    parser.add_argument("--penalty_every", type=int, default=1, help="steps between two penalties")
    arguments = start(parser)
    if arguments.steps % arguments.penalty_every:
        parser.error("--steps is no multiple of --penalty_every, so runs would differ; make it one")
    if arguments.tiny:
        arguments.batch_size, arguments.steps, arguments.repetitions = 2, 4, 1
    penalty = {"penalty_dtype": arguments.penalty_dtype, "penalty_every": arguments.penalty_every}
    penalty = {name: value for name, value in penalty.items() if value not in (None, 1)}

    model = ranker(arguments.ranker, arguments.tiny).to(arguments.device)
    count = (WARM_UP + arguments.steps) * arguments.batch_size
    examples = examples_for(model, count, arguments.tiny)
    priors = [make_prior(model, seed, arguments.tiny) for seed in range(PRIORS)]
    merged = {
        f"10 merged to rank {rank}": ConsolidationPrior.merge(priors, rank=rank)
        for rank in arguments.merge_ranks
    }
    setups = {"plain": None, "1 prior": priors[:1], "10 priors": priors}
    setups |= {name: [prior] for name, prior in merged.items()}
    run = partial(
        train,
        model,
        examples,
        batch_size=arguments.batch_size,
        steps=arguments.steps,
        device=arguments.device,
        bf16=arguments.bf16,
    )

    def contestant(own: list[ConsolidationPrior] | None) -> float:
        return run(priors=own, **({} if own is None else penalty))[0]

    seconds = alternate(
        {name: partial(contestant, own) for name, own in setups.items()}, arguments.repetitions
    )
    limits = {"1 prior": ONE[arguments.ranker], "10 priors": 1.5} | dict.fromkeys(merged, 1.15)
    errors = {name: dict(prior.provenance.approximation_errors) for name, prior in merged.items()}
    goals = [
        goal(f"step with {name}, over plain", ratio(seconds, name, "plain")["median"], at_most=most)
        for name, most in limits.items()
    ]
    changes = ["bf16"] if arguments.bf16 else []
    changes += [f"{name}-{value}" for name, value in penalty.items()]
    write(
        arguments,
        "-".join(["step", arguments.ranker, *changes]),
        sizes={
            "ranker": arguments.ranker,
            "width": model.config.hidden_size,
            "vocabulary": model.config.vocab_size,
            "batch": arguments.batch_size,
            "candidates": CANDIDATES,
            "tokens": TOKENS,
            "steps of a run": arguments.steps,
            "training": "bfloat16 autocast" if arguments.bf16 else "float32",
            **penalty,
        },
        rows=[
            row | {"largest error of a layer": max(errors.get(row["contestant"], {"": 0}).values())}
            for row in rows_of(seconds, "plain")
        ],
        goals=goals,
        rounds=seconds,
        merge_errors=errors,
    )


if __name__ == "__main__":
    main()
