import subprocess
import sys

from tests.conftest import ROOT

PROGRAM = """
import os, resource, sys
from lib.allocator import keep_heap
if sys.argv[1] == "keep":
    print(keep_heap(), keep_heap())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray(b"x") * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults(), os.environ.get("MALLOC_MMAP_THRESHOLD_"), "torch" in sys.modules)
"""


def run(argument: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, argument]
    return subprocess.check_output(command, cwd=ROOT, text=True, env=environment).split()


def test_keep_heap_stops_page_faults_of_fresh_blocks_and_tells_children():
    plain, kept = run("plain"), run("keep")
    if kept[:2] != ["True", "False"]:  # not glibc: nothing happens, nothing breaks
        assert kept[:2] == ["False", "False"]
        return
    assert int(kept[2]) * 10 < int(plain[0])  # 64 MB in pages of 4 KiB (or fewer huge ones), each time
    assert kept[3] == str(1 << 30) and kept[4] == "False"


def test_every_script_that_computes_sets_it_first():
    scripts = {path.name: path.read_text(encoding="utf-8") for path in [*(ROOT / "scripts").glob("*.py"), ROOT / "refiner" / "main.py"]}
    without = {name for name, text in scripts.items() if "__main__" in text and "    keep_heap()\n" not in text}
    assert without == {"convert.py", "download.py"}  # these only move files
    assert "keep_heap()" in (ROOT / "lib" / "dataset" / "loader.py").read_text(encoding="utf-8")  # once more in each worker


def test_keep_heap_respects_what_the_user_set():
    kept = run("keep", MALLOC_MMAP_THRESHOLD_="131072", MALLOC_TRIM_THRESHOLD_="131072")
    assert kept[:2] == ["False", "False"] and kept[3] == "131072"
