"""The worked examples of docs/extending.md: followed to the letter in a copy of the repository, they work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "extending.md"
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FOLLOW = """
import json, runpy, shlex, sys
sys.path.insert(0, ".")
for language, text in json.loads(sys.stdin.read()):
    print("---", text.strip().splitlines()[0], flush=True)
    if language == "python":
        exec(compile(text, "docs/extending.md", "exec"), {"__name__": "example"})
        continue
    for line in text.splitlines():
        _, *sys.argv = shlex.split(line)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, line
print("--- end")
"""


class Block(NamedTuple):
    language: str
    title: str  # of a new file
    text: str


def blocks() -> list[Block]:
    return [Block(*found) for found in FENCE.findall(PAGE.read_text(encoding="utf-8"))]


def patched(diff: str, root: Path) -> None:
    """Makes the change of a diff without line numbers; what it changes must be there once."""
    head, same, *lines = diff.splitlines()
    assert head[:4] == "--- " and same == f"+++ {head[4:]}", diff
    path = root / head[4:]
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kept) for kept in (" -", " +"))
    text = path.read_text(encoding="utf-8")
    assert f"\n{text}".count(f"\n{old}") == 1, f"{head[4:]} has other lines than docs/extending.md says:\n{old}"
    path.write_text(f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:], encoding="utf-8")


@pytest.fixture
def copy(tmp_path) -> Path:
    for name in ("lib", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_all_examples_work_in_the_order_of_the_page(copy):
    page = blocks()
    assert {b.title.split("/")[1] for b in page if b.title.startswith("lib/")} == {"dataset", "loss", "models", "tasks"}
    for block in page:
        if block.title:
            assert not (copy / block.title).exists()
            (copy / block.title).parent.mkdir(parents=True, exist_ok=True)
            (copy / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "diff":
            patched(block.text, copy)
    steps = [(b.language, b.text) for b in page if not b.title and b.language != "diff"]
    assert [language for language, _ in steps] == ["python"] * 3 + ["bash", "python"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = [sys.executable, "-c", FOLLOW]
    done = subprocess.run(run, cwd=copy, env=environment, input=json.dumps(steps), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("--- end\n"), done.stdout[-2000:] + done.stderr[-4000:]
    log = (copy / "output/points_csv/plain_cnn/train/metrics.jsonl").read_text(encoding="utf-8")
    assert "mirror_px" in log
    results = json.loads((copy / "output/points_csv/plain_cnn/train/results.json").read_text(encoding="utf-8"))
    assert results["step"] > 0 and results["metrics"]


def test_examples_keep_to_the_style(copy):
    """Lines, unused imports and their order, as for the files of the repository."""
    files = []
    for i, block in enumerate(b for b in blocks() if b.language == "python"):
        files.append(copy / (block.title or f"example_{i}.py"))
        files[-1].write_text(block.text, encoding="utf-8")
    checked = subprocess.run([sys.executable, "-m", "ruff", "check", *map(str, files)], cwd=copy, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_a_change_that_does_not_fit_is_found(tmp_path):
    (tmp_path / "a.py").write_text("x = {\n}\ny = {\n}\n")
    patched("--- a.py\n+++ a.py\n x = {\n+    1,\n", tmp_path)
    assert (tmp_path / "a.py").read_text() == "x = {\n    1,\n}\ny = {\n}\n"
    for wrong in (" z = {\n+    1,\n", " }\n+\n"):
        with pytest.raises(AssertionError, match="a.py has other lines"):
            patched(f"--- a.py\n+++ a.py\n{wrong}", tmp_path)
