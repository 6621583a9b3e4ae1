"""The commands of the original's README on data in its own layouts: same YAML paths below experiments/, same data folders.

The data are the embedded world laid out as Human3.6M and MPII, the networks are tiny; what is shared with real use is everything
else: formats, configuration keys, label generation, run directories, scripts.
"""

import json
import re
import sys

import numpy as np
import pytest
import torch

from lib.dataset.formats import h36m
from lib.weights.load import read, write_reference
from scripts import prepare, synth, train, valid
from tests.conftest import ROOT

WORLD = ["--pretrain", "16", "--train", "20", "--valid", "4", "--size", "96", "96", "--workers", "1"]
TINY = {
    "MODEL.IMAGE_SIZE": "[64,64]", "MODEL.DEPTH_RES": 8, "MODEL.EXTRA.NUM_LAYERS": 18, "MODEL.EXTRA.NUM_STAGES": 3,
    "MODEL.EXTRA.NUM_DECONV_LAYERS": 2, "MODEL.EXTRA.NUM_DECONV_FILTERS": "[8,8]", "MODEL.EXTRA.NUM_DECONV_KERNELS": "[4,4]",
    "MODEL.INIT_WEIGHTS": "false", "TRAIN.BATCH_SIZE": 4, "TRAIN.MAX_STEPS": 1, "TEST.BATCH_SIZE": 8, "WORKERS": 0, "DEVICE": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as after the download: data/h36m and data/mpii."""
    folder = tmp_path_factory.mktemp("original")
    for layout, form in (("h36m", ["--form", "pickle"]), ("mpii", [])):
        assert synth.main(["--root", str(folder / "data" / layout), "--layout", layout, *form, *WORLD]) == 0
    return folder


@pytest.fixture(scope="module")
def run(place):
    """Calls a script's main() in that folder as from the command line; keys are set to tiny values."""

    def call(script, cfg: str, *extra, **changes):
        keys = TINY | {k.replace("__", "."): v for k, v in changes.items()}
        words = ["--cfg", str(ROOT / "experiments" / cfg), *extra, *(f"{k}={v}" for k, v in keys.items())]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            if script is prepare:
                assert prepare.main(["labels", *words]) == 0
            else:
                patch.setattr(sys, "argv", [script.__file__, *words])
                script.main()

    return call


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def teacher(place, run):
    """python scripts/train.py --cfg experiments/mpii/train-heatmap.yaml, then train.yaml"""
    run(train, "mpii/train-heatmap.yaml")
    weights = place / "output/mpii/pose3d_resnet/train-heatmap/model_best.pth.tar"
    run(train, "mpii/train.yaml", MODEL__PRETRAINED=weights)
    return place / "output/mpii/pose3d_resnet/train/model_best.pth.tar"


def test_mpii_train_and_valid(place, run, teacher):
    assert "pckh_percent" in results(teacher.parent)["metrics"]
    run(valid, "mpii/valid.yaml", EXP_NAME="train", MODEL__RESUME=teacher)
    found = results(teacher.parent / "valid-model_best")
    assert found["protocol"]["flip_test"] is True and found["counts"]["heads"] == 4


def test_h36m_train_and_valid(place, run, teacher):
    run(train, "h36m/train.yaml", MODEL__PRETRAINED=teacher)
    folder = place / "output/h36m/pose3d_resnet/train"
    first = results(folder)
    assert first["metrics"]["mpjpe_mm"] > 0 and "pa_mpjpe_rooted_mm" in first["metrics"]
    run(valid, "h36m/valid.yaml", MODEL__RESUME=folder / "final_state.pth.tar")
    assert results(place / "output/h36m/pose3d_resnet/valid/valid-final_state")["metrics"]["mpjpe_mm"] == pytest.approx(
        first["metrics"]["mpjpe_mm"], rel=1e-3
    )


def bare(checkpoint):
    """The weights as the original's files hold them: no configuration, keys with "module."."""
    path = checkpoint.with_name("mpii_integral.pth.tar")
    write_reference(read(checkpoint).state_dict, path)
    return path


@pytest.mark.parametrize(("labels", "student", "form"), [("labels", "train-ss", "pickle"), ("labels-2dgt", "train-2dgt", "npz")])
def test_h36m_self_supervised(place, run, teacher, capsys, labels, student, form):
    source = {} if "2dgt" in labels else {"EPIPOLAR__TEACHER": bare(teacher), "EPIPOLAR__THRESHOLD_PX": 0}
    run(prepare, f"h36m/{labels}.yaml", "--form", form, **source)
    split = "train-ss" + labels.removeprefix("labels")
    said = capsys.readouterr().out
    assert "of the joints have a label" in said and "against the truth: mpjpe" in said
    made = h36m.read(place / "data/h36m", split)
    assert made.skeleton == "mpii16" and set(made.subjects[made.sequence]) == {b"S1", b"S5", b"S6", b"S7", b"S8"}
    stored = json.loads((place / f"data/h36m/annot/{split}.quality.json").read_text())
    assert (place / f"data/h36m/annot/{split}.quality.png").stat().st_size > 10_000
    if "2dgt" in labels:
        assert stored["quality"]["kept"] == 1.0 and stored["quality"]["truth"]["mpjpe_mm"] < 1
        cameras = made.cameras[made.camera]
        x = cameras.project(torch.from_numpy(made.X_world[made.pose]).double())[0].numpy()
        np.testing.assert_allclose(made.x_img, x, atol=1e-3)
    run(train, f"h36m/{student}.yaml", MODEL__PRETRAINED=teacher)
    folder = place / f"output/h36m/pose3d_resnet/{student}"
    assert results(folder)["metrics"]["mpjpe_mm"] > 0
    run(valid, "h36m/valid-ss.yaml", EXP_NAME=student, MODEL__RESUME=folder / "model_best.pth.tar")
    assert results(folder / "valid-model_best")["counts"]["poses"] == 16


def test_labels_are_never_overwritten(place, run, capsys):
    path = place / "data/h36m/annot/train-ss-2dgt.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"mine")
    before = path.read_bytes()
    with pytest.raises(AssertionError):  # exit status 2
        run(prepare, "h36m/labels-2dgt.yaml")
    assert "exists already" in capsys.readouterr().err and path.read_bytes() == before
    if before == b"mine":
        path.unlink()


def test_refiner(place, run, teacher):
    """Pairs from a self-supervised kind of network (16 joints), then the original's --mode train and test."""
    from refiner import main as refiner

    run(train, "h36m/train-s1.yaml", MODEL__PRETRAINED=teacher)
    cfg = ["--cfg", str(ROOT / "experiments/refiner/train.yaml"), "REFINE.WIDTH=16", "TRAIN.MAX_STEPS=2", "TRAIN.BATCH_SIZE=8"]
    steps = (
        ["--mode", "build", "--run", "output/h36m/pose3d_resnet/train-s1", "--out", "data/refiner"],
        ["--mode", "train", *cfg],
        ["--mode", "test", *cfg],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for words in steps:
            patch.setattr(sys, "argv", ["refiner/main.py", *words])
            refiner.main()
    folder = place / "output/h36m/refiner/train"
    assert results(folder)["metrics"]["mpjpe_mm"] > 0 and results(folder / "valid-model_best")["metrics"]["mpjpe_mm"] > 0


def test_check_of_both_layouts(place, capsys):
    for layout in ("h36m", "mpii"):
        split = "train-fs" if layout == "h36m" else "train"  # labels of a network that knows nothing look as bad as they are
        assert prepare.main(["check", layout, str(place / "data" / layout), "--split", split]) == 0
        assert re.match(f"good: {split}: .* people", capsys.readouterr().out)
