"""Training without known extrinsics: the rig of each recording is recovered from the teacher's joints (EpipolarPose, "without R/t").

Sequences that were seen by the same rows of `Annotations.cameras` share one rig, which must not move. What the annotations say
about R and t is replaced, never read; intrinsics stay.
"""

import dataclasses
import logging
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations
from lib.errors import GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.rig_recovery import MAX_SAMPSON_PX, Rig, recover_rig, rig_errors

log = logging.getLogger("parallax")

# An average adult at rest, joints in mm (x forward, y left, z up): proportions after Drillis and Contini (1966), sized so that the bones
# of Integral Pose's tree of 18 joints sum to 4503 mm, its mean over Human3.6M (4502.9). In h36m17 they sum to 4150 mm.
ADULT = {
    "pelvis": (0, 0, 946), "spine": (0, 0, 1179), "thorax": (0, 0, 1429), "nose": (0, 0, 1548), "head": (0, 0, 1668),
    "l_hip": (0, 130, 946), "l_knee": (0, 130, 509), "l_ankle": (0, 130, 76),
    "l_shoulder": (0, 166, 1429), "l_elbow": (0, 166, 1139), "l_wrist": (0, 166, 881),
}  # fmt: skip

FEWEST_BONES = 8


@dataclass(frozen=True)
class Scale:
    """What sets the unit of a rig: EPIPOLAR.SCALE, BODY_MM, BASELINE_MM; and DATASET.DEPTH_RANGE for "none"."""

    kind: str = "body"
    body_mm: float = 0.0  # sum of all bone lengths; 0 = an average adult, over the bones that are known of it
    baseline_mm: float = 0.0
    box_mm: float = 2000.0


def adult_pose() -> np.ndarray:
    """`ADULT` with both sides, in the order of h36m17.   -> (17, 3) mm"""
    sides = ADULT | {f"r_{name[2:]}": (x, -y, z) for name, (x, y, z) in ADULT.items() if name.startswith("l_")}
    return np.array([sides[joint] for joint in skeletons.get("h36m17").joints], np.float64)


def adult_bones(skeleton: str) -> tuple[np.ndarray, float]:
    """The bones of a skeleton between joints that `ADULT` has, and the sum of their lengths.   -> (E, 2) int64, mm"""
    X, known = skeletons.convert(adult_pose(), "h36m17", skeleton)
    bones = skeletons.get(skeleton).bones
    bones = bones[known[bones].all(1)]
    return bones, float(np.linalg.norm(X[bones[:, 0]] - X[bones[:, 1]], axis=1).sum())


def recover_rigs(
    ann: Annotations,
    x_img: np.ndarray,  # (N, J, 2) px, 2D predictions per observation
    conf: np.ndarray,  # (N, J)
    scale: Scale,
    frames: int = 500,
    seed: int = 0,
    min_conf: float = 0.0,
    method: str = "lmeds",
    limit_px: float = MAX_SAMPSON_PX,
) -> tuple[Cameras, dict[str, Rig]]:
    """The cameras of a table with recovered R and t.

    Each rig's world is the frame of its first camera, that of the lowest view. Cameras that share no sequence with another keep
    R = 1, t = 0. Returns cameras (C,) and the rigs by name: their subjects and the rows of their cameras.

    Raises:
        GeometryError: a camera that moves (several rows in one view of a sequence), or a rig that cannot be recovered, with the
            reason and its subjects.
    """
    cameras = dataclasses.replace(
        ann.cameras,
        R=torch.eye(3, dtype=torch.float64).repeat(len(ann.cameras), 1, 1),
        t=torch.zeros(len(ann.cameras), 3, dtype=torch.float64),
    )
    conf = np.where(conf > min_conf, conf, 0.0)
    bones, length = _body(ann.skeleton, scale) if scale.kind == "body" else (None, scale.baseline_mm)
    rigs = {}
    for rows, observations in _groups(ann):
        if len(rows) < 2:
            continue
        subjects = sorted({ann.subjects[s].decode() for s in np.unique(ann.sequence[observations])})
        name = f"rig of {', '.join(subjects) or 'unnamed subjects'} (cameras {', '.join(map(str, rows))})"
        table = _instants(ann, rows, observations)  # (T, V)
        x, c = torch.from_numpy(x_img[table]).double(), torch.from_numpy(conf[table] * (table >= 0)[..., None]).double()
        try:
            rig = recover_rig(
                x, c, cameras[torch.from_numpy(rows)], method=method, max_sampson_px=limit_px, max_frames=frames, seed=seed,
                scale=scale.kind, length_mm=length, bones=bones,
            )  # fmt: skip
        except GeometryError as error:
            raise GeometryError(f"EPIPOLAR.EXTRINSICS estimated: {name}: {error}") from error
        factor = _box_factor(ann, table[rig.frames.numpy()], rig, scale.box_mm) if scale.kind == "none" else 1.0
        cameras.R[rows], cameras.t[rows] = rig.cameras.R, rig.cameras.t * factor
        rigs[name] = rig
    return cameras, rigs


