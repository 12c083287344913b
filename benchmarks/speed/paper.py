"""What curvature of causal models takes on paper: nothing is measured, all is counted of configs.

    python benchmarks/speed/paper.py

A Llama has in each layer seven matrices [q, p], with P entries in all layers; query, key and value
read one input, and so do gate and up, so that they share one A. The vocabulary's matrix is [V, d],
used twice. Factors are an A [p, p] of each input, a G [q, q] of each matrix, V + d² numbers of each
use of the vocabulary's matrix, and one of each entry of a normalisation. Of rank k a factor [n, n]
becomes kn + n numbers. With R tokens that all count, the multiplications of matrices are, without
attention itself,

    plain step           3 R (P + Vd)
    estimate             2 R (P + Vd) + R (Σ s(p) of each A + Σ s(q) of each G + 2 s(d))
    penalty              Σ (q²p + qp²) + 2 V d²
    penalty of rank k    4 k P + 4 V d k

with s(n) of one symmetric product, whose strips of rows begin at the diagonal: 9/16 n² of eight.
The vocabulary's are 2 s(d), and the penalty takes all tokens for such as have moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common import command_line, start, write

LLAMAS: Mapping[str, Mapping[str, Any]] = {
    "135M": {  # HuggingFaceTB/SmolLM2-135M-Instruct
        **{"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536},
        **{"num_attention_heads": 9, "num_key_value_heads": 3},
        **{"vocab_size": 49152, "tie_word_embeddings": True},
    },
    "1B": {  # meta-llama/Llama-3.2-1B
        **{"num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192},
        **{"num_attention_heads": 32, "num_key_value_heads": 8},
        **{"vocab_size": 128256, "tie_word_embeddings": True},
    },
    "8B": {  # meta-llama/Llama-3.1-8B
        **{"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336},
        **{"num_attention_heads": 32, "num_key_value_heads": 8},
        **{"vocab_size": 128256, "tie_word_embeddings": False},
    },
}
"""The fields of their config.json that count."""
STRIPS, NARROWEST, ALIGNED = 8, 64, 32
"""Of a symmetric product, as in hf_kfc/curvature/moments.py."""


def counted(config: Mapping[str, Any], rank: int, tokens: int) -> dict[str, int]:
    """Count numbers and multiplications, by what they are of.

    Args:
        config: Fields as in :data:`LLAMAS`.
        rank: k.
        tokens: R.
    """
    d, inner, V = (config[n] for n in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    matrices = [(d, d), (kv, d), (kv, d), (d, d), (inner, d), (inner, d), (d, inner)]
    sides = [d, d, d, inner, *(q for q, _ in matrices)]  # of a layer's factors, all A first
    L, squares = config["num_hidden_layers"], sum(n * n for n in sides)
    P, norms = L * sum(q * p for q, p in matrices), (2 * L + 1) * d
    both = L * sum(map(symmetric, sides)) + 2 * symmetric(d)
    return {
        "parameters": P + norms + V * d * (1 if config["tie_word_embeddings"] else 2),
        "factors": L * squares + 2 * (V + d * d) + norms,
        "factors of a layer": squares + 2 * d,
        "factors of low rank": L * sum(rank * n + n for n in sides)
        + 2 * (V + rank * d + d)
        + norms,
        "plain": 3 * tokens * (P + V * d),
        "estimate": 2 * tokens * (P + V * d) + tokens * both,
        "penalty": L * sum(q * q * p + q * p * p for q, p in matrices) + 2 * V * d * d,
        "penalty of low rank": 4 * rank * (P + V * d),
        "penalty of low rank, the vocabulary": 4 * rank * V * d,
    }


def symmetric(n: int) -> int:
    """Count what a row adds to a product [n, n] of which a half is multiplied, in strips."""
    width = max(-(-n // (STRIPS * ALIGNED)) * ALIGNED, NARROWEST)
    return sum(min(width, n - start) * (n - start) for start in range(0, n, width))


def rows_of(rank: int, tokens: int) -> list[dict[str, Any]]:
    """Return the table, a column for each model."""
    columns = {}
    for name, config in LLAMAS.items():
        own = counted(config, rank, tokens)
        columns[name] = {
            "numbers of the factors over parameters": own["factors"] / own["parameters"],
            "the same in float32, GB": 4 * own["factors"] / 1e9,
            "of one layer, GB": 4 * own["factors of a layer"] / 1e9,
            f"rank {rank} in bfloat16, GB": 2 * own["factors of low rank"] / 1e9,
            "over the bytes of the model in bfloat16": own["factors of low rank"]
            / own["parameters"],
            "estimate over a plain pass": own["estimate"] / own["plain"],
            "penalty over a plain step": own["penalty"] / own["plain"],
            f"penalty of rank {rank}": own["penalty of low rank"] / own["plain"],
            "of that, the vocabulary": own["penalty of low rank, the vocabulary"] / own["plain"],
        }
    names = next(iter(columns.values()))
    return [{"what": what} | {name: own[what] for name, own in columns.items()} for what in names]


def main() -> None:
    """Count and write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--rank", type=int, default=64, help="of the compressed prior")
    parser.add_argument("--step_tokens", type=int, default=4096, help="of a step")
    arguments = start(parser)
    rank, tokens = arguments.rank, arguments.step_tokens
    sizes = {"model": ", ".join(LLAMAS), "rank": rank, "tokens of a step": tokens}
    write(arguments, "paper", sizes=sizes, rows=rows_of(rank, tokens), goals=[])


if __name__ == "__main__":
    main()
