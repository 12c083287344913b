"""The object: what it is made of, what it refuses, and what survives saving and loading."""

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny.layers import Mlp
from tiny.priors import (
    PROVENANCE,
    assert_equal_priors,
    assert_equal_tensors,
    model,
    one_block,
    prior,
)
from torch import Tensor, nn
from torch.utils.data import default_collate

from hf_kfc.curvature import (
    OPERATORS,
    Block,
    Curvature,
    CurvatureArguments,
    Diagonal,
    Identity,
    Kronecker,
    Layout,
)
from hf_kfc.errors import CurvatureError, PriorError
from hf_kfc.priors import ConsolidationPrior, Provenance


def reload(
    saved: ConsolidationPrior, folder: Path, max_shard_size: str = "5GB"
) -> ConsolidationPrior:
    saved.save_pretrained(folder, max_shard_size=max_shard_size)
    return ConsolidationPrior.from_pretrained(folder)


def test_round_trip_of_every_operator(tmp_path: Path) -> None:
    saved = prior()
    assert {block.operator.kind for block in saved.curvature.blocks} == set(OPERATORS)
    loaded = reload(saved, tmp_path / "prior")
    assert_equal_priors(loaded, saved)
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.task == "old"


def test_a_loaded_prior_can_be_saved_over_itself(tmp_path: Path) -> None:
    loaded = reload(prior(), tmp_path / "prior")
    again = reload(loaded, tmp_path / "prior", "1KB")
    assert_equal_priors(again, prior())
    assert_equal_priors(loaded, prior())  # its file is gone, its tensors are not


def test_a_shared_factor_is_stored_once_and_shared_again(tmp_path: Path) -> None:
    saved = prior()
    loaded = reload(saved, tmp_path / "shared")
    factors = {b.name: b.operator.state() for b in loaded.curvature.blocks}
    assert factors["query"]["A"] is factors["key"]["A"]
    assert factors["query"]["G"] is not factors["key"]["G"]

    tensors = load_file(tmp_path / "shared" / "prior.safetensors")
    assert "curvature/query/A" in tensors
    assert "curvature/key/A" not in tensors
    parts = sum(len(block.operator.tensor_names) for block in saved.curvature.blocks)
    assert len(tensors) == len(saved.anchor) + parts - 1

    query, key = (b.operator for b in saved.curvature.blocks if b.name in ("query", "key"))
    assert isinstance(query, Kronecker)
    assert isinstance(key, Kronecker)
    key.A = query.A.clone()
    saved.save_pretrained(tmp_path / "copied")
    copied = load_file(tmp_path / "copied" / "prior.safetensors")
    assert copied.keys() - tensors.keys() == {"curvature/key/A"}
    size = {f: (tmp_path / f / "prior.safetensors").stat().st_size for f in ("shared", "copied")}
    assert size["copied"] - size["shared"] >= query.A.nbytes


def test_sharded(tmp_path: Path) -> None:
    loaded = reload(prior(), tmp_path / "prior", "1KB")
    assert_equal_priors(loaded, prior())
    assert loaded.fingerprint == prior().fingerprint
    shards = sorted(path.name for path in tmp_path.glob("prior/*.safetensors"))
    assert len(shards) > 1
    index = json.loads((tmp_path / "prior/prior.safetensors.index.json").read_text())
    in_files = {k: n for n in shards for k in load_file(tmp_path / "prior" / n)}
    assert index["weight_map"] == in_files
    assert sorted(json.loads((tmp_path / "prior/config.json").read_text())["files"]) == shards


