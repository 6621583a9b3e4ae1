"""Speed of the framework's parts beside a library function or a plain formulation of the same computation.

    python scripts/benchmark.py correction                        # poses corrected at test time, beside one at a time
    python scripts/benchmark.py engine                            # what the engine adds to a training step
    python scripts/benchmark.py engine --curve 300                       # also the loss in bf16 beside that in float32
    python scripts/benchmark.py engine --side 256 --batch 64 --layers 50 --workers 12 --device cuda --compile      # on a GPU
    python scripts/benchmark.py fusion                            # bone-length variance beside a loop, and its share of a training step
    python scripts/benchmark.py geometry                          # triangulation: points/s, ratios, errors
    python scripts/benchmark.py geometry --points 20000 --rounds 3       # quicker
    python scripts/benchmark.py geometry --compile --json bench.json     # also torch.compile; numbers into a file
    python scripts/benchmark.py geometry --check                  # exit status 1 when a target is missed
    python scripts/benchmark.py metrics                           # evaluation of 10,000 poses: poses/s, ratios
    python scripts/benchmark.py integral                          # the integral head: time and memory
    python scripts/benchmark.py integral --large 0                       # without the batch of 32
    python scripts/benchmark.py loader                            # training samples/s of one worker, with and without crop cache
    python scripts/benchmark.py model --compile                   # the volumetric ResNet: predictions and training steps (minutes)
    python scripts/benchmark.py model --training 0 --batch 16            # predictions only, without torch.compile
    python scripts/benchmark.py temporal                          # VideoPose3D: training steps, batches, long sequences
    python scripts/benchmark.py temporal --batch 64 --rounds 3           # quicker
    python scripts/benchmark.py voxel                             # VoxelPose: volumes of heatmaps, 3D networks, frames (minutes)
    python scripts/benchmark.py voxel --networks 0                       # the volumes only

All contestants run in one process (integral, loader, model: each in its own), interleaved (A B C A B C ...), on one thread; what they
compute is compared first. Numbers are medians over the rounds of processor time (wall time on other devices than the CPU). Compare
ratios: absolute numbers depend on the machine and its other load.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.allocator import keep_heap
from lib.errors import ParallaxError, RunError, interruptible
from lib.registry import resolve

# Each names a function (args) -> harness.Report.
COMMANDS = {
    "correction": "scripts.benchmarks.correction:run",
    "engine": "scripts.benchmarks.engine:run",
    "fusion": "scripts.benchmarks.fusion:run",
    "geometry": "scripts.benchmarks.geometry:run",
    "integral": "scripts.benchmarks.integral:run",
    "loader": "scripts.benchmarks.loader:run",
    "metrics": "scripts.benchmarks.metrics:run",
    "model": "scripts.benchmarks.model:run",
    "temporal": "scripts.benchmarks.temporal:run",
    "voxel": "scripts.benchmarks.voxel:run",
}
SUMMARY = {
    "correction": "correction of poses at test time, through learned projectors and cameras, beside an optimiser for one pose at a time",
    "engine": "training steps of the engine beside the shortest loop, and with loading; bf16 beside float32",
    "fusion": "variance of bone lengths beside a loop over samples, and its share of a training step with 2D and 3D labels",
    "geometry": "triangulation beside OpenCV, batched SVD and per-point loops",
    "integral": "soft-argmax of volumes, value and gradient, beside softmax and three sums",
    "loader": "training samples from whole frames and from the crop cache, beside the usual order of steps",
    "metrics": "evaluation of 3D poses beside loops over poses and a batched SVD",
    "model": "volumetric ResNet, predicting and training, beside the network as it comes",
    "temporal": "training step, batches and evaluation of a lifting network beside plain convolutions and a loop over windows",
    "voxel": "heatmaps in volumes, 3D networks and whole frames of VoxelPose beside one person and one view at a time",
}
SIZES = {
    "correction": ("frames", 1024),
    "engine": ("crops", 1000),
    "fusion": ("samples", 4096),
    "geometry": ("points", 100_000),
    "integral": ("voxels", 64**3),
    "loader": ("samples", 1000),
    "metrics": ("poses", 10_000),
    "model": ("pixels", 256**2),
    "temporal": ("frames", 2000),
    "voxel": ("voxels", 64**3),
}
OPTIONS = {  # of one command: name -> default, what it is
    "correction": {"single": (8, "frames given to the optimisers of one at a time"), "hidden": (1024, "units of the networks' layers")},
    "engine": {
        "batch": (8, "crops of a step"),
        "layers": (18, "of the ResNet"),
        "side": (64, "pixels of a crop"),
        "workers": (1, "processes that make samples"),
        "curve": (0, "also train so many steps in float32 and in bf16, and compare the losses"),
    },
    "fusion": {
        "batch": (32, "crops of a training step"),
        "layers": (18, "of the ResNet"),
        "side": (128, "pixels of a crop; smaller steps make the loss a larger share"),
    },
    "integral": {
        "batch": (8, "crops"),
        "joints": (17, "volumes of a crop"),
        "large": (32, "crops of a large batch; 0 leaves it out"),
    },
    "model": {
        "batch": (4, "crops"),
        "layers": (50, "of the ResNet"),
        "training": (1, "0 leaves out the training steps"),
    },
    "temporal": {"batch": (256, "windows of a training step"), "channels": (1024, "channels of the network's layers")},
    "voxel": {"people": (4, "people in the frame"), "networks": (1, "0 leaves out the networks, which take minutes")},
}
COMPILED = ("engine", "geometry", "metrics", "model")  # that can be measured with torch.compile, too


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    description, examples = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        sub = commands.add_parser(name, help=SUMMARY[name], description=SUMMARY[name])
        items, count = SIZES[name]
        described = f"{items} of the batched contestants (%(default)s)"
        sub.add_argument(f"--{items}", dest="points", type=int, default=count, metavar="N", help=described)
        for option, (default, text) in OPTIONS.get(name, {}).items():
            sub.add_argument(f"--{option}", type=int, default=default, metavar="N", help=f"{text} (%(default)s)")
        sub.add_argument("--rounds", type=int, default=5, help="the median of so many rounds is given (%(default)s)")
        sub.add_argument("--device", default=None, help="torch device of our contestants (default: the processor)")
        if name in COMPILED:
            sub.add_argument("--compile", action="store_true", help="also measure with torch.compile")
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE")
        sub.add_argument("--check", action="store_true", help="exit status 1 when a target is missed")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        if args.points < 1000 or args.rounds < 1:
            items = SIZES[args.command][0]
            raise RunError(f"--{items} {args.points} --rounds {args.rounds}: expected at least 1000 {items} and one round")
        if args.json and not args.json.parent.is_dir():
            raise RunError(f"--json {args.json}: the folder {args.json.parent} does not exist; create it first")
        if args.json and args.json.is_dir():
            raise RunError(f"--json {args.json}: is a folder; give the name of a file")
        report = resolve(COMMANDS, args.command, "command")(args)
    except ParallaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.table())
    if args.json:
        args.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
        print(f"\nwritten to {args.json}")
    return 1 if args.check and not report.targets_met else 0


if __name__ == "__main__":
    keep_heap()
    sys.exit(interruptible(main))
