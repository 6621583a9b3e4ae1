"""Joints of the people in pictures and videos, 3D motion from 2D keypoints, or people in the space that calibrated cameras share.

examples
  python scripts/predict.py photo.jpg                                    one person, somewhere in the picture
  python scripts/predict.py photo.jpg --box 120 80 360 560 --box 400 90 610 540
  python scripts/predict.py --image photo.jpg --detector torchvision     find the people first
  python scripts/predict.py frames/ --boxes boxes.json --out output/frames        a folder; boxes of a detector
  python scripts/predict.py data/3dpw/imageFiles --annotated threedpw data/3dpw test --checkpoint ...     a folder of folders
  python scripts/predict.py walk.mp4 --box 120 80 360 560 --limit 100    a video; the box follows the person
  python scripts/predict.py walk.mp4 --detector torchvision --detect-every 1 --every 2
  python scripts/predict.py photo.jpg --box 120 80 360 560 --focal 1145 --root-depth 4500       mm from the camera
  python scripts/predict.py photo.jpg --checkpoint output/synthetic/pose3d_resnet/train-ss/model_best.pth.tar
  python scripts/predict.py walk.mp4 --box 120 80 360 560 --checkpoint output/machine/.../model_best.pth.tar --correct      clips
  python scripts/predict.py photo.jpg --focal 1145 --correct --evidence output/demo/synthetic/pose3d_resnet/pretrain/model_best.pth.tar
  python scripts/predict.py --keypoints walk.npz --checkpoint output/.../model_best.pth.tar --video walk.mp4      lifting
  python scripts/predict.py --keypoints openpose/ --image-size 1920 1080 --fps 30 --camera mine.json --checkpoint ... --form csv mp4
  python scripts/predict.py --rig data/mine --associate                  2D poses of all cameras put together and triangulated
  python scripts/predict.py --rig data/mine --checkpoint output/.../model_best.pth.tar --every 2       the same by a VoxelPose network

boxes.json: {"a.jpg": [[x0, y0, x1, y1], ...], "b.mp4": [...]}, in px; files that it does not name are left out. Of a folder without
pictures of its own the folders in it are searched; names are then paths in it ("walk/a.jpg"), and so are those of results.
The network sees a square around each box (or a rectangle of the shape that it was trained on). In training that square spans about 2 m and
the person fills most of it, so give boxes some margin (--margin 1.2 for boxes that touch the person, the default for those of the
detector); the pose has the scale of the square (--box-mm). Networks of TASK fusion and machine take people to be as large as those of their
training instead.

--correct moves each 3D pose until it agrees with 2D joints, as TEST.CORRECTION does in an evaluation and the checkpoint's CORRECTION says:
through the learned projector of TASK machine, or else through the camera, which must be given (--focal, with --keypoints --camera). The
2D joints are those that the network sees, or those of another network at the same boxes (--evidence; TASK integral needs one, for its own
2D joints always agree); with --keypoints they are the keypoints. How far poses were from them before and after is said and stored, and so
are the poses before.

The detector is torchvision's Faster R-CNN. Its weights must be at hand (--detector-weights FILE, torch's cache of downloads, or
models/); nothing is downloaded without being asked for.
In a video, a network of TASK machine looks at as many consecutive frames of a person as in training; a picture is a clip of one frame.
Boxes are those of the first frame. From frame to frame a box moves with the median of the person's joints, by a quarter
of its side at most; it keeps its size while that is 1.05 to 2.6 times the extent of the joints, else it changes by 3 %. With a
detector, people are found anew every --detect-every frames.

With --keypoints, a network that was trained on keypoints (TASK temporal) lifts those of one person: what a detector wrote (OpenPose,
AlphaPose, Detectron2, MMPose, COCO), an archive data_2d_*.npz, or an npz file with `keypoints` (T,J,2), px, and where known `size`,
`fps` and `layout`. Frames without a joint are interpolated. A camera file is JSON: K (3x3, px) and where known dist (k1 k2 p1 p2 k3),
size (width, height), R and t (mm, X_cam = R X_world + t), up ("z", the world axis that points upwards), tangential ("opencv" or
"h36m"). Results of NAME.npz: NAME.npz, NAME.json, NAME.csv, NAME_pose.mp4, NAME_pose.gif, or those that --form names; NAME also tells
--track and --person.

With --rig, a folder with a calibration (cameras.json, cameras.toml, ...), images/<camera>/ or videos/<camera>.mp4, and poses2d/<camera>
(see experiments/custom/README.md): people of all instants in mm of the calibration's world, numbered through the recording, with the
cameras and the reprojection error (px) of every joint. --associate takes the joints that a detector found, finds out which belong
together and triangulates them; --associate given takes people of one number (or place in a list) for the same. Without it, a network
trained with TASK voxelpose or selfpose3d looks at the pictures, one of TASK scenes at the detections; its space is that of its training
unless --space cameras is given. Results of FOLDER: FOLDER.npz, FOLDER.json, FOLDER.csv,
FOLDER_pose.mp4, FOLDER_pose.gif, or those that --form names.

Results of NAME.jpg: NAME.json, NAME.npz, NAME_2d.png, NAME_3d.png; of NAME.mp4: NAME.json, NAME.npz, NAME_pose.mp4,
NAME_pose.gif. Nothing is overwritten without --overwrite: for a single file that is an error, in a folder a picture or video whose
results are complete is left as it is.
In a folder, what cannot be read or whose boxes are wrong is reported and skipped, and the others are done.
Exit status: 0 all done, 1 some files of a folder were skipped, 2 an error, told in one line.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from tqdm import tqdm

from lib import vis
from lib.allocator import keep_heap
from lib.config import load
from lib.dataset import load as load_annotations
from lib.dataset.image import read_image
from lib.drawing.paint import beside
from lib.errors import MALFORMED, DataError, ParallaxError, RunError, interruptible
from lib.files import replaced, write_text
from lib.geometry.association import MIN_CONF
from lib.prediction.detection import anchor, find_people, follow, in_order_of, load_detector
from lib.prediction.lift_video import FORMS, lift_video
from lib.prediction.lift_video import result_files as lifted_files
from lib.prediction.lifted import OwnCamera
from lib.prediction.rig import ASSOCIATIONS, METHODS, SPACES, Recording, associate, film
from lib.prediction.rig_people import RigPeople
from lib.predictor import Lifter, Prediction, Predictor, RigPredictor
from lib.skeleton import Skeleton
from lib.tracking import GAP, GATE_MM
from lib.video import DEFAULT_FPS, Clip, Video

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
CHECKPOINT = Path("output/demo/student.pth.tar")  # what ./run demo leaves
RESULTS = (".json", ".npz", "_2d.png", "_3d.png")
VIDEO_RESULTS = (".json", ".npz", "_pose.mp4", "_pose.gif")
TOUCHING = 1.2  # margin of a detector's boxes
BATCH = 16  # frames predicted at once, where their boxes do not depend on each other
LEAST_DRAWN = 0.1  # confidence that a joint is drawn with at least: on pictures unlike those of the training it is low throughout
PANEL = 480  # px, height of the pictures in a clip
COLUMNS = ("box", "x_img", "conf", "X_root", "X_cam")
CORRECTED = ("X_before", "before_px", "after_px", "decision")
PICTURES_ONLY = ("image", "box", "boxes", "annotated", "detector", "detector_weights", "threshold", "margin", "box_mm", "focal",
                 "root_depth", "every", "detect_every", "evidence", "amp", "compile")  # fmt: skip
LIFTING_ONLY = ("layout", "track", "person", "camera", "video", "truth", "fps", "image_size", "form", "size", "azimuth", "elevation",
                "skip", "downsample")  # fmt: skip
RIG_ONLY = ("associate", "split", "calibration", "unit", "method", "min_conf", "max_people", "gate_mm", "gap", "min_frames", "space", "up")
NOT_RIG = ("correct",)
RIG_TOO = ("layout", "form", "size", "azimuth", "elevation", "skip", "fps", "every")  # of the others, read with --rig as well
UNITS = "x_img px, X_root and X_cam mm (x right, y down, z forward)"

Finder = Callable[[np.ndarray], np.ndarray]  # picture -> boxes


def parse(argv: list[str] | None) -> argparse.Namespace:
    text = __doc__.split("\nexamples\n")
    parser = argparse.ArgumentParser(
        description=text[0], epilog="examples\n" + text[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, nargs="?", help="a picture (turned as its EXIF data say), a video, or a folder of them")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the same as an option")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="default: %(default)s")
    parser.add_argument("--cfg", help="YAML that bare weights (a published file) were trained with")
    parser.add_argument(
        "--out", type=Path, default=Path("output/predict"), help="folder for results; default: %(default)s"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--box",
        type=float,
        nargs=4,
        action="append",
        metavar=("X0", "Y0", "X1", "Y1"),
        help="a person, in px; may be repeated; default: the whole picture",
    )
    where.add_argument("--boxes", type=Path, help="JSON file with the boxes of each picture")
    where.add_argument("--annotated", nargs=3, metavar=("LAYOUT", "ROOT", "SPLIT"), help="the people whom a data set's annotations know")
    where.add_argument("--detector", choices=("torchvision",), help="find the people with torchvision's Faster R-CNN")
    parser.add_argument("--detector-weights", type=Path, metavar="FILE", help="weights of the detector; default: see below")
    parser.add_argument("--threshold", type=float, default=0.7, help="least score of a found person; default: %(default)s")
    parser.add_argument("--margin", type=float, help="factor on the sides of the boxes; default: 1, with a detector 1.2")
    parser.add_argument("--box-mm", type=float, help="what the square around a box spans; default: as in training")
    parser.add_argument("--focal", type=float, help="focal length in px; default: unknown (weak perspective)")
    parser.add_argument("--root-depth", type=float, help="distance of the pelvis from the camera in mm")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of a video, take every N-th frame")
    parser.add_argument("--limit", type=int, metavar="N", help="of a video, take at most N frames")
    parser.add_argument("--detect-every", type=int, default=10, metavar="N", help="taken frames between two detections; default: 10")
    parser.add_argument("--correct", action="store_true", help="correct 3D poses by 2D joints; see below")
    parser.add_argument("--evidence", type=Path, metavar="CHECKPOINT", help="network whose 2D joints --correct goes by; default: the same")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one) or a torch device")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16", "auto"), default="off",
                        help="number format of the network; auto = bf16 where it is fast; default: %(default)s")  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="compile the network: minutes first, then faster; for many pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    add_lifting(parser.add_argument_group("3D motion from keypoints"))
    add_rig(parser.add_argument_group("people in the space of several cameras"))
    args = parser.parse_args(argv)
    if args.rig and args.keypoints:
        parser.error("--rig: not allowed with --keypoints")
    mode = "--rig" if args.rig else "--keypoints" if args.keypoints else ""
    foreign = {
        "--rig": [name for name in PICTURES_ONLY + LIFTING_ONLY + NOT_RIG if name not in RIG_TOO],
        "--keypoints": PICTURES_ONLY + RIG_ONLY,
        "": LIFTING_ONLY + RIG_ONLY,
    }[mode]
    given = [f"--{name.replace('_', '-')}" for name in foreign if getattr(args, name) != parser.get_default(name)]
    if given or (mode and args.picture):
        needs = "--rig" if given and given[0][2:].replace("-", "_") in RIG_ONLY else "--keypoints"
        how = f"with {mode}" if mode else f"without {needs}"
        parser.error(f"{given[0] if given else args.picture}: not read {how}")
    for name in ("every", "detect_every", "limit", "downsample"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected 1 or more")
    if args.rig:
        if args.associate is None and args.checkpoint == CHECKPOINT:
            parser.error("--rig: expected --associate, or the --checkpoint of a network trained with TASK voxelpose, selfpose3d or scenes")
        if args.skip < 0 or not 160 <= args.size <= 2048:
            parser.error("--skip: expected 0 or more frames" if args.skip < 0 else "--size: expected 160 to 2048 px")
        if args.max_people < 1 or args.gate_mm <= 0 or args.gap < 0 or args.min_frames < 1:
            parser.error("--max-people, --min-frames: expected 1 or more; --gap: 0 or more; --gate-mm: above 0")
        return args
    if args.keypoints:
        if args.checkpoint == CHECKPOINT:
            parser.error("--checkpoint: expected the file of a network that lifts keypoints; experiments/synthetic/temporal.yaml makes one")
        if args.skip < 0 or not 64 <= args.size <= 4096:
            parser.error("--skip: expected 0 or more frames" if args.skip < 0 else "--size: expected 64 to 4096 px")
        if args.correct and not args.camera:
            parser.error("--correct: expected --camera, through which the poses are corrected")
        return args
    if args.evidence and not args.correct:
        parser.error("--evidence: expected --correct, which goes by it")
    if (args.picture is None) == (args.image is None):
        parser.error("expected one picture, video or folder, as an argument or as --image")
    args.picture = args.picture or args.image
    if args.detector_weights and not args.detector:
        args.detector = "torchvision"
        if args.box or args.boxes or args.annotated:
            parser.error("--detector-weights: not allowed with --box, --boxes or --annotated, which say where the people are")
    args.margin = args.margin if args.margin is not None else TOUCHING if args.detector else 1.0
    for name in ("margin", "focal", "root_depth", "box_mm"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            parser.error(f"--{name.replace('_', '-')}: {value:g}, expected a number above 0")
    return args


def add_lifting(group) -> None:
    """The options of --keypoints."""
    group.add_argument("--keypoints", type=Path, metavar="FILE", help="2D keypoints of a video: a file, or OpenPose's folder")
    group.add_argument("--layout", metavar="NAME", help="their skeleton, such as coco17; default: as the file says")
    group.add_argument("--track", metavar="NAME", help="of an archive data_2d_...npz: the video, or subject/action/camera")
    group.add_argument("--person", type=int, metavar="N", help="of several: 0 = whoever is seen longest (default), 1 = the next, ...")
    group.add_argument("--image-size", type=int, nargs=2, metavar=("W", "H"), help="px of the images; default: as in the file or video")
    group.add_argument("--fps", type=float, help="frames per second; default: as the file or the video says, else as in the training")
    group.add_argument("--camera", type=Path, metavar="FILE.json", help="the camera; default: like those of the training")
    group.add_argument("--video", type=Path, metavar="FILE", help="drawn below the keypoints")
    group.add_argument("--truth", type=Path, metavar="FILE.npy", help="true poses (T,J,3), mm in the camera's frame, drawn beside")
    forms = f"some of {' '.join(FORMS)}; default: all"
    group.add_argument("--form", nargs="+", choices=FORMS, default=list(FORMS), metavar="FORM", help=forms)
    group.add_argument("--size", type=int, default=PANEL, metavar="PX", help="height of the film; default: %(default)s")
    group.add_argument("--azimuth", type=float, default=25.0, help="degrees to the right of the camera; default: %(default)g")
    group.add_argument("--elevation", type=float, default=12.0, help="degrees above the level; default: %(default)g")
    group.add_argument("--skip", type=int, default=0, metavar="N", help="the film leaves out the first N frames; --limit counts from there")
    group.add_argument("--downsample", type=int, default=1, metavar="N", help="the film averages N frames into one picture")


def add_rig(group) -> None:
    """The options of --rig."""
    group.add_argument("--rig", type=Path, metavar="FOLDER", help="a recording of calibrated cameras, see experiments/custom/README.md")
    group.add_argument("--associate", nargs="?", const="search", choices=ASSOCIATIONS, metavar="HOW",
                       help="no network: put 2D people together; search (default) or given")  # fmt: skip
    group.add_argument("--split", default="", metavar="NAME", help="recording in the folder; default: the folder is the recording")
    group.add_argument("--calibration", default="", metavar="NAME", help="file in the folder; default: cameras.json, cameras.toml, ...")
    group.add_argument("--unit", default="", choices=("", "mm", "cm", "m"), help="of the calibration, where it does not say")
    group.add_argument("--method", choices=METHODS, default="robust", help="of triangulation; robust leaves out views that disagree")
    group.add_argument("--min-conf", type=float, default=MIN_CONF, help="2D joints of less confidence are not used; default: %(default)s")
    group.add_argument("--max-people", type=int, default=10, metavar="N", help="looked for at an instant; default: %(default)s")
    group.add_argument("--gate-mm", type=float, default=GATE_MM, help="farther apart from one instant to the next, two people differ; "
                       "default: %(default)g")  # fmt: skip
    group.add_argument("--gap", type=int, default=GAP, metavar="N", help="instants that a person may be lost; default: %(default)s")
    group.add_argument("--min-frames", type=int, default=1, metavar="N", help="people seen at fewer instants are left out")
    group.add_argument("--space", choices=SPACES, default=SPACES[0], help="where the network looks for people")
    group.add_argument("--up", choices=("z", "y", "-y"), default="z", help="axis of the world that points upwards; default: z")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        if args.rig:
            return predict_rig(args)
        return lift_one(args) if args.keypoints else predict_all(args)
    except ParallaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def predict_all(args: argparse.Namespace) -> int:
    """Does every picture and video; the exit status."""
    names, single = sources(args.picture, args.out), not args.picture.is_dir()
    folder = args.picture.parent if single else args.picture
    if not single and args.out.resolve() == folder.resolve():
        raise RunError(f"--out {args.out}: is the folder of the pictures, whose results would be taken for pictures; choose another one")
    boxes = annotated_boxes(*args.annotated, names, folder) if args.annotated else read_boxes(args.boxes)
    if boxes is not None:
        missing = sorted(set(boxes) - {key_of(path, folder) for path in names})
        if missing:
            raise DataError(f"{args.boxes}: names {missing[0]!r}, but there is no such picture in {args.picture}")
        names = [path for path in names if key_of(path, folder) in boxes]
    targets = result_names(names, args.out, folder)
    if single and not args.overwrite:
        existing = [path for path in result_files(targets[0], names[0]) if path.exists()]
        if existing:
            raise RunError(f"{existing[0]}: exists; use --overwrite to replace it, or another --out")
    find = finder(args)
    config = load(args.cfg) if args.cfg else None
    fast = {"amp": args.amp, "compiled": args.compile}
    evidence = Predictor.from_checkpoint(checkpoint(args.evidence), args.device, **fast) if args.evidence else None
    predictor = Predictor.from_checkpoint(checkpoint(args.checkpoint), args.device, config, args.correct, evidence, **fast)
    done, kept, bad = 0, 0, []
    for path, target in zip(tqdm(names, unit="file", disable=single), targets, strict=True):
        if not args.overwrite and all(file.exists() for file in result_files(target, path)):
            kept += 1
            continue
        try:
            if not args.overwrite:
                refuse_strangers(result_files(target, path))
            people = boxes[key_of(path, folder)] if boxes is not None else args.box
            if is_video(path):
                predict_video(target, path, people, find, predictor, args)
            else:
                predict_picture(target, path, people, find, predictor, args)
        except DataError as error:
            if single:
                raise
            bad.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        done += 1
    counts = f"{done} done" + (f", {kept} left as they were (--overwrite replaces them)" if kept else "")
    print(f"{counts}{f', {len(bad)} skipped' if bad else ''}: {args.out}")
    if bad:
        print("\n".join(["skipped:", *bad]), file=sys.stderr)
    return 1 if bad else 0


def lift_one(args: argparse.Namespace) -> int:
    """The motion in one file of keypoints; the exit status."""
    chosen = [args.track, None if args.person is None else f"person{args.person}"]
    target = args.out / "_".join([args.keypoints.stem, *(re.sub(r"[^\w.-]+", "_", name) for name in chosen if name)])
    existing = [path for path in lifted_files(target, args.form).values() if path.exists()]
    if existing and not args.overwrite:
        raise RunError(f"{existing[0]}: exists; use --overwrite to replace it, or another --out")
    if same := [path for path in lifted_files(target, args.form).values() if path.resolve() == args.keypoints.resolve()]:
        raise RunError(f"{same[0]}: holds the keypoints themselves; choose another --out")
    camera = OwnCamera.read(args.camera) if args.camera else None
    video = Video.open(args.video) if args.video else None
    config = load(args.cfg) if args.cfg else None
    lifter = Lifter.from_checkpoint(checkpoint(args.checkpoint), args.device, config)
    size = tuple(args.image_size) if args.image_size else None
    view = {"height": args.size, "azimuth": args.azimuth, "elevation": args.elevation}
    part = {"skip": args.skip, "limit": args.limit, "downsample": args.downsample}
    what = {"layout": args.layout, "track": args.track, "person": args.person, "size": size, "fps": args.fps, "truth": args.truth,
            "correct": args.correct}  # fmt: skip
    motion, notes = lift_video(
        lifter, args.keypoints, target, args.form, camera=camera, video=video, progress=True, **what, **view, **part
    )
    print("\n".join(notes), file=sys.stderr)
    print(f"{len(motion)} frames done, {motion.best[0]}: {target}")
    return 0


def predict_rig(args: argparse.Namespace) -> int:
    """The people of one recording of several cameras; the exit status."""
    name = args.split or args.rig.resolve().name
    targets = {form: args.out / f"{name}{'_pose' if form in ('mp4', 'gif') else ''}.{form}" for form in args.form}
    existing = [path for path in targets.values() if path.exists()]
    if existing and not args.overwrite:
        raise RunError(f"{existing[0]}: exists; use --overwrite to replace it, or another --out")
    where = {"split": args.split, "calibration": args.calibration, "unit": args.unit, "layout": args.layout or ""}
    part = {"every": args.every, "skip": args.skip, "limit": args.limit, "fps": args.fps}
    following = {"gate_mm": args.gate_mm, "max_gap": args.gap, "min_length": args.min_frames}
    space = None
    if args.associate:
        recording = Recording.read(args.rig, **where, **part)
        people = associate(recording, args.associate, args.method, args.min_conf, args.max_people, **following)
    else:
        config = load(args.cfg) if args.cfg else None
        predictor = RigPredictor.from_checkpoint(checkpoint(args.checkpoint), args.device, config, args.space)
        recording = Recording.read(args.rig, **where, **part, labels="soft")
        people = predictor(recording, **following, progress=lambda steps: tqdm(steps, desc=recording.root.name, unit="batch"))
        space = predictor.space
        size, center = (", ".join(f"{v:g}" for v in values) for values in space)
        print(f"looked for people in a space of ({size}) mm around ({center}) mm (--space)", file=sys.stderr)
    make_folder(args.out)
    for form in args.form:
        if form not in ("mp4", "gif"):
            people.save(targets[form])
    if {"mp4", "gif"} & set(args.form):
        save_film(recording, people, targets, space, args)
    print(f"{people.summary()}: {args.out / name}")
    return 0


def save_film(recording: Recording, people: RigPeople, targets: dict[str, Path], space: tuple | None, args: argparse.Namespace) -> None:
    pictures = film(recording, people, args.size, args.azimuth, args.elevation, args.up, space)
    fps = recording.fps or DEFAULT_FPS
    if not recording.fps:
        print(f"{recording.root}: its pictures do not say when they were taken; the film has {fps:g} per second (--fps)", file=sys.stderr)
    with Clip(targets.get("mp4"), targets.get("gif"), fps / args.every) as clip:
        for picture in tqdm(pictures, total=len(people.frames), desc=recording.root.name, unit="frame"):
            clip.add(picture)


def finder(args: argparse.Namespace) -> Finder | None:
    """What finds people, or None where boxes are given."""
    if args.detector is None:
        return None
    model = load_detector(args.detector_weights, args.device)
    return lambda image: find_people(image, model, args.threshold)[0]


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def sources(path: Path, out: Path) -> list[Path]:
    """The picture or video, or those of the folder in order of their names; where it has folders alone, those in them, but for `out`."""
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: no such picture, video or folder")
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES + VIDEOS)
    if not found:
        out = out.resolve()
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES + VIDEOS and not p.resolve().is_relative_to(out))
    if not found:
        raise DataError(f"{path}: holds no picture or video; expected files ending in {' '.join(PICTURES + VIDEOS)}")
    return found


def checkpoint(path: Path) -> Path:
    """The path, if there is such a file."""
    if not path.exists():
        raise RunError(f"{path}: no such checkpoint; ./run demo trains one, --checkpoint names another")
    return path


def key_of(path: Path, folder: Path) -> str:
    """What a picture is called in a file of boxes: its name, in a folder of folders its path there."""
    return path.relative_to(folder).as_posix()


def annotated_boxes(layout: str, root: str, split: str, names: list[Path], folder: Path) -> dict[str, list]:
    """The boxes that a data set's annotations have for some of the pictures."""
    ann = load_annotations(layout, root, split)
    rows: dict[Path, list] = {}
    for image, box in zip(ann.image.tolist(), ann.box.tolist(), strict=True):
        if image >= 0 and np.isfinite(box).all():
            rows.setdefault((Path(root) / ann.images[image].decode()).resolve(), []).append(box)
    found = {key_of(path, folder): rows[path.resolve()] for path in names if path.resolve() in rows}
    if not found:
        raise DataError(f"--annotated: {root} ({split}) tells of nobody in the pictures of {folder}; give the split that they belong to")
    return found


