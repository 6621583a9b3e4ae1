"""Every reader of files with a small valid example: a case writes the files into an empty folder and returns what reads them."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import scipy.io
import torch

from lib import config, unpickle, vis
from lib import skeleton as skeletons
from lib.dataset import load, load_tracks
from lib.dataset.calibrations import read_calibration
from lib.dataset.crop_cache import open_cache
from lib.dataset.formats import (
    actors,
    campus,
    coco,
    custom,
    detections,
    detector_files,
    h36m,
    h36m_challenge,
    h36m_raw,
    keypoints_npz,
    lifting_sources,
    machine_files,
    machine_lists,
    mpi_inf_3dhp,
    mpii,
    mpii_release,
    panoptic,
    pseudo_labels,
    shelf,
    synthetic,
)
from lib.dataset.formats.files import image_size
from lib.dataset.image import read_image
from lib.engine import checkpoint, run_dir
from lib.errors import WeightsError
from lib.metrics import structure
from lib.prediction import saved_poses
from lib.prediction.lift_video import read_keypoints
from lib.prediction.lifted import Lifted, OwnCamera
from lib.prediction.rig_people import RigPeople
from lib.synthetic import mocap
from lib.synthetic.world import World
from lib.weights.load import read as read_weights
from refiner import data as refiner
from scripts.predict import read_boxes
from tests import test_calibrations as rigs
from tests import tiny_dataset as tiny
from tests.conftest import GOLDEN, golden
from tests.engine_runs import fit, toy_folder
from tests.test_format_detections import body, by_frames, triples
from tests.test_format_threedpw import content, dumps
from tests.test_weights_machine import caffemodel, pickled
from tests.toy_task import toy_config

QUALISYS = """<calibration><cameras>
<camera serial="1"><fov_video left="0" top="0" right="1919" bottom="1079"/>
<transform x="100.0" y="-3000.0" z="1500.0" r11="1.0" r12="0.0" r13="0.0" r21="0.0" r22="0.0" r23="1.0" r31="0.0" r32="-1.0" r33="0.0"/>
<intrinsic focalLengthU="64000.0" focalLengthV="64000.0" centerPointU="61440.0" centerPointV="34560.0" radialDistortion1="0.1"
radialDistortion2="0.0" radialDistortion3="0.0" tangentalDistortion1="0.0" tangentalDistortion2="0.0"/></camera>
</cameras></calibration>"""
Reader = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A reader: what writes its example, which of the files are damaged, and how pickles among them are opened and written."""

    make: Callable[[Path], Reader]
    files: str = "*"  # glob below the folder
    loads: Callable[[bytes], Any] = lambda data: pickle.loads(data)
    dumps: Callable[[Any], bytes] = lambda value: pickle.dumps(value, protocol=2)


CASES: dict[str, Case] = {}


def case(files: str = "*", **pickles: Any) -> Callable:
    def register(make: Callable[[Path], Reader]) -> Callable[[Path], Reader]:
        CASES[make.__name__] = Case(make, files, **pickles)
        return make

    return register


