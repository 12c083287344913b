"""Kronecker factors of a 3-layer BERT: ours, those of other libraries, and a plain backward pass.

    python benchmarks/speed/factors.py --width 384
    python benchmarks/speed/factors.py --width 768
    python benchmarks/speed/factors.py --model FOLDER    # MiniLM's first three layers
    python benchmarks/speed/factors.py --width 384 --padding 0

All contestants see the same batches of ranking examples, in evaluation mode, and work on the same
linear layers with the data's labels (empirical Fisher). ``plain`` is one forward and backward pass
with the gradients of all parameters. The others are in peers.py. ``bf16`` of a peer is its own
option where it has one (kronfluence), and otherwise PyTorch's autocast around all it does.

``hf_kfc`` runs with each kind of ``products``; the goals of float32 are those of ``symmetric``, its
default.

Errors are relative Frobenius norms against factors summed in float64 by independent code: the
largest of all layers. Peers that do not know the padding mask are compared with a reference that
counts padding as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from common import alternate, command_line, goal, ratio, rows_of, start, timed, write
from peers import (
    Factors,
    curvlinops_factors,
    kronfluence_factors,
    largest_error,
    nngeometry_factors,
    normalised,
    our_factors,
    reference_factors,
)
from torch import nn
from torch.nn import functional
from workload import PADDING, Batch, batches_of, encoder, inputs_of, padded_share, ranking_examples

OURS = {f"hf_kfc {name}": name for name in ("symmetric", "bfloat16", "full")}
KNOWS_PADDING = ("hf_kfc", "kronfluence")
BF16 = torch.bfloat16


def plain(model: nn.Module, batches: Sequence[Batch]) -> Callable[[], None]:
    """One forward and backward pass of the mean loss of each batch."""

    def run() -> None:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            logits = model(**inputs_of(batch)).logits
            functional.cross_entropy(logits, batch["labels"]).backward()
        model.zero_grad(set_to_none=True)

    return run


def in_bf16(work: Callable[[], Any], device: str) -> Callable[[], Any]:
    """Run under autocast."""

    def run() -> Any:
        with torch.autocast(device, dtype=BF16):
            return work()

    return run


Fits = Mapping[str, tuple[Callable[[], Factors], float]]
"""Functions that compute factors, and what their G is to be divided by."""


def errors(fits: Fits, references: Mapping[bool, Factors]) -> dict[str, dict[str, float]]:
    """Compare every contestant's factors with the float64 reference, on one scale."""
    found = {}
    for name, (fit, scale) in fits.items():
        exact = references[name.startswith(KNOWS_PADDING)]
        A, G = largest_error(normalised(fit(), scale), exact)
        found[name] = {"error of A": A, "error of G": G}
    return found


def main() -> None:
    """Measure and write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--width", type=int, default=384, help="of a BERT from a random start")
    parser.add_argument("--model", help="folder of an encoder to take the first layers of")
    parser.add_argument("--layers", type=int, default=3, help="encoder layers")
    parser.add_argument("--examples", type=int, default=64, help="ranking examples")
    parser.add_argument("--batch_size", type=int, default=8, help="examples per forward pass")
    parser.add_argument("--padding", type=float, default=PADDING, help="share of padding")
    arguments = start(parser)
    candidates, tokens, count, device = 6, 36, arguments.examples, arguments.device
    vocabulary = 30522
    if arguments.tiny:
        arguments.width, tokens, count, arguments.repetitions = 48, 12, 6, 1
        vocabulary, arguments.batch_size = 300, 4
    model = encoder(arguments.width, arguments.layers, vocabulary, arguments.model).to(device)
    examples = ranking_examples(count, candidates, tokens, vocabulary, padding=arguments.padding)
    batches = batches_of(examples, arguments.batch_size, device)

    ours = {
        name: our_factors(model, examples, arguments.batch_size, products)
        for name, products in OURS.items()
    }
    curvlinops, nngeometry = (
        make(model, batches) for make in (curvlinops_factors, nngeometry_factors)
    )
    peers = {
        "kronfluence": kronfluence_factors(model, batches),
        "curvlinops": curvlinops,
        "nngeometry": nngeometry,
    }
    in_half = {
        "kronfluence bf16": kronfluence_factors(model, batches, BF16),
        "curvlinops bf16": in_bf16(curvlinops, device),
        "nngeometry bf16": in_bf16(nngeometry, device),
    }
    step = plain(model, batches)
    contestants = {"plain": step, **ours, **peers, "plain bf16": in_bf16(step, device), **in_half}
    # What divides each library's G to a mean over examples; nngeometry has divided by batches.
    scales = dict.fromkeys(ours, 1.0) | dict.fromkeys([*peers, *in_half], float(count))
    scales |= {name: count / len(batches) for name in scales if name.startswith("nngeometry")}
    exact = {
        knows: normalised(reference_factors(model, batches, count_padding=not knows), float(count))
        for knows in (True, False)
    }
    fits = {name: (fit, scales[name]) for name, fit in (ours | peers | in_half).items()}
    found = errors(fits, exact)

    seconds = alternate(
        {name: timed(work, device) for name, work in contestants.items()}, arguments.repetitions
    )
    rows = [row | found.get(row["contestant"], {}) for row in rows_of(seconds, "plain")]
    medians = {row["contestant"]: row["seconds"] for row in rows}
    fastest = min(peers, key=medians.__getitem__)
    worst = {name: max(own.values()) for name, own in found.items()}
    goals = [
        goal(
            "float32, over plain",
            ratio(seconds, "hf_kfc symmetric", "plain")["median"],
            at_most=1.2,
        ),
        goal(
            f"float32, times as fast as {fastest}",
            ratio(seconds, fastest, "hf_kfc symmetric")["median"],
            at_least=1.4,
        ),
        goal("float32, largest error of a factor", worst["hf_kfc symmetric"], at_most=1e-4),
        goal(
            f"bfloat16, times as fast as {fastest}",
            ratio(seconds, fastest, "hf_kfc bfloat16")["median"],
            at_least=3,
        ),
        goal("bfloat16, largest error of a factor", worst["hf_kfc bfloat16"], at_most=0.01),
    ]
    kind = "minilm" if arguments.model else str(arguments.width)
    unpadded = "" if arguments.padding else "-unpadded"
    write(
        arguments,
        f"factors-{kind}{unpadded}",
        sizes={
            "model": arguments.model or "BERT from a random start",
            "width": model.config.hidden_size,
            "layers": arguments.layers,
            "examples": count,
            "candidates": candidates,
            "tokens": tokens,
            "examples per forward pass": arguments.batch_size,
            "padded share": round(
                padded_share(torch.cat([b["attention_mask"] for b in batches])), 3
            ),
        },
        rows=rows,
        goals=goals,
        rounds=seconds,
        fastest_peer=fastest,
    )


if __name__ == "__main__":
    main()
