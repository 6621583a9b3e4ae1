"""Nothing imports what lies above it, and joint orders are written in lib/skeleton.py alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Part of the path (the longest that fits counts) -> level. A file may import its own level and those below.
LEVELS = {
    "lib/errors.py": 0, "lib/registry.py": 0, "lib/schema.py": 0, "lib/config.py": 0, "lib/skeleton.py": 0,
    "lib/files.py": 0, "lib/ranks.py": 0, "lib/geometry": 0, "lib/allocator.py": 0, "lib/unpickle.py": 0,
    "lib/backbone": 1, "lib/correction": 1, "lib/loss": 1, "lib/metrics": 1,
    "lib/models": 2, "lib/dataset": 2, "lib/synthetic": 2, "lib/vis.py": 2, "lib/drawing": 2, "lib/video.py": 2, "lib/tracking.py": 2,
    "lib/tasks": 3, "lib/weights": 3,
    "lib/engine": 4, "lib/report": 4,
    "lib/prediction": 5, "lib/predictor.py": 5, "lib/convert.py": 5, "lib/onnx_export.py": 5, "scripts": 5, "refiner": 5,
}  # fmt: skip
FORBIDDEN = {  # within a level
    "lib/dataset": ("lib/models", "lib/synthetic"),
    "lib/synthetic": ("lib/models",),
    "lib/models": ("lib/dataset", "lib/synthetic"),
}
CONFIG_LEVEL = 3  # no deeper may know the configuration: below, everything is built from plain arguments

FILES = sorted(p for folder in ("lib", "scripts", "refiner") for p in (ROOT / folder).rglob("*.py"))


def part_of(path: str) -> str | None:
    """The entry of LEVELS that a file or module path belongs to."""
    fitting = [part for part in LEVELS if path == part or path.startswith((part + "/", part.removesuffix(".py") + "/"))
               or path + ".py" == part]
    return max(fitting, key=len, default=None)


def imports(tree: ast.AST, path: str) -> Iterator[tuple[int, str]]:
    """Line and path of every module of ours that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = path.split("/")[: -node.level] if node.level else []
            module = ".".join([*folder, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]  # `from lib import skeleton` imports a module
        else:
            continue
        for name in names:
            if name.split(".")[0] in ("lib", "scripts", "refiner", "tests"):
                yield node.lineno, name.replace(".", "/")


def upward(source: str, path: str) -> list[str]:
    """The imports of a file that point upwards, or sideways where that is forbidden."""
    part, found = part_of(path), []
    for line, module in imports(ast.parse(source), path):
        target = part_of(module)
        if module.startswith("tests/") or (target and LEVELS[target] > LEVELS[part]):
            found.append(f"{path}:{line}: level {LEVELS[part]} imports {module}")
        elif target in FORBIDDEN.get(part, ()):
            found.append(f"{path}:{line}: {part} imports {module}")
        elif target == "lib/config.py" and LEVELS[part] < CONFIG_LEVEL and part != target:
            found.append(f"{path}:{line}: level {LEVELS[part]} knows the configuration")
    return found


def permutations(source: str) -> list[int]:
    """Lines of literal lists or tuples that put 0..n-1 (n >= 13) into another order."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.List | ast.Tuple) and len(node.elts) >= 13:
            values = [e.value for e in node.elts if isinstance(e, ast.Constant) and type(e.value) is int]
            if len(values) == len(node.elts) and sorted(values) == list(range(len(values))) != values:
                found.append(node.lineno)
    return found


def test_every_file_has_a_level():
    paths = [str(p.relative_to(ROOT)) for p in FILES]
    assert len(paths) > 10
    assert [p for p in paths if part_of(p) is None and p != "lib/__init__.py"] == []


@pytest.mark.parametrize("file", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_no_upward_import_and_no_joint_order(file: Path):
    path, source = str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")
    if part_of(path) is not None:
        assert upward(source, path) == []
    if path != "lib/skeleton.py":
        assert permutations(source) == [], "joint orders follow from names: see lib/skeleton.py"


@pytest.mark.parametrize(("path", "source", "bad"), [
    ("lib/geometry/a.py", "from lib.dataset.image import warp", True),
    ("lib/geometry/a.py", "def f():\n    import lib.engine.trainer", True),
    ("lib/geometry/a.py", "from lib.skeleton import get\nfrom lib.geometry import crop", False),
    ("lib/geometry/a.py", "from ..tasks import base", True),
    ("lib/models/a.py", "from lib import config", True),
    ("lib/models/a.py", "from lib.dataset import image", True),
    ("lib/dataset/formats/a.py", "from lib.synthetic import world", True),
    ("lib/synthetic/a.py", "from lib.dataset.annotations import Annotations", False),
    ("lib/tasks/a.py", "from lib.config import Config\nfrom lib.models import MODELS", False),
    ("lib/tasks/a.py", "from lib.engine import trainer", True),
    ("lib/engine/a.py", "from tests.scene import scene", True),
    ("scripts/a.py", "from lib.engine.trainer import Trainer", False),
])
def test_the_check_itself(path, source, bad):
    assert bool(upward(source, path)) is bad


def test_the_permutation_check_itself():
    order = [*range(7, 13), *range(7)]
    assert permutations(f"x = {order}") == [1] and permutations(f"x = {tuple(order)}") == [1]
    assert permutations(f"x = {list(range(13))}") == [] and permutations(f"x = {order[:6]}") == []