def read_boxes(path: Path | None) -> dict[str, list] | None:
    """Boxes by the name of the picture."""
    if path is None:
        return None
    try:
        boxes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: the boxes cannot be read ({error}); expected JSON, see --help") from error
    if not isinstance(boxes, dict) or not all(isinstance(v, list) for v in boxes.values()):
        raise DataError(f'{path}: expected {{"picture.jpg": [[x0, y0, x1, y1], ...], ...}}')
    return boxes


def result_names(names: list[Path], out: Path, folder: Path) -> list[Path]:
    """One stem per picture, in the same folder of `out` as the picture is of `folder`: a.jpg -> a; where a.png is there too, a_jpg and
    a_png, and where one of these is there as well, a_jpg_2.
    """
    places = [path.relative_to(folder) for path in names]
    number, taken = Counter(place.with_suffix("") for place in places), {}  # a dict keeps the order
    for p in places:
        stem = p.with_suffix("") if number[p.with_suffix("")] == 1 else p.with_name(p.name.replace(".", "_"))
        free = next(name for k in count(1) if (name := stem if k == 1 else stem.with_name(f"{stem.name}_{k}")) not in taken)
        taken[free] = p
    return [out / stem for stem in taken]


def refuse_strangers(files: list[Path]) -> None:
    """Raises DataError where one of the files is there that an interrupted run did not leave: it writes its JSON first."""
    existing = [path for path in files if path.exists()]
    try:
        ours = not existing or json.loads(files[0].read_text(encoding="utf-8")).get("units") == UNITS
    except (OSError, *MALFORMED):
        ours = False
    if not ours:
        raise DataError(f"{existing[0]}: exists and is no result of this command; use --overwrite to replace it, or another --out")


