from types import SimpleNamespace

import pytest

from hf_kfc.errors import ConsolidationError
from laboratory import processes
from laboratory.processes import check_processes, shared

LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no"}
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    for name in (*LAUNCHED, *ADDRESS, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def set_all(values: dict[str, str], started: int) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(
            processes, "process_state", lambda: SimpleNamespace(num_processes=started)
        )

    return set_all


@pytest.mark.parametrize(
    ("values", "started"),
    [
        ({}, 1),
        (LAUNCHED, 1),  # accelerate launch with one process
        (ADDRESS, 1),  # a cluster that sets it for everything
        (LAUNCHED | ADDRESS | {"WORLD_SIZE": "2"}, 2),
        (LAUNCHED | ADDRESS | {"WORLD_SIZE": "1"}, 1),
        (ADDRESS | {"WORLD_SIZE": "4"}, 4),  # torchrun
    ],
)
def test_as_many_as_asked_for_are_fine(values, started, environment):
    environment(values, started)
    check_processes()


@pytest.mark.parametrize(
    ("values", "started", "message"),
    [
        (LAUNCHED | ADDRESS, 1, "several processes were asked for and one was started"),
        (LAUNCHED | ADDRESS | {"WORLD_SIZE": "2"}, 1, "2 processes were asked for and 1 run"),
    ],
)
def test_fewer_than_asked_for_are_refused(values, started, message, environment):
    environment(values, started)
    with pytest.raises(ConsolidationError, match=message):
        check_processes()


def test_alone_one_makes_it_for_itself():
    assert shared(lambda: {"a": [1]}) == {"a": [1]}
