"""Corrects saved 3D poses by saved 2D poses through the learned projector of a pose machine, and prints the errors by action.

examples
  python scripts/correct.py output/.../predictions.npz --checkpoint output/machine/synthetic/pose_machine/joint/model_best.pth.tar
  python scripts/correct.py output/.../predictions.npz --checkpoint ... --evidence output/2d/.../predictions.npz CORRECTION.STEPS 4
  python scripts/correct.py data/lists --coarse "p3d/result{action}_norm.csv" --keypoints "hg2dh36m/test{action}_square2d.txt"
      --checkpoint refine.pkl --form csv
  python scripts/correct.py output/.../predictions.npz --form csv        nothing is corrected: poses as the release's CSV files

The poses come from any network that sees crops: predictions.npz of its run (the lifted poses where it has stages, else its results), or
the CSV files by action of the published programs, beside their lists. The regression and the projector come from a checkpoint of TASK
machine (MACHINE.STAGE projector or joint), or the pickled weights of the published correction. The 2D poses are those in predictions.npz,
those of another network's run on the same split (--evidence), those of --keypoints, or of the lists. How it is done, say the
checkpoint's CORRECTION section and KEY VALUE at the end.

Results in --out: corrected.npz (X_coarse, X_regressed, X_root (N,J,3) mm, reprojection before and after, decisions) and results.json; with
--form csv result<a>_unnorm.csv, result<a>_change_unnorm.csv and result<a>_refined_unnorm.csv in mm, a the number of Human3.6M's action.
The last line says how many poses converged, were stopped by the number of steps, or were discarded, and what each took. Nothing that exists
is overwritten.
Exit status: 0 done, 2 an error, told in one line.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.allocator import keep_heap
from lib.errors import ParallaxError, RunError, interruptible

FORMS = ("npz", "csv")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("poses", type=Path, help="predictions.npz, or the folder of the release's lists")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="where the projector comes from; default: nothing is corrected")
    parser.add_argument("--evidence", type=Path, metavar="FILE", help="predictions.npz with the 2D poses; default: the same file")
    parser.add_argument("--coarse", metavar="FILES", help="of lists: CSV files of 3D poses below the folder, {action} for the number")
    parser.add_argument("--keypoints", default="", metavar="FILES", help="of lists: files of 2D poses; default: those of gt/test")
    parser.add_argument("--out", type=Path, default=Path("output/corrected"), help="folder for results; default: %(default)s")
    parser.add_argument("--form", nargs="+", choices=FORMS, default=["npz"], help="default: npz")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="configuration keys to change")
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = parser.parse_known_args(argv)  # KEY VALUE may stand behind options
    if any(word.startswith("-") for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides = [*args.overrides, *rest]
    lists = args.poses.is_dir()
    if lists and (not args.coarse or args.evidence):
        parser.error("--evidence: belongs to predictions.npz" if args.evidence else "--coarse: expected the CSV files of a folder of lists")
    if not lists and (args.coarse or args.keypoints):
        parser.error("--coarse, --keypoints: belong to the folder of the release's lists")
    if args.checkpoint is None and (lists or args.evidence or args.overrides or args.form != ["csv"]):
        parser.error("--checkpoint: expected the file with the projector; without it predictions.npz is only written as --form csv")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        return rewrite(args) if args.checkpoint is None else correct(args)
    except ParallaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def correct(args: argparse.Namespace) -> int:
    from lib.correction import counts  # after the arguments: --help answers at once
    from lib.files import refuse_existing
    from lib.prediction import saved_poses

    for name in (saved_poses.RESULTS, saved_poses.TABLE) if "npz" in args.form else ():
        refuse_existing(args.out / name)
    projector = saved_poses.SavedProjector.read(args.checkpoint, args.overrides)
    if args.coarse:
        poses = saved_poses.read_lists(args.poses, args.coarse, args.keypoints)
    else:
        poses = saved_poses.read_predictions(args.poses, args.evidence)
    check_folder(args.out)
    started = time.perf_counter()
    found = projector.correct(poses)
    ms = 1000 * (time.perf_counter() - started) / max(len(poses.X), 1)
    made, report = saved_poses.stages_of(projector, poses, found)
    if "csv" in args.form:
        saved_poses.save_actions(args.out, poses, projector.skeleton, made)
    if "npz" in args.form:
        saved_poses.save(args.out, poses, projector.skeleton, made, report)
    if report is not None:
        print(report.stage_table() or report.table())
    before, after = (float(made[name].mean()) for name in ("reprojection_before_px", "reprojection_px"))
    moved = (made["X_root"] - made["X_regressed"]).norm(dim=-1).mean()
    errors = f"{before:.2f} -> {after:.2f} px from the 2D joints on average"
    ends = ", ".join(f"{number} {end}" for end, number in counts(made["decision"]).items())
    print(f"\n{len(poses.X)} poses corrected ({ends}), {ms:.2f} ms each: moved by {moved:.2f} mm, {errors}: {args.out}")
    return 0


def rewrite(args: argparse.Namespace) -> int:
    from lib.prediction import saved_poses

    poses, made = saved_poses.as_saved(args.poses)
    check_folder(args.out)
    saved_poses.save_actions(args.out, poses, poses.skeleton, made)
    print(f"{len(poses.X)} poses, {', '.join(made)}, as the release's CSV files: {args.out}")
    return 0


def check_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be made ({error.strerror}); choose another --out") from error


if __name__ == "__main__":
    keep_heap()
    sys.exit(interruptible(main))
