"""Every experiment on the embedded world makes one real step, and the demo runs from world to table."""

import json
from pathlib import Path

import pytest

from lib.config import load
from lib.engine import commands, run_dir
from scripts import demo
from tests.conftest import ROOT

YAMLS = sorted(p for p in (ROOT / "experiments" / "synthetic").rglob("*.yaml") if not p.stem.startswith("base"))
SMALL = {
    "SYNTH.PRETRAIN": 16, "SYNTH.TRAIN": 6, "SYNTH.VALID": 2, "SYNTH.SIZE": [96, 96], "SYNTH.OBJECTS": True,
    "MODEL.IMAGE_SIZE": [64, 64], "MODEL.DEPTH_RES": 8,
    "MODEL.EXTRA.NUM_LAYERS": 18, "MODEL.EXTRA.NUM_STAGES": 3, "MODEL.EXTRA.NUM_DECONV_LAYERS": 2,
    "MODEL.EXTRA.NUM_DECONV_FILTERS": [8, 8], "MODEL.EXTRA.NUM_DECONV_KERNELS": [4, 4], "TRAIN.BATCH_SIZE": 4, "TRAIN.MAX_STEPS": 1,
    "TRAIN.WARMUP_STEPS": 0, "TEST.BATCH_SIZE": 4, "WORKERS": 0, "MODEL.INIT_WEIGHTS": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Settings with a tiny world, and the checkpoint of a 2D network that one step of training made."""
    folder = tmp_path_factory.mktemp("experiments")
    settings = SMALL | {"DATASET.ROOT": str(folder / "world"), "OUTPUT_DIR": str(folder / "output")}
    cfg = load(ROOT / "experiments" / "synthetic" / "pretrain.yaml").with_values(settings)
    commands.train(cfg)
    return settings, run_dir.run_path(cfg) / run_dir.BEST


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: str(p.relative_to(ROOT / "experiments")))
def test_each_experiment_makes_a_step_and_is_judged(small, path):
    settings, weights = small
    cfg = load(path)
    changes = dict(settings, EXP_NAME=f"{path.parent.name}-{path.stem}")
    if cfg.MODEL.PRETRAINED:
        changes["MODEL.PRETRAINED"] = str(weights)
    if cfg.EPIPOLAR.TEACHER.endswith(".tar"):
        changes |= {"EPIPOLAR.TEACHER": str(weights), "EPIPOLAR.THRESHOLD_PX": 0.0}
    cfg = cfg.with_values(changes)
    commands.train(cfg)
    folder = run_dir.run_path(cfg)
    results = json.loads((folder / "results.json").read_text())
    assert results["step"] == 1 and ("mpjpe_mm" in results["metrics"] or "pck2d_percent" in results["metrics"])
    assert {run_dir.LAST, run_dir.BEST, run_dir.FINAL, "config.yaml", "train.log", "metrics.jsonl"} <= {p.name for p in folder.iterdir()}


def test_paths_between_experiments_fit():
    """The checkpoint that one YAML writes is the one that the next YAML reads."""
    written = {str(run_dir.run_path(load(p)) / run_dir.BEST) for p in YAMLS}
    for path in YAMLS:
        cfg = load(path)
        for key in (cfg.MODEL.PRETRAINED, cfg.EPIPOLAR.TEACHER):
            assert not key.endswith(".tar") or key in written, f"{path}: nothing writes {key}"


def test_demo_runs_to_its_table_and_a_second_call_trains_nothing(tmp_path, capsys):
    out = tmp_path / "demo"
    summary = demo.run(out, quick=True)
    text = capsys.readouterr().out
    assert "self-supervised / fully supervised" in text and len(summary["rows"]) == 4
    assert {"results.json", "sheet.png", "curves.png", "student.pth.tar"} <= {p.name for p in out.iterdir()}
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("checkpoint.pth.tar")}
    again = demo.run(out, quick=True)
    assert again["rows"] == summary["rows"]
    assert len(stamps) == 3 and all(p.stat().st_mtime_ns == t for p, t in stamps.items())
    assert demo.quick_checkpoint(out) == Path(out) / "student.pth.tar"


@pytest.mark.slow
def test_demo_learns_3d_without_3d_labels(tmp_path):
    """The promise of the README, on people that no training split holds; ten minutes on two cores."""
    summary = demo.run(tmp_path / "demo")
    mean_pose, labels, student, twin = (row["mpjpe_mm"] for row in summary["rows"].values())
    assert twin <= 0.50 * mean_pose
    assert student <= 1.20 * twin
    assert labels < student
