import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import HubServer
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # which has a core for itself, as have its processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no fault. New examples are looked for where somebody is there to read them: in
# CI every run has the same ones.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_runtest_setup() -> None:
    """Let every test draw the same models and data each time, whatever ran before it."""
    from transformers import set_seed  # noqa: PLC0415 - torch reads the number of threads above

    set_seed(0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The Hub that the client talks to in this test, with a cache of its own.

    See :mod:`hub_server`. Retries do not wait.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    without_waiting = SimpleNamespace(sleep=lambda _: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time", without_waiting)
    monkeypatch.setattr("huggingface_hub.file_download.time", without_waiting)
    with HubServer() as server:
        files = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server
