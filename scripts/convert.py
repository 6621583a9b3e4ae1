"""Tells what a file of weights is and what it needs, and writes it in another form.

examples:
  python scripts/convert.py inspect models/h36m/fully_supervised.pth.tar
  python scripts/convert.py inspect FILE --keys                           every tensor with its shape
  python scripts/convert.py convert models/h36m/fully_supervised.pth.tar output/fully_supervised.pth.tar
  python scripts/convert.py convert FILE OUT --cfg experiments/h36m/valid.yaml
  python scripts/convert.py convert output/.../model_best.pth.tar OUT --to reference
  python scripts/convert.py convert models/videopose3d/pretrained_h36m_cpn.bin output/cpn.pth.tar TEMPORAL.CAUSAL false
  python scripts/convert.py onnx output/.../model_best.pth.tar student.onnx            for programs without this repository
  python scripts/convert.py onnx FILE OUT TEST.FLIP_TEST false                         half the work, a little less precise

--to ours         a checkpoint with configuration, image specification and skeleton: scripts/predict.py and
                  Predictor.from_checkpoint take it as it is, scripts/valid.py as MODEL.RESUME. The configuration is that of --cfg
                  or of the file itself, else what the tensors need; KEY VALUE at the end changes it. Whether VideoPose3D's
                  networks are causal is in no tensor: TEMPORAL.CAUSAL must be said.
--to reference    what EpipolarPose's release reads: bare, each key with the prefix module.; for a refiner its {epoch, ...,
                  state_dict, optimizer} with norm.pkl beside it; for a network that lifts keypoints what VideoPose3D reads:
                  {epoch, lr, optimizer, model_pos, model_traj}, the last only if there is one; for a network of 2D + 3D fusion
                  what pytorch-pose-hg-3d reads: {epoch, state_dict}; for a pose machine the blobs of Caffe's layers by their
                  names, as an .npz
--to torchvision  the backbone alone, for MODEL.INIT_FILE

onnx takes checkpoints (of a run, or made by convert) of networks that see one person's crop or lift keypoints. It needs the packages
onnx, onnxscript and onnxruntime, runs what it made beside the network itself, and gives the file its name only if the results are equal.
Caffe models (.caffemodel), exports of their layers (.npz), and the pickled weights of the published correction are read, too.
A file is known by its keys, never by its name, and nothing in it is executed. Nothing that exists is overwritten.
Exit status: 0 done, 2 an error, told in one line.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `lib` is found from any folder

from lib.errors import ParallaxError, RunError, interruptible

PARTS = (  # of tensors' names that hold several layers
    "deconv_layers", "linear_stages", "model_traj", "pose", "trajectory", "trunk", "lifter", "head2d", "regressor", "projector",
)  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    look = commands.add_parser("inspect", help="what a file is and what it needs")
    look.add_argument("file", type=Path)
    look.add_argument("--keys", action="store_true", help="every tensor with its shape and type")
    turn = commands.add_parser("convert", help="write a file in another form")
    turn.add_argument("file", type=Path)
    turn.add_argument("out", type=Path, help="new file")
    turn.add_argument("--to", choices=("ours", "reference", "torchvision"), default="ours", help="default: %(default)s")
    turn.add_argument("--cfg", metavar="YAML", help="experiment that the weights belong to")
    turn.add_argument("--norm", type=Path, metavar="FILE", help="norm.pkl that belongs to a published refiner")
    turn.add_argument("--color", choices=("rgb", "bgr"), default="",
                      help="channel order of the training pictures; bgr for Simple Baselines as Microsoft released them")  # fmt: skip
    turn.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="configuration keys to change")
    onnx = commands.add_parser("onnx", help="write a network for onnxruntime and the like")
    onnx.add_argument("file", type=Path, help="checkpoint that holds its configuration")
    onnx.add_argument("out", type=Path, help="new file")
    onnx.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="configuration keys to change")

    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = parser.parse_known_args(argv)  # KEY VALUE may stand behind options
    if rest and (args.command == "inspect" or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    if args.command == "convert" and args.to != "ours" and (args.cfg or args.norm or args.color or args.overrides):
        parser.error("--cfg, --norm, --color and KEY VALUE belong to --to ours; the other forms hold no configuration")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        return {"inspect": inspect, "convert": convert, "onnx": export}[args.command](args)
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
        return 0
    except ParallaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def inspect(args: argparse.Namespace) -> int:
    from lib import convert as forms  # after the arguments: --help answers at once
    from lib.weights.digest import sha256
    from lib.weights.load import read

    checkpoint = read(args.file)
    state, kind = forms.tensors(checkpoint), forms.network_kind(checkpoint)
    own = ", a checkpoint of this repository" if checkpoint.kind == "parallax" else ""
    print(f"{args.file}: {forms.named(kind)}{own}, {len(state)} tensors, {forms.parameters(state):,} parameters")
    print(f"size      {args.file.stat().st_size:,} bytes")
    print(f"sha256    {sha256(args.file)}")
    print(f"wrapped   {printable(checkpoint.wrapping)}")
    counted = any(k.endswith("num_batches_tracked") for k in state)
    if any(k.endswith("running_var") for k in state) and not counted:
        print("          without num_batches_tracked, as torch < 0.4.1 wrote it")
    told = forms.plain_meta(checkpoint)
    if checkpoint.kind == "parallax":
        for name in ("best", "image_spec", "converted"):
            if isinstance(checkpoint.meta.get(name), dict) and checkpoint.meta[name]:
                told[name] = ", ".join(f"{key} {value}" for key, value in checkpoint.meta[name].items())
    for key, value in told.items():
        print(f"{printable(key):9s} {printable(value)}")
    for name, text in forms.lifting_facts(checkpoint).items():
        print(f"{name:9s} {text}")
    others = sorted(key for key, value in checkpoint.meta.items() if key not in told and key != "model_traj" and value is not None)
    if others:
        print(f"also      {printable(', '.join(others))}")
    show_needs(checkpoint)
    print("use       " + "\n          ".join(next_steps(checkpoint, kind, args.file)) + "\n\ntensors")
    show_keys(state, args.keys)
    return 0


def show_needs(checkpoint) -> None:
    """Configuration, other readings of the output layer, and what had to be assumed."""
    from lib import config
    from lib import convert as forms

    found, known = forms.needs(checkpoint), bool(checkpoint.config)
    if found.settings:
        title = "\nneeds this configuration, which it holds itself" if known else "\nneeds, in the YAML of an experiment"
        print(title + "".join(f"\n  {line}" for line in found.to_yaml().splitlines()))
    if found.settings and not known:
        print(f"or, on a command line without --cfg\n  {found.overrides(config.defaults().flat())}")
    for note in () if known else found.notes:
        print(f"note      {note}")
    if found.alternatives and not known:
        channels = found.settings["MODEL.NUM_JOINTS"] * found.settings.get("MODEL.DEPTH_RES", 1)
        others = [f"{joints} joints x {bins} depth bins" if bins else f"{joints} heatmaps" for joints, bins in found.alternatives]
        print(f"note      {channels} output channels could also be {', '.join(others)}: MODEL.NUM_JOINTS, MODEL.DEPTH_RES, MODEL.HEAD")
    print()


def next_steps(checkpoint, kind: str, file: Path) -> list[str]:
    """What the file is good for, in commands where there are some."""
    from lib.weights.adapters import KINDS
    from lib.weights.needs import FUSION, LIFTING

    pictures = kind in ("pose_resnet", *FUSION)
    if checkpoint.config and pictures:
        return [
            f"python scripts/predict.py PICTURE --checkpoint {file}",
            f"python scripts/valid.py --cfg YAML MODEL.RESUME {file}    judges it, on the data of an experiment",
        ]
    if kind in LIFTING:
        judged = f"python scripts/valid.py --cfg YAML MODEL.RESUME {file}    judges it, with an experiment such as in experiments/video"
        if checkpoint.config:
            film = f"python scripts/predict.py --keypoints FILE --checkpoint {file}    lifts keypoints of a video"
            return [film, judged, f"python scripts/convert.py convert {file} OUT --to reference    for VideoPose3D itself"]
        return [
            f"python scripts/convert.py convert {file} OUT TEMPORAL.CAUSAL false    makes a checkpoint that holds the above, for "
            "scripts/predict.py --keypoints (true for a causal network)",
            judged,
            f"MODEL.PRETRAINED {file}    starts a training from it",
        ]
    if pictures:
        return [
            f"python scripts/convert.py convert {file} OUT    makes a checkpoint that holds the above, for scripts/predict.py",
            f"python scripts/valid.py --cfg YAML MODEL.RESUME {file}    judges it, with an experiment that says the above",
            f"MODEL.PRETRAINED {file}    starts a training from it",
        ]
    if kind == "pose_machine":
        saved = f"python scripts/correct.py POSES --checkpoint {file}    corrects saved poses through its projector"
        if checkpoint.config:
            return [
                f"python scripts/predict.py PICTURE --checkpoint {file}    a video works, too; --correct corrects each pose",
                f"python scripts/valid.py --cfg YAML MODEL.RESUME {file}    judges it, on the data of an experiment",
                saved,
            ]
        has_both = {"regressor", "projector"} <= {key.partition(".")[0] for key in checkpoint.state_dict}
        whole = f"python scripts/convert.py convert {file} OUT    makes a checkpoint that holds the above; all parts must be in it"
        return [whole, f"MODEL.PRETRAINED {file}    starts a training from the parts that it has", *([saved] if has_both else [])]
    if kind == "refiner":
        norm = "" if checkpoint.meta.get("task_extra") else " REFINE.NORM norm.pkl"
        return [
            f"python refiner/main.py --mode test --cfg YAML MODEL.RESUME {file}{norm}    judges it, with an experiment that says the "
            "above (the published one: experiments/refiner/train.yaml)"
        ]
    if kind == "resnet":
        return [f"MODEL.INIT_FILE {file}    starts the backbone from it"]
    if kind in KINDS:
        return [KINDS[kind].use]
    return ["none here: no network of this repository; scripts/convert.py inspect FILE --keys lists its tensors"]


def show_keys(state: Mapping, every: bool) -> None:
    """A line per tensor, or per group of tensors."""
    if every:
        width = max(map(len, state))
        for key, value in state.items():
            print(f"  {printable(key):{width}s}  {str(value.dtype).removeprefix('torch.'):8s} {list(value.shape)}")
        return
    groups: dict[str, list] = {}
    for key, value in state.items():
        parts = key.split(".")
        groups.setdefault(".".join(parts[:2] if parts[0] in PARTS else parts[:1]), []).append((key, value))
    width = max(map(len, groups))
    for name, members in groups.items():
        key, value = next((m for m in members if m[0].endswith("weight")), members[0])
        count, example = sum(v.numel() for _, v in members), key.removeprefix(name).lstrip(".") or key
        print(f"  {printable(name):{width}s}  {len(members):4d} tensors {count:12,d} values   {printable(example)} {list(value.shape)}")


def printable(value: object) -> str:
    """A text of a file without what would steer a terminal, and not endless."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 300 else f"{text[:300]}..."


