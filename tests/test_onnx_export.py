"""ONNX files: onnxruntime gives what the task itself gives, for networks whose outputs differ from input to input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import onnx_export
from lib.config import defaults
from lib.engine import checkpoint
from lib.geometry.heatmap import _plain_soft_argmax, soft_argmax
from lib.tasks import build
from lib.tasks.restore import restore
from scripts import convert as script
from tests.conftest import he, recorded_state
from tests.tiny_dataset import NETWORK

CROPS = NETWORK | {"MODEL.EXTRA.NUM_STAGES": 1, "MODEL.EXTRA.NUM_DECONV_LAYERS": 1, "MODEL.EXTRA.NUM_DECONV_FILTERS": [8]}
CROPS |= {"MODEL.EXTRA.NUM_DECONV_KERNELS": [4], "MODEL.IMAGE_SIZE": [48, 64]}
FAMILIES = {
    "volume, mirrored": CROPS | {"TEST.FLIP_TEST": True, "DATASET.BOX_SCALE": 1.5},
    "fusion": CROPS | {"TASK": "fusion", "MODEL.NAME": "fusion", "MODEL.HEAD": "heatmap_depth", "DATASET.SKELETON": "mpii16",
                       "MODEL.NUM_JOINTS": 16, "FUSION.BONE_SUM_MM": 4100.0, "TEST.POST_PROCESS": True, "TEST.FLIP_TEST": False},
    "lifter, mirrored": {"TASK": "temporal", "MODEL.NAME": "temporal", "MODEL.NUM_JOINTS": 17, "TEMPORAL.CHANNELS": 16,
                         "TEMPORAL.TRAJECTORY": "true", "TEMPORAL.CAUSAL": True, "TEST.FLIP_TEST": True},
}  # fmt: skip


def save(path: Path, settings: dict) -> Path:
    """A checkpoint with weights that make the maps rough."""
    cfg = defaults().with_values(settings)
    task = build(cfg)
    task.model.load_state_dict(recorded_state(task.model, he))
    spec = task.image_spec and task.image_spec.to_dict()
    checkpoint.save(path, {"format": 1, "kind": "parallax", "model": task.model.state_dict(), "config": cfg.to_dict(),
                           "task_extra": task.extra_state(), "image_spec": spec, "skeleton": task.skeleton})  # fmt: skip
    return path


@pytest.fixture
def runtime():
    for package in onnx_export.PACKAGES:
        pytest.importorskip(package)
    return pytest.importorskip("onnxruntime")


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 3, 64, 48), dtype=np.uint8)


def clips(count: int, frames: int) -> np.ndarray:
    return np.random.default_rng(frames).normal(0, 0.4, (count, frames, 17, 2)).astype(np.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_runs_with_equal_results_and_says_what_it_is(runtime, family, tmp_path, capsys):
    path, out = save(tmp_path / "w.pth.tar", FAMILIES[family]), tmp_path / "new" / "w.onnx"
    assert script.main(["onnx", str(path), str(out)]) == 0
    assert "beside torch on 8 examples" in capsys.readouterr().out
    assert [p.name for p in out.parent.iterdir()] == ["w.onnx"]  # one file, nothing beside it
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    task = restore(path)
    if family.startswith("lifter"):
        given, key = [clips(1, 1), clips(3, 7), clips(2, 60)], "x_screen"
        expected = [task.lift(torch.from_numpy(x))._asdict() for x in given]
        assert json.loads(told["receptive_field"]) == 27 and json.loads(told["causal"]) and told["layout"] == "h36m17"
    else:
        given, key = [crops(n) for n in (1, 3)], "image"
        batches = [{"image": torch.from_numpy(x), "patch_from_img": torch.eye(2, 3).expand(len(x), 2, 3),
                    "depth_scale": torch.ones(len(x))} for x in given]  # fmt: skip
        with torch.no_grad():
            expected = [task.predict(batch) for batch in batches]
        assert json.loads(told["image_spec"])["size"] == [48, 64] and expected[0]["x_img"].std() > 5
    if family.startswith("volume"):
        expected = [{"x_patch": torch.cat([e["x_img"], e["z_mm"][..., None]], -1), "conf": e["conf"]} for e in expected]
        assert json.loads(told["box_scale"]) == 1.5 and json.loads(told["flip_test"])
    elif family == "fusion":
        expected = [{"x_patch": e.pop("x_img"), **e} for e in expected]
        assert "4100 mm" in told["assumed"]
    names = json.loads(told["outputs"])
    assert names == [o.name for o in session.get_outputs()] == list(expected[0]) and told["input"] == key
    assert json.loads(told["joints"])[0] == told["root"] == "pelvis" and told["skeleton"] == "h36m17"
    for x, truth in zip(given, expected, strict=True):
        for name, found in zip(names, session.run(names, {key: x}), strict=True):
            assert found.shape == tuple(truth[name].shape) and f"about_{name}" in told
            np.testing.assert_allclose(found, truth[name].detach(), rtol=1e-4, atol=0.05 if name in ("X_root", "root") else 5e-3)


def test_what_differs_leaves_no_file(runtime, tmp_path, monkeypatch, capsys):
    path = save(tmp_path / "w.pth.tar", FAMILIES["lifter, mirrored"] | {"TEMPORAL.WIDTHS": [1], "TEST.FLIP_TEST": False})
    make = onnx_export._onnx

    def old(made, source):
        model = make(made, source)
        made.network.task.model.pose.shrink.bias.data[3] += 0.5  # m, of one joint
        return model

    monkeypatch.setattr(onnx_export, "_onnx", old)
    assert script.main(["onnx", str(path), str(tmp_path / "w.onnx")]) == 2
    message = capsys.readouterr().err
    assert "X_root of 1 examples is up to 500 away" in message and "nothing was written" in message and list(tmp_path.iterdir()) == [path]


def test_existing_files_other_networks_and_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    path, out = save(tmp_path / "w.pth.tar", FAMILIES["lifter, mirrored"]), tmp_path / "w.onnx"
    out.write_bytes(b"mine")
    assert script.main(["onnx", str(path), str(out)]) == 2
    assert "never overwritten" in capsys.readouterr().err and out.read_bytes() == b"mine"
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert script.main(["onnx", str(path), str(tmp_path / "other.onnx")]) == 2
    assert "run `pip install onnxscript`" in capsys.readouterr().err
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: name)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "x.pth")
    torch.save(build(defaults().with_values(CROPS)).model.state_dict(), tmp_path / "bare.pth")
    for name, words in (("x.pth", "expected a network that sees one person's crop"), ("bare.pth", "convert.py convert")):
        assert script.main(["onnx", str(tmp_path / name), str(tmp_path / "other.onnx")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 5, 7), (2, 3, 4, 5, 7)], ids=str)
def test_soft_argmax_of_exported_graphs_is_the_same(shape):
    logits = 3 * torch.randn(shape, dtype=torch.float64)
    for found, expected in zip(_plain_soft_argmax(logits, len(shape) - 2, 1.7), soft_argmax(logits, score=True, beta=1.7), strict=True):
        torch.testing.assert_close(found, expected)

