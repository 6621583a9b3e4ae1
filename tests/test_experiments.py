"""Every experiment on the embedded world makes one real step, and the demo runs from world to table."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lib.config import load
from lib.dataset.formats import campus, keypoints_npz, panoptic, shelf
from lib.engine import commands, run_dir
from lib.synthetic.world import World
from lib.tasks import data, pseudo
from lib.tasks.prepare import prepare_labels
from lib.tasks.world import ensure_motion
from scripts import demo
from tests.conftest import ROOT

YAMLS = sorted(p for p in (ROOT / "experiments" / "synthetic").rglob("*.yaml") if not p.stem.startswith("base"))
NATIVE = [p for p in YAMLS if p.parent.name in ("h36m", "mpii", "threedpw")]  # in the layouts of real data sets
PEOPLE = [p for p in YAMLS if p.stem.startswith(("voxelpose", "selfpose3d"))]  # whole frames of several people
LIFTING = [p for p in YAMLS if p.stem.startswith(("temporal", "mocap"))]  # from keypoints, without images
MACHINE = sorted(p for p in (ROOT / "experiments" / "machine").glob("*.yaml") if p.stem != "base")  # clips
CROPS = [p for p in YAMLS if p not in NATIVE + LIFTING + PEOPLE]
FUSION = sorted(p for name in ("fusion", "threedpw") for p in (ROOT / "experiments" / name).glob("*.yaml") if p.stem != "base")
PANOPTIC = sorted(p for p in (ROOT / "experiments" / "panoptic").glob("*.yaml") if p.stem != "base")
ACTORS = sorted(p for name in ("shelf", "campus") for p in (ROOT / "experiments" / name).glob("*.yaml") if p.stem != "base")
VIDEO = sorted(p for p in (ROOT / "experiments" / "video" / "h36m").glob("*.yaml") if p.stem != "base")
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


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Predictions of a network with depth, as a run writes them."""
    X = np.random.default_rng(0).normal(size=(8, 17, 3)) * 300
    path = tmp_path_factory.mktemp("pairs") / "predictions.npz"
    np.savez(path, X_cam=X, X_cam_true=1.1 * X, X_valid=np.ones((8, 17), bool), skeleton=np.array("h36m17"))
    return path


@pytest.mark.parametrize("path", CROPS, ids=lambda p: str(p.relative_to(ROOT / "experiments")))
def test_each_experiment_makes_a_step_and_is_judged(small, pairs, tmp_path, path):
    settings, weights = small
    cfg = load(path)
    changes = settings | {"OUTPUT_DIR": str(tmp_path), "MODEL.RESUME": ""}
    if cfg.MODEL.PRETRAINED:
        changes["MODEL.PRETRAINED"] = str(weights)
    if cfg.TASK == "refine":  # its pairs come from a network with depth
        changes |= {"REFINE.TRAIN": str(pairs), "REFINE.VALID": str(pairs)}
    if cfg.EPIPOLAR.TEACHER.endswith(".tar"):
        changes |= {"EPIPOLAR.TEACHER": str(weights), "EPIPOLAR.THRESHOLD_PX": 0.0}
    if cfg.EPIPOLAR.EXTRINSICS == "estimated":  # more instants, and better joints than those of a network after one step
        changes |= {"EPIPOLAR.TEACHER": "annotation", "SYNTH.TRAIN": 20, "DATASET.ROOT": settings["DATASET.ROOT"] + "-rigs"}
    cfg = cfg.with_values(changes)
    commands.train(cfg)
    folder = run_dir.run_path(cfg)
    results = json.loads((folder / "results.json").read_text())
    assert results["step"] == 1 and ("mpjpe_mm" in results["metrics"] or "pck2d_percent" in results["metrics"])
    assert {run_dir.LAST, run_dir.BEST, run_dir.FINAL, "config.yaml", "train.log", "metrics.jsonl"} <= {p.name for p in folder.iterdir()}


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """Settings by data set for a tiny world in native layouts, and a 2D network of MPII's joints that one step made."""
    folder = tmp_path_factory.mktemp("native")
    shared = SMALL | {"OUTPUT_DIR": str(folder / "output"), "TEST.PSS": "off", "SYNTH.TRAIN": 15}
    settings = {name: shared | {"DATASET.ROOT": str(folder / name)} for name in ("h36m", "mpii", "threedpw", "h36m_challenge")}
    cfg = load(ROOT / "experiments" / "synthetic" / "mpii" / "train-heatmap.yaml").with_values(settings["mpii"])
    commands.train(cfg)
    return settings, run_dir.run_path(cfg) / run_dir.BEST


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: str(p.relative_to(ROOT / "experiments")))
def test_each_twin_of_a_published_experiment_runs(native, tmp_path, path):
    settings, weights = native
    cfg = load(path)
    changes = settings[cfg.DATASET.DATASET] | {"OUTPUT_DIR": str(tmp_path)}
    if cfg.MODEL.PRETRAINED:
        changes["MODEL.PRETRAINED"] = str(weights)
    if cfg.EPIPOLAR.TEACHER.endswith(".tar"):
        known = cfg.EPIPOLAR.EXTRINSICS == "known"  # cameras cannot be found from what one step has taught
        changes |= {"EPIPOLAR.TEACHER": str(weights) if known else "annotation", "EPIPOLAR.THRESHOLD_PX": 0.0}
    if cfg.DATASET.TRAIN_SET.startswith("train-ss"):  # those labels come first
        made = load(path.with_name("labels-2dgt.yaml")).with_values(settings["h36m"])
        if not (Path(made.DATASET.ROOT) / "annot" / f"{cfg.DATASET.TRAIN_SET}.npz").exists():
            prepare_labels(made, split=cfg.DATASET.TRAIN_SET)
    resume = cfg.MODEL.RESUME
    cfg = cfg.with_values(changes | {"MODEL.RESUME": ""})
    commands.train(cfg)
    results = json.loads((run_dir.run_path(cfg) / "results.json").read_text())
    assert results["step"] == 1 and ("mpjpe_mm" in results["metrics"] or "pckh_percent" in results["metrics"])
    if resume:
        judged = commands.validate(cfg.with_values({"MODEL.RESUME": str(run_dir.run_path(cfg) / run_dir.BEST)}))
        assert judged["metrics"] == pytest.approx(results["metrics"], rel=1e-3)


