"""2D pseudo labels of a data set's pictures, and how good they are: what scripts/prepare.py pseudo-labels does.

The quality report has up to three parts. Counts and confidences need nothing else. `across views` needs the calibration alone: people are
put together from the labels of an instant (lib/geometry/association.py), triangulated, and projected back. `against the annotation`
needs a split whose 2D people are known; the labels themselves never see it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lib import vis
from lib.dataset import load
from lib.dataset.annotations import Annotations, number_within
from lib.dataset.formats import pseudo_labels as labels
from lib.dataset.formats.pseudo_labels import People
from lib.dataset.image import read_image
from lib.dataset.rig import views_in_turn
from lib.drawing.paint import below, beside, letterbox
from lib.drawing.space_view import person_color
from lib.errors import MALFORMED, DataError
from lib.files import new_file, refuse_existing, write_text
from lib.geometry.association import MIN_CONF, associate_people
from lib.geometry.crop import longer_side
from lib.metrics.people import greedy_pairs
from lib.metrics.report import aligned
from lib.skeleton import get

SUFFIXES = {"npz": ".npz", "pickle": ".pkl"}
QUALITY = ".quality.json"
PCK = (0.05, 0.1)  # of the person's size, the longer side of the box around the joints
SAME = 0.3  # of the size: mean distance of joints below which two 2D people are the same
FEWEST = 4  # joints in sight from which on a person of the annotation must be found
INSTANTS = 300  # that are put together across views, from all over the split
BLOCK = 2048  # pictures compared at once
PIECE = 64  # pictures after which detections are kept
SHEET, TILE = 9, 480  # pictures of a sheet, and px of their longer side

Find = Callable[[Sequence[np.ndarray], Sequence[int]], list[People]]


# --------------------------------------------------------------------------------------------------------------- making


def detected(ann: Annotations, root: str | Path, find: Find, keep: str | Path, made_by: dict[str, Any], batch_size: int = 4) -> People:
    """Runs a 2D detector over the pictures of a table; a run that was stopped goes on where it was.

    Args:
        find: pictures (H,W,3) uint8 RGB and their rows in `ann.images` -> People of each.
        keep: folder for what was found so far; the caller removes it when the labels are written.
        made_by: what tells one detector from another; JSON.

    Raises:
        DataError: a picture cannot be read, or `keep` is of another detector or other pictures.
    """
    images, keep = np.unique(ann.image[ann.image >= 0]), Path(keep)
    facts = json.loads(json.dumps(made_by | {"pictures": len(images), "first": ann.images[images[0]].decode()}))
    keep.mkdir(parents=True, exist_ok=True)
    note = keep / "made-by.json"
    if note.exists() and json.loads(note.read_bytes()) != facts:
        raise DataError(f"{keep}: was begun with another detector or other pictures; remove the folder, or give another --out")
    if not note.exists():
        with new_file(note) as part:
            part.write_text(json.dumps(facts))
    found, people = [], 0
    with tqdm(total=len(images), desc="2D people", unit="picture") as bar:
        for start in range(0, len(images), PIECE):
            path = keep / f"{start:08d}.npz"
            if not path.exists():
                here = []
                for at in range(start, min(start + PIECE, len(images)), batch_size):
                    rows = images[at : min(at + batch_size, start + PIECE)]
                    shown = [read_image(Path(root) / ann.images[row].decode()) for row in rows]
                    here += find(shown, rows.tolist())
                    bar.update(len(rows))
                    bar.set_postfix(people=people + sum(len(p) for p in here))
                columns = {name: np.concatenate([getattr(p, name) for p in here]) for name in _COLUMNS}
                with new_file(path) as part, open(part, "wb") as file:
                    np.savez(file, **columns, skeleton=here[0].skeleton)
            else:
                bar.update(min(PIECE, len(images) - start))
            try:
                with np.load(path, allow_pickle=False) as file:
                    found.append(People(str(file["skeleton"]), **{name: file[name] for name in _COLUMNS}))
            except (OSError, *MALFORMED) as error:
                raise DataError(f"{path}: a part that was found before cannot be read ({error}); delete it, it is made again") from None
            people += len(found[-1])
    return People(found[0].skeleton, **{name: np.concatenate([getattr(p, name) for p in found]) for name in _COLUMNS})


_COLUMNS = ("image", "keypoints", "boxes", "score")


def target(root: str | Path, split: str, out: str, kind: str, form: str) -> tuple[str, Path]:
    """Name and file of the labels to be made; DataError where they exist in either form, or their report or picture."""
    out = out or f"group_{split or 'all'}_pseudo_{kind}"
    for path in (*(Path(root) / f"{out}{suffix}" for suffix in SUFFIXES.values()), *_beside(root, out).values()):
        refuse_existing(path)
    return out, Path(root) / f"{out}{SUFFIXES[form]}"


def _beside(root: str | Path, out: str) -> dict[str, Path]:
    """What lies beside the labels of this name."""
    return {"quality": Path(root) / f"{out}{QUALITY}", "picture": Path(root) / f"{out}.png"}


@dataclass(frozen=True)
class Made:
    """Pseudo labels that were written."""

    path: Path
    ann: Annotations
    quality: "Quality"
    files: dict[str, Path]  # the report, and a picture where there are images


def write(
    ann: Annotations, people: People, root: str | Path, out: str, kind: str = "soft", form: str = "npz", min_score: float = 0.0,
    threshold: float = labels.THRESHOLD, interval: int = 1, made_by: dict[str, Any] | None = None,
) -> Made:  # fmt: skip
    """Labels, the report of their quality (JSON) and a picture of some of them, side by side.

    Args:
        ann: the pictures; where it has 2D people of its own, the report compares with them.
        people, kind, min_score, threshold: see lib.dataset.formats.pseudo_labels.labels_of.
        out, form, interval: see lib.dataset.formats.pseudo_labels.write.
        made_by: kept in the report.

    Raises:
        DataError: a file exists, or the table cannot be written.
    """
    path, files = target(root, "", out, kind, form)[1], _beside(root, out)
    made = labels.labels_of(ann, people, kind, threshold, min_score)
    quality = judge(made, ann)
    labels.write(made, root, out, form=form, interval=interval)
    content = {"made": {"kind": kind, "min_score": min_score, **(made_by or {})}, "quality": quality.to_dict()}
    write_text(files["quality"], json.dumps(content, indent=1, allow_nan=False) + "\n")
    if not sheet(made, root, files["picture"]):
        files.pop("picture")
    return Made(path, made, quality, files)


def write_image_list(path: str | Path, ann: Annotations) -> int:
    """The pictures of a table in COCO's form, for a detector.   -> how many"""
    listed = labels.image_list(ann)
    with new_file(path) as part:
        part.write_text(json.dumps(listed) + "\n")
    return len(listed["images"])