def _body(skeleton: str, scale: Scale) -> tuple[np.ndarray, float]:
    """The bones to measure and the sum that their lengths shall have."""
    if scale.body_mm:
        return skeletons.get(skeleton).bones, scale.body_mm
    bones, length = adult_bones(skeleton)
    if len(bones) < FEWEST_BONES:
        raise GeometryError(
            f"EPIPOLAR.BODY_MM is 0 (an average adult), but of skeleton {skeleton} only {len(bones)} bones have a known length, expected "
            f"{FEWEST_BONES}; set EPIPOLAR.BODY_MM to the sum of its bone lengths, or another EPIPOLAR.SCALE"
        )
    return bones, length


def _groups(ann: Annotations) -> list[tuple[np.ndarray, np.ndarray]]:
    """Camera rows that are linked by sequences, in the order of their views, and the observations they made."""
    used = np.flatnonzero(ann.camera >= 0)
    slots, place = np.unique(np.stack([ann.sequence[used], ann.view[used], ann.camera[used]], 1), axis=0, return_index=True)
    moving = np.flatnonzero((np.diff(slots[:, :2], axis=0) == 0).all(1))
    if len(moving):
        s, view, _ = slots[moving[0]]
        raise GeometryError(
            f"EPIPOLAR.EXTRINSICS estimated: view {view} of sequence {s} ({ann.subjects[s].decode()}) has several calibrations, expected "
            "one camera that stands still; set EPIPOLAR.EXTRINSICS known"
        )
    sequences, C = len(ann.subjects), len(ann.cameras)
    links = coo_matrix((np.ones(len(slots)), (slots[:, 0], sequences + slots[:, 2])), shape=(sequences + C,) * 2)
    part = connected_components(links, directed=False)[1]
    view = np.full(C, np.iinfo(np.int64).max)
    np.minimum.at(view, slots[:, 2], slots[:, 1])
    found = []
    for p in np.unique(part[slots[:, 0]]):
        rows = np.unique(slots[part[slots[:, 0]] == p, 2])
        found.append((rows[np.argsort(view[rows], kind="stable")], used[part[ann.sequence[used]] == p]))
    return found


def _instants(ann: Annotations, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
    """Observations of each person at each instant by the cameras of one rig.   -> (T, V), -1 where one does not see them"""
    column = np.zeros(len(ann.cameras), np.int64)
    column[rows] = np.arange(len(rows))
    picked = ann.select(observations)
    order, starts = picked.group("sequence", "frame", "person")
    table = np.full((len(starts) - 1, len(rows)), -1, np.int64)
    table[np.repeat(np.arange(len(starts) - 1), np.diff(starts)), column[picked.camera[order]]] = observations[order]
    return table


def _box_factor(ann: Annotations, table: np.ndarray, rig: Rig, box_mm: float) -> float:
    """The factor with which people's annotated boxes are, in the median, `box_mm` wide at the depth of their root."""
    root = skeletons.get(ann.skeleton).root_index
    depth = rig.cameras.to_cam(rig.X_world[:, None, root : root + 1].expand(-1, len(rig.cameras), 1, 3))[..., 0, 2].numpy()  # (T, V)
    box = ann.box[table]
    width = np.sqrt((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) / torch.linalg.det(rig.cameras.K[:, :2, :2]).numpy()) * depth
    width = width[(table >= 0) & rig.X_valid[:, root, None].numpy() & np.isfinite(width)]
    if not len(width):
        raise GeometryError("EPIPOLAR.SCALE none needs boxes around people whose root is seen; set EPIPOLAR.SCALE body")
    return box_mm / float(np.median(width))


def log_rigs(recovered: Cameras, ann: Annotations) -> dict[str, dict[str, float]]:
    """How far recovered cameras lie from the annotated ones, where those are known; also as a table in the log.

    Angles are relative to the first camera of each rig, which has none. -> {"S1 view 2": {"rotation_deg", "direction_deg"}}
    """
    rows_of_log = {}
    for rows, observations in _groups(ann):
        true = ann.cameras[torch.from_numpy(rows)]
        if len(rows) < 2 or float((true.center - true.center[0]).norm(dim=-1).max()) < 1.0:
            continue  # alone, or a placeholder in the place of a calibration
        errors = rig_errors(recovered[torch.from_numpy(rows)], true)
        seen = ann.select(observations)
        for k, row in enumerate(rows[1:], 1):
            first = int(np.flatnonzero(seen.camera == row)[0])
            name = f"{seen.subject(first)} view {seen.view[first]}"
            values = {"rotation_deg": float(errors.rotation_deg[0, k]), "direction_deg": float(errors.direction_deg[0, k])}
            rows_of_log[name] = values
    if rows_of_log:
        log.info("rigs recovered from joints, each camera relative to the first of its rig:")
        log.info("  %-16s %12s %16s", "camera", "rotation", "baseline")
        for name, values in rows_of_log.items():
            log.info("  %-16s %8.2f deg %12.2f deg", name, values["rotation_deg"], values["direction_deg"])
    return rows_of_log


def without_poses(ann: Annotations, cameras: Cameras) -> Annotations:
    """The table in the world of recovered cameras: its 3D joints, which belong to the annotated world, are gone."""
    return dataclasses.replace(ann, cameras=cameras, X_world=np.zeros_like(ann.X_world), X_valid=np.zeros_like(ann.X_valid))