@pytest.mark.parametrize("path", FUSION, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_each_experiment_of_fusion_makes_a_step_on_native_layouts(native, tmp_path, path):
    settings, weights = native
    cfg = load(path)
    changes = settings[cfg.DATASET.DATASET] | {"SYNTH.NATIVE": True, "DATASET.OPTIONS": {}, "MODEL.RESUME": "", "OUTPUT_DIR": str(tmp_path)}
    if cfg.DATASET.DATASET == "threedpw":  # its twin has another world
        changes["DATASET.ROOT"] += "-published"
    if cfg.MODEL.PRETRAINED:
        changes["MODEL.PRETRAINED"] = str(weights) if cfg.MODEL.NAME == "fusion" else ""
    if cfg.FUSION.WEAK:
        weak = cfg.flat()["FUSION.WEAK"]["mpii"]
        changes["FUSION.WEAK"] = {"mpii": weak | {"ROOT": settings["mpii"]["DATASET.ROOT"]}}
    if cfg.DATASET.DATASET == "h36m_challenge":  # both splits of one run have a file of 2D joints
        for split in ("train", "valid"):
            ann = data.annotations(cfg.with_values(changes), split, skeleton="h36m17")
            file = Path(changes["DATASET.ROOT"]) / f"keypoints-{split}.npz"
            np.savez(file, x_img=ann.x_img, conf=np.ones(ann.x_img.shape[:2]), skeleton="h36m17")
        changes["DATASET.OPTIONS"] = {"keypoints": "keypoints-{split}.npz"}
    cfg = cfg.with_values(changes)
    commands.train(cfg)
    results = json.loads((run_dir.run_path(cfg) / "results.json").read_text())
    assert results["step"] == 1 and ("mpjpe_mm" in results["metrics"]) == (cfg.MODEL.HEAD != "heatmap")


@pytest.mark.parametrize("path", MACHINE, ids=lambda p: p.stem)
def test_each_experiment_of_pose_machines_makes_a_step_on_native_layouts(native, tmp_path, path):
    settings, _ = native
    cfg = load(path)
    small = {"MACHINE.TRUNK": "resnet", "MACHINE.CHANNELS": 8, "MACHINE.HIDDEN": 16, "MODEL.EXTRA.NUM_STAGES": 3}
    changes = settings[cfg.DATASET.DATASET] | small | {"SYNTH.NATIVE": True, "MODEL.RESUME": "", "MODEL.PRETRAINED": ""}
    changes |= {"OUTPUT_DIR": str(tmp_path), "TRAIN.MAX_STEPS": 1, "MACHINE.FRAMES": 1, "DATASET.OPTIONS": {}}
    if cfg.MACHINE.STILLS:
        changes["MACHINE.STILLS"] = {"mpii": {"ROOT": settings["mpii"]["DATASET.ROOT"], "SPLIT": "train"}}
    commands.train(cfg.with_values(changes))
    results = json.loads((run_dir.run_path(cfg.with_values(changes)) / "results.json").read_text())
    assert results["step"] == 1 and ("mpjpe_mm" in results["metrics"]) == (path.stem != "2d")


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Settings with a few small frames of several people, in the layout of CMU Panoptic."""
    folder = tmp_path_factory.mktemp("crowd") / "world"
    tiny = {name: value for name, value in SMALL.items() if name != "MODEL.DEPTH_RES"} | {"SYNTH.PRETRAIN": 0, "SYNTH.TRAIN": 3}
    tiny |= {"VOXEL.CUBES": [16, 16, 8], "VOXEL.PERSON_CUBES": [16, 16, 16], "MODEL.IMAGE_SIZE": [96, 64], "TRAIN.BATCH_SIZE": 2}
    world = {"SYNTH.NATIVE": True, "SYNTH.RIG": "panoptic5", "SYNTH.ZOOM": 1.0, "SYNTH.PEOPLE": [2, 3], "SYNTH.OBJECTS": False,
             "SYNTH.LENGTH": 0, "SYNTH.STRANGERS": False}  # fmt: skip
    return tiny | world | {"DATASET.ROOT": str(folder), "DATASET.OPTIONS": {"interval": 1}}


@pytest.mark.parametrize("path", [*PEOPLE, *PANOPTIC], ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_each_experiment_with_several_people_makes_a_step_and_is_judged(crowd, tmp_path, path):
    cfg = load(path)
    no_files = {"SSL.LABELS": "", "SSL.VALID_LABELS": ""}  # of pseudo labels, in this world
    unlabelled = no_files | {"VOXEL.MAX_PEOPLE": 4} if cfg.TASK == "selfpose3d" else {}
    settings = crowd if cfg.TASK != "integral" else {name: value for name, value in crowd.items() if not name.startswith("VOXEL.")}
    cfg = cfg.with_values(settings | unlabelled | {"MODEL.PRETRAINED": "", "OUTPUT_DIR": str(tmp_path)})
    commands.train(cfg)
    results = json.loads((run_dir.run_path(cfg) / "results.json").read_text())
    if cfg.TASK == "integral":  # crops, before the first stage
        expected = "pck2d_percent"
    else:
        alone = "backbone" in cfg.VOXEL.PARTS if cfg.TASK == "voxelpose" else cfg.SSL.STAGE == "backbone"
        expected = "peak_recall_percent" if alone else "map_percent" if cfg.TASK == "voxelpose" else "reprojection_percent"
    assert results["step"] == 1 and expected in results["metrics"]


def test_panoptic_s_experiments_learn_and_are_judged_as_their_papers_say(tmp_path):
    """VoxelPose on its ten sequences; SelfPose3d on nine, chosen by the labels that prepare.py makes of the evaluated frames."""
    for cfg in map(load, PANOPTIC):
        ours = cfg.TASK == "selfpose3d"
        sequences = panoptic.LISTS[cfg.DATASET.TRAIN_SET]
        assert len(sequences) == (9 if ours else 10) and ("160906_band3" in sequences) != ours
        if ours:
            name, path = pseudo.target(tmp_path, cfg.DATASET.TEST_SET, "", "soft", "npz")
            assert cfg.SSL.VALID_LABELS == name == path.stem and name not in cfg.SSL.LABELS


def test_every_part_of_selfpose3d_learns_on_the_embedded_world():
    stages = {}
    for path in PEOPLE:
        if (cfg := load(path)).TASK == "selfpose3d":
            stages.setdefault(cfg.SSL.STAGE, []).append(cfg.SSL)
    assert set(stages) == {"backbone", "root", "pose", "finetune"}
    for stage in ("pose", "finetune"):
        assert any(ssl.ATTENTION and ssl.TRAIN_BACKBONE for ssl in stages[stage])


@pytest.fixture(scope="module")
def actors_trees(tmp_path_factory):
    """Folders of the embedded world in the layouts of Shelf and Campus, without pictures."""
    world = World(split="valid", frames=4, length=1, people=2, size=(96, 64), rig="panoptic5", distortion=False, objects=False)
    roots = {layout: tmp_path_factory.mktemp(layout.LAYOUT.name) for layout in (shelf, campus)}
    for layout, root in roots.items():
        layout.write(world.annotations().protocol(["S9"]), root, "valid")
    return {layout.LAYOUT.name: root for layout, root in roots.items()}


@pytest.mark.parametrize("path", ACTORS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_each_experiment_on_made_up_scenes_makes_a_step_and_is_judged(actors_trees, tmp_path, path):
    cfg = load(path)
    root, cubes = str(actors_trees[cfg.DATASET.DATASET]), {"VOXEL.CUBES": [16, 16, 8], "VOXEL.PERSON_CUBES": [16, 16, 16]}
    steps = {"TRAIN.MAX_STEPS": 1, "MODEL.IMAGE_SIZE": [96, 64], "WORKERS": 0, "OUTPUT_DIR": str(tmp_path), "VOXEL.SCENES": 4}
    results = commands.train(cfg.with_values(steps | cubes | {"DATASET.ROOT": root}))
    assert results["step"] == 1 and 0 <= results["metrics"]["pcp_percent"] <= 100


@pytest.fixture(scope="module")
def motions(tmp_path_factory):
    """Settings with a few short motions; those on real motion capture find the same archives."""
    folder = tmp_path_factory.mktemp("motions")
    ensure_motion(folder / "world", 28.0)
    return {
        "DATASET.ROOT": str(folder / "world"), "OUTPUT_DIR": str(folder / "output"), "TEMPORAL.CHANNELS": 8, "TEMPORAL.WARMUP_EPOCHS": 0,
        "DATASET.VAL_FRAME": 10, "TRAIN.BATCH_SIZE": 8, "TRAIN.MAX_STEPS": 1, "WORKERS": 0,
    }  # fmt: skip


@pytest.mark.parametrize("path", LIFTING, ids=lambda p: p.stem)
def test_each_lifting_experiment_makes_a_step_and_is_judged(motions, path):
    cfg = load(path)
    cfg = cfg.with_values(motions | ({"SYNTH.MOTION_SECONDS": 28.0} if cfg.SYNTH.NATIVE else {}))
    commands.train(cfg)
    results = json.loads((run_dir.run_path(cfg) / "results.json").read_text())
    assert results["step"] == 1 and results["metrics"]["mpjpe_mm"] > 0


@pytest.fixture(scope="module")
def published(motions, tmp_path_factory):
    """The short motions under the names of VideoPose3D's archives; keypoints in COCO's order are made of other joints."""
    folder, source = tmp_path_factory.mktemp("published"), Path(motions["DATASET.ROOT"])
    (folder / "data_3d_h36m.npz").symlink_to(source / "data_3d_h36m.npz")
    for name in ("gt", "cpn_ft_h36m_dbb", "detectron_ft_h36m"):
        (folder / f"data_2d_h36m_{name}.npz").symlink_to(source / "data_2d_h36m_noisy.npz")
    noisy = keypoints_npz.read(source, "all", "h36m", "noisy")
    coco = dataclasses.replace(noisy, layout="coco17", has_3d=np.zeros(len(noisy), bool))
    keypoints_npz.write(coco, folder, "h36m", "detectron_pt_coco")
    return motions | {"DATASET.ROOT": str(folder)}


@pytest.mark.parametrize("path", VIDEO, ids=lambda p: p.stem)
def test_each_experiment_of_videopose3d_makes_a_step_on_its_archives(published, path):
    cfg = load(path)
    cfg = cfg.with_values(published | ({"TEMPORAL.SUBSET": 0.5} if cfg.TEMPORAL.SUBSET < 1 else {}))
    commands.train(cfg)
    results = json.loads((run_dir.run_path(cfg) / "results.json").read_text())
    assert results["step"] == 1 and results["metrics"]["mpjpe_mm"] > 0


def test_every_published_experiment_has_a_twin():
    for folder in ("h36m", "mpii"):
        twins = {p.name for p in (ROOT / "experiments" / "synthetic" / folder).glob("*.yaml")} - {"base.yaml"}
        assert twins == {p.name for p in (ROOT / "experiments" / folder).glob("*.yaml")}
        for path in (ROOT / "experiments" / folder).glob("*.yaml"):
            twin, cfg = load(ROOT / "experiments" / "synthetic" / folder / path.name), load(path)
            same = ("TASK", "DATASET.DATASET", "DATASET.TEST_SET", "DATASET.MPII_ORDER", "DATASET.SUBJECTS", "MODEL.NUM_JOINTS")
            assert [twin.flat()[k] for k in same] == [cfg.flat()[k] for k in same], path
            assert twin.SYNTH.NATIVE and not cfg.SYNTH.NATIVE


def test_paths_between_experiments_fit():
    """The checkpoint that one YAML writes is the one that the next YAML reads."""
    written = {str(run_dir.run_path(load(p)) / run_dir.BEST) for p in YAMLS}
    for path in YAMLS:
        cfg = load(path)
        for key in (cfg.MODEL.PRETRAINED, cfg.MODEL.RESUME, cfg.EPIPOLAR.TEACHER):
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
