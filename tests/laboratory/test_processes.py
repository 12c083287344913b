from laboratory.processes import shared


def test_alone_one_makes_it_for_itself():
    assert shared(lambda: {"a": [1]}) == {"a": [1]}
