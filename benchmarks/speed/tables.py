"""Make README.md and factors.svg of this folder from its results files alone.

python benchmarks/speed/tables.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PICTURE = "factors.svg"
Results = Mapping[str, Any]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as a table; the columns are those of all rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = [any(type(row.get(c)) in (int, float) for row in rows) for c in columns]
    lines = [
        f"| {' | '.join(columns)} |",
        "|" + "|".join("---:" if is_number else "---" for is_number in numeric) + "|",
    ]
    for row in rows:
        lines.append("| " + " | ".join(cell(row.get(name)) for name in columns) + " |")
    return "\n".join(lines)


def cell(value: Any) -> str:
    """Write a value: nothing, a word, a whole number, or three significant digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def section(results: Results) -> str:
    """Write one results file: what it is, its machine and its table."""
    machine = results["machine"]
    sizes = ", ".join(f"{name} {cell(value)}" for name, value in results["sizes"].items())
    rounds = results.get("repetitions")
    flags = " ".join(machine["cpu flags"]) or "no wide vectors"
    parts = [
        f"## {results['benchmark']} ({machine['device']})",
        f"`{results['command']}`, {results['date'][:10]}",
        f"{sizes}{f'; {rounds} rounds' if rounds else ''}.",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads ({flags}), load "
        f"{machine['load at the start']} at the start; PyTorch {machine['torch']}, "
        f"transformers {machine['transformers']}.",
        markdown(results["rows"]),
    ]
    for name in ("exponents", "penalty"):
        if results.get(name):
            parts += [f"{name.capitalize()}:", markdown(results[name])]
    return "\n\n".join(parts)


def goals_of(everything: Sequence[Results]) -> str:
    """Write all goals of all files as one table."""
    rows = [
        {
            "benchmark": results["benchmark"],
            "device": results["machine"]["device"],
            "what": own["what"],
            "measured": own["value"],
            "goal": own["goal"],
            "met": own["met"],
        }
        for results in everything
        for own in results["goals"]
    ]
    return markdown(rows)


def draw(everything: Sequence[Results], path: Path) -> bool:
    """Draw the factors' seconds over plain as bars, a panel for each file; tell if there is any."""
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    chosen = [r for r in everything if r["benchmark"].startswith("factors")]
    if not chosen:
        return False
    height = (len(chosen) + 1) // 2
    figure = Figure(figsize=(10, 3.4 * height), layout="constrained")
    panels = figure.subplots(height, 2, squeeze=False).flatten()
    for axes in panels[len(chosen) :]:
        axes.remove()
    for axes, results in zip(panels[: len(chosen)], chosen, strict=True):
        rows = results["rows"][::-1]
        names = [row["contestant"] for row in rows]
        values = [row["over plain"] for row in rows]
        colours = ["#2f6fb2" if name.startswith("hf_kfc") else "#9a9a9a" for name in names]
        axes.bar_label(axes.barh(names, values, color=colours), fmt="%.2f", padding=2)
        axes.axvline(1, color="#c0392b", linestyle="--", linewidth=1.2)
        axes.set_title(f"{results['benchmark']}, {results['machine']['device']}", fontsize=10)
        axes.set_xlabel("seconds over a plain forward and backward pass")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)
    with rc_context({"svg.hashsalt": "hf_kfc"}):  # the same file of the same results
        figure.savefig(path, metadata={"Date": None})
    return True


def main() -> None:
    """Write the page and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results files")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of what is made")
    arguments = parser.parse_args()
    paths = sorted(arguments.results.glob("*.json"))
    if not paths:
        parser.error(f"{arguments.results} holds no results; run a benchmark first")
    everything = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    parts = [
        "# Speed, memory and size",
        "Made by `tables.py` from the files in [results](results), which have every round; "
        "[docs/explanation/speed.md](../../docs/explanation/speed.md) says how they are measured.",
    ]
    if any(results["goals"] for results in everything):
        parts.append(goals_of(everything))
    if draw(everything, arguments.output / PICTURE):
        parts.append(f"![Seconds of Kronecker factors over a plain pass]({PICTURE})")
    parts += [section(results) for results in everything]
    (arguments.output / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