def result_files(target: Path, source: Path) -> list[Path]:
    return [target.with_name(target.name + ending) for ending in (VIDEO_RESULTS if is_video(source) else RESULTS)]


def camera_of(width: int, height: int, args: argparse.Namespace) -> list | None:
    """Intrinsics in px, or None where the focal length is not known."""
    if args.focal is None:
        return None
    return [[args.focal, 0, (width - 1) / 2], [0, args.focal, (height - 1) / 2], [0, 0, 1]]


def with_margin(boxes, width: int, height: int, args: argparse.Namespace) -> list[np.ndarray]:
    """Checked boxes, enlarged by --margin; None stands for the whole picture."""
    grown = []
    for box in boxes:
        given = np.array((0, 0, width, height) if box is None else box, dtype=object)
        if given.shape != (4,) or not all(isinstance(v, int | float) for v in given):
            raise DataError(f"box {box}: expected four numbers x0 y0 x1 y1 in px")
        low, high = given[:2].astype(float), given[2:].astype(float)
        grown.append(
            np.concatenate(
                [(low + high) / 2 - args.margin * (high - low) / 2, (low + high) / 2 + args.margin * (high - low) / 2]
            )
        )
    return grown


def predict_picture(
    target: Path, path: Path, boxes: list | None, find: Finder | None, predictor: Predictor, args: argparse.Namespace
) -> None:
    """Joints of the people in one picture, and their four files."""
    image = read_image(path, upright=not args.annotated)
    height, width = image.shape[:2]
    if find is not None:
        boxes = find(image).tolist()
        if not boxes:
            print(f"{path}: no person found with a score of {args.threshold:g} or more (--threshold)", file=sys.stderr)
    people = with_margin(boxes if boxes is not None else [None], width, height, args)
    found = predictor.predict_boxes(image, people, camera_of(width, height, args), args.root_depth, args.box_mm)
    write(target, path, image, found, predictor, args)


