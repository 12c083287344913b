"""Parts of the report that other experiments make: toy pictures and the monthly stream."""

from __future__ import annotations

import shutil
from pathlib import Path

from hf_kfc.errors import ConsolidationError

from .blocks import Block, Heading, Picture, Table

__all__ = ["stream_blocks", "toy_blocks"]

_TOYS = {
    "two_parameters": "Two parameters: the exact Fisher of an old task and its approximations, and "
    "where a new task ends under each (after Figure 1 of McInerney et al. 2021).",
    "cnn_fisher": "Parts of the exact Fisher of a small CNN beside the Kronecker and the diagonal "
    "approximation (after their Figure 2). In a ranker, whose scores share one softmax, what the "
    "candidates have in common cancels in the exact Fisher and not in the Kronecker product.",
    "hessian_lesson": "Why the Hessian's diagonal is no penalty: its negative entries reward "
    "moving away without bound. With these set to 0 it holds, as the Fisher does.",
}
_STREAM = {
    "last_update": "The stream after its last update: test accuracy on each period.",
    "each_update": "The stream after each update: test accuracy on each period, by method.",
}


def toy_blocks(folder: Path, directory: Path) -> list[Block]:
    """Copy the pictures of the toy computations and return them with captions.

    Args:
        folder: With the PNG files, and SVG files beside them.
        directory: Of the report.

    Raises:
        ConsolidationError: The folder has none of the pictures.
    """
    pictures: list[Block] = []
    for name, caption in _TOYS.items():
        if (folder / f"{name}.png").exists():
            for end in (".png", ".svg"):
                if (folder / f"{name}{end}").exists():
                    shutil.copyfile(folder / f"{name}{end}", directory / f"toy-{name}{end}")
            pictures.append(Picture(directory / f"toy-{name}.png", caption))
    if not pictures:
        raise ConsolidationError(
            f"{folder} has none of {', '.join(f'{name}.png' for name in _TOYS)}; make them with "
            "recipes/toys.py or leave --toys out"
        )
    return [Heading("What the curvatures are: toys"), *pictures]


def stream_blocks(path: Path, directory: Path) -> list[Block]:
    """Draw a stream of periods and return its table and pictures.

    Args:
        path: Its results file.
        directory: Of the report.

    Raises:
        ConsolidationError: The file is broken, or the stream lacks a reference.
    """
    from ..stream_report import save_stream_figures, stream_table  # noqa: PLC0415

    lines = [line.strip() for line in stream_table(path).splitlines() if line.strip()]
    names, _, *rows = [_cells(line) for line in lines if line.startswith("|")]
    notes = " ".join(line for line in lines if not line.startswith("|"))
    table = Table(
        "Table 7. The stream after its last update", [("", n) for n in names], [("", rows)], [notes]
    )
    pictures = [
        Picture(own, caption)
        for own in save_stream_figures(path, directory)
        for end, caption in _STREAM.items()
        if own.name.endswith(f"{end}.png")
    ]
    return [Heading("The monthly stream"), table, *pictures]


def _cells(line: str) -> list[str]:
    return [cell.strip() or "-" for cell in line.strip("|").split("|")]
