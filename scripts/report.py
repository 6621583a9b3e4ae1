"""Writes the report of a run: one HTML file with scores, curves, tables, pictures, poses to turn in 3D, and cameras.

examples:
  python scripts/report.py output/synthetic/pose3d_resnet/train             writes report.html into that folder
  python scripts/report.py output/.../valid-model_best                      of what scripts/valid.py found
  python scripts/report.py output/synthetic/pose3d_resnet/train --out share/train.html

Training writes it, too, at its end. The file loads nothing and opens without a network. Images come from the data set that the run's
config.yaml names, relative to the current folder, if it is there; what is missing is named in the report.
Exit status: 0 done, 2 an error, told in one line.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `lib` is found from any folder

from lib.allocator import keep_heap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="directory of a run, or the valid-<weights>/ of one")
    parser.add_argument("--out", type=Path, metavar="FILE", help="HTML file to write (default: RUN_DIR/report.html)")
    args = parser.parse_args()

    from lib import report  # after the arguments: --help answers at once
    from lib.engine import commands

    commands.run(lambda: print(report.write_report(args.folder, args.out)))


if __name__ == "__main__":
    keep_heap()
    main()
