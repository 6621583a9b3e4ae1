"""Shared fixtures. Synthetic scenes are plain functions in tests/scene.py."""

import json
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"


def golden(system: str, name: str) -> dict[str, np.ndarray]:
    """Recorded numbers of a published system: every array of tests/golden/<system>/<name>.npz (no pickled objects)."""
    with np.load(GOLDEN / system / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def golden_json(system: str, name: str) -> dict:
    """Recorded numbers of a published system, from tests/golden/<system>/<name>.json."""
    return json.loads((GOLDEN / system / f"{name}.json").read_text())


def recorded_state(model: torch.nn.Module, factor: Callable[[str, int], float]) -> dict[str, torch.Tensor]:
    """Weights that published systems were run with to record numbers: a function of each tensor's key and shape (the manifests tell).

    factor(key, inputs of one output) scales the normal numbers of tensors with two axes or more.
    """
    state = {}
    for key, value in model.state_dict().items():
        t = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        if not value.is_floating_point():
            t = torch.zeros_like(value)
        elif value.ndim >= 2:
            t = factor(key, value[0].numel()) * t
        elif key.endswith("running_var"):
            t = 1 + 0.1 * t.abs()
        elif key.endswith(("running_mean", "bias")):
            t = 0.05 * t
        else:
            t = 1 + 0.1 * t
        state[key] = t
    return state


def he(key: str, inputs: int) -> float:
    """The factor of most recordings, that of He et al.'s initialisation."""
    return (2 / inputs) ** 0.5


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    """Tests run on a single thread (shared machines slow down with two) and from a fixed seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def no_console(monkeypatch):
    """Every test starts without the console that a command run by another one has opened, and without its level."""
    log = logging.getLogger("parallax")
    monkeypatch.setattr(log, "handlers", [])
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of small pieces of published data; they may not be redistributed, so the test is skipped without them (CONTRIBUTING.md)."""
    folder = Path(os.environ.get("PARALLAX_SAMPLES", ROOT.parent / "shared" / "samples"))
    if not folder.is_dir():
        pytest.skip(f"no pieces of published data in {folder} (PARALLAX_SAMPLES)")
    return folder
