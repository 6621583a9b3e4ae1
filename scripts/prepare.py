"""Prepares data sets, makes labels, and checks what is on disk.

python scripts/prepare.py h36m --release /data/h36m-official --out data/h36m
python scripts/prepare.py mpii --mat mpii_human_pose_v1_u12_1.mat --out data/mpii --valid-list valid_images.txt
python scripts/prepare.py mpi_inf_3dhp --root data/mpi_inf_3dhp --step 5
python scripts/prepare.py labels --cfg experiments/h36m/labels.yaml                     annot/train-ss.npz, and how good it is
python scripts/prepare.py labels --cfg experiments/h36m/labels-2dgt.yaml                annot/train-ss-2dgt.npz
python scripts/prepare.py check h36m data/h36m                                            what is missing or looks wrong
python scripts/prepare.py pss --cfg experiments/h36m/train.yaml                          clusters of the Pose Structure Score

Nothing that exists is overwritten. Exit status: 0 done, 1 the check found something, 2 an error, told in one line.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.errors import ParallaxError


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

    labels = commands.add_parser("labels", help="triangulated labels as a split of their own, and how good they are")
    labels.add_argument("--cfg", metavar="FILE", required=True, help="YAML with TASK epipolar")
    labels.add_argument("--out", default="", help="root of the data set (default: DATASET.ROOT)")
    labels.add_argument("--split", default="", help="name of the new split (default train-ss, or train-ss-X for labels-X.yaml)")
    labels.add_argument("--form", choices=("npz", "pickle"), default="npz", help="pickle = what the original program reads")
    labels.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change")

    check = commands.add_parser("check", help="what is missing, mis-shaped, in a wrong unit or order")
    check.add_argument("dataset", help="layout: h36m, h36m_raw, mpii, ...")
    check.add_argument("root", help="folder of the data set")
    check.add_argument("--split", help="default: all that are there")

    pss = commands.add_parser("pss", help="clusters of the Pose Structure Score, from a split with true 3D joints")
    pss.add_argument("--cfg", metavar="FILE", required=True, help="YAML that names the data set and the joints")
    pss.add_argument("--split", default="", help="default: DATASET.TRAIN_SET")
    pss.add_argument("--clusters", type=numbers, default=(50, 100), metavar="K,K", help="default: 50,100")
    pss.add_argument("--seed", type=int, default=0, help="of k-means (default 0)")
    pss.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change")

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
        print(error, file=sys.stderr)
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


COMMANDS = {"h36m": h36m, "mpii": mpii, "mpi_inf_3dhp": mpi_inf_3dhp, "labels": labels, "check": check, "pss": pss}


if __name__ == "__main__":
    sys.exit(main())
