"""Trains, judges and feeds the refinement unit, a small network that cleans the 3D poses of another network.

examples:
  python refiner/main.py --mode build --run output/h36m/pose3d_resnet/train-ss --out data/refiner   pairs of poses from a trained run
  python refiner/main.py --mode train --cfg experiments/refiner/train.yaml                          learn from them
  python refiner/main.py --mode test --cfg experiments/refiner/train.yaml                           judge the best weights of that run
  python refiner/main.py --mode test --cfg experiments/refiner/train.yaml MODEL.RESUME refiner.pth.tar REFINE.NORM norm.pkl
  python refiner/main.py --mode export --weights output/h36m/refiner/train/model_best.pth.tar --out models/refiner.pth.tar

build   predicts the training and the evaluation split of a run with its best weights: OUT/train.npz, OUT/valid.npz
        (with --pickle also train.pkl and valid.pkl, as the release reads them). KEY VALUE changes the run's configuration.
train   as scripts/train.py.   test   as scripts/valid.py.   Both report the poses that went in beside the refined ones.
export  writes weights as the release reads them, and their norm.pkl into the same folder.

All keys: docs/config.md. More: refiner/README.md
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `lib` and `refiner` are found from any folder

from lib.allocator import keep_heap

NEEDED = {"build": ("run", "out"), "train": ("cfg",), "test": ("cfg",), "export": ("weights", "out")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=tuple(NEEDED), required=True)
    parser.add_argument("--cfg", metavar="FILE", help="train, test: YAML file of the experiment")
    parser.add_argument("--overfit", action="store_true", help="train: repeat one batch, write nothing")
    parser.add_argument("--dry-run", action="store_true", help="train: one step and one evaluation batch, write nothing")
    parser.add_argument("--run", metavar="DIR", help="build: run directory of a trained 3D network")
    parser.add_argument("--weights", metavar="FILE", help="export: checkpoint of a refiner")
    parser.add_argument("--out", metavar="PATH", help="build: folder of the pairs; export: file of the weights")
    parser.add_argument("--pickle", action="store_true", help="build: write the published form as well")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="configuration keys to change")
    args = parser.parse_intermixed_args()
    for name in NEEDED[args.mode]:
        if getattr(args, name) is None:
            parser.error(f"--mode {args.mode} needs --{name}")

    from lib import config  # after the arguments: --help answers at once
    from lib.engine import commands
    from refiner import published

    commands.run({
        "build": lambda: published.build_pairs(args.run, args.out, args.overrides, args.pickle),
        "train": lambda: commands.train(config.load(args.cfg, args.overrides), args.overfit, args.dry_run),
        "test": lambda: commands.validate(config.load(args.cfg, args.overrides)),
        "export": lambda: published.export(args.weights, args.out),
    }[args.mode])


if __name__ == "__main__":
    keep_heap()
    main()
