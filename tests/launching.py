"""Runs a worker of these tests in two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
LAUNCH = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
TIMEOUT = 240.0


def launch_two(worker: str | Path, folder: Path) -> dict[str, list[Any]]:
    """Start a worker, by its path in this folder, and return the ``results.pt`` it leaves."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH.split(" ")]
    port = ["--main_process_port", str(free_port())]
    process = subprocess.Popen(
        [*launcher, *port, str((HERE / worker).with_suffix(".py")), str(folder)],
        env=os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=TIMEOUT)
    finally:
        process.terminate()  # after a timeout; the launcher then ends the workers
        process.wait(timeout=60)
    assert process.returncode == 0, errors[-5000:]
    results: dict[str, list[Any]] = torch.load(folder / "results.pt", weights_only=False)
    return results


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