def test_only_safetensors_json_and_a_card(tmp_path: Path) -> None:
    for shard in ("5GB", "1KB"):
        prior().save_pretrained(tmp_path / shard, max_shard_size=shard)
        suffixes = {path.suffix for path in (tmp_path / shard).iterdir()}
        assert suffixes == {".safetensors", ".json", ".md"}
    whole = {path.name for path in (tmp_path / "5GB").iterdir()}
    assert whole == {"README.md", "config.json", "prior.safetensors"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_anchors_are_stored_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    source = model().to(dtype)
    saved = ConsolidationPrior.l2(source, task="old")
    loaded = reload(saved, tmp_path)
    stored = load_file(tmp_path / "prior.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32}
    parameters = {n: p for n, p in source.named_parameters() if p.requires_grad}
    assert_equal_tensors(
        loaded.anchor, {name: value.detach().float() for name, value in parameters.items()}
    )
    assert loaded.fingerprint == saved.fingerprint
    loaded.check(source)


def test_float64_factors_are_stored_in_float32(tmp_path: Path) -> None:
    block = Block(
        "x", Layout.OUT_IN, {"w": (2, 2)}, Kronecker(torch.rand(2).double(), torch.eye(2))
    )
    loaded = reload(one_block(block, {"w": torch.rand(2, 2).double()}), tmp_path)
    expected = {k: v.float() for k, v in block.operator.state().items()}
    assert_equal_tensors(loaded.curvature.blocks[0].operator.state(), expected)


def test_the_anchor_is_a_copy(tmp_path: Path) -> None:
    source = model()
    saved = ConsolidationPrior.l2(source, task="old")
    before = saved.anchor["query.weight"].clone()
    nn.init.zeros_(source.query.weight)
    assert torch.equal(saved.anchor["query.weight"], before)
    assert not saved.anchor["query.weight"].requires_grad


def test_l2(tmp_path: Path) -> None:
    source = model()
    saved = ConsolidationPrior.l2(source, task="old", ignore=["LayerNorm", "head.*"])
    loaded = reload(saved, tmp_path)
    assert_equal_priors(loaded, saved)
    covered = [
        name
        for name, _ in source.named_parameters()
        if not name.startswith(("norm", "head", "frozen"))
    ]
    assert list(saved.anchor) == covered
    assert loaded.curvature.ignored == ("head.bias", "head.weight", "norm.bias", "norm.weight")
    assert loaded.provenance.num_examples == 0
    assert loaded.provenance.labels is None
    moved = {name: torch.full_like(value, 2.0) for name, value in loaded.anchor.items()}
    entries = sum(value.numel() for value in moved.values())
    assert float(loaded.curvature.quadratic(moved)) == 4 * entries
    loaded.check(source)


@pytest.mark.parametrize("kind", ["diagonal", "kronecker", "kronecker_eigen"])
def test_estimated_round_trip(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = Mlp()
    data = [{"x": torch.randn(4), "labels": torch.tensor(i % 3)} for i in range(6)]
    saved = ConsolidationPrior.estimate(
        source, data, default_collate, CurvatureArguments(curvature=kind), task="old"
    )
    loaded = reload(saved, tmp_path)
    assert_equal_priors(loaded, saved)
    loaded.check(source)
    assert {block.operator.kind for block in loaded.curvature.blocks} == {kind}
    assert_equal_tensors(loaded.anchor, {n: p.detach() for n, p in source.named_parameters()})


def _with_parameters(*names: str) -> nn.Module:
    source = nn.Module()
    for name in names:
        source.register_parameter(name, nn.Parameter(torch.rand(3)))
    return source


def test_parameters_named_like_stored_tensors(tmp_path: Path) -> None:
    """With one name for both, one would be loaded for the other."""
    saved = ConsolidationPrior.l2(_with_parameters("anchor", "scale", "curvature"), task="old")
    assert_equal_priors(reload(saved, tmp_path), saved)


def test_model_that_is_one_layer(tmp_path: Path) -> None:
    block = Block("", Layout.OUT_IN, {"weight": (2, 2)}, Kronecker(torch.eye(2), torch.eye(2)))
    saved = one_block(block, {"weight": torch.rand(2, 2)})
    assert_equal_priors(reload(saved, tmp_path), saved)


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    memory = torch.rand(4, 3)
    blocks = (
        Block("a", Layout.ELEMENTWISE, {"a.w": (3,)}, Diagonal(memory[2:3].reshape(3, 1))),
        Block("b", Layout.ELEMENTWISE, {"b.w": (3,)}, Diagonal(memory[2:3].reshape(3, 1))),
        Block("c", Layout.ELEMENTWISE, {"c.w": (3,)}, Diagonal(torch.ones(()).expand(3, 1))),
    )
    anchor = {"a.w": memory[0], "b.w": memory[0], "c.w": memory[1]}
    saved = ConsolidationPrior(anchor, Curvature(blocks, 1), Provenance("old"))
    assert_equal_priors(reload(saved, tmp_path), saved)


def test_a_single_number_out_of_a_larger_tensor(tmp_path: Path) -> None:
    """Its stride is not 1, and yet PyTorch calls it contiguous."""
    block = Block("a", Layout.ELEMENTWISE, {"a.w": (1,)}, Identity())
    view = torch.rand(3, 9)[:1, 8]
    for number, value in enumerate((view, view.double(), view.double().float())):
        saved = one_block(block, {"a.w": value})
        loaded = reload(saved, tmp_path / str(number))
        assert torch.equal(loaded.anchor["a.w"], value.float())


def _blocks(old: ConsolidationPrior, **changes: Callable[[Block], Block]) -> ConsolidationPrior:
    blocks = tuple(changes[b.name](b) if b.name in changes else b for b in old.curvature.blocks)
    return ConsolidationPrior(old.anchor, replace(old.curvature, blocks=blocks), old.provenance)


def _changed_factor(old: ConsolidationPrior) -> ConsolidationPrior:
    def change(block: Block) -> Block:
        state = {k: v.clone() for k, v in block.operator.state().items()}
        state["G"][0, 0] = torch.nextafter(state["G"][0, 0], torch.tensor(torch.inf))
        return replace(block, operator=Kronecker(**state))

    return _blocks(old, words=change)


def _changed_anchor(old: ConsolidationPrior) -> ConsolidationPrior:
    value = old.anchor["key.bias"]
    value[1] = torch.nextafter(value[1], torch.tensor(torch.inf))
    return old


def _changed_name(old: ConsolidationPrior) -> ConsolidationPrior:
    def change(block: Block) -> Block:
        shapes = {n.replace("scale", "other"): s for n, s in block.shapes.items()}
        return replace(block, shapes=shapes)

    old.anchor["other"] = old.anchor.pop("scale")
    return _blocks(old, scale=change)


def _changed_layout(old: ConsolidationPrior) -> ConsolidationPrior:
    return _blocks(old, square=lambda block: replace(block, layout=Layout.IN_OUT))


def _changed_kind(old: ConsolidationPrior) -> ConsolidationPrior:
    return _blocks(old, scale=lambda b: replace(b, operator=Diagonal(torch.full((1, 1), 0.7))))


def _with_square_block() -> ConsolidationPrior:
    old = prior()
    operator = Kronecker(torch.eye(2), torch.diag(torch.tensor([1.0, 2.0])))
    square = Block("square", Layout.OUT_IN, {"square.weight": (2, 2)}, operator)
    anchor = old.anchor | {"square.weight": torch.eye(2)}
    blocks = (*old.curvature.blocks, square)
    return ConsolidationPrior(anchor, replace(old.curvature, blocks=blocks), old.provenance)


@pytest.mark.parametrize(
    "change", [_changed_factor, _changed_anchor, _changed_name, _changed_layout, _changed_kind]
)
def test_fingerprint_tells_every_change(
    change: Callable[[ConsolidationPrior], ConsolidationPrior], tmp_path: Path
) -> None:
    changed = change(_with_square_block())
    assert _with_square_block().fingerprint == _with_square_block().fingerprint
    assert changed.fingerprint != _with_square_block().fingerprint
    assert reload(changed, tmp_path).fingerprint == changed.fingerprint


def test_fingerprint_is_of_the_penalty_alone() -> None:
    old = prior()
    renamed = ConsolidationPrior(old.anchor, old.curvature, replace(PROVENANCE, task="renamed"))
    assert renamed.fingerprint == old.fingerprint


def test_a_prior_changed_in_place_is_saved_as_it_is(tmp_path: Path) -> None:
    saved = prior()
    before = saved.fingerprint
    saved.anchor["key.bias"] += 1
    loaded = reload(saved, tmp_path)
    assert_equal_priors(loaded, saved)
    assert loaded.fingerprint != before


def test_check_passes() -> None:
    prior().check(model(seed=1))
    partly_frozen = model()
    partly_frozen.query.requires_grad_(False)
    prior().check(partly_frozen)


def test_a_wrapped_model_is_checked_as_what_it_wraps() -> None:
    prior().check(torch.compile(model(), backend="eager"))  # type: ignore[arg-type]


def test_check_lists_every_problem() -> None:
    other = model()
    del other.words
    other.query = nn.Linear(4, 2)
    other.frozen.requires_grad_(True)
    other.scale = nn.Parameter(torch.zeros(1))
    with pytest.raises(PriorError) as refusal:
        prior().check(other)
    prefix, problems = str(refusal.value).split(": ", 1)
    assert prefix == (
        "prior of task 'old' does not fit Model; leave what is meant to differ out of it with "
        "prior.without([...])"
    )
    assert problems.split("; ") == [
        "the model has no parameter words.weight",
        "query.weight has shape [2, 4], the prior's has [3, 4]",
        "query.bias has shape [2], the prior's has [3]",
        "scale has shape [1], the prior's has []",
        "the prior knows nothing of frozen.weight",
        "the prior knows nothing of frozen.bias",
    ]


def _refused(
    anchor: dict[str, Tensor], blocks: tuple[Block, ...], provenance: Any = PROVENANCE
) -> list[str]:
    with pytest.raises(PriorError) as refusal:
        ConsolidationPrior(anchor, Curvature(blocks, 1), provenance)
    message = str(refusal.value)
    assert message.startswith("prior of task 'old' is unusable: ")
    return message.split(": ", 1)[1].split("; ")


def test_parts_that_do_not_fit_are_all_listed() -> None:
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    blocks = (
        Block("a", Layout.OUT_IN, {"a.w": (2, 3)}, Kronecker(torch.eye(3), indefinite)),
        Block("b", Layout.ELEMENTWISE, {"b.w": (2,), "b.b": (3,)}, Diagonal(torch.ones(2, 2))),
        Block("c", Layout.IN_OUT, {"c.w": (2, 2, 2)}, Kronecker(torch.eye(2), torch.eye(4))),
        Block("d", Layout.OUT_IN, {"d.w": (2,)}, Identity()),
        Block("e", Layout.OUT_IN, {"e.w": (2, 0)}, Kronecker(torch.eye(0), torch.eye(2))),
        Block("f", Layout.OUT_IN, {}, Identity()),
        Block("g", Layout.ELEMENTWISE, {"a.w": (2, 3)}, Identity(torch.tensor(-1.0))),
        Block("a", Layout.ELEMENTWISE, {"h.w": (1,)}, Diagonal(torch.ones(1, 2))),
    )
    anchor = {
        "a.w": torch.tensor([[1.0, torch.inf, 0.0], [0.0, 0.0, 0.0]]),
        "b.w": torch.zeros(3),
        "c.w": torch.zeros(2, 2, 2, dtype=torch.int64),
        "d.w": torch.zeros(2),
        "e.w": torch.zeros(2, 0),
        "h.w": torch.zeros(1),
        "alone": torch.zeros(1),
    }
    assert _refused(anchor, blocks) == [
        "the anchor of b.b is missing",
        "the anchor alone has no curvature",
        "the anchor a.w has NaN or infinite values",
        "the anchor b.w has shape [3], expected [2]",
        "the anchor c.w is torch.int64, expected a floating-point type",
        "parameter a.w stands in two blocks",
        "two blocks have the name 'a'",
        "a: G is indefinite",
        "b: b.b has shape [3], expected [2]",
        "c: c.w of shape [2, 2, 2] has no layout 'in_out'",
        "d: d.w of shape [2] has no layout 'out_in'",
        "e: e.w of shape [2, 0] has no layout 'out_in'",
        "f: 0 parameters do not make a weight and a bias",
        "g: scale has a negative entry (-1)",
        "a: diagonal has shape [1, 2], expected [1, 1]",
    ]


def test_an_operator_with_several_problems() -> None:
    broken = Kronecker(torch.full((3, 3), torch.nan), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    block = Block("a", Layout.OUT_IN, {"w": (2, 3)}, broken)
    assert _refused({"w": torch.zeros(2, 3)}, (block,)) == [
        "a: A has NaN or infinite values"
    ]  # and nothing more is said of it


def test_parameters_without_entries(tmp_path: Path) -> None:
    block = Block("a", Layout.ELEMENTWISE, {"w": (0, 2)}, Diagonal(torch.ones(0, 1)))
    saved = one_block(block, {"w": torch.zeros(0, 2)})
    assert_equal_priors(reload(saved, tmp_path), saved)


def test_a_prior_of_nothing_is_refused() -> None:
    assert _refused({}, ()) == ["no parameter is covered"]


def test_provenance_is_checked() -> None:
    block = Block("a", Layout.ELEMENTWISE, {"w": (1,)}, Identity())
    wrong: Any = replace(PROVENANCE, num_examples=-1, anchor_metrics=OrderedDict(f1="high"))
    assert _refused({"w": torch.zeros(1)}, (block,), wrong) == [
        "provenance: field num_examples is -1, expected a count",
        f"provenance: field anchor_metrics is {OrderedDict(f1='high')!r}, expected finite numbers "
        "by name",
    ]


# --- Without some blocks -------------------------------------------------------------------------


def test_without_some_blocks_their_parameters_move_freely(tmp_path: Path) -> None:
    made = prior()
    part = made.without(["words", "k*"])
    assert [b.name for b in part.curvature.blocks] == [
        b.name for b in made.curvature.blocks if b.name not in ("words", "key", "kinds")
    ]
    gone = {"words.weight", "key.weight", "key.bias", "kinds.weight"}
    assert set(part.curvature.ignored) == {"head.bias", "head.weight", *gone}
    assert part.anchor.keys() == made.anchor.keys() - gone
    assert_equal_priors(reload(part, tmp_path), part)
    other = model()
    other.words = nn.Embedding(9, 4)  # four more tokens
    with pytest.raises(PriorError, match=r"prior\.without\(.*words\.weight has shape"):
        made.check(other)
    part.check(other)
    assert made.curvature.blocks[0].name == "words"  # it stays as it was


def test_blocks_are_named_by_their_parameters_too() -> None:
    made = prior()
    for patterns in ("query", "query.weight", ["query.bias"], ["qu?ry*"], ("query", "query.*")):
        assert made.without(patterns).fingerprint == made.without("query").fingerprint
    assert made.without([]).fingerprint == made.fingerprint
    single = ConsolidationPrior.l2(model(), task="old")  # a block for each parameter
    assert {*single.without("query").curvature.ignored} == {"query.weight", "query.bias"}


def test_what_a_prior_cannot_be_without() -> None:
    names = ", ".join(block.name for block in prior().curvature.blocks)
    for patterns, what in (
        (["query", "head"], "no block is called 'head'"),
        ("*", "nothing would"),
    ):
        with pytest.raises(PriorError, match=what) as refusal:
            prior().without(patterns)
        assert str(refusal.value).endswith(f"; its blocks are {names}")


def test_what_the_provenance_tells_of_blocks_goes_with_them() -> None:
    made = prior()
    errors = {"words": 0.1, "query": 0.2}
    made.provenance = replace(
        made.provenance, approximation_errors=errors, dropped_inputs={"words": 3}
    )
    origin = made.without("words").provenance
    assert origin.approximation_errors == {"query": 0.2}
    assert origin.dropped_inputs == {}


def test_a_model_without_values_has_no_anchor() -> None:
    model: Any = nn.Linear(2, 3, device="meta")
    with pytest.raises(CurvatureError, match=r"'weight' has no values .*on the meta device"):
        ConsolidationPrior.l2(model, task="old")
    with pytest.raises(CurvatureError, match=r"'weight' has no values .*on the meta device"):
        ConsolidationPrior.estimate(model, [], list, task="old")


@pytest.mark.parametrize("metric", [float("nan"), "high", None])
def test_metrics_are_looked_at_before_the_work(metric: Any) -> None:
    def read(_: Any) -> Any:
        raise AssertionError("the data are read")

    with pytest.raises(PriorError, match=r"no prior of task 'old' can be made: .*finite numbers"):
        ConsolidationPrior.estimate(
            nn.Linear(2, 3), [0], read, task="old", anchor_metrics={"accuracy": metric}
        )