def write(
    target: Path,
    path: Path,
    image: np.ndarray,
    people: list[Prediction],
    predictor: Predictor,
    args: argparse.Namespace,
) -> None:
    """The four files of one picture; each appears whole or not at all."""
    as_json, as_npz, as_2d, as_3d = result_files(target, path)
    skeleton = predictor.skeleton
    say_corrections(path, people)
    record = {
        "image": path.name,
        "width": image.shape[1],
        "height": image.shape[0],
        "checkpoint": str(args.checkpoint),
        "units": UNITS,
        "people": [p.to_dict() for p in people],
    }
    make_folder(target.parent)
    save_tables(as_json, as_npz, record, people, skeleton)
    rows, overlay = [], image
    for i, p in enumerate(people):
        conf = np.maximum(p.conf, LEAST_DRAWN)
        overlay = vis.draw_skeleton_2d(overlay, p.x_img, skeleton, conf)
        X = p.X_root if p.correction is None else {"before": p.correction.X_before, "corrected": p.X_root}
        rows.append(vis.SheetRow(image, p.x_img, X, conf=conf, crop=p.box, caption=f"person {i}"))
    vis.save_image(as_2d, overlay)
    title = f"{path.name}: {len(people)} {'person' if len(people) == 1 else 'people'}"
    assumed = "\n".join(f"assumed: {text}" for text in (people[0].assumed if people else ()))
    vis.save_image(as_3d, vis.pose_sheet(rows or [vis.SheetRow(image)], skeleton, title, assumed))