def convert(args: argparse.Namespace) -> int:
    from lib import convert as forms
    from lib.files import refuse_existing
    from lib.weights.load import read
    from lib.weights.needs import LIFTING

    if args.file.resolve() == args.out.resolve():
        raise RunError(f"{args.out}: is the file itself; give another name for the new one")
    refuse_existing(args.out)  # before a large file is read
    checkpoint = read(args.file)
    refiner = forms.network_kind(checkpoint) == "refiner"
    if refiner and args.to == "reference":
        from refiner.published import export

        export(args.file, args.out)
        print(f"{args.out}: refiner as the release writes it; its means and deviations are in {args.out.with_name('norm.pkl')}")
        return 0
    if args.color and forms.network_kind(checkpoint) in LIFTING:
        raise RunError(f"--color {args.color}: belongs to networks that see pictures, but {args.file} holds one that lifts keypoints")
    norm = None
    if args.norm and not refiner:
        raise RunError(f"{args.norm}: --norm belongs to a refiner, but {args.file} holds {forms.named(forms.network_kind(checkpoint))}")
    if args.norm:
        import dataclasses

        from refiner.data import Statistics

        norm = dataclasses.asdict(Statistics.read(args.norm, checkpoint.state_dict["w1.weight"].shape[1]))
    print(forms.convert(checkpoint, args.out, args.to, args.cfg, args.overrides, norm, args.color))
    if args.to == "ours" and not args.cfg and not checkpoint.config:
        said = " ".join([*args.overrides, "REFINE.NORM" if norm else ""])
        for note in forms.needs(checkpoint).notes:
            if not any(key in said for key in re.findall(r"[A-Z]+\.[A-Z_]+", note)):  # what was said was not assumed
                print(f"note: {note}")
    return 0


def export(args: argparse.Namespace) -> int:
    from lib import onnx_export
    from lib.weights.load import read

    print("\n".join(onnx_export.export(read(args.file), args.out, args.overrides)))
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