def read(dataset: str, root: str | Path, split: str, options: dict[str, Any] | None = None) -> Annotations:
    """The pictures to be labelled; rows without image or camera are left out. DataError where none is left."""
    ann = load(dataset, root, split, options)
    there = (ann.image >= 0) & (ann.camera >= 0)
    if not there.any():
        raise DataError(f"{root} ({split}): no pictures with a camera; pseudo labels are made of pictures")
    return ann if there.all() else ann.select(there)


# -------------------------------------------------------------------------------------------------------------- quality


@dataclass
class Quality:
    """Numbers of a set of 2D pseudo labels. Shares are in percent; NaN = cannot be told.

    Distances across views are those of people who were put together, of joints on which views agree: joints that are wrong in most views
    do not appear there but lower `matched_percent` and `confirmed_percent`, which count every 2D person and every sure joint.
    """

    counts: dict[str, float]
    across: dict[str, float] = field(default_factory=dict)  # without truth, from the calibration
    truth: dict[str, float] = field(default_factory=dict)
    joints: dict[str, dict[str, float]] = field(default_factory=dict)  # by joint
    views: dict[str, dict[str, float]] = field(default_factory=dict)  # by view

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what cannot be told is left out."""

        def plain(values: dict) -> dict:
            cleaned = {k: plain(v) if isinstance(v, dict) else round(float(v), 4) for k, v in values.items()}
            return {k: v for k, v in cleaned.items() if isinstance(v, dict) or np.isfinite(v)}

        return {name: plain(getattr(self, name)) for name in ("counts", "across", "truth", "joints", "views")}

    def table(self) -> str:
        """Aligned text."""
        c, lines = self.counts, []
        lines.append(
            f"{c['people']:.0f} people in {c['pictures']:.0f} pictures, {c['people_per_picture']:.2f} in each, nobody in {c['empty']:.0f}; "
            f"{c['sure_percent']:.1f} % of the joints have a confidence of {MIN_CONF} or more"
        )
        if a := self.across:
            lines.append(
                f"across views, {a['instants']:.0f} instants: {a['people_per_instant']:.2f} people in each, seen by "
                f"{a['views_per_person']:.2f} views; {a['matched_percent']:.1f} % of the 2D people agree with another view"
            )
            lines.append(
                f"  their joints lie {a['median_px']:.2f} px (90 %: {a['p90_px']:.2f} px) from the triangulated ones projected, "
                f"{a['median_percent']:.2f} % ({a['p90_percent']:.2f} %) of the person's size"
            )
            lines.append(
                f"  {a['confirmed_percent']:.1f} % of all sure joints are confirmed: the views agree on their place within "
                f"{100 * PCK[0]:.0f} % of the size"
            )
        else:
            lines.append("across views: cannot be told, there are no instants that two calibrated views share")
        if t := self.truth:
            lines.append(
                f"against the annotation: recall {t['recall_percent']:.1f} %, precision {t['precision_percent']:.1f} % of "
                f"{t['people']:.0f} annotated people"
            )
            lines.append(
                f"  joints {t['median_px']:.2f} px off (90 %: {t['p90_px']:.2f} px), "
                + ", ".join(f"PCK@{share} {t[f'pck{share}_percent']:.1f} %" for share in PCK)
                + f"; {t['joint_recall_percent']:.1f} % of the visible joints are labelled"
            )
        return "\n".join([*lines, *_table(self.joints), *_table(self.views)])


def _table(rows: dict[str, dict[str, float]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not columns:
        return []
    cells = [["", *columns]] + [[k, *(f"{row.get(c, np.nan):.2f}".replace("nan", "-") for c in columns)] for k, row in rows.items()]
    return [aligned(cells)]


def judge(made: Annotations, annotated: Annotations | None = None, instants: int = INSTANTS) -> Quality:
    """How good pseudo labels are.

    Args:
        made: the labels.
        annotated: the table they were made for, with its own 2D people; None, or no 2D people = unknown.
        instants: the most that are put together across views.
    """
    people, names = made.person >= 0, get(made.skeleton).joints
    conf = made.conf[people]
    pictures, empty = len(np.unique(made.image)), len(np.unique(made.image[~people]))
    counts = {"pictures": pictures, "people": int(people.sum()), "empty": empty, "people_per_picture": people.sum() / max(pictures, 1)}
    counts |= {"sure_percent": _percent((conf >= MIN_CONF).mean() if conf.size else np.nan), "labelled_percent": _percent(_mean(conf > 0))}
    quality = Quality(counts)
    for j, name in enumerate(names):
        sure, labelled = _mean(conf[:, j] >= MIN_CONF), _mean(conf[:, j] > 0)
        quality.joints[name] = {"sure_percent": _percent(sure), "labelled_percent": _percent(labelled)}
    _across(made, quality, instants)
    if annotated is not None and (annotated.conf > 0).any():
        _against(made, annotated.to_skeleton(made.skeleton), quality)
    return quality


def _percent(share: float) -> float:
    return 100.0 * float(share)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _spread(values: np.ndarray) -> tuple[float, float]:
    """Median and 90th percentile."""
    return tuple(np.percentile(values, [50, 90]).tolist()) if len(values) else (np.nan, np.nan)


def _across(made: Annotations, quality: Quality, instants: int) -> None:
    """Numbers of the agreement between views."""
    order, starts = made.group("sequence", "frame")
    shown = np.split(order, starts[1:-1])
    shared = [k for k, rows in enumerate(shown) if len(np.unique(made.view[rows])) >= 2]
    if not shared:
        return
    chosen = [shared[k] for k in np.unique(np.linspace(0, len(shared) - 1, min(instants, len(shared))).astype(int))]
    rows = np.concatenate([shown[k] for k in chosen])
    instant = np.repeat(np.arange(len(chosen)), [len(shown[k]) for k in chosen])
    views, column = np.unique(made.view[rows], return_inverse=True)
    frames, count = len(chosen), len(views)
    # A view that an instant lacks gets the camera of another instant; nobody is seen there, so it plays no part.
    camera = np.full((frames, count), -1)
    camera[instant, column] = made.camera[rows]
    camera = np.where(camera >= 0, camera, camera.max(0))
    cell = instant * count + column
    there = (made.person[rows] >= 0) & (made.conf[rows] >= MIN_CONF).any(1)
    slot = number_within(cell[there])
    at, most = (instant[there], column[there], slot), slot.max(initial=0) + 1
    joints = made.num_joints
    x, conf = np.zeros((frames, count, most, joints, 2)), np.zeros((frames, count, most, joints))
    x[at], conf[at] = made.x_img[rows[there]], made.conf[rows[there]]
    x, conf = torch.from_numpy(x), torch.from_numpy(conf * (conf >= MIN_CONF))
    cameras = made.cameras[torch.from_numpy(camera)]
    found = associate_people(x, conf, cameras)

    frame, person, view = (found.member >= 0).nonzero(as_tuple=True)
    mine = found.member[frame, person, view]
    label, weight = x[frame, view, mine], conf[frame, view, mine]  # (K,J,2), (K,J)
    X, valid = found.X_world[frame, person], found.valid[frame, person]
    seen = cameras[frame, view].project(X)[0]
    known = (valid & (weight > 0)).numpy()
    error = torch.linalg.vector_norm(seen - label, dim=-1).numpy()
    share = error / longer_side(label, weight > 0).numpy()[:, None].clip(1e-9)
    views_of = (found.member >= 0).sum(-1)[found.found]
    a = quality.across
    a |= {"instants": frames, "people_per_instant": float(found.found.sum()) / frames, "views_per_person": _mean(views_of.double().numpy())}
    a["matched_percent"] = _percent(len(mine) / max(int(there.sum()), 1))
    (a["median_px"], a["p90_px"]), (a["median_percent"], a["p90_percent"]) = _spread(error[known]), _spread(100 * share[known])
    confirmed, sure = known & (share < PCK[0]), (conf > 0)[at].sum().item()
    a["confirmed_percent"] = _percent(confirmed.sum() / sure) if sure else np.nan
    for j, name in enumerate(get(made.skeleton).joints):
        quality.joints[name]["across_px"] = _spread(error[known[:, j], j])[0]
    matched = np.bincount(view.numpy(), minlength=count)
    total = np.bincount(column[there], minlength=count)
    for v, number in enumerate(views):
        own = view.numpy() == v
        quality.views[f"view {number}"] = {
            "people": total[v], "matched_percent": _percent(matched[v] / max(total[v], 1)), "across_px": _spread(error[own][known[own]])[0],
        }  # fmt: skip


def _against(made: Annotations, annotated: Annotations, quality: Quality) -> None:
    """Numbers of the agreement with annotated 2D people: each picture's people are paired by the mean distance of their joints."""
    images = np.unique(made.image)
    mine = np.flatnonzero((made.person >= 0) & (made.conf > 0).any(1))
    true = np.flatnonzero((annotated.conf > 0).any(1) & np.isin(annotated.image, images))
    a, b = np.searchsorted(images, made.image[mine]), np.searchsorted(images, annotated.image[true])
    slot_a, slot_b = number_within(a), number_within(b)
    wanted = annotated.visible[true].sum(1) >= FEWEST
    paired_mine, paired_true = [], []
    for start in range(0, len(images), BLOCK):
        here_a, here_b = (np.flatnonzero((g >= start) & (g < start + BLOCK)) for g in (a, b))
        count = min(BLOCK, len(images) - start)

        def table(ann: Annotations, rows: np.ndarray, at: np.ndarray, slot: np.ndarray, most: int, count=count, start=start):
            x, conf = torch.zeros(count, most, ann.num_joints, 2), torch.zeros(count, most, ann.num_joints)
            index = torch.full((count, most), -1)
            place = (torch.from_numpy(at - start), torch.from_numpy(slot).long())
            x[place], conf[place], index[place] = (torch.from_numpy(values) for values in (ann.x_img[rows], ann.conf[rows], rows))
            return x.where(conf[..., None] > 0, 0.0), conf > 0, index

        x, known, row_a = table(made, mine[here_a], a[here_a], slot_a[here_a], slot_a.max(initial=0) + 1)
        y, there, row_b = table(annotated, true[here_b], b[here_b], slot_b[here_b], slot_b.max(initial=0) + 1)
        both = known[:, :, None] & there[:, None]  # (I,P,M,J)
        distance = torch.linalg.vector_norm(x[:, :, None] - y[:, None], dim=-1).where(both, 0.0).sum(-1) / both.sum(-1)
        cost = (distance / longer_side(y, there)[:, None].clamp(min=1.0)).masked_fill(~both.any(-1), torch.inf)
        partner = greedy_pairs(cost.where(cost < SAME, torch.inf))[2]  # (I,P)
        i, p = (partner >= 0).nonzero(as_tuple=True)
        paired_mine.append(row_a[i, p].numpy())
        paired_true.append(row_b[i, partner[i, p]].numpy())
    one, other = np.concatenate(paired_mine), np.concatenate(paired_true)
    visible = annotated.visible[other] & (annotated.conf[other] > 0)
    labelled = visible & (made.conf[one] > 0)
    error = np.linalg.norm(made.x_img[one].astype(np.float64) - annotated.x_img[other], axis=-1)
    y, there = torch.from_numpy(annotated.x_img[other]), torch.from_numpy(annotated.conf[other] > 0)
    share = error / longer_side(y, there).double().numpy()[:, None].clip(1.0) if len(one) else error
    t = quality.truth
    t["people"] = int(wanted.sum())
    t["recall_percent"] = _percent(_mean(np.isin(true[wanted], other)))
    t["precision_percent"] = _percent(len(one) / len(mine)) if len(mine) else np.nan
    t["median_px"], t["p90_px"] = _spread(error[labelled])
    for limit in PCK:
        t[f"pck{limit}_percent"] = _percent(_mean(share[labelled] < limit))
    t["joint_recall_percent"] = _percent(labelled.sum() / max(visible.sum(), 1))
    for j, name in enumerate(get(made.skeleton).joints):
        own = labelled[:, j]
        middle, most = _spread(error[own, j])
        quality.joints[name] |= {
            "median_px": middle, "p90_px": most, f"pck{PCK[-1]}_percent": _percent(_mean(share[own, j] < PCK[-1])),
            "found_percent": _percent(own.sum() / visible[:, j].sum()) if visible[:, j].any() else np.nan,
        }  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- picture


def sheet(made: Annotations, root: str | Path, path: str | Path, most: int = SHEET) -> Path | None:
    """Writes a picture of some labelled images, from all over the table and of all views; None where no image is there."""
    images, first = np.unique(made.image, return_index=True)
    tiles, skeleton = [], get(made.skeleton)
    for i in views_in_turn(made.view[first], most):
        file = Path(root) / made.images[images[i]].decode()
        if not file.exists():
            continue
        tile, scale, offset = letterbox(read_image(file), TILE)
        for k, row in enumerate(np.flatnonzero((made.image == images[i]) & (made.person >= 0))):
            x = (made.x_img[row] + 0.5) * scale - 0.5 + offset
            tile = vis.draw_skeleton_2d(tile, x, skeleton, made.conf[row], color=person_color(k))
        empty = int(offset[1])  # wide pictures leave bars above and below
        tiles.append(tile[empty : TILE - empty] if empty else tile)
    if not tiles:
        return None
    return vis.save_image(path, below([beside(tiles[k : k + 3], 6) for k in range(0, len(tiles), 3)], 6))
