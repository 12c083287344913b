"""Damage to the content of a prior, behind checksums that fit it: each kind is named, once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.priors import Tensors, assert_equal_priors, prior

from hf_kfc.priors import ConsolidationPrior

from .forging import (
    SHARD,
    Config,
    Forge,
    append_block,
    drop_field,
    drop_tensor,
    forge,
    in_block,
    in_provenance,
    phrases,
    read_config,
    set_entry,
    set_field,
    set_tensor,
    without,
    write_config,
)

SCALE = {
    "name": "scale again",
    "layout": "elementwise",
    "parameters": {"scale": []},
    "operator": "identity",
    "tensors": {"scale": "curvature/scale/scale"},
}
NAN, INF = float("nan"), float("inf")
LAYOUTS = "expected one of out_in, in_out, stack_out_in, stack_in_out, elementwise"
KINDS = (
    "expected one of identity, diagonal, kronecker, kronecker_eigen, kronecker_sum, "
    "low_rank_kronecker, low_rank_kronecker_sum, kronecker_stack, low_rank_kronecker_stack"
)


def _counts_in_half_precision(config: Config, tensors: Tensors) -> None:
    name = "curvature/words/input_examples"
    config["blocks"][0]["input_examples"] = name
    tensors[name] = torch.ones(5, dtype=torch.bfloat16)


def _tokens_as_a_factor(config: Config, tensors: Tensors) -> None:
    config["blocks"][0] |= {"inputs": "curvature/words/inputs"}
    config["blocks"][0]["tensors"]["A"] = "curvature/words/inputs"
    tensors["curvature/words/inputs"] = torch.arange(5)
    del tensors["curvature/words/A"]


DAMAGES: dict[str, tuple[Forge, str]] = {
    # values
    "NaN in an anchor": (
        set_entry("anchor/key.bias", (1,), NAN),
        "the anchor key.bias has NaN or infinite values",
    ),
    "infinity in an anchor": (
        set_entry("anchor/key.bias", (1,), INF),
        "the anchor key.bias has NaN or infinite values",
    ),
    "NaN in a factor": (
        set_entry("curvature/words/G", (0, 0), NAN),
        "words: G has NaN or infinite values",
    ),
    "infinity in a vector factor": (
        set_entry("curvature/words/A", (2,), INF),
        "words: A has NaN or infinite values",
    ),
    "NaN in a diagonal": (
        set_entry("curvature/norm/diagonal", (2, 1), NAN),
        "norm: diagonal has NaN or infinite values",
    ),
    "NaN in a basis": (
        set_entry("curvature/places/U_G", (0, 1), NAN),
        "places: U_G has NaN or infinite values",
    ),
    "infinite scale": (
        set_entry("curvature/scale/scale", (), INF),
        "scale: scale has NaN or infinite values",
    ),
    "asymmetric factor": (
        set_tensor("curvature/words/G", torch.eye(4) + torch.eye(4).roll(1, 0)),
        "words: G is not symmetric (largest difference 1)",
    ),
    "indefinite factor": (
        set_tensor("curvature/words/G", torch.diag(torch.tensor([1.0, 1, 1, -0.01]))),
        "words: G is indefinite",
    ),
    "negative vector factor": (
        set_entry("curvature/words/A", (2,), -2.0),
        "words: A has a negative entry (-2)",
    ),
    "negative diagonal": (
        set_entry("curvature/norm/diagonal", (0, 0), -0.5),
        "norm: diagonal has a negative entry (-0.5)",
    ),
    "negative scale": (
        set_entry("curvature/scale/scale", (), -1.0),
        "scale: scale has a negative entry (-1)",
    ),
    "negative second moment": (
        set_entry("curvature/places/second_moments", (0, 0), -3.0),
        "places: second_moments has a negative entry (-3)",
    ),
    "basis that is not orthonormal": (
        set_tensor("curvature/places/U_G", 2 * torch.eye(4)),
        "places: U_G is not orthonormal (error 3)",
    ),
    # tensors
    "dtype of an anchor": (
        set_tensor("anchor/key.bias", torch.zeros(3, dtype=torch.bfloat16)),
        "tensor anchor/key.bias is torch.bfloat16, expected torch.float32",
    ),
    "dtype without NaN": (
        set_tensor("anchor/key.bias", torch.zeros(3, dtype=torch.int64)),
        "tensor anchor/key.bias is torch.int64, expected torch.float32",
    ),
    "dtype of a factor": (
        set_tensor("curvature/words/G", torch.eye(4, dtype=torch.float64)),
        "tensor curvature/words/G is torch.float64, expected torch.float32 or torch.bfloat16",
    ),
    "dtype of counts": (
        _counts_in_half_precision,
        "tensor curvature/words/input_examples is torch.bfloat16, expected torch.float32",
    ),
    "missing anchor": (drop_tensor("anchor/key.bias"), "the anchor of key.bias is missing"),
    "missing factor": (
        drop_tensor("curvature/words/G"),
        "words: tensor curvature/words/G is missing",
    ),
    "extra anchor": (
        set_tensor("anchor/other", torch.zeros(2)),
        "the anchor other has no curvature",
    ),
    "extra factor": (
        set_tensor("curvature/words/B", torch.zeros(2)),
        "tensor curvature/words/B belongs to no block",
    ),
    "extra tensor": (set_tensor("other", torch.zeros(2)), "tensor other belongs to no block"),
    "shape of an anchor": (
        set_tensor("anchor/key.bias", torch.zeros(4)),
        "the anchor key.bias has shape [4], expected [3]",
    ),
    "shape of a factor": (
        set_tensor("curvature/words/G", torch.eye(3)),
        "words: G has shape [3, 3], expected [4, 4]",
    ),
    "factor without entries": (
        set_tensor("curvature/words/G", torch.empty(0, 0)),
        "words: G has shape [0, 0], expected [4, 4]",
    ),
    "factor of another rank": (
        set_tensor("curvature/words/G", torch.zeros(4, 4, 4)),
        "words: G has shape [4, 4, 4], expected [4, 4]",
    ),
    # blocks
    "unknown operator": (
        in_block("norm", operator="rank_one"),
        f"norm: operator 'rank_one' is unknown, {KINDS}",
    ),
    "another operator's tensors": (
        in_block("norm", operator="identity"),
        "norm: operator 'identity' has tensors diagonal, expected scale",
    ),
    "unknown layout": (
        in_block("norm", layout="diagonal"),
        f"block 6: field layout is 'diagonal', {LAYOUTS}",
    ),
    "layout of another rank": (
        in_block("convolution", layout="in_out"),
        "convolution: convolution.weight of shape [3, 2, 2] has no layout 'in_out'",
    ),
    "parameter in two blocks": (append_block(SCALE), "parameter scale stands in two blocks"),
    "two blocks of one name": (
        in_block("key", name="query"),
        "two blocks have the name 'query'",
    ),
    "block without parameters": (
        append_block(SCALE | {"parameters": {}}),
        "scale again: 0 parameters do not make a weight and a bias",
    ),
    # malformed fields
    "shape that is no list": (
        in_block("norm", parameters={"norm.weight": [4], "norm.bias": "4"}),
        "block 6: field parameters is {'norm.bias': '4', 'norm.weight': [4]}, "
        "expected shapes by name",
    ),
    "negative size": (
        in_block("scale", parameters={"scale": [-1]}),
        "block 7: field parameters is {'scale': [-1]}, expected shapes by name",
    ),
    "true as a size": (
        in_block("scale", parameters={"scale": [True]}),
        "block 7: field parameters is {'scale': [True]}, expected shapes by name",
    ),
    "block that is no object": (append_block("norm"), "block 14 is 'norm', expected an object"),
    "block without name": (
        without("name", of="norm"),
        "block 6: field name is missing, expected a name",
    ),
    "block without tensors": (
        append_block({k: v for k, v in SCALE.items() if k != "tensors"}),
        "block 14: field tensors is missing, expected names by name",
    ),
    "operator that is no name": (
        in_block("norm", operator=["diagonal"]),
        "block 6: field operator is ['diagonal'], expected a name",
    ),
    "layout that is no name": (
        in_block("norm", layout={"a": 1}),
        f"block 6: field layout is {{'a': 1}}, {LAYOUTS}",
    ),
    "tensor that is no name": (
        append_block(SCALE | {"tensors": {"scale": []}}),
        "block 14: field tensors is {'scale': []}, expected names by name",
    ),
    "number of examples that is none": (
        set_field("num_curvature_examples", "64"),
        "the description: field num_curvature_examples is '64', expected a count",
    ),
    "negative number of examples": (
        set_field("num_curvature_examples", -1),
        "the description: field num_curvature_examples is -1, expected a count",
    ),
    "no number of examples": (
        drop_field("num_curvature_examples"),
        "the description: field num_curvature_examples is missing, expected a count",
    ),
    "ignored that is no list": (
        set_field("ignored", "head"),
        "the description: field ignored is 'head', expected a list of names",
    ),
    "ignored that are no names": (
        set_field("ignored", [1]),
        "the description: field ignored is [1], expected a list of names",
    ),
    "provenance that is none": (
        set_field("provenance", None),
        "provenance is None, expected an object",
    ),
    "unknown field of the provenance": (
        in_provenance(colour="red"),
        "provenance has an unknown colour",
    ),
    "malformed field of the provenance": (
        in_provenance(num_examples="70"),
        "provenance: field num_examples is '70', expected a count",
    ),
    "malformed metrics": (
        in_provenance(anchor_metrics={"accuracy": None}),
        "provenance: field anchor_metrics is {'accuracy': None}, expected finite numbers by name",
    ),
}


def test_a_forgery_without_changes_is_loaded(tmp_path: Path) -> None:
    """Otherwise the refusals of forgeries below would prove nothing."""
    loaded = ConsolidationPrior.from_pretrained(forge(tmp_path))
    assert_equal_priors(loaded, prior())
    unsigned = ConsolidationPrior.from_pretrained(forge(tmp_path, sign=False))
    assert_equal_priors(unsigned, prior())


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_content(damage: str, tmp_path: Path) -> None:
    change, phrase = DAMAGES[damage]
    assert phrases(forge(tmp_path, change)) == [phrase]


@pytest.mark.parametrize("blocks", [None, {}, "blocks"])
def test_blocks_that_are_no_list(blocks: Any, tmp_path: Path) -> None:
    found = phrases(forge(tmp_path, set_field("blocks", blocks)))
    assert found == [f"the description: field blocks is {blocks!r}, expected a list"]


def test_a_prior_of_nothing(tmp_path: Path) -> None:
    def empty(config: Config, tensors: Tensors) -> None:
        config["blocks"] = []
        for name in set(tensors) - {"anchor/scale"}:
            del tensors[name]

    assert phrases(forge(tmp_path, empty)) == [
        "no parameter is covered",
        "the anchor scale has no curvature",
    ]


def test_a_single_field_of_the_provenance_is_missing(tmp_path: Path) -> None:
    def change(config: Config, _: Tensors) -> None:
        del config["provenance"]["library_versions"]
        del config["provenance"]["task"]

    assert phrases(forge(tmp_path, change)) == [
        "provenance has no task",
        "provenance has no library_versions",
    ]


TOGETHER = {
    "what is told": (
        "negative number of examples",
        "ignored that is no list",
        "malformed field of the provenance",
        "block that is no object",
    ),
    "which tensors there are": (
        "dtype of a factor",
        "extra tensor",
        "unknown operator",
        "missing factor of the places",
    ),
    "values": (
        "NaN in an anchor",
        "extra anchor",
        "negative scale",
        "asymmetric factor of the query",
    ),
}
"""What is judged at a time: of tensors that are not those that are told of, no values are."""
MORE: dict[str, tuple[Forge, str]] = {
    "asymmetric factor of the query": (
        set_tensor("curvature/query/G", torch.eye(3) + torch.eye(3).roll(1, 0)),
        "query: G is not symmetric (largest difference 1)",
    ),
    "missing factor of the places": (
        drop_tensor("curvature/places/U_A"),
        "places: tensor curvature/places/U_A is missing",
    ),
}


@pytest.mark.parametrize("kind", TOGETHER)
def test_all_damages_of_a_kind_are_listed_together(kind: str, tmp_path: Path) -> None:
    """Each once, and nothing else: no damage makes another message of its own."""
    chosen = [(DAMAGES | MORE)[name] for name in TOGETHER[kind]]
    found = phrases(forge(tmp_path, *(change for change, _ in chosen)))
    assert sorted(found) == sorted(phrase for _, phrase in chosen)


def test_problems_are_listed_in_the_order_of_names(tmp_path: Path) -> None:
    """Safetensors gives empty tensors in another order every time."""

    def add(_: Config, tensors: Tensors) -> None:
        tensors.update({f"extra {i}": torch.empty(0) for i in range(6)})

    expected = [f"tensor extra {i} belongs to no block" for i in range(6)]
    assert phrases(forge(tmp_path, add)) == expected


def test_damaged_files_and_content_are_listed_together(tmp_path: Path) -> None:
    forge(tmp_path, DAMAGES["extra tensor"][0], set_field("ignored", 1), shard="1KB")
    holder = json.loads((tmp_path / f"{SHARD}.index.json").read_text())["weight_map"]
    lost = holder["anchor/words.weight"]
    (tmp_path / lost).unlink()
    assert len(set(holder.values())) > 1
    assert phrases(tmp_path) == [
        f"file {lost} is missing",
        "the description: field ignored is 1, expected a list of names",
    ]


def test_token_numbers_are_no_factor(tmp_path: Path) -> None:
    assert phrases(forge(tmp_path, _tokens_as_a_factor)) == [
        "words: tensor curvature/words/inputs is no part of an operator"
    ]


def _other_layout(config: Config, _: Tensors) -> None:
    config["blocks"][0]["name"] = "other"


def _other_factor(_: Config, tensors: Tensors) -> None:
    tensors["curvature/words/A"] *= 2


OTHER = ["its content is not what was saved (config.json has another fingerprint)"]


@pytest.mark.parametrize("change", [_other_layout, _other_factor])
def test_valid_content_that_is_not_what_was_saved(change: Forge, tmp_path: Path) -> None:
    assert phrases(forge(tmp_path, change, sign=False)) == OTHER


@pytest.mark.parametrize("value", [None, 1, [], "x"])
def test_no_fingerprint(value: Any, folder: Path) -> None:
    write_config(folder, read_config(folder) | {"fingerprint": value})
    assert phrases(folder) == OTHER
