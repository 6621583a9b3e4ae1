"""Self-supervised 3D human pose in a few minutes on a laptop, without any download: what `./run demo` does.

    ./run demo                      # all stages; a stage that was finished before is not repeated
    ./run demo --fresh              # delete its trainings and start again

1. world      procedural people in rooms, seen by calibrated cameras (data/synthetic-demo)
2. pretrain   a 2D network learns joints from single images of other people: no depth, no second view
3. student    it looks at the training images from four cameras; what the views agree on teaches a single-view 3D network
4. twin       the same network, from the same start, on the true 3D joints (at the same time as 3)
5. table      both on people that neither has seen, beside the mean pose and the triangulated labels themselves
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib.allocator import keep_heap  # noqa: E402

CONFIGS = ROOT / "experiments" / "synthetic" / "demo"
OUT = Path("output") / "demo"
ROWS = ("mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm", "pck150_percent")
# What --quick (tests, and the notebook when there is no checkpoint) changes: everything runs, nothing is learned well.
QUICK = {
    "SYNTH.PRETRAIN": 64, "SYNTH.TRAIN": 24, "SYNTH.VALID": 8, "SYNTH.SIZE": [96, 96], "TRAIN.MAX_STEPS": 6, "TRAIN.BATCH_SIZE": 8,
    "TRAIN.WARMUP_STEPS": 1, "MODEL.EXTRA.NUM_DECONV_FILTERS": [16, 16], "MODEL.DEPTH_RES": 8,
    "EPIPOLAR.THRESHOLD_PX": 0.0,
}  # fmt: skip


NEXT = """
What next:
    python scripts/predict.py --help                                      your own picture
    python scripts/train.py --cfg experiments/synthetic/train-ss.yaml     the same at a larger size
    demo.ipynb                                                            the same step by step"""


def stage_config(stage: str, out: Path, quick: bool):
    """The configuration of a stage with its folders below `out`."""
    from lib.config import load

    cfg = load(CONFIGS / f"{stage}.yaml")
    changes = {"OUTPUT_DIR": str(out), "TRAIN.RESUME": True}
    if quick:
        changes |= QUICK | {"DATASET.ROOT": str(out / "world")}
    start = str(stage_folder("pretrain", out) / "model_best.pth.tar")
    if stage != "pretrain":
        changes["MODEL.PRETRAINED"] = start
    if stage == "student":
        changes["EPIPOLAR.TEACHER"] = start
    else:
        changes.pop("EPIPOLAR.THRESHOLD_PX", None)
    return cfg.with_values(changes)


def stage_folder(stage: str, out: Path) -> Path:
    return out / "synthetic" / "pose3d_resnet" / stage


def run_stage(stage: str, out: Path, quick: bool, threads: int = 0) -> dict:
    """Train one stage, or take what an earlier call left; -> its results.json."""
    from lib.engine import commands

    return commands.train(stage_config(stage, out, quick).with_values({"THREADS": threads}))


@contextmanager
def beside(stage: str, out: Path, threads: int):
    """Train a stage in a process of its own while the body runs, and wait for it."""
    path = out / f"{stage}.log"
    command = [sys.executable, __file__, "--stage", stage, "--out", str(out), "--threads", str(threads)]
    with path.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            code = process.wait()  # Ctrl-C reaches it as well: it saves and ends
    if code:
        from lib.errors import RunError

        tail = "".join(path.read_text().splitlines(keepends=True)[-5:])
        raise RunError(f"stage {stage} ended with status {code}; its output is in {path}, and ends:\n{tail}")


def train_pair(out: Path, quick: bool) -> dict[str, dict]:
    """Student and twin side by side, each on half of the cores: small steps use one core better than two."""
    if quick or (stage_folder("twin", out) / "final_state.pth.tar").exists():
        return {stage: run_stage(stage, out, quick) for stage in ("student", "twin")}
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    print(f"   (and beside it the fully supervised twin, {CONFIGS.relative_to(ROOT) / 'twin.yaml'}; its output: {out / 'twin.log'})")
    with beside("twin", out, threads):
        student = run_stage("student", out, quick, threads)
    return {"student": student, "twin": run_stage("twin", out, quick)}


def judge(out: Path, quick: bool, results: dict[str, dict]) -> dict[str, dict]:
    """The rows of the final table: name -> metrics on the held-out subjects."""
    from lib.engine import distributed
    from lib.tasks import build, data
    from lib.tasks.baselines import label_report, mean_pose_report

    cfg = stage_config("student", out, quick)
    train, valid = (data.annotations(cfg, cfg.DATASET[name]) for name in ("TRAIN_SET", "TEST_SET"))
    task = build(cfg).to(distributed.start(cfg).device)
    labels = label_report(valid, task.fresh_labels(valid))
    return {
        "mean pose of the training set": mean_pose_report(train, valid).metrics,
        "triangulated labels (four views)": labels.metrics,
        "self-supervised (one view)": results["student"]["metrics"],
        "fully supervised (one view)": results["twin"]["metrics"],
    }


def table(rows: dict[str, dict]) -> str:
    """The rows as aligned text."""
    heads = ("MPJPE mm", "PA mm", "N mm", "PCK@150 %")
    lines = [f"{'held-out subjects':<34}" + "".join(f"{h:>11}" for h in heads)]
    lines += [f"{name:<34}" + "".join(f"{metrics[key]:>11.1f}" for key in ROWS) for name, metrics in rows.items()]
    return "\n".join(lines)


def draw(out: Path, quick: bool, rows: dict[str, dict], samples: int = 8) -> list[Path]:
    """The contact sheet of held-out people, and the curves of the trainings."""
    import numpy as np

    from lib import vis
    from lib.dataset.image import ImageSpec
    from lib.dataset.samples import CropSamples
    from lib.geometry.crop import transform_points
    from lib.skeleton import get
    from lib.tasks import data

    cfg = stage_config("student", out, quick)
    valid = data.annotations(cfg, cfg.DATASET.TEST_SET)
    skeleton = get(valid.skeleton)
    found = {}
    for stage in ("student", "twin"):
        with np.load(stage_folder(stage, out) / "predictions.npz") as file:
            found[stage] = {key: file[key] for key in ("ids", "X_cam", "x_img")}
    crops = CropSamples(valid, cfg.DATASET.ROOT, ImageSpec(size=(208, 208)))
    # One picture of each action in turn, people and cameras changing: not chosen by how well they came out.
    actions = valid.actions[valid.sequence]
    count = min(samples, len(valid))
    groups = [np.flatnonzero(actions == name) for name in np.unique(actions)]
    picked = [int(rows[(2 * i + 1) * len(rows) // (2 * count)]) for i, rows in zip(range(count), itertools.cycle(groups), strict=False)]
    sheet_rows = []
    for row in picked:
        sample = crops[row]
        i = int(np.flatnonzero(found["student"]["ids"] == row)[0])
        X = {"self-supervised": found["student"]["X_cam"][i], "fully supervised": found["twin"]["X_cam"][i]}
        truth = sample["X_cam"].numpy()
        errors = {name: float(np.linalg.norm((x - x[:1]) - (truth - truth[:1]), axis=-1).mean()) for name, x in X.items()}
        caption = f"{valid.subject(row)}, {valid.action(row)}, camera {valid.view[row] + 1}: " + ", ".join(
            f"{name} {value:.0f} mm" for name, value in errors.items()
        )
        x_patch = transform_points(sample["patch_from_img"], sample["x_img"].new_tensor(found["student"]["x_img"][i]))
        sheet_rows.append(vis.SheetRow(sample["image"].permute(1, 2, 0), x_patch, X, truth, caption=caption))
    title = f"self-supervised {rows['self-supervised (one view)']['mpjpe_mm']:.0f} mm, " \
            f"fully supervised {rows['fully supervised (one view)']['mpjpe_mm']:.0f} mm MPJPE"
    sheet = vis.pose_sheet(sheet_rows, skeleton, title=f"People that the networks have not seen: {title}", columns=2, tile=168)
    logs = {stage: stage_folder(stage, out) / "metrics.jsonl" for stage in ("pretrain", "student", "twin")}
    first = vis.training_curves({"pretrain": logs.pop("pretrain")}, ["train/total"], title="2D pretraining")
    pair = vis.training_curves(logs, ["train/xy_px", "train/depth_px"], title="3D: mean error in px of the crop, against its own labels")
    height = min(len(first), len(pair))
    curves = np.concatenate([first[:height], pair[:height]], 1)
    return [vis.save_image(out / "sheet.png", sheet), vis.save_image(out / "curves.png", curves)]


def run(out: Path, quick: bool = False) -> dict:
    """All stages; -> what output/demo/results.json holds."""
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    print(f"\n== pretrain: {CONFIGS.relative_to(ROOT) / 'pretrain.yaml'}", flush=True)
    results = {"pretrain": run_stage("pretrain", out, quick)}
    print(f"\n== student: {CONFIGS.relative_to(ROOT) / 'student.yaml'}", flush=True)
    results |= train_pair(out, quick)
    seconds = {stage: result["seconds"] for stage, result in results.items()}
    rows = judge(out, quick, results)
    pictures = draw(out, quick, rows)
    shutil.copyfile(stage_folder("student", out) / "model_best.pth.tar", out / "student.pth.tar")
    summary = {"rows": rows, "training_seconds": seconds, "seconds": round(time.perf_counter() - start, 1)}
    (out / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\n{table(rows)}\n")
    student, twin, mean = (rows[name]["mpjpe_mm"] for name in list(rows)[2:] + list(rows)[:1])
    print(f"self-supervised / fully supervised: {student / twin:.2f}     fully supervised / mean pose: {twin / mean:.2f}")
    print(f"took {summary['seconds']:.0f} s\n")
    for path, what in zip(pictures, ("people, predictions, truth", "training curves"), strict=True):
        print(f"{path}    {what}")
    print(f"{out / 'results.json'}    all numbers")
    return summary


def quick_checkpoint(out: str | Path) -> Path:
    """A checkpoint of a tiny, hardly trained student in `out`, for whoever has not run the demo; -> its path."""
    path = Path(out) / "student.pth.tar"
    if not path.exists():
        run(Path(out), quick=True)
    return path


def trained_or_not(cfg_file: str | Path, out: str | Path) -> Path:
    """The best checkpoint of an experiment; where it was not trained, its network as it is before training, written to `out` once."""
    from lib.config import load
    from lib.engine import checkpoint, run_dir
    from lib.tasks import build

    cfg = load(cfg_file)
    best = run_dir.run_path(cfg) / run_dir.BEST
    path = Path(out) / f"untrained-{cfg.TASK}.pth.tar"
    if best.exists() or path.exists():
        return best if best.exists() else path
    cfg = cfg.with_values({"MODEL.PRETRAINED": "", "MODEL.INIT_WEIGHTS": False})
    task = build(cfg)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, checkpoint.network_of(task, cfg))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of runs, table and pictures (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="delete the trainings of an earlier call first")
    parser.add_argument("--quick", action="store_true", help="a tiny world and a few steps: shows that it runs, not that it learns")
    parser.add_argument("--stage", choices=("pretrain", "student", "twin"), help="train this stage alone")
    parser.add_argument("--threads", type=int, default=0, help="threads of --stage; 0 = torch's choice")
    args = parser.parse_args()

    from lib.engine import commands

    if args.fresh:  # only what this script makes: --out may be any folder
        shutil.rmtree(args.out / "synthetic", ignore_errors=True)
    if args.stage:
        commands.run(lambda: run_stage(args.stage, args.out, args.quick, args.threads))
        return
    commands.run(lambda: run(args.out, args.quick))
    print(NEXT)


if __name__ == "__main__":
    keep_heap()
    main()