def small_world(split: str = "train", frames: int = 6, people: int = 1, **options: Any):
    return World(split=split, frames=frames, length=frames // 2, people=people, size=(96, 80), **options).annotations()


# ------------------------------------------------------------------------------------------------------------ annotations


@case("**/*.npz")
def annotations_synthetic_table(root):
    synthetic.write(tiny.make(), root, "train")
    return lambda: load("synthetic", root, "train")


@case("*.json")
def annotations_synthetic_world(root):
    synthetic.write(tiny.make(), root, "train")
    return lambda: load("synthetic", root, "train")


@case("**/*.npz")
def annotations_h36m_table(root):
    h36m.write(small_world("valid"), root, "valid")
    return lambda: load("h36m", root, "valid")


def _with_cameras(value: Any, made: dict[int, Any]) -> Any:
    """Records of cameras as objects that can be written again."""
    if isinstance(value, unpickle.Record):
        if id(value) not in made:
            made[id(value)] = h36m.Camera.__new__(h36m.Camera)
            vars(made[id(value)]).update(vars(value))
        return made[id(value)]
    if isinstance(value, dict):
        return {key: _with_cameras(inner, made) for key, inner in value.items()}
    return [_with_cameras(inner, made) for inner in value] if isinstance(value, list) else value


def _records(data: bytes) -> Any:
    file = io.BytesIO(data)
    return _with_cameras(unpickle._finished(unpickle._Unpickler(file, (h36m.CAMERA_CLASS,)).load()), {})


def _as_records(value: Any) -> bytes:
    file = io.BytesIO()
    h36m._Pickler(file, protocol=2).dump(value)
    return file.getvalue()


@case("**/*.pkl", loads=_records, dumps=_as_records)
def annotations_h36m_records(root):
    h36m.write(small_world("valid", 2), root, "flat", form="pickle")
    return lambda: load("h36m", root, "flat")


@case("**/*.pkl", loads=_records, dumps=_as_records)
def annotations_h36m_records_by_camera(root):
    h36m.write(small_world("valid", 2), root, "dict", form="pickle", per_camera=True)
    return lambda: load("h36m", root, "dict")


@case("**/metadata.xml")
def annotations_h36m_release_metadata(root):
    h36m_raw.write(small_world(frames=8), root, "train")
    return lambda: h36m_raw.read(root, "train", step=1)


@case("**/*.cdf")
def annotations_h36m_release_poses(root):
    h36m_raw.write(small_world(frames=8), root, "train")
    path = next(root.rglob("*.cdf"))
    return lambda: h36m_raw.pose_file(path)


@case("**/*.*")
def annotations_h36m_release_other_poses(root):
    X = np.random.default_rng(0).normal(size=(4, 96))
    scipy.io.savemat(root / "a.cdf.mat", {"data": X})
    with h5py.File(root / "a.h5", "w") as file:
        file["3D_positions"] = X.T
    return lambda: [h36m_raw.pose_file(path) for path in sorted(root.iterdir())]


@case("**/*.csv")
def annotations_h36m_challenge(root):
    h36m_challenge.write(small_world("valid", 2), root, "valid")
    return lambda: load("h36m_challenge", root, "valid")


@case("**/*.json")
def annotations_mpii(root):
    mpii.write(small_world("pretrain", 2, people=2), root, "valid")
    return lambda: load("mpii", root, "valid")


@case("**/*.mat")
def annotations_mpii_heads(root):
    mpii.write(small_world("pretrain", 2, people=2), root, "valid")
    return lambda: load("mpii", root, "valid")


@case("*.mat")
def annotations_mpii_release(root):
    point = np.array([(10.0 * i, 5.0, i) for i in range(16)], [("x", float), ("y", float), ("id", int)])
    person = {"scale": 1.5, "objpos": {"x": 9.0, "y": 8.0}, "x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0, "annopoints": {"point": point}}
    cells = np.zeros(2, object)
    cells[:] = [{"image": {"name": name}, "annorect": person} for name in ("a.jpg", "b.jpg")]
    scipy.io.savemat(root / "release.mat", {"RELEASE": {"annolist": cells, "img_train": np.array([1, 1])}})
    return lambda: mpii_release._people(root / "release.mat")


@case("**/*.json")
def annotations_coco(root):
    world = World(split="pretrain", frames=2, people=2, size=(96, 80))
    coco.write(world.annotations(), root, "val", world.image)
    return lambda: load("coco", root, "val")


@case("**/annot.mat")
def annotations_mpi_inf_3dhp_train(root):
    mpi_inf_3dhp.write(small_world(distortion=False), root, "train")
    return lambda: load("mpi_inf_3dhp", root, "train")


@case("**/annot_data.mat")
def annotations_mpi_inf_3dhp_test(root):
    mpi_inf_3dhp.write(small_world("valid", distortion=False), root, "test")
    return lambda: load("mpi_inf_3dhp", root, "test")


@case("**/*.pkl", loads=lambda data: pickle.loads(data, encoding="latin1"), dumps=dumps)
def annotations_threedpw(root):
    path = root / "sequenceFiles/test/downtown_a_00.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(dumps(content(golden("weakly_supervised", "threedpw_labels_metrics"))))
    return lambda: load("threedpw", root, "test")


@case("**/*.json")
def annotations_panoptic(root):
    panoptic.write(small_world(people=2), root, "train")
    return lambda: load("panoptic", root, "train", {"interval": 1})


@case("**/*.tar")
def annotations_panoptic_archive(root):
    panoptic.write(small_world(people=2), root, "train")
    for folder in sorted(root.glob("*/hdPose3d_stage1_coco19")):
        with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
            archive.add(folder, folder.name)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    return lambda: load("panoptic", root, "train", {"interval": 1})


def _actors(root: Path, layout) -> None:
    layout.write(small_world("valid", 4, people=2, distortion=False).protocol(["S9"]), root, "valid")


@case("*.mat")
def annotations_shelf(root):
    _actors(root, shelf)
    return lambda: load("shelf", root, "valid")


@case("*.*")
def annotations_campus_detected(root):
    _actors(root, campus)
    (root / "actorsGT.mat").rename(root / "kept")
    return lambda: load("campus", root, "valid", {"labels": "detections"})


@case("*.pkl")
def annotations_actor_poses(root):
    _actors(root, shelf)
    for path in root.iterdir():
        if path.name != actors.POSES:
            path.unlink()
    return lambda: actors.read_poses(root / actors.POSES)


@case("*.npz")
def annotations_label_table(root):
    pseudo_labels.write(_named(root), root, "labels", form="npz")
    return lambda: load("pseudo_labels", root, "labels")


@case("*.pkl")
def annotations_label_records(root):
    pseudo_labels.write(_named(root), root, "labels", form="pickle")
    return lambda: load("pseudo_labels", root, "labels")


def _named(root: Path):
    """A table whose pictures are called as Panoptic's are."""
    panoptic.write(small_world(people=2), root / "panoptic", "train")
    return load("panoptic", root / "panoptic", "train", {"interval": 1})


@case("16skel*.txt")
def annotations_machine_list(root):
    _lists(root)
    return lambda: load("machine_lists", root, "train")


@case("*.*")
def annotations_machine_parts(root):
    _lists(root)
    machine_files.write_results(root / "result.csv", np.zeros((3, 16, 3)))
    nodes = np.array([("a", np.array([2.0]), "b"), ("c", np.array([]), "g")], [(name, object) for name in ("name", "children", "color")])
    scipy.io.savemat(root / machine_lists.TREE, {"skel": {"tree": nodes, "torso": np.array([1])}})
    ranges = root / machine_lists.RANGES
    parts = {"result.csv": machine_files.read_results, machine_lists.TREE: machine_files.read_tree, ranges.name: machine_files.read_ranges}
    for path in root.iterdir():
        if path.name not in parts:
            path.unlink()
    return lambda: [read(root / name) for name, read in parts.items()]


def _lists(root: Path) -> None:
    machine_lists.write(tiny.make(frames=2, views=2), root, "train", side=64)


@case("**/*.json")
def annotations_custom(root):
    custom.write(small_world("valid", people=2).protocol(["S9"]), root, "walk")
    return lambda: load("custom", root, "walk", {"labels": "raw"})


# -------------------------------------------------------------------------------------------------------------- keypoints


@case("*.npz")
def keypoints_archives(root):
    for name in ("2d_h36m_gt", "3d_h36m"):
        (root / f"data_{name}.npz").write_bytes((GOLDEN / "videopose3d" / f"tiny_data_{name}.npz").read_bytes())
    return lambda: keypoints_npz.read(root, "all", "h36m", "gt")


@case("*.npz")
def keypoints_custom_archive(root):
    x = np.stack([body() + t for t in range(4)])
    np.savez(root / "plain.npz", keypoints=x, layout="coco17", size=(640, 480), fps=30)
    detections.write_custom(root / "data_2d_custom_a.npz", {"a": detections.read_video(root / "plain.npz")})
    (root / "plain.npz").unlink()
    return lambda: load_tracks("keypoints_npz", root, "all", {"dataset": "custom", "keypoints": "a"})


@case("*.*")
def keypoints_plain(root):
    x = np.stack([body() + t for t in range(4)])
    np.savez(root / "x.npz", keypoints=x, layout="coco17", size=(640, 480), fps=30)
    np.save(root / "x.npy", x)
    return lambda: (read_keypoints(root / "x.npz"), read_keypoints(root / "x.npy", "coco17"))


@case("*.*")
def keypoints_plain_as_detected(root):
    keypoints_plain(root)
    return lambda: [detector_files.read_detections(path, "coco17") for path in sorted(root.iterdir())]


@case("*.npz")
def keypoints_detectron(root):
    (root / "a.npz").write_bytes((GOLDEN / "videopose3d" / "detections_video0.mp4.npz").read_bytes())
    return lambda: detections.people(detector_files.read_detections(root / "a.npz"))


def _kinds() -> dict[str, Any]:
    """What detectors write, by kind."""
    x = body()
    person = {"keypoints": x.tolist(), "keypoint_scores": [0.8] * 17, "bbox": [[1, 2, 3, 4]]}
    return {
        "results": by_frames({0: [x], 1: [x]}, bbox=[1, 2, 3, 4], idx=1),
        "annotations": {"images": [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}],
                        "annotations": [{"image_id": 1, "keypoints": triples(x), "bbox": [1, 2, 3, 4], "category_id": 1}]},
        "mmpose": {"instance_info": [{"frame_id": 0, "instances": [person]}]},
        "predict": {"width": 9, "height": 9, "units": "px", "fps": 3, "frames":
                    [{"frame": 0, "people": [{"skeleton": "coco17", "box": [1, 2, 3, 4], "x_img": x.tolist(), "conf": [1] * 17}]}]},
    }  # fmt: skip


@case("*.json")
def keypoints_of_detectors(root):
    for kind, value in _kinds().items():
        (root / f"{kind}.json").write_text(json.dumps(value))
    return lambda: [detections.people(detector_files.read_detections(path)) for path in sorted(root.iterdir())]


@case("*.json")
def keypoints_openpose(root):
    for t in range(3):
        frame = {"version": 1.3, "people": [{"person_id": [-1], "pose_keypoints_2d": triples(body("openpose25") + t)}]}
        (root / f"walk_{t:012d}_keypoints.json").write_text(json.dumps(frame))
    return lambda: detections.people(detector_files.read_detections(root))


@case("*.json")
def keypoints_of_pictures(root):
    rows = [{"image_id": f"{k}.jpg", "category_id": 1, "keypoints": triples(body()), "score": 0.9, "bbox": [1, 2, 3, 4]} for k in range(2)]
    (root / "found.json").write_text(json.dumps(rows))
    names = ["0.jpg", "1.jpg"]
    return lambda: (detector_files.read_pictures(root / "found.json", names), detector_files.read_boxes(root / "found.json", names))


@case("*.*")
def keypoints_hourglass_and_humaneva(root):
    with h5py.File(root / "a.h5", "w") as file:
        file["poses"] = np.zeros((3, 16, 2), np.float32)
    scipy.io.savemat(root / "b.mat", {"poses_3d": np.zeros((5, 15, 3)), "poses_2d": np.zeros((3, 5, 15, 2))})
    return lambda: (lifting_sources._hourglass(root / "a.h5"), lifting_sources._trial(root / "b.mat"))


@case("*.json")
def keypoints_boxes(root):
    (root / "boxes.json").write_text('{"a.jpg": [[1, 2, 30, 40]]}')
    return lambda: read_boxes(root / "boxes.json")


# ----------------------------------------------------------------------------------------------------------- calibrations


@case("*.json")
def calibration_json(root):
    rig = tiny.rig(4)
    paths = [write(root, rig) for write in (rigs.own, rigs.centers, rigs.panoptic)]
    return lambda: [read_calibration(path) for path in paths]


@case("*.toml")
def calibration_toml(root):
    path = rigs.toml(root, tiny.rig(4))
    return lambda: read_calibration(path)


@case("**/*.*")
def calibration_opencv(root):
    paths = [rigs.opencv(root / kind, f".{kind}", tiny.rig(4)) for kind in ("yml", "xml")] + [rigs.easymocap(root, tiny.rig(4))]
    return lambda: [read_calibration(path) for path in paths]


@case("*.xml")
def calibration_qualisys(root):
    (root / "c.xml").write_text(QUALISYS)
    return lambda: read_calibration(root / "c.xml")


@case("*.calibration")
def calibration_mpi_inf_3dhp(root):
    (root / "camera.calibration").write_text(
        "Skeletool Camera Calibration File V1.0\nname          0\n  sensor      10 10\n  size        2048 2048\n  animated    0\n"
        "  intrinsic   1497.693 0 1024.704 0 0 1497.103 1051.394 0 0 0 1 0 0 0 0 1 \n"
        "  extrinsic   0.9650164 0.00488022 0.262144 -562.8666 -0.004488356 -0.9993728 0.0351275 1398.138 "
        "0.262151 -0.03507521 -0.9643893 3852.623 0 0 0 1 \n  radial      0\n"
    )
    return lambda: mpi_inf_3dhp.read_calibration(root / "camera.calibration")


@case("*.json")
def calibration_own_camera(root):
    camera = {"K": [[900, 0, 320], [0, 900, 240], [0, 0, 1]], "dist": [0.1, 0, 0, 0, 0], "size": [640, 480], "R": np.eye(3).tolist()}
    (root / "camera.json").write_text(json.dumps(camera | {"t": [0, 0, 3000], "up": "z", "tangential": "opencv"}))
    return lambda: OwnCamera.read(root / "camera.json")


# ------------------------------------------------------------------------------------------------------------ checkpoints


@case("*.tar")
def checkpoint_of_a_run(root):
    state = _trained(root)
    cfg = toy_config("OUTPUT_DIR", root)

    def read() -> None:
        found = checkpoint.load(root / "a.tar")
        run_dir.check_state(found, cfg, 1, root / "a.tar")

    torch.save(state, root / "a.tar")
    return read


@case("*.pt*")
def checkpoint_weights(root):
    state = {"model": _trained(root)["model"], "epoch": 3}
    torch.save(state, root / "zip.pt")
    torch.save(state, root / "legacy.pth", _use_new_zipfile_serialization=False)
    return lambda: [read_weights(path) for path in sorted(root.glob("*.pt*"))]


def _trained(root: Path) -> dict[str, Any]:
    fit(root, "TRAIN.MAX_STEPS", 1)
    return checkpoint.load(toy_folder(root) / run_dir.LAST)


@case("*.*")
def checkpoint_machine(root):
    fc = {"fc": [np.ones((3, 2)), np.ones(3)], "change": [np.ones((3, 3)), np.ones(3)]}
    (root / "new.caffemodel").write_bytes(caffemodel(fc))
    (root / "old.caffemodel").write_bytes(caffemodel(fc, "old"))
    np.savez(root / "layers.npz", **{"fc.0": np.ones((3, 2), np.float32), "fc.1": np.ones(3, np.float32)})
    pickled(root)
    return lambda: [_quiet(read_weights, path) for path in sorted(root.iterdir())]


def _quiet(read: Callable, path: Path) -> None:
    """Files side by side: each is read although another one is refused."""
    try:
        read(path)
    except WeightsError as error:
        assert path.name in str(error)


@case("*.json")
def run_results(root):
    fit(root, "TRAIN.MAX_STEPS", 1)
    (toy_folder(root) / run_dir.RESULTS).rename(root / run_dir.RESULTS)
    return lambda: run_dir.read_results(root)


@case("*.jsonl")
def run_log(root):
    fit(root, "TRAIN.MAX_STEPS", 4)
    (toy_folder(root) / "metrics.jsonl").rename(root / "metrics.jsonl")
    return lambda: vis._records(root / "metrics.jsonl")


# ------------------------------------------------------------------------------------------------------------ other files


@case("*.yaml")
def configuration(root):
    (root / "c.yaml").write_text("TASK: epipolar\nTRAIN:\n  LR: 1e-4\n  LR_STEP: [5]\nMODEL:\n  EXTRA:\n    NUM_LAYERS: 18\nBASE: b.yaml\n")
    (root / "b.yaml").write_text("TRAIN:\n  WD: 1\nDATASET:\n  OPTIONS: {a: 1}\n")
    return lambda: config.load(root / "c.yaml")


@case("*.*")
def images(root):
    picture = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    for name in ("a.jpg", "b.png"):
        cv2.imwrite(str(root / name), picture)
    return lambda: [(image_size(path), read_image(path)) for path in sorted(root.iterdir())]


@case("cache/*")
def crop_cache(root):
    ann = tiny.make(frames=1, sequences=1)
    tiny.write_images(ann, root)
    open_cache(ann, root, root / "cache", size=32)
    return lambda: open_cache(ann, root, root / "cache", size=32)


@case("*.npz")
def results_of_prediction(root):
    X = np.random.default_rng(0).normal(size=(4, 17, 3)).astype("f4") * 300
    names = skeletons.get("h36m17")
    Lifted(names, names, X[..., :2], X, X, size=(640, 480), fps=25.0).save(root / "lifted.npz")
    columns = (np.arange(4), np.arange(4), np.zeros(4, int), np.ones(4, "f4"), X, np.ones((4, 17), bool), np.ones((4, 17, 2), bool))
    RigPeople(names, ("a", "b"), *columns, np.zeros((4, 17), "f4"), 25.0).save(root / "rig.npz")
    return lambda: (Lifted.read(root / "lifted.npz"), RigPeople.read(root / "rig.npz"))


@case("*.*")
def refiner_pairs(root):
    X = np.random.default_rng(0).normal(size=(6, 17, 3)).astype("f4")
    named = {"subjects": np.array(["S1"] * 6), "actions": np.array(["a"] * 6), "skeleton": np.array("h36m17")}
    np.savez(root / "a.npz", X_cam=X, X_cam_true=X, X_valid=np.ones((6, 17), bool), **named)
    refiner.dump({"inp": X[:, :16], "out": X[:, :16]}, root / "b.pkl")
    refiner.dump(tuple(np.ones(45, "f4") for _ in range(4)), root / "norm.pkl")
    return lambda: (refiner.read(root / "a.npz"), refiner.read(root / "b.pkl"), refiner.Statistics.read(root / "norm.pkl", 45))


@case("*.npz")
def predictions(root):
    X = np.random.default_rng(0).normal(size=(3, 17, 3)).astype("f4") * 300
    texts = {name: np.array(["a", "b", "c"]) for name in ("images", "subjects", "actions")}
    seen = {"ids": np.arange(3), "x_img": X[..., :2], "conf": np.ones((3, 17), "f4"), "skeleton": np.array("h36m17")}
    truth = {"X_cam_true": X, "X_valid": np.ones((3, 17), bool), "crop_from_img": np.tile(np.eye(2, 3, dtype="f4"), (3, 1, 1))}
    np.savez(root / "poses.npz", X_coarse=X, X_regressed=X, X_cam=X, **texts, **seen, **truth)
    np.savez_compressed(root / "joints.npz", images=texts["images"], **seen)
    return lambda: (saved_poses.read_predictions(root / "poses.npz", root / "joints.npz"), saved_poses.as_saved(root / "poses.npz"))


@case("*.npz")
def pose_clusters(root):
    structure.save(root / "pss.npz", structure.fit(torch.randn(60, 17, 3), "h36m17", 5, source="train"))
    return lambda: structure.load(root / "pss.npz")


@case("*.npz")
def motion_capture(root):
    order = np.array(skeletons.get("h36m17").joints)
    X = np.random.default_rng(0).normal(size=(9, 17, 3)).astype("f4")
    texts = {key: np.array(["a", "b"]) for key in ("sequence", "subject", "action")}
    np.savez(root / "mocap.npz", positions=X, lengths=np.array([4, 5]), fps=np.array([25.0, 25.0]), joint_names=order, **texts)
    return lambda: mocap.read(root / "mocap.npz")
