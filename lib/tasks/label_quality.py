"""How good triangulated labels are: how many there are, how well the views agree, whether bones keep their length, and, where the
truth is known, how far off they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lib.dataset.annotations import Annotations
from lib.drawing.paint import below, beside, letterbox
from lib.geometry.camera import Cameras
from lib.metrics.report import Report, aligned
from lib.skeleton import get
from lib.tasks.baselines import label_report
from lib.tasks.labels import Labels

SCORES = ("mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm")
ABSENT = "-"
BAR = {"left": "#267ef0", "right": "#f06a22", "center": "#1eaa76"}  # the sides as in lib/vis.py


@dataclass(frozen=True)
class LabelQuality:
    """Numbers about the labels of one table. Errors are px of the full image; NaN = no joint to take them of."""

    joints: tuple[str, ...]
    views: tuple[int, ...]
    bones: tuple[str, ...]  # the child's name
    poses: int
    kept: np.ndarray  # (J,) share of the poses whose joint has a label
    error_median: np.ndarray  # (V,J) px between a view's 2D joint and the label, of kept joints in views that were used
    error_p90: np.ndarray  # (V,J) px
    bone_cv: dict[str, np.ndarray]  # subject -> (B,) standard deviation / mean of each bone's length
    view_error: np.ndarray  # (V,2) px: median and 90th percentile over all joints
    joint_error: np.ndarray  # (J,2) px: the same over all views
    truth: Report | None = field(default=None, compare=False)  # against the annotated 3D joints

    @property
    def scores(self) -> dict[str, float]:
        """Errors against the truth in mm; empty where it is unknown."""
        return {} if self.truth is None else {k: self.truth.metrics[k] for k in SCORES if k in self.truth.metrics}

    def to_dict(self) -> dict:
        """Plain values for JSON; what does not exist is None."""
        per_joint = {
            joint: {"kept": _plain(k), "reprojection_median_px": _plain(m), "reprojection_p90_px": _plain(p)}
            for joint, k, (m, p) in zip(self.joints, self.kept, self.joint_error, strict=True)
        }
        per_view = {
            str(view): {
                "reprojection_median_px": _plain(median),
                "reprojection_p90_px": _plain(p90),
                "joints_median_px": {joint: _plain(e) for joint, e in zip(self.joints, row, strict=True)},
            }
            for view, (median, p90), row in zip(self.views, self.view_error, self.error_median, strict=True)
        }
        bones = {s: {b: _plain(v) for b, v in zip(self.bones, cv, strict=True)} for s, cv in self.bone_cv.items()}
        return {
            "poses": self.poses,
            "kept": _plain(self.kept.mean()),
            "joints": per_joint,
            "views": per_view,
            "bone_variation": bones,
            "truth": self.scores,
        }

    def table(self) -> str:
        """The summary as aligned text: one row per joint, one per camera, one per subject."""
        error = {} if self.truth is None else self.truth.per_joint.get("mpjpe_mm", {})
        variation = dict(zip(self.bones, np.stack(list(self.bone_cv.values())).T, strict=True)) if self.bone_cv else {}
        head = ["joint", "kept %", "reproj. median px", "90th pct. px", "bone variation %", *(["error mm"] if error else [])]
        rows = []
        for joint, kept, (median, p90) in zip(self.joints, self.kept, self.joint_error, strict=True):
            cv = _nanmean(variation.get(joint, np.array([np.nan])))
            row = [joint, _shown(100 * kept, 1), _shown(median, 2), _shown(p90, 2), _shown(100 * cv, 1)]
            rows.append(row + ([_shown(error.get(joint, np.nan), 1)] if error else []))
        parts = [f"{self.poses} poses, {100 * self.kept.mean():.1f} % of the joints have a label", aligned([head, *rows])]
        cameras = [[f"camera {v}", _shown(m, 2), _shown(p, 2)] for v, (m, p) in zip(self.views, self.view_error, strict=True)]
        parts.append(aligned([["", "reproj. median px", "90th pct. px"], *cameras]))
        people = [[s, _shown(100 * _nanmean(cv), 1), _worst(self.bones, cv)] for s, cv in self.bone_cv.items()]
        if people:
            parts.append(aligned([["subject", "bone variation %", "largest"], *people]))
        if self.scores:
            parts.append("against the truth: " + ", ".join(f"{k.removesuffix('_mm')} {v:.1f} mm" for k, v in self.scores.items()))
        return "\n\n".join(parts)


def label_quality(ann: Annotations, labels: Labels, cameras: Cameras | None = None) -> LabelQuality:
    """The numbers of triangulated labels.

    Args:
        ann: the table that was labelled, in the skeleton of the labels; where it has 3D joints the labels are held against them.
        labels: of `lib.tasks.labels.make_labels` on this table.
        cameras: those in whose world the labels are, where they are others than the table's (estimated ones).
    """
    skel = get(ann.skeleton)
    views = tuple(np.unique(ann.view).tolist())
    valid = labels.X_valid
    error = np.where(valid[:, None] & (labels.error_px > 0) & np.isfinite(labels.error_px), labels.error_px, np.nan)  # (G,V,J)
    bones = skel.bones
    both = valid[:, bones[:, 0]] & valid[:, bones[:, 1]]
    length = np.linalg.norm(labels.X_world[:, bones[:, 0]] - labels.X_world[:, bones[:, 1]], axis=-1)
    length = np.where(both, length, np.nan)  # (G,B)
    group_sequence = np.zeros(len(valid), np.int64)
    group_sequence[labels.pose] = ann.sequence
    subject = ann.subjects[group_sequence]
    has_truth = bool((ann.pose >= 0).any() and ann.X_valid.any() and (ann.camera >= 0).all())
    return LabelQuality(
        joints=skel.joints,
        views=views,
        bones=tuple(skel.joints[child] for _, child in bones),
        poses=len(valid),
        kept=valid.mean(0),
        error_median=_percentile(error, 50, 0),
        error_p90=_percentile(error, 90, 0),
        bone_cv={s.decode() or "all": _variation(length[subject == s]) for s in np.unique(subject)},
        view_error=np.stack([_percentile(error, q, (0, 2)) for q in (50, 90)], -1),
        joint_error=np.stack([_percentile(error, q, (0, 1)) for q in (50, 90)], -1),
        truth=label_report(ann, labels, cameras) if has_truth else None,
    )


def _percentile(x: np.ndarray, q: float, axis) -> np.ndarray:
    """np.nanpercentile that says NaN, without a warning, where there is nothing."""
    empty = np.isnan(x).all(axis)
    return np.where(empty, np.nan, np.nanpercentile(np.where(np.expand_dims(empty, axis), 0, x), q, axis=axis))


def _variation(length: np.ndarray) -> np.ndarray:
    """Standard deviation / mean over the poses; NaN with fewer than two.   (G,B) -> (B,)"""
    enough = np.isfinite(length).sum(0) >= 2
    filled = np.where(enough, length, 1.0)
    return np.where(enough, np.nanstd(filled, 0) / np.maximum(np.nanmean(filled, 0), 1e-9), np.nan)


def _nanmean(x: np.ndarray) -> float:
    x = np.asarray(x)[np.isfinite(x)]
    return float(x.mean()) if len(x) else np.nan


def _worst(bones: Sequence[str], cv: np.ndarray) -> str:
    if not np.isfinite(cv).any():
        return ABSENT
    i = int(np.nanargmax(cv))
    return f"{bones[i]} {100 * cv[i]:.1f}"


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _shown(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else ABSENT


def bars(quality: LabelQuality, title: str = "", dpi: int = 110) -> np.ndarray:
    """Per joint: the share that is kept, the reprojection error (bar: median, tip: 90th percentile), and the error against the truth.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # lazily: importing matplotlib takes half a second
    from matplotlib.figure import Figure

    truth = {} if quality.truth is None else quality.truth.per_joint.get("mpjpe_mm", {})
    panels = [("labels kept, %", 100 * quality.kept, None), ("reprojection error, px", *quality.joint_error.T)]
    if truth:
        panels.append(("error against the truth, mm", np.array([truth.get(j, np.nan) for j in quality.joints]), None))
    figure = Figure(figsize=(4.2 * len(panels) + 0.6, 0.24 * len(quality.joints) + 1.4), dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    sides = ["left" if j.startswith("l_") else "right" if j.startswith("r_") else "center" for j in quality.joints]
    place = np.arange(len(quality.joints))
    for axis, (name, value, tip) in zip(axes, panels, strict=True):
        value = np.nan_to_num(value)
        reach = None if tip is None else np.stack([np.zeros_like(value), np.maximum(np.nan_to_num(tip) - value, 0)])
        axis.barh(place, value, xerr=reach, color=[BAR[s] for s in sides], height=0.7, error_kw={"lw": 1, "ecolor": "#888888"})
        axis.set_yticks(place, quality.joints if axis is axes[0] else [""] * len(place), fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, max(axis.get_xlim()[1], 0.1))  # rounding is not blown up
        axis.set_title(name, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def picture(quality: LabelQuality, images: Sequence[np.ndarray], title: str = "", tile: int = 260, columns: int = 4) -> np.ndarray:
    """The bars, and below them images with their reprojected labels.   images: (h,w,3) uint8 RGB -> (H,W,3)"""
    tiles = [letterbox(image, tile)[0] for image in images]
    rows = [beside(tiles[k : k + columns], 6) for k in range(0, len(tiles), columns)]
    return below([bars(quality, title), *rows], 6)
