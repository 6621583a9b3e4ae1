"""What the pages at the top of the repository say is there."""

import re
from pathlib import Path

import pytest
import yaml

from lib.config import defaults, load
from lib.engine.run_dir import run_path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "models/README.md", "refiner/README.md",
    "docs/experiments.md", "docs/conventions.md", "docs/extending.md", "docs/from-epipolarpose.md",
    "docs/from-videopose3d.md", "docs/from-selfpose3d.md", "docs/results.md", "docs/performance.md", "docs/scaling.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not ((ROOT / page).parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_scripts_and_experiments_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    made = re.findall(r'^```\w+ title="([^"]+)"', text, re.MULTILINE)  # by the page itself
    named = set(re.findall(r"\b(?:scripts/\w+\.py|experiments/[\w/-]+\.yaml|lib/[\w/]+\.py)", text)) - set(made)
    assert [name for name in named if not (ROOT / name).exists() and Path(name).stem != "x"] == []


def commands() -> list[tuple[str, str, list[str]]]:
    """Page, YAML and KEY VALUE words of each command with --cfg that a page, an experiment or a script tells."""
    found = []
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("experiments/**/*.yaml")]):
        for cfg, rest in re.findall(r"--cfg (experiments/[\w/.-]+\.yaml)((?: +[A-Z][A-Z0-9_.]+ [\w./\[\],-]+)*)", path.read_text("utf-8")):
            found.append((path.relative_to(ROOT).as_posix(), cfg, rest.split()))
    return found


def test_commands_of_the_pages_have_keys_that_exist_and_weights_that_another_experiment_makes():
    made = {run_path(load(path)).as_posix() for path in (ROOT / "experiments").rglob("*.yaml") if not path.stem.startswith("base")}
    told = commands()
    assert len(told) > 60
    for page, file, words in told:
        if not (ROOT / file).exists() and page == "docs/extending.md":
            continue  # which makes it
        cfg = load(ROOT / file, words)
        made.add(run_path(cfg).as_posix())
        for weights in (cfg.MODEL.PRETRAINED, cfg.MODEL.RESUME):
            assert not weights.startswith("output/") or Path(weights).parent.as_posix() in made, (page, file, weights)


def test_keys_that_the_other_projects_become_are_keys():
    """What coming from another project is told to set."""
    known = defaults().flat()
    key = re.compile(r"\b(?:DATASET|MODEL|VOXEL|SSL|TEMPORAL|EPIPOLAR|TEST|TRAIN)\.[A-Z][A-Z0-9_]*\b")
    for page in sorted((ROOT / "docs").glob("from-*.md")):
        named = set(key.findall(page.read_text(encoding="utf-8")))
        assert named and [name for name in named if name not in known] == [], page


def test_every_experiment_is_listed():
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    folder = ROOT / "experiments"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml") if not path.stem.startswith("base")}
    # twins of the native layouts are listed under the name they share with the original
    listed = {name: name.removeprefix("synthetic/") for name in names}
    assert names and [name for name, short in listed.items() if f"`{short}`" not in text] == []


def test_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
    assert all({"type", "title", "authors"} <= set(reference) for reference in citation["references"])
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_licence_is_the_declared_one():
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert 'text = "MIT"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
