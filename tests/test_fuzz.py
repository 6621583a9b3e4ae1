"""Damaged files give one clear error: every reader, with bytes and fields that Hypothesis has changed."""

import logging
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.errors import ParallaxError
from tests.damage import damage
from tests.fuzz_cases import CASES

EXAMPLES = 15
THOROUGH = 300
PATIENCE = 20  # s that a reader may take for one of these small files
ROOM = 3 << 30  # bytes that it may reserve


class Hangs(BaseException):
    """A reader has not come back."""


@contextmanager
def limits() -> Iterator[None]:
    """An absurd size in a file must not take the memory of the computer, nor all time."""

    def ring(*_: object) -> None:
        raise Hangs

    old, before = signal.signal(signal.SIGALRM, ring), resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, before[1]))
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def try_damage(name: str, root: Path, examples: int) -> None:
    """Reads a case's files again and again, each time with one of them damaged."""
    case = CASES[name]
    read = case.make(root)
    read()
    files = sorted(path for path in root.glob(case.files) if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    assert files
    damaged = {path: damage(path, data, case.loads, case.dumps) for path, data in whole.items()}

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, print_blob=False, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def holds(given_by):
        path = given_by.draw(st.sampled_from(files))
        path.write_bytes(given_by.draw(damaged[path]))
        try:
            with limits():
                read()
        except ParallaxError as error:
            assert str(root) in str(error) or path.stem in str(error), f"{path.name}: the error does not name the file: {error}"
        finally:
            path.write_bytes(whole[path])

    holds()


@pytest.fixture
def root(tmp_path):
    yield tmp_path / "case"
    shutil.rmtree(tmp_path)


needs_limits = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")


@needs_limits
@pytest.mark.parametrize("name", sorted(CASES))
def test_damaged_files_give_one_clear_error(name, root, monkeypatch):
    monkeypatch.setattr(logging.getLogger("parallax"), "disabled", True)
    root.mkdir()
    try_damage(name, root, EXAMPLES)


@needs_limits
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_files_damaged_in_many_ways_give_one_clear_error(name, root, monkeypatch):
    monkeypatch.setattr(logging.getLogger("parallax"), "disabled", True)
    root.mkdir()
    try_damage(name, root, THOROUGH)
