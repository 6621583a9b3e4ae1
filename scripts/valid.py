"""Judges trained weights on the evaluation split and prints the table of scores.

examples:
  python scripts/valid.py --cfg experiments/synthetic/train.yaml        the best weights of that run
  python scripts/valid.py --cfg experiments/synthetic/train.yaml MODEL.RESUME any_weights.pth.tar
  python scripts/valid.py --cfg experiments/synthetic/train.yaml TEST.FLIP_TEST true DATASET.TEST_SET train

results.json, predictions.npz and figures/ land in the run directory, under valid-<name of the weights>/, and of MPII also pred.mat.
A later evaluation of the same weights replaces them; another EXP_NAME keeps them apart.
All keys: docs/config.md
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `lib` is found from any folder

from lib.allocator import keep_heap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", metavar="FILE", required=True, help="YAML file of the experiment")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="configuration keys to change")
    args = parser.parse_intermixed_args()

    from lib import config  # after the arguments: --help answers at once
    from lib.engine import commands

    commands.run(lambda: commands.validate(config.load(args.cfg, args.overrides)))


if __name__ == "__main__":
    keep_heap()
    main()