def say_corrections(path: Path, people: list[Prediction]) -> None:
    """What corrections did to the poses of a picture or video."""
    ends = [p.correction for p in people if p.correction is not None]
    if ends:
        before, after = (np.mean([getattr(end, name) for end in ends]) for name in ("before_px", "after_px"))
        how = ", ".join(f"{number} {name}" for name, number in sorted(Counter(end.decision for end in ends).items()))
        print(f"{path}: corrected {len(ends)} poses, {before:.2f} -> {after:.2f} px from the 2D joints on average ({how})", file=sys.stderr)


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be made ({error.strerror}); choose another --out") from error


def save_tables(as_json: Path, as_npz: Path, record: dict, people: list[Prediction], skeleton: Skeleton, **more: np.ndarray) -> None:
    """The JSON file, and an npz of one row per person."""
    write_text(as_json, json.dumps(record, indent=1) + "\n", RunError)
    columns = {name: [getattr(p, name) for p in people] for name in COLUMNS}
    columns |= {name: [getattr(p.correction, name, None) for p in people] for name in CORRECTED}
    arrays = {name: np.stack(rows) for name, rows in columns.items() if rows and rows[0] is not None} | more
    with replaced(as_npz, RunError) as part:
        np.savez_compressed(part, joints=np.array(skeleton.joints), **arrays)


