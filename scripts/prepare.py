"""Prepares data sets, makes labels, and checks what is on disk.

python scripts/prepare.py h36m --release /data/h36m-official --out data/h36m
python scripts/prepare.py mpii --mat mpii_human_pose_v1_u12_1.mat --out data/mpii --valid-list valid_images.txt
python scripts/prepare.py mpi_inf_3dhp --root data/mpi_inf_3dhp --step 5
python scripts/prepare.py panoptic --root data/panoptic                                  frames of the HD videos that are trained on
python scripts/prepare.py pseudo-labels --root data/panoptic --list images.json           pictures, for a 2D detector to be run on
python scripts/prepare.py pseudo-labels --root data/panoptic --detections results.json    its results as 2D pseudo labels
python scripts/prepare.py pseudo-labels --root data/panoptic --keypointrcnn               2D pseudo labels of torchvision's network
python scripts/prepare.py pseudo-labels --root data/panoptic --network model_best.pth.tar     of a 2D network of ours
python scripts/prepare.py shelf --root data/shelf                                         what is there; campus alike
python scripts/prepare.py shelf --root data/shelf --associate                             PCP of its detections, triangulated
python scripts/prepare.py poses output/panoptic/panoptic/voxelpose/selfpose3d-pose/predictions.npz data/shelf/own.pkl
python scripts/prepare.py calibration Calib.toml --out data/mine/cameras.json             any calibration, told and converted
python scripts/prepare.py custom --root data/mine                                         frames of an own rig's videos
python scripts/prepare.py mocap --train a.npz b.npz --test c.npz --out data/mocap --shapes 4
python scripts/prepare.py archives h36m /data/h36m-official data/lifting                 data_3d_h36m.npz and data_2d_h36m_gt.npz
python scripts/prepare.py labels --cfg experiments/h36m/labels.yaml                     annot/train-ss.npz, and how good it is
python scripts/prepare.py labels --cfg experiments/h36m/labels-2dgt.yaml                annot/train-ss-2dgt.npz
python scripts/prepare.py keypoints walk.json data/keypoints/mine --video walk.mp4       2D of any detector -> data_2d_custom_mine.npz
python scripts/prepare.py keypoints --h36m detections/ data/keypoints/cpn_ft_h36m_dbb    Human3.6M's sequences -> data_2d_h36m_....npz
python scripts/prepare.py check h36m data/h36m                                            what is missing or looks wrong
python scripts/prepare.py pss --cfg experiments/h36m/train.yaml                          clusters of the Pose Structure Score

Nothing that exists is overwritten. Exit status: 0 done, 1 the check found something, 2 an error, told in one line.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.allocator import keep_heap
from lib.errors import ParallaxError, interruptible


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    h36m = commands.add_parser("h36m", help="annotations and images from the official release of Human3.6M")
    h36m.add_argument("--release", required=True, help="folder with metadata.xml, S1, S5, ... as the archives unpack")
    h36m.add_argument("--out", default="data/h36m", help="data set to be made (default %(default)s)")
    h36m.add_argument("--train-step", type=int, default=32, help="every how many frames of the training subjects (default 32)")
    h36m.add_argument("--valid-step", type=int, default=64, help="every how many frames of S9 and S11 (default 64)")
    h36m.add_argument("--subjects", nargs="+", default=[], metavar="S", help="of those that are kept, such as S1 S9 (default: all)")
    h36m.add_argument("--exclude-damaged", action="store_true", help="leave out what is known to be damaged")
    h36m.add_argument(
        "--project",
        choices=("distorted", "pinhole"),
        default="distorted",
        help="2D joints where the images show them, with the lenses kept; or without lenses, as published",
    )
    h36m.add_argument("--form", choices=("npz", "pickle"), default="npz", help="pickle = what the original program reads")
    h36m.add_argument("--no-images", action="store_true", help="annotations only")

    mpii = commands.add_parser("mpii", help="MPII's own .mat file into the JSON files that are read")
    mpii.add_argument("--mat", required=True, help="mpii_human_pose_v1_u12_1.mat of the release")
    mpii.add_argument("--out", default="data/mpii", help="data set to be made; its images go into images/ (default %(default)s)")
    mpii.add_argument("--valid-list", help="text file with the names of the validation images, one per line (no part of the release)")

    dhp = commands.add_parser("mpi_inf_3dhp", help="the training frames of MPI-INF-3DHP from its videos")
    dhp.add_argument("--root", default="data/mpi_inf_3dhp", help="folder with S1, ..., TS1, ... (default %(default)s)")
    dhp.add_argument("--step", type=int, default=5, help="every how many frames (default 5); the same goes into DATASET.OPTIONS")
    dhp.add_argument("--cameras", type=int, nargs="+", default=[], metavar="N", help="default: those at chest height, 0 2 4 7 8")

    pan = commands.add_parser("panoptic", help="the frames of CMU Panoptic that are trained and tested on, from its HD videos")
    pan.add_argument("--root", default="data/panoptic", help="folder with 160906_pizza1, ... as the tool box unpacks them (%(default)s)")
    pan.add_argument("--splits", nargs="+", default=[], metavar="S", help="train, valid, voxelpose_train (default: the first two)")
    pan.add_argument("--sequences", nargs="+", default=[], metavar="NAME", help="instead of the published list; with one split alone")
    pan.add_argument("--cameras", nargs="+", default=[], metavar="PP_NN", help="default: 00_03 00_06 00_12 00_13 00_23")
    pan.add_argument("--interval", type=int, default=0, help="every how many frames (default: 3 to train, 12 to test)")
    pan.add_argument("--no-images", action="store_true", help="do not extract, only report")

    pseudo = commands.add_parser(
        "pseudo-labels", aliases=["pseudo_labels"], help="2D pseudo labels of a data set's pictures, and how good they are"
    )
    pseudo.add_argument("--root", default="data/panoptic", help="folder of the data set (default %(default)s)")
    what = pseudo.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", default="", metavar="FILE", help="writes the pictures in COCO's form, for a detector")
    what.add_argument("--detections", default="", metavar="PATH", help="COCO or HRNet results, AlphaPose's list, or a folder of these, or "
                      "of a file per picture of OpenPose or MMPose; pictures are told by their names")  # fmt: skip
    what.add_argument("--network", default="", metavar="FILE", help="checkpoint of a 2D network of ours, run on people's boxes")
    what.add_argument("--keypointrcnn", action="store_true", help="torchvision's Keypoint R-CNN, whose weights must be at hand")
    pseudo.add_argument("--dataset", default="panoptic", metavar="NAME", help="layout of the data set (default %(default)s)")
    pseudo.add_argument("--split", default="train", help="of the data set, such as train or valid (default %(default)s)")
    pseudo.add_argument("--sequences", nargs="+", default=[], metavar="NAME", help="Panoptic: instead of the published list")
    pseudo.add_argument("--cameras", nargs="+", default=[], metavar="PP_NN", help="Panoptic: default 00_03 00_06 00_12 00_13 00_23")
    pseudo.add_argument("--interval", type=int, default=0, help="Panoptic: every how many frames (default: 3 to train, 12 to test)")
    pseudo.add_argument("--layout", default="", metavar="NAME", help="joints of --detections where they do not say, such as coco17")
    pseudo.add_argument("--boxes", default="", metavar="FILE", help="for --network: COCO results with bbox, or `annotated` for the data "
                        "set's own (default: torchvision's person detector)")  # fmt: skip
    pseudo.add_argument("--weights", default=None, metavar="FILE", help="of torchvision's network (default: in torch's cache or models/)")
    pseudo.add_argument("--threshold", type=float, default=0.7, help="least score of a person that a network finds (default 0.7)")
    pseudo.add_argument("--margin", type=float, default=1.2, help="for --network: factor on the sides of boxes (default 1.2)")
    pseudo.add_argument("--min-score", type=float, default=0.0, metavar="S", help="people of --detections with less are left out")
    pseudo.add_argument("--batch-size", type=int, default=4, metavar="N", help="pictures that a network looks at at once (default 4)")
    pseudo.add_argument("--device", default="auto", help="of a network: auto, cpu, cuda:0, ... (default auto)")
    pseudo.add_argument("--kind", choices=("soft", "hard"), default="soft", help="all joints, or only sure ones in the box (default soft)")
    pseudo.add_argument("--out", default="", metavar="NAME", help="of the new split (default: group_SPLIT_pseudo_KIND)")
    pseudo.add_argument("--form", choices=("npz", "pickle"), default="npz", help="pickle = what the original program reads (Panoptic)")

    for name in ("shelf", "campus"):
        rig = commands.add_parser(name, help="what is there of annotations, cameras, detections, poses and images")
        rig.add_argument("--root", default=f"data/{name}", help="folder with actorsGT.mat (default %(default)s)")
        rig.add_argument("--associate", action="store_true", help="PCP of people triangulated from the detections, without any training")
        rig.add_argument("--split", default="valid", help="frames for --associate: valid, train, all (default %(default)s)")
        rule = "blended" if name == "shelf" else "plain"
        rig.add_argument("--head-rule", choices=("plain", "blended"), default=rule, help="for --associate (default %(default)s)")
        what = "for --associate: frames that the detections do not name, nobody is detected there, or leave them out (default %(default)s)"
        rig.add_argument("--missing", choices=("empty", "skip"), default="empty", help=what)

    pool = commands.add_parser("poses", help="people that a network found, as a file of poses that scenes are made of (DATASET.TRAIN_SET)")
    pool.add_argument("predictions", help="predictions.npz of a training or of scripts/valid.py, of several people")
    pool.add_argument("out", help="file to be written, such as data/shelf/own.pkl")
    pool.add_argument("--min-score", type=float, default=0.0, metavar="S", help="people with less are left out (default %(default)s)")

    own = commands.add_parser("custom", help="an own rig: frames of its videos, and what is there")
    own.add_argument("--root", required=True, help="folder as lib/dataset/formats/custom.py describes it")
    own.add_argument("--split", default="", help="recording below the root (default: the root is the recording)")
    own.add_argument("--step", type=int, default=1, help="every how many frames (default 1); the same goes into DATASET.OPTIONS")

    cal = commands.add_parser("calibration", help="reads a calibration of another program, tells what it says, writes cameras.json")
    cal.add_argument("src", metavar="SRC", help="cameras.json, Panoptic, VoxelPose, Pose2Sim or anipose TOML, Qualisys, OpenCV YAML or XML")
    cal.add_argument("--out", default="", metavar="FILE", help="cameras.json to be written (default: only tell)")
    cal.add_argument("--unit", default="", choices=("", "mm", "cm", "m"), help="of the lengths in SRC, where it does not say")
    cal.add_argument("--cameras", nargs="+", default=[], metavar="NAME", help="some of them, in this order")
    cal.add_argument("--up", default="", metavar="AXIS", help="axis of SRC that becomes +z, such as -y (write --up=-y)")
    cal.add_argument("--inverse", action="store_true", help="R and t of SRC lead from the camera to the world")
    cal.add_argument("--size", type=int, nargs=2, default=[], metavar=("W", "H"), help="of the images in px, where SRC does not say")
    cal.add_argument("--picture", default="", metavar="FILE", help="a floor of 1 m squares and the axes as each camera sees them")
    cal.add_argument("--images", default="", metavar="DIR", help="pictures called like the cameras, to draw that on")

    mocap = commands.add_parser("mocap", help="real motion capture before the cameras of Human3.6M: archives for lifting over time")
    mocap.add_argument("--train", nargs="+", required=True, metavar="NPZ",
                       help="files whose actors play S1, S5, S6, S7, S8; data/README.md tells what they hold")  # fmt: skip
    mocap.add_argument("--test", nargs="+", required=True, metavar="NPZ", help="files whose actors play S9 and S11")
    mocap.add_argument("--out", default="data/mocap", help="folder of the archives (default %(default)s)")
    mocap.add_argument("--shapes", type=int, default=0, metavar="N", help="bodies given to each actor in turn (default: the recorded one)")
    mocap.add_argument("--seed", type=int, default=0, help="of bodies, headings, places and noise (default 0)")

    archives = commands.add_parser("archives", help="data_3d_*.npz and data_2d_*.npz, for lifting over time, from an official release")
    archives.add_argument(
        "source",
        choices=("h36m", "humaneva", "humaneva-detections", "hourglass"),
        help="what SRC holds: .cdf, .cdf.mat or .h5 poses of Human3.6M; .mat files exported with HumanEva's MATLAB code; "
        "these and, for each video, keypoints S1/Walking_1_(C1).avi.npz of a detector; .h5 keypoints of Stacked Hourglass on Human3.6M",
    )
    archives.add_argument("src", metavar="SRC", help="folder of the release")
    archives.add_argument("out", metavar="OUT", help="folder of the archives")
    archives.add_argument(
        "--keypoints",
        default="",
        metavar="NAME",
        help="in the 2D archive's name (default gt; humaneva-detections: detectron_pt_coco; hourglass: sh_pt_mpii)",
    )

    labels = commands.add_parser("labels", help="triangulated labels as a split of their own, and how good they are")
    labels.add_argument("--cfg", metavar="FILE", required=True, help="YAML with TASK epipolar")
    labels.add_argument("--out", default="", help="root of the data set (default: DATASET.ROOT)")
    labels.add_argument("--split", default="", help="name of the new split (default train-ss, or train-ss-X for labels-X.yaml)")
    labels.add_argument("--form", choices=("npz", "pickle"), default="npz", help="pickle = what the original program reads")
    labels.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="configuration keys to change")

    kp = commands.add_parser("keypoints", help="the 2D of any detector as an archive of keypoints, for lifting")
    kp.add_argument("sources", nargs="+", metavar="SRC", help="per video a file, or a folder of OpenPose: Detectron(2), OpenPose, "
                    "AlphaPose, COCO, MMPose, predict.py, npy/npz arrays; a folder of .npz = all of them")  # fmt: skip
    kp.add_argument("out", metavar="OUT", help="data_2d_custom_NAME.npz, or FOLDER/NAME")
    kp.add_argument("--layout", metavar="NAME", help="joints of the sources where they do not say, such as coco17 or h36m17")
    kp.add_argument("--to", default="coco17", metavar="NAME", help="joints of the archive (default %(default)s)")
    where = kp.add_mutually_exclusive_group()
    where.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="of the pictures, in px, where the source does not say")
    where.add_argument("--video", action="append", default=[], metavar="FILE", help="the video of a source; once per source, in order")
    kp.add_argument("--person", type=int, metavar="I", help="0 = who is seen longest and surest (default), 1 = the next, ...")
    kp.add_argument("--rule", choices=("track", "best_box"), default="track", help="best_box = VideoPose3D's: the best box of each frame")
    kp.add_argument("--gap", type=int, metavar="N", help="missing frames in a row that may be interpolated (default: any number)")
    kp.add_argument("--min-score", type=float, default=0.0, metavar="S", help="joints with a lower score count as missing (default 0)")
    kp.add_argument("--picture", metavar="FILE", help="frames with the skeleton drawn (default: beside the archive)")
    kp.add_argument("--h36m", action="store_true", help="SRC holds S*/<Action>.<camera>.mp4.npz of Human3.6M")

    check = commands.add_parser("check", help="what is missing, mis-shaped, in a wrong unit or order")
    check.add_argument("dataset", help="layout: h36m, h36m_raw, mpii, ...")
    check.add_argument("root", help="folder of the data set")
    check.add_argument("--split", help="default: all that are there")

    pss = commands.add_parser("pss", help="clusters of the Pose Structure Score, from a split with true 3D joints")
    pss.add_argument("--cfg", metavar="FILE", required=True, help="YAML that names the data set and the joints")
    pss.add_argument("--split", default="", help="default: DATASET.TRAIN_SET")
    pss.add_argument("--clusters", type=numbers, default=(50, 100), metavar="K,K", help="default: 50,100")
    pss.add_argument("--seed", type=int, default=0, help="of k-means (default 0)")
    pss.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="configuration keys to change")

    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = parser.parse_known_args(argv)  # KEY VALUE may stand behind options
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)

    from lib.engine.logger import open_console  # after the arguments: --help answers at once

    open_console(True)
    try:
        return COMMANDS[args.command](args)
    except ParallaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def h36m(args: argparse.Namespace) -> int:
    from lib.tasks import prepare

    tables = prepare.prepare_h36m(
        args.release, args.out, args.train_step, args.valid_step, args.subjects, args.exclude_damaged, args.project, args.form,
        not args.no_images,
    )  # fmt: skip
    for split, ann in tables.items():
        print(f"\n{args.out}/annot/{split}: {prepare.summary(ann)}\n{prepare.counts_table(ann)}")
        for line in prepare.damaged_sequences(ann):
            print(f"known to be damaged: {line}")
        picture = prepare.sheet(ann, args.out, Path(args.out) / "annot" / f"{split}.png")
        if picture:
            print(f"look at {picture}: do the skeletons lie on the people?")
    return 0


def mpii(args: argparse.Namespace) -> int:
    from lib.tasks import prepare

    for name, count in prepare.prepare_mpii(args.mat, args.out, args.valid_list).items():
        print(f"{args.out}/annot/{name}.json: {count} people")
    if not args.valid_list:
        print("no train.json and valid.json: which images are for validation is no part of the release; give --valid-list FILE")
    return 0


def mpi_inf_3dhp(args: argparse.Namespace) -> int:
    from lib.tasks import prepare

    ann = prepare.prepare_3dhp(args.root, args.step, args.cameras)
    print(f"{args.root}: {prepare.summary(ann)}; set DATASET.OPTIONS.step {args.step}")
    picture = prepare.sheet(ann, args.root, Path(args.root) / "train.png")
    if picture:
        print(f"look at {picture}: do the skeletons lie on the people?")
    return 0


def panoptic(args: argparse.Namespace) -> int:
    from lib.dataset.formats import panoptic as layout
    from lib.errors import DataError
    from lib.tasks import prepare

    if args.sequences and len(args.splits) != 1:
        raise DataError("--sequences: name one split with it, such as --splits train, whose interval they get")
    root = Path(args.root)
    splits = args.splits or [name for name, names in layout.SPLITS.items() if any((root / s).is_dir() for s in names)]
    if not splits:
        print(f"{root}: no sequences of Panoptic found, expected folders such as {layout.VALID[0]}")
        return 1
    for split in splits:
        ann = prepare.prepare_panoptic(root, split, args.sequences, args.cameras, args.interval, not args.no_images)
        print(f"{root} ({split}): {prepare.summary(ann)}")
        print("\n".join(f"  {line}" for line in prepare.sequence_lines(ann, root)))
        picture = prepare.sheet(ann, root, root / f"{split}.png")
        if picture:
            print(f"look at {picture}: do the skeletons lie on the people?")
    return 0


def pseudo_labels(args: argparse.Namespace) -> int:
    from lib.dataset.formats import panoptic as layout
    from lib.dataset.formats import pseudo_labels as table
    from lib.errors import DataError
    from lib.tasks import pseudo

    chosen = {"sequences": args.sequences, "cameras": args.cameras, "interval": args.interval}
    if args.dataset != "panoptic" and any(chosen.values()):
        raise DataError("--sequences, --cameras and --interval are for --dataset panoptic; leave them out")
    if args.boxes and not args.network:
        raise DataError("--boxes: only --network looks at boxes; leave it out, or give a checkpoint with --network")
    ann = pseudo.read(args.dataset, args.root, args.split, chosen if args.dataset == "panoptic" else None)
    if args.list:
        print(f"{args.list}: {pseudo.write_image_list(args.list, ann)} pictures")
        return 0
    out, path = pseudo.target(args.root, args.split, args.out, args.kind, args.form)
    if args.detections:
        people, made_by, keep = table.read_people(ann, args.detections, args.layout), {"detections": args.detections}, None
    else:
        find, made_by = _finder(args, ann)
        keep = path.with_name(f".{out}.people")
        people = pseudo.detected(ann, args.root, find, keep, made_by, max(args.batch_size, 1))
    interval = args.interval or layout.INTERVALS.get(args.split, 1) if args.dataset == "panoptic" else 1
    made = pseudo.write(ann, people, args.root, out, args.kind, args.form, args.min_score, interval=interval, made_by=made_by)
    if keep is not None:
        shutil.rmtree(keep, ignore_errors=True)
    empty = len(set(made.ann.image[made.ann.person < 0].tolist()))
    print(f"{path}: {(made.ann.person >= 0).sum()} people in {len(set(made.ann.image.tolist()))} pictures, nobody in {empty} of them")
    print(made.quality.table())
    print(f"{made.files['quality']}: written")
    if "picture" in made.files:
        print(f"look at {made.files['picture']}: do the skeletons lie on the people, and is nobody left out?")
    return 0


def _finder(args: argparse.Namespace, ann):
    """The network that --network or --keypointrcnn names, and what tells it from others."""
    from lib.prediction import labeller
    from lib.prediction.detection import load_detector, load_joint_detector
    from lib.weights.digest import sha256

    if args.keypointrcnn:
        find = labeller.JointDetector(load_joint_detector(args.weights, args.device), args.threshold)
    else:
        if args.boxes == "annotated":
            boxes = labeller.annotated_boxes(ann)
        elif args.boxes:
            boxes = labeller.boxes_of_file(ann, args.boxes, args.threshold)
        else:
            boxes = labeller.detector_boxes(load_detector(args.weights, args.device), args.threshold)
        find = labeller.network(args.network, boxes, args.device, args.margin)
    named = {name: path for name, path in (("network", args.network), ("weights", args.weights)) if path}
    facts = {"by": "keypointrcnn" if args.keypointrcnn else "network", "threshold": args.threshold, **named}
    facts |= {f"{name}_sha256": sha256(path) for name, path in named.items()}
    return find, facts if args.keypointrcnn else facts | {"boxes": args.boxes or "torchvision", "margin": args.margin}


def actors(args: argparse.Namespace) -> int:
    from lib.dataset import load
    from lib.errors import DataError
    from lib.tasks import prepare

    for labels in ("actors", "detections"):
        for split in ("valid", "all"):
            try:
                ann = load(args.command, args.root, split, {"labels": labels})
            except DataError:  # check has the words for it
                continue
            line = prepare.sequence_lines(ann, args.root)[0]
            print(f"{labels}, {split}: {line.partition(': ')[2]}, {len(ann)} 2D poses")
    if args.associate:
        from lib.tasks.association import judge

        print(judge(args.command, args.root, args.split, args.head_rule, missing=args.missing).table())
    return check(argparse.Namespace(dataset=args.command, root=args.root, split=None))


def custom(args: argparse.Namespace) -> int:
    from lib.dataset.formats import custom as layout
    from lib.tasks import prepare

    ann = prepare.prepare_recording(args.root, args.split, args.step)
    print("\n".join(prepare.sequence_lines(ann, args.root)))
    said = layout.check(args.root, args.split or None)
    print("\n".join(f"- {sentence}" for sentence in said) or "good")
    return 1 if said else 0


def calibration(args: argparse.Namespace) -> int:
    from lib.dataset.calibrations import report
    from lib.files import refuse_existing
    from lib.tasks import prepare

    if args.picture:
        refuse_existing(Path(args.picture))  # before the calibration is written
    found = prepare.import_calibration(args.src, args.out, args.unit, args.cameras, args.up, args.inverse, args.size)
    lines, said = report(found)
    print("\n".join([*lines, *(f"- {sentence}" for sentence in said)]))
    if args.out:
        print(f"{args.out}: written")
    if args.picture:
        picture = prepare.calibration_picture(found, args.picture, args.images)
        print(f"look at {picture}: does the floor lie on the floor, and does blue point up?")
    return 0


def mocap(args: argparse.Namespace) -> int:
    from lib.tasks.mocap import prepare_mocap

    frames, roles = prepare_mocap(args.train, args.test, args.out, args.shapes, args.seed)
    for actor, role in roles.items():
        print(f"{actor} plays {role}")
    print(f"{args.out}: {', '.join(f'{subject} {count} frames' for subject, count in frames.items())}, before four cameras each")
    return 0


def archives(args: argparse.Namespace) -> int:
    from lib.dataset.formats.lifting_sources import SOURCES

    for path in SOURCES[args.source](args.src, args.out, **({"keypoints": args.keypoints} if args.keypoints else {})).values():
        print(f"{path}: written")
    return 0


def labels(args: argparse.Namespace) -> int:
    from lib.config import load
    from lib.engine.distributed import start
    from lib.tasks import prepare

    cfg = load(args.cfg, args.overrides)
    world = start(cfg)
    try:
        quality, files = prepare.prepare_labels(cfg, args.out, args.split, args.form, world.device)
    finally:
        world.close()
    print(quality.table())
    for what, path in files.items():
        print(f"{what}: {path}")
    return 0


def keypoints(args: argparse.Namespace) -> int:
    from lib.errors import DataError
    from lib.tasks.keypoints import prepare_h36m, prepare_videos

    if args.gap is not None and args.gap < 0:
        raise DataError(f"--gap {args.gap}: expected 0 frames or more")
    if args.h36m:
        if len(args.sources) != 1:
            raise DataError("--h36m: expected one folder with S1, S5, ...")
        if args.size or args.video or args.picture or args.person is not None or args.gap is not None or args.min_score:
            raise DataError("--h36m takes --layout alone: sequences are taken as the published archives have them")
        done = prepare_h36m(args.sources[0], args.out, args.layout)
    else:
        done = prepare_videos(
            args.sources, args.out, args.layout, args.to, args.size, args.video, args.person, args.rule, args.gap, args.min_score,
            args.picture,
        )  # fmt: skip
    print("\n".join(done.lines))
    print(f"{done.archive}: written")
    if done.picture:
        print(f"look at {done.picture}: do the joints lie on the person, left on the left?")
    return 0


def poses(args: argparse.Namespace) -> int:
    from lib.tasks import prepare

    count = prepare.prepare_poses(args.predictions, args.out, args.min_score)
    print(f"{args.out}: {count} poses")
    return 0


def check(args: argparse.Namespace) -> int:
    from lib.tasks import prepare

    said, counts = prepare.check(args.dataset, args.root, args.split)
    for sentence in said:
        print(f"- {sentence}")
    if not said:
        print(f"good: {counts}")
    elif counts:
        print(counts)
    return 1 if said else 0


def pss(args: argparse.Namespace) -> int:
    from lib.config import load
    from lib.tasks import prepare

    written = prepare.prepare_pss(load(args.cfg, args.overrides), args.split, args.clusters, args.seed)
    for path in written:
        print(f"{path}: written")
    if not written:
        print("nothing to do: the clusters are there already, or the split has too few poses")
    return 0


COMMANDS = {
    "h36m": h36m,
    "mpii": mpii,
    "mpi_inf_3dhp": mpi_inf_3dhp,
    "panoptic": panoptic,
    "pseudo-labels": pseudo_labels,
    "pseudo_labels": pseudo_labels,
    "shelf": actors,
    "campus": actors,
    "poses": poses,
    "custom": custom,
    "calibration": calibration,
    "mocap": mocap,
    "archives": archives,
    "labels": labels,
    "keypoints": keypoints,
    "check": check,
    "pss": pss,
}  # fmt: skip


if __name__ == "__main__":
    keep_heap()
    sys.exit(interruptible(main))
