"""Joints of the people in pictures: for each picture a JSON and an npz file, the 2D overlay and the 3D pose drawn.

examples
  python scripts/predict.py photo.jpg                                    one person, somewhere in the picture
  python scripts/predict.py photo.jpg --box 120 80 360 560 --box 400 90 610 540
  python scripts/predict.py frames/ --boxes boxes.json --out output/frames        a folder; boxes of a detector
  python scripts/predict.py photo.jpg --box 120 80 360 560 --focal 1145 --root-depth 4500       mm from the camera
  python scripts/predict.py photo.jpg --checkpoint output/synthetic/pose3d_resnet/train-ss/model_best.pth.tar

boxes.json: {"a.jpg": [[x0, y0, x1, y1], ...], "b.jpg": [...]}, in px; pictures that it does not name are left out.
The network sees a square around each box. In training that square spans about 2 m and the person fills most of it, so
give boxes some margin (--margin 1.2 for boxes that touch the person); the pose has the scale of the square (--box-mm).

Results of NAME.jpg: NAME.json, NAME.npz, NAME_2d.png, NAME_3d.png. Nothing is overwritten without --overwrite:
for a single picture that is an error, in a folder a picture whose results are complete is left as it is.
In a folder, a picture that cannot be read or whose boxes are wrong is reported and skipped, and the others are done.
Exit status: 0 all done, 1 some pictures of a folder were skipped, 2 an error, told in one line.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from lib import vis
from lib.config import load
from lib.dataset.image import read_image
from lib.engine.checkpoint import atomic_write
from lib.errors import DataError, ParallaxError, RunError
from lib.predictor import Prediction, Predictor

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
CHECKPOINT = Path("output/demo/student.pth.tar")  # what ./run demo leaves
RESULTS = (".json", ".npz", "_2d.png", "_3d.png")


def parse(argv: list[str] | None) -> argparse.Namespace:
    text = __doc__.split("\nexamples\n")
    parser = argparse.ArgumentParser(
        description=text[0], epilog="examples\n" + text[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, help="a picture, or a folder of them")
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
    parser.add_argument("--margin", type=float, default=1.0, help="factor on the sides of the boxes; default: 1")
    parser.add_argument("--box-mm", type=float, help="what the square around a box spans; default: as in training")
    parser.add_argument("--focal", type=float, help="focal length in px; default: unknown (weak perspective)")
    parser.add_argument("--root-depth", type=float, help="distance of the pelvis from the camera in mm")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one) or a torch device")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    args = parser.parse_args(argv)
    if not args.margin > 0:
        parser.error("--margin: expected a factor above 0")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        return predict_all(args)
    except ParallaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was written is complete, the same command goes on", file=sys.stderr)
        return 130


def predict_all(args: argparse.Namespace) -> int:
    """Does every picture; the exit status."""
    names, boxes = pictures(args.picture), read_boxes(args.boxes)
    if boxes is not None:
        missing = sorted(set(boxes) - {path.name for path in names})
        if missing:
            raise DataError(f"{args.boxes}: names {missing[0]!r}, but there is no such picture in {args.picture}")
        names = [path for path in names if path.name in boxes]
    single = not args.picture.is_dir()
    targets = result_names(names, args.out)
    if single and not args.overwrite:
        existing = [path for path in result_files(targets[0]) if path.exists()]
        if existing:
            raise RunError(f"{existing[0]}: exists; use --overwrite to replace it, or another --out")
    config = load(args.cfg) if args.cfg else None
    predictor = Predictor.from_checkpoint(checkpoint(args.checkpoint), args.device, config)
    done, kept, bad = 0, 0, []
    for path, target in zip(tqdm(names, unit="picture", disable=single), targets, strict=True):
        if not args.overwrite and all(file.exists() for file in result_files(target)):
            kept += 1
            continue
        try:
            people = boxes[path.name] if boxes is not None else args.box or [None]
            image = read_image(path)
            found = predict_one(predictor, image, people, args)
        except DataError as error:
            if single:
                raise
            bad.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        write(target, path, image, found, predictor, args)
        done += 1
    counts = f"{done} done" + (f", {kept} left as they were (--overwrite replaces them)" if kept else "")
    print(f"{counts}{f', {len(bad)} skipped' if bad else ''}: {args.out}")
    if bad:
        print("\n".join(["skipped:", *bad]), file=sys.stderr)
    return 1 if bad else 0


def pictures(path: Path) -> list[Path]:
    """The picture, or those of the folder in order of their names."""
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: no such picture or folder")
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
    if not found:
        raise DataError(f"{path}: holds no picture; expected files ending in {' '.join(PICTURES)}")
    return found


def checkpoint(path: Path) -> Path:
    """The path, if there is such a file."""
    if not path.exists():
        raise RunError(f"{path}: no such checkpoint; ./run demo trains one, --checkpoint names another")
    return path


def read_boxes(path: Path | None) -> dict[str, list] | None:
    """Boxes by the name of the picture."""
    if path is None:
        return None
    try:
        boxes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: the boxes cannot be read ({error}); expected JSON, see --help") from error
    if not isinstance(boxes, dict) or not all(isinstance(v, list) for v in boxes.values()):
        raise DataError(f'{path}: expected {{"picture.jpg": [[x0, y0, x1, y1], ...], ...}}')
    return boxes


def result_names(names: list[Path], out: Path) -> list[Path]:
    """One stem per picture: a.jpg -> a; where a.png is there too, a_jpg and a_png."""
    stems = [path.stem for path in names]
    return [out / (path.stem if stems.count(path.stem) == 1 else path.name.replace(".", "_")) for path in names]


def result_files(target: Path) -> list[Path]:
    return [target.with_name(target.name + ending) for ending in RESULTS]


def predict_one(predictor: Predictor, image: np.ndarray, boxes: list, args: argparse.Namespace) -> list[Prediction]:
    """The people of one picture."""
    height, width = image.shape[:2]
    camera = None
    if args.focal is not None:
        camera = [[args.focal, 0, (width - 1) / 2], [0, args.focal, (height - 1) / 2], [0, 0, 1]]
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
    return predictor.predict_boxes(image, grown, camera, args.root_depth, args.box_mm)


def write(
    target: Path,
    path: Path,
    image: np.ndarray,
    people: list[Prediction],
    predictor: Predictor,
    args: argparse.Namespace,
) -> None:
    """The four files of one picture; each appears whole or not at all."""
    as_json, as_npz, as_2d, as_3d = result_files(target)
    skeleton = predictor.skeleton
    record = {
        "image": path.name,
        "width": image.shape[1],
        "height": image.shape[0],
        "checkpoint": str(args.checkpoint),
        "units": "x_img px, X_root and X_cam mm (x right, y down, z forward)",
        "people": [p.to_dict() for p in people],
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{target.parent}: cannot be made ({error.strerror}); choose another --out") from error
    atomic_write(as_json, lambda file: file.write((json.dumps(record, indent=1) + "\n").encode()))
    columns = {name: [getattr(p, name) for p in people] for name in ("box", "x_img", "conf", "X_root", "X_cam")}
    arrays = {name: np.stack(rows) for name, rows in columns.items() if rows and rows[0] is not None}
    atomic_write(as_npz, lambda file: np.savez_compressed(file, joints=np.array(skeleton.joints), **arrays))
    rows, overlay = [], image
    for i, p in enumerate(people):
        overlay = vis.draw_skeleton_2d(overlay, p.x_img, skeleton, p.conf)
        rows.append(vis.SheetRow(image, p.x_img, p.X_root, conf=p.conf, crop=p.box, caption=f"person {i}"))
    vis.save_image(as_2d, overlay)
    title = f"{path.name}: {len(people)} {'person' if len(people) == 1 else 'people'}"
    assumed = "\n".join(f"assumed: {text}" for text in (people[0].assumed if people else ()))
    vis.save_image(as_3d, vis.pose_sheet(rows or [vis.SheetRow(image)], skeleton, title, assumed))


if __name__ == "__main__":
    sys.exit(main())
