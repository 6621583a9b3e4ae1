"""What scripts/prepare.py does: annotations from an official release, cached labels, the check of a data set."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib import vis
from lib.config import Config
from lib.dataset import load, plausibility
from lib.dataset.annotations import Annotations
from lib.dataset.calibrations import Calibration, focus, inverted, read_calibration, resized, turned, write_cameras
from lib.dataset.formats import FORMATS, TRACKS, actors, custom, h36m, h36m_raw, mpi_inf_3dhp, mpii_release, panoptic
from lib.dataset.image import read_image
from lib.dataset.rig import views_in_turn
from lib.drawing.paint import below, beside, letterbox, line
from lib.errors import MALFORMED, DataError
from lib.files import refuse_existing, write_text
from lib.metrics.report import aligned
from lib.registry import resolve
from lib.skeleton import get
from lib.tasks import build, data, structure
from lib.tasks.epipolar import ANNOTATION, EpipolarTask
from lib.tasks.label_quality import LabelQuality, label_quality, picture
from lib.tasks.labels import relabel
from lib.tasks.rigs import log_rigs, without_poses

H36M_SPLITS = {"train-fs": "train", "valid": "valid"}  # of the published layout, and of the release
FORMS = {"npz": ".npz", "pickle": ".pkl"}
LABELS, QUALITY = "train-ss", ".quality.json"  # how splits of triangulated labels are named, and the file that lies beside ours
SHEET = 12  # images in a picture
TILE = 300
log = logging.getLogger("parallax")

# ------------------------------------------------------------------------------------------------------------ Human3.6M


def prepare_h36m(
    release: str | Path,
    out: str | Path,
    train_step: int = 32,
    valid_step: int = 64,
    subjects: Sequence[str] = (),
    exclude_damaged: bool = False,
    project: str = "distorted",
    form: str = "npz",
    images: bool = True,
) -> dict[str, Annotations]:
    """annot/train-fs and annot/valid of the published layout, with the images they name, from the official release.

    Extraction can be stopped and taken up again: the annotations of a split come last, and a split that has them is refused.

    Args:
        release: folder of the official files (lib/dataset/formats/h36m_raw.py).
        out: data set to be made, such as data/h36m.
        train_step, valid_step: every how many frames.
        subjects: of those that are kept; empty = all that are in the release.
        exclude_damaged: leaves out the sequences and views of h36m_raw.DAMAGED.
        project: "distorted", where the images show the joints, or "pinhole" as published, which forgets the lenses; a reader can turn
            the first into the second (DATASET.OPTIONS.project), not back.
        form: "npz", or "pickle" for what the original program reads.
        images: whether frames are decoded.

    Returns:
        The tables that were written, by split.

    Raises:
        DataError: an annotation file exists already, or the release is incomplete or damaged, see h36m_raw.
    """
    out = Path(out)
    known = [s for raw in H36M_SPLITS.values() for s in h36m_raw.SPLITS[raw]]
    if unknown := [s for s in subjects if s not in known]:
        raise DataError(f"--subjects: {', '.join(unknown)} is not in the release, which has {', '.join(known)}; correct the list")
    wanted = {}
    for split, raw in H36M_SPLITS.items():
        chosen = [s for s in subjects if s in h36m_raw.SPLITS[raw]]
        if chosen or not subjects:
            refuse_existing(out / "annot" / f"{split}{FORMS[form]}")
            wanted[split] = (raw, chosen or None, train_step if raw == "train" else valid_step)
    tables = {}
    for split, (raw, chosen, step) in wanted.items():
        ann = h36m_raw.read(release, raw, step=step, subjects=chosen, exclude_damaged=exclude_damaged, project=project)
        if images:
            ann = h36m_raw.extract(release, ann, out)
        h36m.write(ann, out, split, form=form)
        tables[split] = ann
    return tables


def damaged_sequences(ann: Annotations) -> list[str]:
    """What is known to be wrong in sequences of a table with Human3.6M's image names, one line each."""
    places = {h36m.parse_path(ann.images[i].decode()) for i in np.unique(ann.image[ann.image >= 0])}
    there = {(p.subject, p.sequence, v) for p in places if p for v in (None, p.view)}
    return [
        f"{subject} {name}{'' if view is None else f', camera {h36m.CAMERA_IDS[view]}'}: {why}"
        for (subject, name, view), why in h36m_raw.DAMAGED.items()
        if (subject, name, view) in there
    ]


