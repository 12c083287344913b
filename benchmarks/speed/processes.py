"""Two processes against one: examples a second of estimation, and each one's part of a penalty.

    python benchmarks/speed/processes.py

The same examples in batches of the same total size, one thread for each process, on as many cores
as there are processes. Both processes are started once and wait while the single one works. For
the penalty, each trains one step with DDP; then what its penalty multiplies, and with which bytes
of factors, is counted and compared with what one process has. Each has read the whole prior.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from common import alternate, command_line, goal, ratio, rows_of, start, timed, write
from torch import Tensor, distributed, nn
from torch.multiprocessing import get_context
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode
from training import CANDIDATES, TASK_EXAMPLES, TOKENS, examples_for, make_prior, ranker, train

from hf_kfc import ConsolidationPrior, CurvatureArguments, estimate_curvature

WORLD = 2
TIMEOUT = timedelta(minutes=30)


def estimation(arguments: argparse.Namespace, processes: int) -> Callable[[], object]:
    """Return what every process does, on its part of the examples."""
    model = ranker("encoder", arguments.tiny)
    examples = examples_for(model, arguments.examples, arguments.tiny)
    settings = CurvatureArguments(
        curvature_batch_size=arguments.batch_size // processes, products=arguments.products
    )
    return lambda: estimate_curvature(model, examples, default_collate, settings)


def penalty_part(arguments: argparse.Namespace, folder: str, processes: int) -> dict[str, int]:
    """Train with a prior, then count what this process's penalty holds and multiplies."""
    model = ranker("encoder", arguments.tiny)
    prior = Path(folder) / "prior"
    if processes == 1:
        # Of all examples: blocks are dealt out by how many tokens were seen.
        make_prior(model, 0, arguments.tiny, TASK_EXAMPLES).save_pretrained(prior)
    size = arguments.batch_size // processes
    _, trainer = train(
        model,
        examples_for(model, 3 * arguments.batch_size, arguments.tiny),
        batch_size=size,
        steps=1,
        device="cpu",
        priors=[ConsolidationPrior.from_pretrained(prior)],
    )
    penalty = trainer._penalty
    with FlopCounterMode(display=False) as counter:
        penalty()
    placed = [term._product for layer in penalty._layers for term in layer]
    return {
        "factors placed where they are multiplied": held_bytes(placed),
        "multiplications": counter.get_total_flops(),
    }


def held_bytes(holder: object) -> int:
    """Count the bytes of all tensors within an object, except for the model's parameters."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [holder]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, nn.Parameter | nn.Module):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        else:
            waiting += getattr(value, "__dict__", {}).values()
    return sum(storages.values())


def worker(
    rank: int, folder: str, port: int, pipe: Connection, arguments: argparse.Namespace
) -> None:
    """Do what the main process asks for, as one of two processes."""
    torch.set_num_threads(arguments.threads)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    store = distributed.FileStore(str(Path(folder) / "store"), WORLD)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=TIMEOUT
    )
    work = {
        "estimate": estimation(arguments, WORLD),
        "penalty": lambda: penalty_part(arguments, folder, WORLD),
    }
    while wanted := pipe.recv():
        result = work[wanted]()
        pipe.send(result if wanted == "penalty" else None)
    distributed.destroy_process_group()


def ask(pipes: list[Connection], wanted: str) -> list[Any]:
    """Have all processes do something, and wait for their answers."""
    for pipe in pipes:
        pipe.send(wanted)
    return [pipe.recv() for pipe in pipes]


def main() -> None:
    """Measure and write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--examples", type=int, default=64, help="ranking examples")
    parser.add_argument("--batch_size", type=int, default=16, help="examples of all processes")
    parser.add_argument("--products", default="symmetric", help="of CurvatureArguments")
    arguments = start(parser)
    if arguments.device == "cuda":
        parser.error("--device is cuda, but two processes need two devices here; leave it out")
    if arguments.tiny:
        arguments.examples, arguments.batch_size, arguments.repetitions = 8, 4, 1
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = get_context("spawn")
    pairs = [context.Pipe() for _ in range(WORLD)]
    pipes = [near for near, _ in pairs]
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=worker, args=(rank, folder, port, far, arguments), daemon=True)
            for rank, (_, far) in enumerate(pairs)
        ]
        for process in processes:
            process.start()
        contestants = {
            "one process": timed(estimation(arguments, 1), "cpu"),
            "two processes": timed(lambda: ask(pipes, "estimate"), "cpu"),
        }
        seconds = alternate(contestants, arguments.repetitions)
        whole = penalty_part(arguments, folder, 1)
        parts = ask(pipes, "penalty")
        for pipe in pipes:
            pipe.send("")
        for process in processes:
            process.join()

    rows = rows_of(seconds, "one process")
    for row in rows:
        row["examples/s"] = arguments.examples / row["seconds"]
    shares = [
        {"process": rank} | {f"share of {what}": part[what] / whole[what] for what in whole}
        for rank, part in enumerate(parts)
    ]
    speedup = ratio(seconds, "one process", "two processes")["median"]
    goals = [goal("estimation by two processes, times as fast", speedup, at_least=1.8)]
    goals += [
        goal(f"penalty: a process's {name}", max(own[name] for own in shares), at_most=0.55)
        for name in shares[0]
        if name != "process"
    ]
    write(
        arguments,
        "processes",
        sizes={
            "model": "BERT, width 384, 3 layers",
            "examples": arguments.examples,
            "batch of all processes": arguments.batch_size,
            "candidates": CANDIDATES,
            "tokens": TOKENS,
            "products": arguments.products,
            "threads of a process": arguments.threads,
        },
        rows=rows,
        goals=goals,
        rounds=seconds,
        penalty=shares,
    )


if __name__ == "__main__":
    main()