# --------------------------------------------------------------------------------------------------------------- videos


def predict_video(
    target: Path, path: Path, boxes: list | None, find: Finder | None, predictor: Predictor, args: argparse.Namespace
) -> None:
    """Joints of the people in each frame of a video, and its four files."""
    video = Video.open(path)
    as_json, as_npz, as_mp4, as_gif = result_files(target, path)
    start = None if find is not None else with_margin(boxes if boxes is not None else [None], video.width, video.height, args)
    make_folder(target.parent)
    records, rows, where, view = [], [], [], None
    panels = 1 + args.correct if predictor.has_depth else 0
    bar = tqdm(total=video.wanted(args.every, args.limit), desc=path.name, unit="frame")
    with Clip(as_mp4, as_gif, video.fps / args.every) as clip, bar:
        for number, image, people in predictions(video, start, find, predictor, args):
            view = view or (viewpoint(people) if people and panels else None)
            clip.add(clip_frame(image, people, predictor.skeleton, view, panels))
            records.append({"frame": number, "people": [p.to_dict() for p in people]})
            rows += people
            where += [(number, i) for i in range(len(people))]
            bar.update()
    record = {
        "video": path.name, "width": video.width, "height": video.height, "fps": video.fps, "every": args.every,
        "checkpoint": str(args.checkpoint), "units": UNITS, "frames": records,
    }  # fmt: skip
    say_corrections(path, rows)
    frame, person = np.array(where, np.int32).reshape(-1, 2).T
    save_tables(as_json, as_npz, record, rows, predictor.skeleton, frame=frame, person=person)


