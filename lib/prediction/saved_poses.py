"""3D poses that were saved, corrected by 2D poses that were saved: what scripts/correct.py does.

Where the poses come from does not matter; the regression and the projector, which are all that a correction needs, come from a trained pose
machine (TASK machine) or from the pickle of its release. 2D poses are counted in sides of the crop, as that projector does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.config import Config, from_dict, load
from lib.correction import Corrected
from lib.dataset.formats import machine_lists
from lib.dataset.formats.machine_files import write_actions
from lib.errors import MALFORMED, ConfigError, DataError, RunError, WeightsError
from lib.files import refuse_existing, replaced, write_text
from lib.geometry.crop import transform_points
from lib.metrics.machine import STAGES, MachineEvaluator
from lib.metrics.report import Report
from lib.models.pose_machine import PoseNormalizer, Projector2D, Regressor3D
from lib.skeleton import Skeleton, convert, get
from lib.tasks.correction import ended_in_shares, through_projector, told_of_projector
from lib.weights.load import read

COARSE = ("X_coarse", "X_root", "X_cam")  # of predictions.npz, the first that is there
CARRIED = ("ids", "images", "subjects", "actions")  # of predictions.npz, written again
FILES = {"coarse": "", "regressed": "change", "refined": "refined"}  # stage -> what its CSV files are called by
LEAST_SCALE = 1e-9  # sides of the crop per px
RESULTS, TABLE = "corrected.npz", "results.json"


@dataclass(frozen=True, eq=False)
class SavedPoses:
    """N poses of one person each."""

    source: str  # for messages
    X: Tensor  # (N,J,3) mm relative to the root, camera axes
    skeleton: Skeleton
    x: Tensor | None = None  # (N,J,2) sides of the crop, where the joints were seen
    conf: Tensor | None = None  # (N,J) 0..1
    px: Tensor | None = None  # (N,) px of the image to a side of the crop
    truth: Tensor | None = None  # (N,J,3) mm, NaN where unknown
    actions: Sequence[str] | None = None  # (N,)
    about: Mapping[str, np.ndarray] = field(default_factory=dict)  # arrays (N,...) that are written beside the result

    def to_skeleton(self, skeleton: Skeleton) -> SavedPoses:
        """The same in the joints of another skeleton, by name; 2D joints that it does not have count as not seen.

        Raises:
            DataError: the poses lack a joint.
        """
        if self.skeleton == skeleton:
            return self
        X, present = convert(self.X, self.skeleton, skeleton)
        if not present.all():
            missing = ", ".join(joint for joint, there in zip(skeleton.joints, present, strict=True) if not there)
            raise DataError(f"{self.source}: poses of {self.skeleton.name} have no {missing}, which the projector ({skeleton.name}) needs")
        changes = {"X": X - X[:, skeleton.root_index, None], "skeleton": skeleton}
        if self.x is not None:
            known, seen = convert(torch.cat([self.x, self.conf[..., None]], -1), self.skeleton, skeleton)
            changes |= {"x": known[..., :2], "conf": known[..., 2] * torch.as_tensor(seen)}
        if self.truth is not None:
            changes["truth"] = convert(self.truth, self.skeleton, skeleton)[0]
        return dataclasses.replace(self, **changes)


def read_predictions(path: str | Path, evidence: str | Path | None = None) -> SavedPoses:
    """Poses of predictions.npz, which every training and scripts/valid.py write: the lifted ones where there are stages, else the results.

    Args:
        path: the file.
        evidence: another predictions.npz of the same rows, whose 2D joints are taken; None = those of the same file.

    Raises:
        DataError: no such file, or it lacks what is needed.
    """
    arrays = _arrays(path)
    name = next((name for name in COARSE if name in arrays), None)
    if name is None or "skeleton" not in arrays:
        raise DataError(f"{path}: holds {', '.join(sorted(arrays))}; expected poses ({', '.join(COARSE)}) and their skeleton, of a network "
                        "that sees pictures")  # fmt: skip
    skeleton, rows = _skeleton(path, arrays), len(arrays["ids"])
    X = _checked(path, arrays, name, (rows, skeleton.num, 3))
    truth, actions = None, None
    if "X_cam_true" in arrays:
        known = _checked(path, arrays, "X_valid", (rows, skeleton.num)).bool()
        truth = _checked(path, arrays, "X_cam_true", (rows, skeleton.num, 3)).masked_fill(~known[..., None], torch.nan)
        truth = truth - truth[:, skeleton.root_index, None]
    for column in ("images", "subjects", "actions"):
        if column in arrays and (arrays[column].shape != (rows,) or arrays[column].dtype.kind not in "US"):
            found = f"{arrays[column].dtype} {arrays[column].shape}"
            raise DataError(f"{path}: {column} are {found}, expected {rows} texts; write the file again")
    if "actions" in arrays and any(arrays["actions"]):
        actions = arrays["actions"].tolist()
    about = {name: arrays[name] for name in CARRIED if name in arrays}
    poses = SavedPoses(str(path), X - X[:, skeleton.root_index, None], skeleton, truth=truth, actions=actions, about=about)
    given = arrays if evidence is None else _same_rows(path, arrays, evidence)
    if "x_img" not in given:
        return poses
    if "crop_from_img" not in arrays | given:
        raise DataError(f"{path}: does not say which crop was looked at (crop_from_img); judge the weights again with scripts/valid.py")
    crop, other = _checked(path, given | arrays, "crop_from_img", (rows, 2, 3)), _skeleton(evidence or path, given)
    x_img = _checked(evidence or path, given, "x_img", (rows, other.num, 2))
    conf = _checked(evidence or path, given, "conf", (rows, other.num)) if "conf" in given else torch.ones_like(x_img[..., 0])
    known, seen = convert(torch.cat([transform_points(crop, x_img), conf[..., None]], -1), other, skeleton)
    scale = torch.linalg.det(crop[..., :2]).abs().sqrt().clamp(min=LEAST_SCALE)
    return dataclasses.replace(poses, x=known[..., :2], conf=known[..., 2] * torch.as_tensor(seen), px=1 / scale)


def read_lists(root: str | Path, coarse: str, keypoints: str = "") -> SavedPoses:
    """Poses of the CSV files by action that the published programs write, beside the release's lists.

    Args:
        root: folder of the lists, with the truth in gt/test.
        coarse: files below root with {action} in them, such as "p3d/result{action}_norm.csv" of shares; in mm if they end in _unnorm.csv.
        keypoints: files of 2D joints, likewise, such as "hg2dh36m/test{action}_square2d.txt"; empty = those of the truth.

    Raises:
        DataError: files are missing, damaged or do not fit together.
    """
    found = machine_lists.read_coarse(root, coarse, keypoints)
    skeleton = get(machine_lists.SKELETON)
    X, truth, x = (None if a is None else torch.from_numpy(a).float() for a in (found.X, found.truth, found.x))
    conf = None if x is None else (x != 0).any(-1).float()
    px = torch.full((len(X),), float(machine_lists.SIDE_PX))
    X = X - X[:, skeleton.root_index, None]
    about = {"ids": np.arange(len(X)), "images": np.array(found.images), "actions": np.array(found.actions)}
    return SavedPoses(str(root), X, skeleton, x, conf, px, truth, found.actions, about)


@dataclass(frozen=True, eq=False)
class SavedProjector:
    """What a correction needs of a pose machine, and the configuration that says how."""

    cfg: Config
    skeleton: Skeleton
    regressor: Regressor3D
    projector: Projector2D
    normalizer: PoseNormalizer

    @staticmethod
    def read(path: str | Path, overrides: Sequence[str] = ()) -> SavedProjector:
        """From a checkpoint of TASK machine, or a file of the release (the pickle of 12 arrays is enough).

        Args:
            path: the file.
            overrides: KEY VALUE pairs, such as CORRECTION.STEPS 4.

        Raises:
            WeightsError: the file has no regression and projector, or they have not learned yet.    ConfigError: a wrong override.
        """
        checkpoint, given = read(path), load(None, overrides)
        changes = {key: value for key, value in given.flat().items() if given.source(key) != "default"}
        values = checkpoint.meta.get("config") if checkpoint.kind == "parallax" else None
        cfg = from_dict(values, changes) if values else given
        state = checkpoint.state_dict
        parts = {name: _part(state, name) for name in ("regressor", "projector", "normalizer")}
        joints = len(parts["regressor"].get("change.bias", ())) // 3
        if parts["regressor"] and parts["projector"] and not parts["normalizer"]:
            raise WeightsError(f"{path}: corrects poses of {joints} joints, expected the release's 16, or 17 with the nose: of others the "
                               "ranges that the poses are shares of are unknown; give a checkpoint of TASK machine, which has its own")
        if not all(parts.values()):
            raise WeightsError(f"{path}: has no {' or '.join(n for n, part in parts.items() if not part)}; expected a checkpoint of TASK "
                               "machine, or the pickled weights of the published correction")  # fmt: skip
        if values and cfg.MACHINE.STAGE not in ("projector", "joint"):
            raise WeightsError(f"{path}: its projector has not learned yet (MACHINE.STAGE {cfg.MACHINE.STAGE}); train stage projector")
        hidden = len(parts["regressor"]["change_tmp.bias"])
        skeleton = get(checkpoint.meta.get("skeleton") or {16: "h36m16", 17: "h36m17"}.get(joints, ""))
        modules = {
            "regressor": Regressor3D(joints, hidden),
            "projector": Projector2D(joints, hidden, cfg.MACHINE.NORM),
            "normalizer": PoseNormalizer(skeleton),
        }
        for name, module in modules.items():
            try:
                module.load_state_dict(parts[name])
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise WeightsError(f"{path}: its {name} does not fit ({reason}); set MACHINE.NORM to that of its training") from error
        return SavedProjector(cfg, skeleton, *(module.eval() for module in modules.values()))

    def correct(self, poses: SavedPoses) -> Corrected:
        """The poses, regressed and corrected by their 2D joints.

        Raises:
            DataError: there are no 2D joints, or joints are missing.
        """
        poses = poses.to_skeleton(self.skeleton)
        if poses.x is None:
            raise DataError(f"{poses.source}: has no 2D joints to go by; give those of another network on the same pictures (--evidence)")
        p3d, to_mm = self.normalizer.normalize(poses.X), self.normalizer.denormalize
        return through_projector(self.cfg, self.regressor, self.projector, to_mm, self.skeleton, p3d, poses.x, poses.conf)


def stages_of(projector: SavedProjector, poses: SavedPoses, found: Corrected) -> tuple[dict[str, Tensor], Report | None]:
    """Poses by stage and how the corrections ended, and their errors by action where there is a truth.   found: of `projector.correct`

    -> X_coarse, X_regressed, X_root (N,J,3) mm; updates, decision, reprojection_before_px, reprojection_px (N,)
    """
    poses = poses.to_skeleton(projector.skeleton)
    made = {"X_coarse": poses.X, "X_regressed": projector.normalizer.denormalize(found.regressed), "X_root": found.X_root}
    made |= ended_in_shares(found, poses.x, poses.conf, poses.px[:, None].expand(-1, 2))
    return made, _judged(poses, made, told_of_projector(projector.cfg, "saved 2D joints"))


def as_saved(path: str | Path) -> tuple[SavedPoses, dict[str, Tensor]]:
    """The poses of predictions.npz with all stages that it has, as they are.   -> X_coarse, X_regressed, X_root, those that are there"""
    poses, arrays = read_predictions(path), _arrays(path)
    root = poses.skeleton.root_index
    found = {"X_coarse": "X_coarse", "X_regressed": "X_regressed", "X_root": "X_cam" if "X_cam" in arrays else "X_root"}
    made = {stage: _checked(path, arrays, name, tuple(poses.X.shape)) for stage, name in found.items() if name in arrays}
    return poses, {name: X - X[:, root, None] for name, X in made.items()}


def _judged(poses: SavedPoses, made: Mapping[str, Tensor], protocol: Mapping) -> Report | None:
    if poses.truth is None:
        return None
    known = poses.truth.isfinite().all(-1)
    evaluator = MachineEvaluator(poses.skeleton, STAGES, actions=poses.actions, protocol=dict(protocol))
    truth = {"id": torch.arange(len(poses.X)), "X_cam": poses.truth.nan_to_num(), "X_valid": known}
    evaluator.update({**made, "X_cam": made["X_root"]}, truth)
    return evaluator.compute()


def save(folder: Path, poses: SavedPoses, skeleton: Skeleton, made: Mapping[str, Tensor], report: Report | None) -> None:
    """corrected.npz (all arrays of `stages_of`, and what is known of the rows) and results.json."""
    arrays = {name: value.cpu().numpy() for name, value in made.items()} | dict(poses.about) | {"skeleton": np.array(skeleton.name)}
    if poses.truth is not None:
        arrays["X_true"] = poses.to_skeleton(skeleton).truth.numpy()
    with replaced(folder / RESULTS, RunError) as part:
        np.savez_compressed(part, **arrays)
    if report is not None:
        write_text(folder / TABLE, json.dumps(report.to_dict(), indent=2) + "\n", RunError)


def save_actions(folder: Path, poses: SavedPoses, skeleton: Skeleton, made: Mapping[str, Tensor]) -> None:
    """result<a>_unnorm.csv, result<a>_change_unnorm.csv and result<a>_refined_unnorm.csv by number of Human3.6M's action, as the published
    programs write them, in mm.

    Raises:
        DataError: a file exists, no actions are known, or one is none of Human3.6M's; the joints are not the release's.
    """
    if poses.actions is None:
        raise DataError(f"{poses.source}: tells no actions, by which the CSV files are named; leave csv out")
    known = {"coarse": "X_coarse", "regressed": "X_regressed", "refined": "X_root"}
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("result*_unnorm.csv"))[:1]:
        refuse_existing(path)
    for stage, name in known.items():
        if name not in made:
            continue
        X, present = convert(made[name], skeleton, machine_lists.SKELETON)
        if not present.all():
            release = machine_lists.SKELETON
            raise DataError(f"{poses.source}: joints of {skeleton.name} are not those of the release ({release}); leave csv out")
        write_actions(folder, X.numpy(), poses.actions, FILES[stage])


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _arrays(path: str | Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected predictions.npz of a training or of scripts/valid.py") from error
    if "ids" not in arrays or arrays["ids"].ndim != 1:
        raise DataError(f"{path}: has no ids, a number for each row; expected predictions.npz of a training or of scripts/valid.py")
    return arrays


def _skeleton(path: str | Path, arrays: Mapping[str, np.ndarray]) -> Skeleton:
    try:
        return get(str(arrays["skeleton"]))
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error


def _checked(path: str | Path, arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> Tensor:
    found = arrays.get(name)
    if found is None or found.shape != shape or found.dtype.kind not in "fiub":
        what = "is not there" if found is None else f"is {found.dtype} {found.shape}"
        raise DataError(f"{path}: {name} {what}, expected numbers {shape}; write the file again")
    return torch.from_numpy(found).float()


def _same_rows(path: str | Path, arrays: Mapping[str, np.ndarray], other: str | Path) -> dict[str, np.ndarray]:
    """The arrays of another file, which must have the same rows."""
    given = _arrays(other)
    same = all(np.array_equal(arrays[name], given.get(name)) for name in ("ids", "images") if name in arrays)
    if not same or "skeleton" not in given or "x_img" not in given:
        raise DataError(f"{other}: has other rows than {path}, or no 2D joints; judge both networks on the same DATASET.TEST_SET and "
                        "DATASET.VAL_FRAME")  # fmt: skip
    return given
