"""Trains an experiment and judges it; everything lands in OUTPUT_DIR/<dataset>/<model>/<name of the YAML>/.

examples:
  python scripts/train.py --cfg experiments/synthetic/train.yaml
  python scripts/train.py --cfg experiments/synthetic/train.yaml TRAIN.LR 1e-4 TRAIN.BATCH_SIZE=16 EXP_NAME small_batch
  python scripts/train.py --cfg experiments/synthetic/train.yaml TRAIN.RESUME true        go on where it stopped
  torchrun --nproc_per_node=4 scripts/train.py --cfg experiments/synthetic/train.yaml     one process per GPU
  python scripts/train.py --cfg experiments/synthetic/train.yaml --dry-run                does everything fit?
  python scripts/train.py --cfg experiments/synthetic/train.yaml --overfit                can it learn one batch?

--dry-run and --overfit write nothing. All keys: docs/config.md. Ctrl-C finishes the step, saves, and says how to go on.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `lib` is found from any folder

from lib.allocator import keep_heap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", metavar="FILE", required=True, help="YAML file of the experiment")
    parser.add_argument(
        "--overfit", action="store_true", help="repeat one batch for training and validation, write nothing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="one training step and one evaluation batch, write nothing"
    )
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="configuration keys to change")
    args = parser.parse_intermixed_args()

    from lib import config  # after the arguments: --help answers at once
    from lib.engine import commands

    commands.run(lambda: commands.train(config.load(args.cfg, args.overrides), args.overfit, args.dry_run))


if __name__ == "__main__":
    keep_heap()
    main()