class Followed(NamedTuple):
    """A frame of a video and the boxes of the people in it."""

    number: int
    image: np.ndarray
    boxes: list[np.ndarray]
    who: list[int]  # the number of the person in each
    people: list[Prediction] | None  # by this frame alone, if following needed that


def predictions(
    video: Video, boxes: list | None, find: Finder | None, predictor: Predictor, args: argparse.Namespace
) -> Iterator[tuple[int, np.ndarray, list[Prediction]]]:
    """Number, picture and people of each frame that is taken."""
    camera, clip = camera_of(video.width, video.height, args), predictor.clip
    for window in windows(followed(video, boxes, find, predictor, args, camera), clip * max(1, BATCH // clip), clip):
        found = [frame.people for frame in window]
        if clip > 1 or None in found:
            given = [frame.boxes for frame in window], camera, args.root_depth, args.box_mm
            found = predictor.predict_frames([frame.image for frame in window], *given, people=[frame.who for frame in window])
        yield from ((frame.number, frame.image, people) for frame, people in zip(window, found, strict=True))


def windows(frames: Iterator[Followed], size: int, least: int) -> Iterator[list[Followed]]:
    """Frames that follow one another, `size` at once and at the end at least `least`, so that clips of so many are as if all were there."""
    held: list[Followed] = []
    for frame in frames:
        held.append(frame)
        if len(held) == size + least:
            yield held[:size]
            held = held[size:]
    if held:
        yield held


def followed(
    video: Video, boxes: list | None, find: Finder | None, predictor: Predictor, args: argparse.Namespace, camera: list | None
) -> Iterator[Followed]:
    """Each frame that is taken, with its boxes: given in the first one, or found in every so many."""
    numbers = count()
    now = np.zeros((0, 4)) if boxes is None else np.array(boxes, np.float64).reshape(-1, 4)
    who = [next(numbers) for _ in now]
    starts: list[np.ndarray] = []  # anchors of the frame in which the boxes were given or found
    for taken, (number, image) in enumerate(video.frames(args.every, args.limit)):
        if find is not None and (taken % args.detect_every == 0 or not len(now)):
            seen, place = in_order_of(found_boxes(find, image, args), now)
            if len(seen) or args.detect_every == 1:
                now, who, starts = seen, [who[k] if k < len(who) else next(numbers) for k in place], []
        if find is not None and args.detect_every == 1:  # no frame depends on the one before
            yield Followed(number, image, list(now), who, None)
            continue
        people = predictor.predict_boxes(image, list(now), camera, args.root_depth, args.box_mm)
        yield Followed(number, image, list(now), who, people)
        starts = starts or [anchor(box, p.x_img) for box, p in zip(now, people, strict=True)]
        moved = [follow(box, p.x_img, start) for box, p, start in zip(now, people, starts, strict=True)]
        inside = [bool((box[2:] > 0).all() and (box[:2] < (video.width, video.height)).all()) for box in moved]
        now = np.array(moved).reshape(-1, 4)[inside]
        who, starts = ([value for value, kept in zip(values, inside, strict=True) if kept] for values in (who, starts))


def found_boxes(find: Finder, image: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """The detector's boxes with their margin, (N, 4)."""
    return np.array(with_margin(find(image).tolist(), image.shape[1], image.shape[0], args)).reshape(-1, 4)


def viewpoint(people: list[Prediction]) -> dict:
    """Middle and reach of the 3D panels, the same for all frames of a clip."""
    if len(people) == 1:
        return {"center": np.zeros(3), "half_mm": 1250.0}
    joints = np.concatenate([p.X_cam for p in people])
    center = (joints.min(0) + joints.max(0)) / 2
    return {"center": center, "half_mm": float(1.15 * np.linalg.norm(joints - center, axis=-1).max() + 200)}


def clip_frame(image: np.ndarray, people: list[Prediction], skeleton: Skeleton, view: dict | None, panels: int) -> np.ndarray:
    """Overlay and beside it as many panels: none, the 3D poses, or these before and after a correction; nobody is seen before `view`."""
    share = PANEL / image.shape[0]
    shown = cv2.resize(image, (round(image.shape[1] * share), PANEL), interpolation=cv2.INTER_AREA if share < 1 else cv2.INTER_LINEAR)
    for p in people:
        (x0, y0), (x1, y1) = np.rint(p.box.reshape(2, 2) * share).astype(int).tolist()
        cv2.rectangle(shown, (x0, y0), (x1, y1), (235, 235, 235), 1, cv2.LINE_AA)
    for p in people:
        shown = vis.draw_skeleton_2d(shown, (p.x_img + 0.5) * share - 0.5, skeleton, np.maximum(p.conf, LEAST_DRAWN))
    if not panels:
        return shown
    single = view is not None and not view["center"].any()
    seen = people[:1] if single else people
    place = [np.zeros(3) if single else (p.X_cam - p.X_root)[skeleton.root_index] for p in seen]
    shots = [[p.X_root for p in seen]] if panels == 1 else [[p.correction.X_before for p in seen], [p.X_root for p in seen]]
    poses = [np.array([X + at for X, at in zip(shot, place, strict=True)]).reshape(-1, skeleton.num, 3) for shot in shots]
    return beside([shown, *(vis.draw_skeleton_3d(X, skeleton, size=PANEL, azimuth=25.0, **(view or {})) for X in poses)], 6)


if __name__ == "__main__":
    keep_heap()
    sys.exit(interruptible(main, "stopped; what was written is complete, the same command goes on"))
