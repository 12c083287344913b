"""Methods are read off their names, and nothing that is said twice or wrongly passes."""

from dataclasses import fields

import pytest

from hf_kfc.errors import ConsolidationError
from laboratory.methods import METHODS, NAMES, PLAIN, Method, check_methods


def difference(name: str) -> dict[str, object]:
    """The fields in which a method differs from plain fine-tuning."""
    method = Method.parse(name)
    values = {f.name: getattr(method, f.name) for f in fields(Method) if f.name != "name"}
    return {key: value for key, value in values.items() if value != getattr(PLAIN, key)}


@pytest.mark.parametrize("name", METHODS)
def test_every_part_is_a_method_of_its_own(name):
    method = Method.parse(name)
    assert method.name == name
    assert (method == PLAIN) == (name == "none")
    assert METHODS[name].text
    assert bool(method.strengths) == bool(method.curvature)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lr_control", {"layer_decay": 1 / 2.6}),
        ("lr_control:0.5", {"layer_decay": 0.5}),
        ("lower_lr:0.3", {"rate": 0.3}),
        ("late_decay:0.4", {"late_decay": 0.4}),
        ("replay:0.05", {"rehearsal": "replay", "kept": 0.05}),
        ("rehearsal", {"rehearsal": "fixed"}),
        ("rehearsal_growing:0.25", {"rehearsal": "growing", "kept": 0.25}),
        ("lora:4", {"lora_rank": 4}),
        ("average", {"average": "parameters"}),
        ("scores", {"average": "scores"}),
    ],
)
def test_a_number_takes_the_place_of_the_parts_own(name, expected):
    assert difference(name) == expected


def test_damping_is_that_of_the_learning_arguments_where_none_is_given():
    assert Method.parse("kfc").damping is None
    assert Method.parse("kfc:0").damping == 0.0
    assert Method.parse("ewc:0.5").damping == 0.5


def test_the_papers_methods_are_the_papers():
    kfc, ewc = Method.parse("paper_kfc"), Method.parse("paper_ewc")
    assert kfc.strengths == ewc.strengths == (1e1, 1e3, 1e5, 1e7, 1e9)
    assert (kfc.damping, ewc.damping) == (0.0, 0.0)
    assert (kfc.curvature, ewc.curvature) == ("kronecker", "diagonal")
    assert kfc.estimate == {"sharing": "average"}


def test_parts_are_joined():
    joined = difference("rehearsal:0.05+kfc:0.01+lr_control:0.5+average")
    assert joined == difference("rehearsal:0.05") | difference("kfc:0.01") | difference(
        "lr_control:0.5"
    ) | {"average": "parameters"}


def test_a_curvature_has_the_name_of_its_method():
    for kind, name in NAMES.items():
        assert Method.parse(name).curvature == kind


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "unknown method ''"),
        ("kfk", "unknown method 'kfk'; choose from none, lr_control"),
        ("kfc+", "unknown method '' in 'kfc\\+'"),
        ("none:1", "'none:1' takes no number; leave ':1' out"),
        ("l2:1", "takes no number"),
        ("kfc:", "'' is no number from 0 to inf"),
        ("kfc:-1", "'-1' is no number"),
        ("kfc:nan", "'nan' is no number"),
        ("replay:0", "'0' is no number from 0.0001 to 1"),
        ("replay:1.5", "'1.5' is no number"),
        ("lora:x", "'x' is no number"),
        ("lr_control:2", "'2' is no number"),
        ("kfc+ewc", "says two things of its curvature and damping and strengths; take 'ewc' out"),
        ("replay+rehearsal", "says two things of its kept and rehearsal"),
        ("average+scores", "says two things of its average"),
    ],
)
def test_what_is_wrong_is_refused(name, message):
    with pytest.raises(ConsolidationError, match=message):
        Method.parse(name)


@pytest.mark.parametrize("methods", [[], ["kfc", "kfc"]])
def test_a_list_has_methods_and_none_twice(methods):
    with pytest.raises(ConsolidationError, match="give at least one, and none twice"):
        check_methods(methods)
