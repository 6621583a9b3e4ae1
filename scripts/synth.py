"""Makes the embedded world on disk, or a contact sheet of it.

python scripts/synth.py --root data/synthetic
python scripts/synth.py --root data/small --pretrain 400 --train 140 --valid 56 --size 128 128
python scripts/synth.py --root data/panoptic --rig panoptic5 --people 2 4 --pretrain 0
python scripts/synth.py --root data/native/h36m --layout h36m                as Human3.6M, to try its commands
python scripts/synth.py --root data/native/mpii --layout mpii --pretrain 400
python scripts/synth.py --root data/synthetic-motion --layout keypoints_npz  motions without images, for lifting over time
python scripts/synth.py --sheet world.png --overlay --split valid           (writes the picture only)
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.allocator import keep_heap
from lib.errors import ParallaxError, interruptible
from lib.tasks.world import LAYOUTS, MOTION_LAYOUT, ensure, ensure_motion, ensure_native, sheet


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of the world; splits that are there are checked and kept")
    parser.add_argument(
        "--layout", choices=(*LAYOUTS, MOTION_LAYOUT), help="write it as this data set is laid out (default: the world's own layout)"
    )
    parser.add_argument("--form", choices=("npz", "pickle"), default="", help="of --layout h36m: our table, or the published records")
    parser.add_argument("--pretrain", type=int, default=4000, help="instants with one random camera each, 2D labels only (default 4000)")
    parser.add_argument(
        "--train",
        type=int,
        default=1000,
        help="instants of the training subjects, seen by the whole rig (default 1000)",
    )
    parser.add_argument("--valid", type=int, default=200, help="instants of the held-out subjects, seen by the whole rig (default 200)")
    parser.add_argument("--seconds", type=float, default=240.0, help="of each subject's motions in --layout keypoints_npz (default 240)")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("W", "H"), help="of the images, px (default 256 256)")
    parser.add_argument("--rig", default="h36m", help="h36m, panoptic5, ring, ring8, ... (default h36m)")
    parser.add_argument("--zoom", type=float, default=1.0, help="focal lengths of the rig, times this (default 1)")
    parser.add_argument("--no-distortion", action="store_true", help="pinhole cameras")
    parser.add_argument("--people", type=int, nargs="+", default=[1], metavar="N", help="persons per scene, or fewest and most (default 1)")
    parser.add_argument("--length", type=int, default=0, help="instants of a sequence (default: so that every subject does everything)")
    parser.add_argument("--strangers", action="store_true", help="every sequence has people of its own")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another world (default 0)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core); the images do not depend on it")
    parser.add_argument(
        "--sheet",
        metavar="FILE",
        help="write a contact sheet (PNG) of one split instead of a world, unless --root is given too",
    )
    parser.add_argument("--split", default="train", choices=("train", "valid", "pretrain"), help="of the sheet (default train)")
    parser.add_argument("--overlay", action="store_true", help="draw the exact 2D skeleton on the sheet")
    args = parser.parse_args(argv)
    if len(args.people) > 2:
        parser.error("--people: one number, or the fewest and the most")
    if args.seed < 0 or not 0 < args.seconds < float("inf"):
        parser.error(f"--seed {args.seed}, --seconds {args.seconds:g}: expected a seed of 0 or more and a time above 0")
    if not args.root and not args.sheet:
        parser.error("give --root to make a world, or --sheet to look at one")
    shared = {
        "size": tuple(args.size),
        "rig": args.rig,
        "zoom": args.zoom,
        "seed": args.seed,
        "people": (args.people[0], args.people[-1]),
        "length": args.length,
        "strangers": args.strangers,
        "distortion": not args.no_distortion,
    }
    try:
        if args.root and args.layout == MOTION_LAYOUT:
            ensure_motion(args.root, args.seconds, args.seed)
            print(f"{args.root}: the motions are complete in the layout {args.layout}")
        elif args.root and args.layout:
            form = args.form if args.layout == "h36m" else ""
            splits = ensure_native(
                args.layout, args.root, args.pretrain, args.train, args.valid, workers=args.workers, form=form, **shared
            )
            print(f"{args.root}: the world is complete in the layout {args.layout}: {', '.join(splits)}")
        elif args.root:
            ensure(args.root, args.pretrain, args.train, args.valid, workers=args.workers, **shared)
            print(f"{args.root}: the world is complete")
        if args.sheet:
            frames = {"train": args.train, "valid": args.valid, "pretrain": args.pretrain}[args.split]
            sheet(args.sheet, args.split, frames, overlay=args.overlay, **shared)
            print(f"{args.sheet}: written")
    except ParallaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    keep_heap()
    sys.exit(interruptible(main))