def counts_table(ann: Annotations) -> str:
    """Images by action and subject, as aligned text."""
    subject, action = ann.subjects[ann.sequence], ann.actions[ann.sequence]
    columns, rows = np.unique(subject), np.unique(action)
    grid = [[int(((subject == c) & (action == r)).sum()) for c in columns] for r in rows]
    total = [sum(column) for column in zip(*grid, strict=True)]
    lines = [[r.decode() or "all", *row, sum(row)] for r, row in zip(rows, grid, strict=True)] + [["sum", *total, sum(total)]]
    cells = [["", *(c.decode() or "all" for c in columns), "sum"], *([str(c) for c in line] for line in lines)]
    return aligned(cells)


# ----------------------------------------------------------------------------------------------------------------- MPII


def prepare_mpii(mat: str | Path, out: str | Path, valid_list: str | Path | None = None) -> dict[str, int]:
    """MPII's .mat file into annot/*.json; see lib.dataset.formats.mpii_release.convert.

    Args:
        valid_list: text file, a name of an image per line; None = no train.json and valid.json.
    """
    names: list[str] = []
    if valid_list:
        try:
            names = [line.strip() for line in Path(valid_list).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{valid_list}: cannot be read ({error}); expected a text file with a name of an image per line") from None
        if not names:
            raise DataError(f"{valid_list}: names no image, expected one per line; leave --valid-list out to write trainval.json alone")
    return mpii_release.convert(mat, out, names)


# --------------------------------------------------------------------------------------------------------- MPI-INF-3DHP


def prepare_3dhp(root: str | Path, step: int = 1, cameras: Sequence[int] = ()) -> Annotations:
    """Takes the frames of the training videos that a table with this step and these cameras names; can be taken up again.

    Returns:
        The table; read it with the same `step` and `cameras` in DATASET.OPTIONS.

    Raises:
        DataError: see lib.dataset.formats.mpi_inf_3dhp.
    """
    ann = mpi_inf_3dhp.read(root, "train", cameras=cameras, step=step)
    mpi_inf_3dhp.extract(root, ann)
    return ann


# -------------------------------------------------------------------------------------------- several people, several views


def prepare_panoptic(
    root: str | Path,
    split: str,
    sequences: Sequence[str] = (),
    cameras: Sequence[str] = (),
    interval: int = 0,
    images: bool = True,
) -> Annotations:
    """Takes the frames of Panoptic's HD videos that a table with these options names; can be taken up again.

    Returns:
        The table; read it with the same options in DATASET.OPTIONS.

    Raises:
        DataError: see lib.dataset.formats.panoptic.
    """
    ann = panoptic.read(root, split, sequences, cameras, interval)
    if images:
        panoptic.extract(root, ann)
    return ann


def prepare_recording(root: str | Path, split: str = "", step: int = 1) -> Annotations:
    """Takes the frames of an own rig's videos; can be taken up again.   -> the table, see lib.dataset.formats.custom"""
    ann = custom.read(root, split, step=step)
    custom.extract(root, split, ann)
    return ann


def sequence_lines(ann: Annotations, root: str | Path) -> list[str]:
    """Per sequence its instants, people, views, and how many of its images are there."""
    lines = []
    for s in np.unique(ann.sequence):
        rows = ann.sequence == s
        images = np.unique(ann.image[rows & (ann.image >= 0)])
        there = sum((Path(root) / ann.images[i].decode()).exists() for i in images)
        people = len(np.unique(ann.person[rows & (ann.person >= 0)]))
        lines.append(
            f"{ann.subjects[s].decode()}: {len(np.unique(ann.frame[rows]))} instants, {people} people, "
            f"{len(np.unique(ann.view[rows]))} views, {there} of {len(images)} images are there"
        )
    return lines


def import_calibration(
    source: str | Path,
    out: str | Path = "",
    unit: str = "",
    cameras: Sequence[str] = (),
    up: str = "",
    inverse: bool = False,
    size: Sequence[int] = (),
) -> Calibration:
    """A calibration of any kind that lib.dataset.calibrations reads, as our own cameras.json if `out` is given.

    Args:
        unit, cameras: see lib.dataset.calibrations.read_calibration.
        up: the axis of the source that becomes +z; empty = keep its axes.
        inverse: the source gives the way from the camera to the world.
        size: of the images in px, where the source does not say.

    Raises:
        DataError: it cannot be read, or `out` exists.
    """
    found = read_calibration(source, unit, cameras)
    found = inverted(found) if inverse else found
    found = turned(found, up) if up else found
    found = resized(found, size) if size else found
    if out:
        write_cameras(out, found.names, found.cameras)
    return found


def calibration_picture(found: Calibration, path: str | Path, images: str | Path = "") -> Path:
    """Writes what each camera would see of a floor of 1 m squares around the middle of the scene, with the axes of the world on it.

    x is red, y green, z blue, 1 m each; the thick square is 4 m wide. Where `images` (a folder of files or of folders, called like the
    cameras) has a picture of a camera, it is drawn on that.

    Raises:
        DataError: no camera has an image size, or the picture cannot be written.
    """
    cams, tiles = found.cameras, []
    if not bool((cams.size > 0).all()):
        raise DataError("a picture needs the size of the images; give it with --size W H")
    backdrops = custom.pictures_of(images, found) if images else {}
    middle = np.round(focus(cams) / 1000) * 1000 * [1, 1, 0]
    at = np.linspace(0.0, 1.0, 81)[:, None]  # lines bend in a lens, so they are drawn in pieces

    def strokes(ends: Iterable[tuple], color: tuple[int, int, int], width: float) -> list[tuple]:
        return [((1 - at) * np.add(a, middle) + at * np.add(b, middle), color, width) for a, b in ends]

    reach, grid = 4000, range(-4000, 4001, 1000)
    floor = [((k, -reach, 0), (k, reach, 0)) for k in grid] + [((-reach, k, 0), (reach, k, 0)) for k in grid]
    square = [(-2000, -2000, 0), (2000, -2000, 0), (2000, 2000, 0), (-2000, 2000, 0)]
    drawn = strokes(floor, (120, 120, 120), 1) + strokes(zip(square, square[1:] + square[:1], strict=True), (240, 180, 0), 2)
    for axis, color in enumerate(((230, 40, 40), (30, 160, 30), (40, 80, 240))):
        drawn += strokes([((0, 0, 0), tuple(1000 * (k == axis) for k in range(3)))], color, 3)
    for i in range(len(cams)):
        width, height = (int(v) for v in cams.size[i])
        image = read_image(backdrops[i]) if i in backdrops else np.full((height, width, 3), 235, np.uint8)
        tile, scale, offset = letterbox(image, 2 * TILE)
        scale_of = np.array([image.shape[1] / width, image.shape[0] / height])  # pictures that were made smaller
        tile = np.ascontiguousarray(tile)
        for points, color, thick in drawn:
            X_cam = cams[i].to_cam(torch.from_numpy(points))
            pixels = cams[i].project_cam(X_cam)
            x = (pixels.numpy() + 0.5) * scale_of * scale - 0.5 + offset
            shown = cams[i].sees(X_cam, pixels, 200.0).numpy()
            for k in np.flatnonzero(shown[1:] & shown[:-1]):
                line(tile, x[k], x[k + 1], color, thick)
        tiles.append(tile)
    return vis.save_image(path, below([beside(tiles[k : k + 4], 6) for k in range(0, len(tiles), 4)], 6))


# ------------------------------------------------------------------------------------------------------------- pictures


def spread(ann: Annotations, most: int = SHEET) -> np.ndarray:
    """Rows with an image from all over a table, of views in turn."""
    rows = np.flatnonzero(ann.image >= 0)
    return rows[views_in_turn(ann.view[rows], most)]


def drawn(ann: Annotations, root: str | Path, rows: Iterable[int]) -> list[np.ndarray]:
    """Crops around the boxes of observations with their 2D joints; images that are not there are left out.

    -> (TILE,TILE,3) uint8 RGB each
    """
    root, out = Path(root), []
    for i in rows:
        path = root / ann.image_path(i)
        if not path.exists():
            continue
        image = read_image(path)
        height, width = image.shape[:2]
        box = ann.box[i] if np.isfinite(ann.box[i]).all() else np.array([0, 0, width, height])
        x0, y0 = np.clip(np.floor(box[:2]), 0, (width - 2, height - 2)).astype(int)
        x1, y1 = np.clip(np.ceil(box[2:]), (x0 + 2, y0 + 2), (width, height)).astype(int)
        tile, scale, offset = letterbox(image[y0:y1, x0:x1], TILE)
        x = (ann.x_img[i] - (x0, y0) + 0.5) * scale - 0.5 + offset
        out.append(vis.draw_skeleton_2d(tile, x, get(ann.skeleton), ann.conf[i], thickness=TILE / 150))
    return out


def sheet(ann: Annotations, root: str | Path, path: str | Path) -> Path | None:
    """Writes a picture of a few images with their 2D joints; None where no image is there."""
    tiles = drawn(ann, root, spread(ann))
    if not tiles:
        return None
    return vis.save_image(path, below([beside(tiles[k : k + 4], 6) for k in range(0, len(tiles), 4)], 6))


# --------------------------------------------------------------------------------------------------------------- labels


def prepare_labels(
    cfg: Config, out: str | Path = "", split: str = "", form: str = "npz", device: str = "cpu"
) -> tuple[LabelQuality, dict[str, Path]]:
    """Labels of DATASET.TRAIN_SET as a split of their own, triangulated as the EPIPOLAR section says.

    The split is written in the layout of Human3.6M: joints_3d and the box are those of the label, a joint without label is invisible,
    people without a labelled root are left out. Images keep their names, so `out` must be (or hold the images of) DATASET.ROOT.

    Args:
        cfg: a configuration of TASK epipolar on a data set in the layout h36m.
        out: root of the data set; empty = DATASET.ROOT.
        split: name of the new split; empty = train-ss, and what follows `labels` in the name of the YAML (labels-2dgt.yaml:
            train-ss-2dgt).
        form: "npz" or "pickle".
        device: where the teacher runs.

    Returns:
        The quality of the labels, and the files that were written: annotations, quality (JSON) and picture.

    Raises:
        ConfigError: another task or layout, or no teacher.
        DataError: the split exists in either form, or its quality or picture; or not one person got a label.
    """
    if cfg.TASK != "epipolar":
        raise cfg.error("TASK", f"is {cfg.TASK}, but labels are triangulated by epipolar; use a YAML such as experiments/h36m/labels.yaml")
    if cfg.DATASET.DATASET != "h36m":
        raise cfg.error("DATASET.DATASET", f"is {cfg.DATASET.DATASET}, but label files exist in the layout h36m only")
    if not cfg.EPIPOLAR.TEACHER:
        raise cfg.error("EPIPOLAR.TEACHER", f"is empty; give the checkpoint of a 2D network, or '{ANNOTATION}' for annotated 2D")
    stem = Path(cfg.file).stem
    split = split or LABELS + (stem.removeprefix("labels") if stem.startswith("labels") else "")
    root = Path(out or cfg.DATASET.ROOT)
    annotations = root / "annot" / f"{split}{FORMS[form]}"
    files = {
        "annotations": annotations,
        "quality": annotations.with_name(split + QUALITY),
        "picture": annotations.with_name(f"{split}.quality.png"),
    }
    # labels of other options in the other form would be told by the same report
    for path in (*(annotations.with_name(split + suffix) for suffix in FORMS.values()), files["quality"], files["picture"]):
        refuse_existing(path)
    # the student's start weights play no part, and need not be there
    cfg = cfg.with_values({"MODEL.PRETRAINED": "", "MODEL.INIT_FILE": "", "MODEL.INIT_WEIGHTS": False, "EPIPOLAR.LABELS": "cached"})
    cfg.check_paths()
    task = build(cfg)
    assert isinstance(task, EpipolarTask)
    task.model.to(device)
    ann = data.annotations(cfg, cfg.DATASET.TRAIN_SET, cfg.DATASET.TRAIN_FRAME, cfg.DATASET.SUBJECTS)
    annotated, cameras = ann, None
    if cfg.EPIPOLAR.EXTRINSICS == "estimated":
        cameras = task.recovered_cameras(ann)
        log_rigs(cameras, ann)
        ann = without_poses(ann, cameras)
    labels = task.fresh_labels(ann)
    quality = label_quality(annotated, labels, cameras)
    labelled = relabel(ann, labels, get(task.skeleton).root_index, cfg.DATASET.DEPTH_RANGE)
    images = drawn(labelled, cfg.DATASET.ROOT, spread(labelled))
    h36m.write(labelled, root, split, form=form)
    made = {"teacher": cfg.EPIPOLAR.TEACHER, "epipolar": cfg.to_dict()["EPIPOLAR"], "skeleton": task.skeleton, "of": cfg.DATASET.TRAIN_SET}
    write_text(files["quality"], json.dumps({"made": made, "quality": quality.to_dict()}, indent=1, allow_nan=False) + "\n")
    vis.save_image(files["picture"], picture(quality, images, f"labels {split}: {cfg.EPIPOLAR.TEACHER}"))
    return quality, files


# ---------------------------------------------------------------------------------------------------------------- check


def check(dataset: str, root: str | Path, split: str | None = None, options: Mapping[str, Any] | None = None) -> tuple[list[str], str]:
    """What is missing or wrong in a data set, and how much of it there is.

    The layout's own check comes first; tables it has nothing to say about are then held against what bodies are like
    (lib/dataset/plausibility.py).

    Returns:
        Sentences (empty = good), counts as a text.

    Raises:
        ConfigError: an unknown layout.
    """
    module = resolve({**FORMATS, **TRACKS}, dataset, key="dataset")
    root = Path(root)
    if not root.is_dir():
        return [f"{root}: no such folder; unpack or prepare the data set there, or correct the path"], ""
    if dataset in TRACKS:
        return module.inspect(root, split)
    said = list(module.check(root, split)) if hasattr(module, "check") else []
    counts = []
    for name in [split] if split else splits(dataset, root):
        try:
            ann = load(dataset, root, name, options)
        except DataError as error:
            said += [] if any(str(error) == s for s in said) else [str(error)]
            continue
        counts.append(f"{name}: {summary(ann)}")
        if not any(_tells_of(sentence, name) for sentence in said):
            said += [f"{root} ({name}): {sentence}" for sentence in plausibility.findings(ann)]
    if not counts and not said:
        said.append(f"{root}: no split of the layout {dataset} found; give one with --split, or correct the path")
    return said, "\n".join(counts)


def _tells_of(sentence: str, split: str) -> bool:
    return any(text in sentence for text in (f"annot/{split}", f"({split})", f"/{split}"))


def prepare_poses(predictions: str | Path, out: str | Path, min_score: float = 0.0) -> int:
    """The people of a predictions.npz as a file of poses that scenes can be made of (TASK scenes).   -> how many

    min_score: people with less are left out.

    Raises:
        DataError: not the predictions of several people, nobody is left, or `out` exists.
    """
    try:
        with np.load(predictions, allow_pickle=False) as file:
            X, found, score = file["X_world"], file["found"], file["score"]
            valid = file["valid"] if "valid" in file else np.ones(X.shape[:3], bool)
            kept = found & (score >= min_score)
            X, valid = X[kept], valid[kept]
    except (OSError, *MALFORMED) as error:
        expected = "predictions.npz of TASK voxelpose, selfpose3d or scenes"
        raise DataError(f"{predictions}: not predictions of several people ({error}); expected {expected}") from None
    if not len(X):
        raise DataError(f"{predictions}: nobody is found with a score of {min_score:g} or more; lower --min-score")
    actors.write_poses(out, X, valid)
    return len(X)


def splits(dataset: str, root: Path) -> list[str]:
    """The splits that a data set on disk has, as far as its layout tells."""
    module = resolve(FORMATS, dataset, key="dataset")
    if hasattr(module, "splits"):
        return module.splits(root)
    names = getattr(module, "SPLITS", ("train", "test"))
    return [name for name in names if name != "all" and _readable(module, root, name)]


def _readable(module, root: Path, split: str) -> bool:
    """Whether there is anything of this split; what is there but damaged is told by the layout's check."""
    try:
        module.read(root, split)
    except DataError:
        return False
    return True


def summary(ann: Annotations) -> str:
    """People, images, views, subjects and 3D poses of a table in a line."""
    subjects = [s.decode() for s in np.unique(ann.subjects[ann.sequence]) if s]
    parts = [
        f"{len(ann)} people in {len(np.unique(ann.image[ann.image >= 0]))} images",
        f"{len(np.unique(ann.view))} views",
        f"{len(np.unique(ann.pose[ann.pose >= 0]))} 3D poses",
        f"joints {ann.skeleton}",
    ]
    return ", ".join(parts + ([f"subjects {' '.join(subjects)}"] if 0 < len(subjects) <= 20 else []))


# ------------------------------------------------------------------------------------------------------------------ pss


def prepare_pss(cfg: Config, split: str = "", counts: Sequence[int] = structure.COUNTS, seed: int = 0) -> list[Path]:
    """Clusters of the Pose Structure Score from the true poses of a split, in the skeleton of a configuration; see
    lib.tasks.structure.make.

    Args:
        split: empty = DATASET.TRAIN_SET.

    Raises:
        DataError: a split of triangulated labels, which are not the truth to judge by.
    """
    split = split or cfg.DATASET.TRAIN_SET
    if split.startswith(LABELS) or (Path(cfg.DATASET.ROOT) / "annot" / (split + QUALITY)).exists():
        raise DataError(
            f"pose structure: {split} of {cfg.DATASET.ROOT} holds triangulated labels, expected true 3D joints; give the fully supervised "
            "split, such as --split train-fs"
        )
    ann = data.annotations(cfg, split)
    return structure.make(ann, cfg.DATASET.ROOT, split, counts=counts, seed=seed)
