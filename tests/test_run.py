"""`./run`: finds a Python, makes .venv, notices when it is stale or half made (with a fake Python)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "env", "cat", "cp", "cut", "dirname", "flock", "mkdir", "mv", "readlink", "rm", "sha256sum", "touch")
FAKE = """#!/usr/bin/env bash
version={version}
case "$*" in
  *version_info*) echo $version ;;
  *ensurepip*)    {venv_module} ;;
  "-m venv "*)    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip --version") ;;
  "-m pip install"*)
    echo "pip $*" >>"$DIARY"
    case ${{PIP:-}} in fails) exit 1 ;; dies) kill -9 $PPID ;; esac ;;
  *)              echo "python $*" >>"$DIARY" ;;
esac
"""


class House:
    """A copy of `run` in its own folder, with a PATH that holds a few tools and the fake Python."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.diary = folder / "a house", folder / "bin", folder / "diary"
        self.root.mkdir()
        self.bin.mkdir()
        shutil.copy(ROOT / "run", self.root / "run")
        (self.root / "requirements.txt").write_text("torch\n")
        (self.root / "requirements-dev.txt").write_text("-r requirements.txt\npytest\n")
        for tool in TOOLS:
            if shutil.which(tool):
                (self.bin / tool).symlink_to(shutil.which(tool))
        self.python("3.11.4")

    def python(self, version: str, name: str = "python3", venv_module: str = "true") -> None:
        path = self.bin / name
        path.write_text(FAKE.format(version=version, venv_module=venv_module))
        path.chmod(0o755)

    def call(self, *arguments: str, cwd=None, **environment: str):
        env = {"PATH": str(self.bin), "DIARY": str(self.diary), **environment}
        self.diary.write_text("")
        done = subprocess.run(
            [str(self.root / "run"), *arguments],
            env=env,
            cwd=cwd or self.root,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.returncode, done.stdout + done.stderr, self.diary.read_text().splitlines()


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


@pytest.mark.parametrize("script", ["run", ".ci/run"])
def test_scripts_are_valid_bash_and_executable(script):
    assert subprocess.run(["bash", "-n", str(ROOT / script)]).returncode == 0
    assert os.access(ROOT / script, os.X_OK)


def test_ci_runs_the_tests(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "run").write_text('#!/usr/bin/env bash\necho "called with: $*"\n')
    (tmp_path / "run").chmod(0o755)
    done = subprocess.run([str(tmp_path / ".ci/run")], capture_output=True, text=True, cwd="/")
    assert done.stdout == "called with: test\n"


@pytest.mark.parametrize("arguments, code", [(("--help",), 0), ((), 2), (("dmeo",), 2)])
def test_usage_is_printed_without_touching_anything(house, arguments, code):
    found, text, diary = house.call(*arguments)
    assert found == code and "./run demo" in text and "./run test" in text and not diary
    assert not (house.root / ".venv").exists()


def test_first_call_installs_and_later_ones_start_at_once(house, tmp_path):
    code, _, diary = house.call("demo", "--steps", "two words", cwd=tmp_path)
    assert code == 0 and len(diary) == 2
    assert diary[0].endswith("-r requirements.txt") and diary[1] == "python scripts/demo.py --steps two words"
    assert house.call("demo", cwd="/")[2] == ["python scripts/demo.py"]


def test_test_installs_the_tools_then_lints_and_tests(house):
    install, *steps = house.call("test")[2]
    assert install.endswith("-r requirements-dev.txt")
    assert steps == ["python -m ruff check .", "python -m pytest -n auto --maxprocesses 8 --dist loadfile"]
    assert house.call("test", "tests/test_vis.py", "-x")[2] == ["python -m pytest tests/test_vis.py -x"]


def test_changed_requirements_are_installed_once_into_the_same_environment(house):
    house.call("demo")
    (house.root / ".venv/mine").write_text("")
    (house.root / "requirements.txt").write_text("torch\nscipy\n")
    assert len(house.call("demo")[2]) == 2
    assert len(house.call("demo")[2]) == 1
    assert (house.root / ".venv/mine").exists()


def test_another_python_inside_the_environment_makes_it_anew(house):
    house.call("demo")
    (house.root / ".venv/mine").write_text("")
    inner = house.root / ".venv/bin/python"
    inner.write_text(FAKE.format(version="3.9.1", venv_module="true"))
    code, text, diary = house.call("demo")
    assert code == 0 and "Making .venv" in text and len(diary) == 2
    assert not (house.root / ".venv/mine").exists()


def test_interrupted_installation_is_recognised_and_redone(house):
    code, _, diary = house.call("demo", PIP="dies")
    assert code != 0 and len(diary) == 1
    code, text, diary = house.call("demo")
    assert code == 0 and "unfinished" in text and diary[-1] == "python scripts/demo.py"


def test_failed_installation_stops_with_advice_and_keeps_a_working_environment(house):
    code, text, diary = house.call("demo", PIP="fails")
    assert code == 1 and "did not succeed" in text and len(diary) == 1
    assert house.call("demo")[0] == 0
    assert house.call("test", PIP="fails")[0] == 1  # offline: the tools for tests cannot be had ...
    assert house.call("demo")[2] == ["python scripts/demo.py"]  # ... but what was complete still starts at once


@pytest.mark.parametrize("version", ["2.7.18", "3.8.10", "3.9.19"])
def test_too_old_python_is_named_with_a_way_out(house, version):
    house.python(version)
    code, text, diary = house.call("demo")
    assert code == 1 and not diary and not (house.root / ".venv").exists()
    assert "3.10 or newer" in text and version in text and str(house.bin / "python3") in text and "apt install" in text


def test_newer_python_under_another_name_is_found(house):
    house.python("3.8.10")
    house.python("3.12.1", name="python3.12")
    code, text, _ = house.call("demo")
    assert code == 0 and "Python 3.12.1" in text


def test_missing_python_and_missing_venv_module_are_told_apart(house):
    house.python("3.11.4", venv_module="false")
    code, text, _ = house.call("demo")
    assert code == 1 and "python3.11-venv" in text
    (house.bin / "python3").unlink()
    code, text, _ = house.call("demo")
    assert code == 1 and "found none" in text


def test_python_can_be_chosen(house):
    house.python("3.12.1", name="mine")
    assert "Python 3.12.1" in house.call("demo", PYTHON=str(house.bin / "mine"))[1]
    assert house.call("demo", PYTHON="/no/such/python")[0] == 0  # the environment exists: nothing to choose
    shutil.rmtree(house.root / ".venv")
    code, text, _ = house.call("demo", PYTHON="/no/such/python")
    assert code == 1 and "PYTHON=/no/such/python does not run" in text
