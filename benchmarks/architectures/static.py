"""Which classes of transformers have a curvature for every parameter, by their modules alone.

    python benchmarks/architectures/static.py

Each class that learns from labels is built by its config's defaults, with two layers of each kind,
on the meta device, which holds shapes and no numbers; nothing is run. Writes static.jsonl, one
class a line, and static.md beside this file.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_kfc.curvature import survey
from hf_kfc.errors import HfKfcError

HERE = Path(__file__).parent
KINDS = {
    "causal language models": "CAUSAL_LM",
    "sequence classifiers": "SEQUENCE_CLASSIFICATION",
    "token classifiers": "TOKEN_CLASSIFICATION",
    "question answering": "QUESTION_ANSWERING",
    "multiple choice": "MULTIPLE_CHOICE",
    "masked language models": "MASKED_LM",
    "encoder-decoders": "SEQ_TO_SEQ_CAUSAL_LM",
    "speech to text": "SPEECH_SEQ_2_SEQ",
    "CTC": "CTC",
    "image classifiers": "IMAGE_CLASSIFICATION",
    "audio classifiers": "AUDIO_CLASSIFICATION",
    "video classifiers": "VIDEO_CLASSIFICATION",
    "image and text to text": "IMAGE_TEXT_TO_TEXT",
    "next sentences": "NEXT_SENTENCE_PREDICTION",
}
SECONDS = 60


def classes() -> Iterator[tuple[str, str, type[PretrainedConfig], type[Any]]]:
    """Yield kind, name, config and class of each model, once."""
    seen = set()
    for kind, name in KINDS.items():
        mapping = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES")
        for model_type, found in mapping.items():
            for own in found if isinstance(found, list | tuple) else [found]:
                if own not in seen and hasattr(transformers, own) and model_type in CONFIG_MAPPING:
                    seen.add(own)
                    yield kind, own, CONFIG_MAPPING[model_type], getattr(transformers, own)


def small(config: Any, depth: int = 0) -> Any:
    """Take layers away: those left are of every kind."""
    for name in ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "n_layer"):
        if isinstance(getattr(config, name, None), int) and getattr(config, name) > 4:
            setattr(config, name, 4)
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, list) and len(kinds) > 4:
            setattr(config, name, kinds[:4])
    if depth < 2:
        for own in vars(config).values():
            if isinstance(own, PretrainedConfig):
                small(own, depth + 1)
    return config


def build(config_class: type[PretrainedConfig], model_class: type[Any]) -> Any:
    """Build a model without numbers; with all its layers where it cannot do with fewer."""
    failure: Exception | None = None
    for shrink in (small, lambda config: config):
        try:
            with torch.device("meta"):
                return model_class(shrink(config_class()))
        except Exception as error:  # whatever a config's defaults do not allow
            failure = error
    raise RuntimeError(f"{type(failure).__name__}: {failure}")


def look(config_class: type[PretrainedConfig], model_class: type[Any]) -> dict[str, Any]:
    """Say which parameters have a rule, which the exact diagonal, and which nothing."""
    try:
        model = build(config_class, model_class)
    except RuntimeError as error:
        return {"built": False, "why": " ".join(str(error).split())[:200]}
    total = sum(p.numel() for p in model.parameters())
    try:
        found = survey(model)
    except HfKfcError as error:
        return {"built": True, "accepted": False, "why": str(error)[:200]}
    without = {n: p.numel() for n, p in model.named_parameters() if n in found.without_rule}
    ruled = {id(p) for layer in found.layers for p in layer.parameters.values()}
    nothing = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and id(p) not in ruled and n not in without
    ]
    reasons = Counter(found.without_rule.values())
    return {
        "built": True,
        "accepted": not nothing,
        "parameters": total,
        "by_diagonal": round(sum(without.values()) / max(total, 1), 6),
        "reasons": {reason[:120]: count for reason, count in reasons.most_common(3)},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Count by kind."""
    lines = [
        "| kind | classes | built | every parameter held | each by a rule of its own |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind in [*KINDS, None]:
        own = [row for row in rows if kind in (None, row["kind"])]
        built = [row for row in own if row["built"]]
        held = [row for row in built if row["accepted"]]
        ruled = [row for row in held if not row["by_diagonal"]]
        share = f" ({len(held) / max(len(built), 1):.1%})" if kind is None else ""
        cells = kind or "**all**", len(own), len(built), f"{len(held)}{share}", len(ruled)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def too_long(*_: object) -> None:
    """End a model that takes too long to build."""
    raise RuntimeError(f"not built in {SECONDS} s")


def main() -> None:
    """Look at all classes and write what was found."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGALRM, too_long)
    rows = []
    for kind, name, config_class, model_class in tqdm(list(classes()), unit="class"):
        signal.alarm(SECONDS)
        found = look(config_class, model_class)
        signal.alarm(0)
        rows.append({"kind": kind, "class": name, **found})
    header = {
        "command": "python benchmarks/architectures/static.py",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    lines = [json.dumps(row) for row in (header, *rows)]
    (HERE / "static.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (HERE / "static.md").write_text(table(rows) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
