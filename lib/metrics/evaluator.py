"""Evaluators collect predictions batch by batch and make a Report of them; rows can be gathered over processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib import correction
from lib.errors import ConfigError, DataError, RunError
from lib.metrics import pose
from lib.metrics.columns import columns
from lib.metrics.keypoints import pckh, pckh_table
from lib.metrics.procrustes import moments
from lib.metrics.report import PROTOCOLS, RELEASE_NAMES, Report, action_means, by_published_order
from lib.metrics.structure import Clusters, pss
from lib.registry import resolve
from lib.skeleton import Skeleton, get

VARIANTS = ("standard", "reference")
PCK_TABLE = ("pck150_percent", "auc_percent")  # by action, too, where MPI-INF-3DHP's joints are judged
REPROJECTION = ("reprojection_before_px", "reprojection_px")  # of corrections, from the 2D joints they go by
PCK2D = {"pck2d_percent": 0.05, "pck2d_at10_percent": 0.10}  # thresholds as parts of the box (0.05 of 2 m is 10 cm)


class RowEvaluator:
    """Base: keeps one row of CPU tensors per sample, addressed by the sample's id.

    Args:
        skeleton: name or Skeleton of predictions and ground truth.
        actions: action name for each id, or None for no table by action.
    """

    def __init__(self, skeleton: Skeleton | str, actions: Sequence[str] | None = None):
        self.skeleton = get(skeleton) if isinstance(skeleton, str) else skeleton
        self.actions = actions
        self._rows: list[dict[str, Tensor]] = []

    def _add(self, ids: Tensor, pred: Tensor, **others: Tensor) -> None:
        """Store rows, after a check of what the network made of them."""
        name, joints = type(self).__name__, self.skeleton.num
        pred = pred.detach().cpu().float()
        if pred.ndim != 3 or pred.shape[:2] != (len(ids), joints):
            raise DataError(
                f"{name}: predictions have shape {tuple(pred.shape)}, expected ({len(ids)}, {joints}, ...) for "
                f"skeleton {self.skeleton.name}; set MODEL.NUM_JOINTS and DATASET.SKELETON to the same skeleton"
            )
        ids = ids.detach().cpu().long()
        others = {key: value.detach().cpu() for key, value in others.items()}
        for key, value in others.items():
            if value.shape[:2] != pred.shape[:2]:
                raise DataError(f"{name}: {key} has shape {tuple(value.shape)}, expected {tuple(pred.shape[:2])}...")
        if not pred.sum().isfinite() and (bad := ~torch.isfinite(pred).flatten(1).all(1)).any():  # the sum is quick
            raise RunError(
                f"{name}: the predictions of {int(bad.sum())} of {len(ids)} samples are NaN or infinite (ids "
                f"{_some(ids[bad])}), expected finite coordinates; lower TRAIN.LR, set TRAIN.CLIP or AMP off, or check "
                "the checkpoint"
            )
        self._rows.append({"id": ids, "pred": pred, **others})

    def rows(self) -> dict[str, Tensor]:
        """All rows so far, concatenated; small CPU tensors that can be sent to another process."""
        if not self._rows:
            return {}
        return {key: torch.cat([row[key] for row in self._rows]) for key in self._rows[0]}

    def load_rows(self, rows: Sequence[dict[str, Tensor]]) -> None:
        """Replace the own rows by those of all processes (each one's `rows()`)."""
        self._rows = [row for row in rows if row]

    def _sorted_rows(self) -> dict[str, Tensor]:
        """All rows by ascending id, so that results do not depend on batches or processes."""
        rows = self.rows()
        if not rows:
            raise DataError(
                f"{type(self).__name__}: nothing was evaluated, expected at least one sample; "
                "check DATASET.TEST_SET and DATASET.VAL_FRAME"
            )
        if (rows["id"].diff() > 0).all():  # as they come from one process
            return rows
        ids, order = rows["id"].sort(stable=True)
        again = ids[1:][ids[1:] == ids[:-1]]
        if len(again):
            raise DataError(
                f"{type(self).__name__}: {len(again)} samples came twice (ids {_some(again)}); expected each id once; "
                "evaluation data must not be padded or repeated over processes"
            )
        return {key: value[order] for key, value in rows.items()}

    def _per_action(self, ids: Tensor, values: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        if self.actions is None:
            return {}
        chosen = list(map(self.actions.__getitem__, ids.tolist()))
        places = {name: i for i, name in enumerate(sorted(set(chosen)))}
        names, group = list(places), np.array([places[name] for name in chosen])  # np.unique would sort all these texts
        table = {}
        for metric, value in values.items():
            known = np.isfinite(value)
            count = np.bincount(group[known], minlength=len(names))
            total = np.bincount(group[known], weights=value[known], minlength=len(names))
            means = {n: float(t / c) for n, t, c in zip(names, total, count, strict=True) if c}
            table[metric] = {name: means[name] for name in by_published_order(means)}
        return table

    def _per_joint(self, errors: Tensor) -> dict[str, float]:
        """errors (N,J), NaN where there is no value."""
        mean = errors.nanmean(0).tolist()
        return {joint: value for joint, value in zip(self.skeleton.joints, mean, strict=True) if value == value}


class PoseEvaluator(RowEvaluator):
    """3D poses in mm: MPJPE and its relatives, PCK, AUC, per axis, joint and action, and the Pose Structure Score.

    The protocols of Human3.6M are metrics here, all of which are always given: Protocol 1 is mpjpe_mm (centred on the root, no
    other alignment), Protocol 2 pa_mpjpe_mm (similarity fitted to the same joints), Protocol 3 n_mpjpe_mm (centred on the root,
    best scale). `*_mm` is the mean over poses, as published; `*_action_mean_mm` the mean of the actions' means. MPI-INF-3DHP reports
    pck150_percent and auc_percent, and n_pck150_percent after the best scale, over the joint set "3dhp14".

    Args:
        root: name of the joint poses are centred on; None takes the skeleton's own root.
        joints: '' for all joints or a name of JOINT_SETS: what the main numbers are averaged over.
        variants: "standard", and "reference" for the definitions of EpipolarPose's release beside them.
        structure: clusters for the Pose Structure Score, one number pss<K>_percent each; over all joints, whatever `joints` says.
        protocol: what else the report should say about how the poses came about.

    Raises:
        ConfigError: unknown joint set or variant, the skeleton lacks a joint of the set, or the clusters are of another one.
    """

    further: tuple[str, ...] = ("decision", *REPROJECTION)  # columns of predictions that are kept beside the poses, where they are there
    tabled: tuple[str, ...] = ()  # metrics of a subclass that the table by action has, too
    beside: tuple[RowEvaluator, ...] = ()  # evaluators of rows pred, gt and valid that judge the same poses; their numbers join the report

    def __init__(
        self,
        skeleton: Skeleton | str,
        root: str | None = None,
        actions: Sequence[str] | None = None,
        joints: str | None = None,
        variants: Sequence[str] = ("standard",),
        structure: Sequence[Clusters] = (),
        protocol: Mapping[str, Any] | None = None,
    ):
        super().__init__(skeleton, actions)
        self.root = self.skeleton.index(root or self.skeleton.root)
        self.joint_set = joints or ""
        self.joints: list[int] | None = None
        if joints:
            resolve(pose.JOINT_SETS, joints, key="TEST.JOINTS")
            self.joints = pose.joint_set(self.skeleton.joints, joints)
            if self.joints is None:
                absent = sorted(set(pose.JOINT_SETS[joints]) - set(self.skeleton.joints))
                raise ConfigError(
                    f"TEST.JOINTS: {joints!r} needs {', '.join(absent)}, which skeleton {self.skeleton.name} lacks; "
                    "leave it empty"
                )
        for variant in variants:
            resolve(dict.fromkeys(VARIANTS), variant, key="evaluator variant")
        self.variants = tuple(variants)
        self.structure, self.protocol = tuple(structure), dict(protocol or {})
        for clusters in self.structure:
            if clusters.skeleton != self.skeleton.name:
                raise ConfigError(
                    f"pose structure: the clusters are of skeleton {clusters.skeleton}, the poses of {self.skeleton.name}; "
                    "fit clusters to poses of that skeleton"
                )

    def update(self, pred: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """Add a batch: pred X_cam (B,J,3) mm (and valid (B,J) if some joints are undefined, and of corrections decision (B,), how they
        ended, see lib.correction.DECISIONS, and REPROJECTION (B,) each); batch X_cam, X_valid, id.

        Raises:
            DataError: the number of joints is not the skeleton's.
            RunError: a prediction is NaN or infinite.
        """
        valid = batch["X_valid"].bool()
        X = pred["X_cam"]
        if "valid" in pred:
            defined = pred["valid"].bool()
            valid = valid & defined
            X = X.masked_fill(~defined[..., None], 0.0)
        self._add(batch["id"], X, gt=batch["X_cam"].float(), valid=valid)
        self._keep(pred)

    def _keep(self, pred: dict[str, Tensor]) -> None:
        """Further columns beside the rows that were added last."""
        self._rows[-1] |= {name: pred[name].detach().cpu().float() for name in self.further if name in pred}

    def compute(self) -> Report:
        """All numbers over all rows; means over poses, in mm and percent."""
        rows = self._sorted_rows()
        count = len(rows["id"])
        starts = range(0, count, pose.CHUNK)
        judged = {key: row for key, row in rows.items() if key not in self.further}
        chunks = [self._values(**{key: row[i : i + pose.CHUNK] for key, row in judged.items()}) for i in starts]
        values = {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}
        tables = {key: values.pop(key) for key in ("joint_mm", "joint_pa_mm")}
        arrays = {key: value.numpy() for key, value in values.items()}
        metrics = _means(arrays | {key: rows[key].numpy() for key in REPROJECTION if key in rows})
        tabled = (*PROTOCOLS, *(PCK_TABLE if self.joint_set == "3dhp14" else ()), *self.tabled)
        if "reference" in self.variants:
            tabled += ("pa_mpjpe_rooted_mm",)
        per_action = self._per_action(rows["id"], {k: arrays[k] for k in tabled})
        report = Report(
            metrics=metrics | action_means(per_action),
            per_joint={
                "mpjpe_mm": self._per_joint(tables["joint_mm"]),
                "pa_mpjpe_mm": self._per_joint(tables["joint_pa_mm"]),
            },
            per_action=per_action,
            counts={"poses": count, "poses_without_value": int((~np.isfinite(arrays["mpjpe_mm"])).sum())}
            | (correction.counts(rows["decision"].long()) if "decision" in rows else {}),
            protocol=self._protocol(),
        )
        for other in self.beside:
            other.load_rows([{key: rows[key] for key in ("id", "pred", "gt", "valid")}])
            report = report.joined(other.compute())
        return report

    def _protocol(self) -> dict[str, Any]:
        """How these numbers were measured, for results files."""
        joints = range(self.skeleton.num) if self.joints is None else self.joints
        return {
            "skeleton": self.skeleton.name,
            "joints": [self.skeleton.joints[k] for k in joints],
            "root": self.skeleton.joints[self.root],
            "alignment": {
                "mpjpe_mm": "centred on the root",
                "pa_mpjpe_mm": "similarity (rotation, translation, scale) fitted to the joints, not centred again",
                "n_mpjpe_mm": "centred on the root, least-squares scale",
            },
            "variants": list(self.variants),
            **({"names_of_the_release": RELEASE_NAMES} if "reference" in self.variants else {}),
            "pose_structure": [clusters.describe() for clusters in self.structure],
            **self.protocol,
        }

    def _values(self, id: Tensor, pred: Tensor, gt: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Per-pose numbers (n,) of one chunk, and its tables of joint errors (n,J)."""
        pred, gt, root, joints = columns(pred), columns(gt), self.root, self.joints
        mask = None if valid.numpy().all() else valid  # many times faster than torch's
        # All is centred on the root here once; what is relative to it has no value where the root has none.
        p, g, rooted = pred - pred[:, root, None], gt - gt[:, root, None], None
        if mask is not None:
            rooted = mask & mask[:, root, None]
            p, g = (torch.where(mask[:, root, None, None], centred, X) for centred, X in ((p, pred), (g, gt)))
        axes = pose.axis_errors(p, g, None, rooted)
        errors = pose.length(axes)
        sums = moments(p, g, mask, joints)
        aligned = pose.aligned_joint_errors(p, g, mask, joints, sums)
        scaled = pose.scaled_joint_errors(p, g, None, rooted, joints, sums)
        values = {
            "mpjpe_mm": pose.mean_over(errors, joints),
            "pa_mpjpe_mm": pose.mean_over(aligned, joints),
            "n_mpjpe_mm": pose.mean_over(scaled, joints),
            "pck150_percent": 100 * pose.fraction_below(errors, pose.PCK_MM, joints),
            "auc_percent": 100 * pose.area_below(errors, joints),
            "n_pck150_percent": 100 * pose.fraction_below(scaled, pose.PCK_MM, joints),
            "joint_mm": errors,
            "joint_pa_mm": aligned,
        }
        for axis, error in zip("xyz", axes.unbind(-1), strict=True):
            values[f"mpjpe_{axis}_mm"] = pose.mean_over(error, joints)
        fourteen = pose.joint_set(self.skeleton.joints, "14")
        if fourteen and len(fourteen) < self.skeleton.num:
            values["mpjpe14_mm"] = pose.mean_over(errors, fourteen)
            if joints is None:
                others = [k for k in range(self.skeleton.num) if k not in fourteen]
                sums = sums.without(moments(p, g, mask, others))
            else:
                sums = moments(p, g, mask, fourteen)
            values["pa_mpjpe14_mm"] = pose.mean_over(pose.aligned_joint_errors(p, g, mask, fourteen, sums), fourteen)
            values["n_mpjpe14_mm"] = pose.mean_over(pose.scaled_joint_errors(p, g, None, rooted, fourteen, sums), fourteen)
        for clusters in self.structure:
            values[clusters.metric] = 100 * pss(pred, gt, clusters, mask)
        if "reference" in self.variants:
            values |= self._reference_values(pred, gt, mask, errors)
        return values

    def _reference_values(self, pred: Tensor, gt: Tensor, valid: Tensor | None, errors: Tensor) -> dict[str, Tensor]:
        """The definitions of EpipolarPose's release, under names that say so."""
        joints = self.skeleton.joints
        if self.skeleton.name == "h36m17":  # the release took MPII's indices for those of Human3.6M
            fourteen = [k for k, joint in enumerate(joints) if joint not in pose.LEGACY_14_DROPS]
        else:
            fourteen = pose.joint_set(joints, "14")
        aligned = pose.pa_mpjpe_rooted
        scaled = pose.n_mpjpe_procrustes
        values = {
            "pa_mpjpe_rooted_mm": aligned(pred, gt, self.root, valid, self.joints),
            "n_mpjpe_procrustes_mm": scaled(pred, gt, self.root, valid, self.joints),
        }
        if fourteen:
            values["mpjpe14_legacy_mm"] = pose.mean_over(errors, fourteen)
            values["pa_mpjpe14_legacy_mm"] = aligned(pred, gt, self.root, valid, fourteen)
            values["n_mpjpe14_legacy_mm"] = scaled(pred, gt, self.root, valid, fourteen)
        return values


class Keypoint2DEvaluator(RowEvaluator):
    """2D joints of one person: mean error and PCK, relative to the box that was cropped.

    protocol: what else the report should say about how the joints came about.
    """

    def __init__(self, skeleton: Skeleton | str, actions: Sequence[str] | None = None, protocol: Mapping[str, Any] | None = None):
        super().__init__(skeleton, actions)
        self.protocol = dict(protocol or {})

    def update(self, pred: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """Add a batch: pred x_img (B,J,2) px of the image; batch id, x_img, conf (B,J; 0 = not annotated),
        patch_from_img (B,2,3), and image (B,3,H,W), whose size in px is that of one box.

        Raises:
            DataError: the number of joints is not the skeleton's.
            RunError: a prediction is NaN or infinite.
        """
        gt, valid = batch["x_img"].float(), batch["conf"] > 0
        height, width = batch["image"].shape[-2:]
        linear = batch["patch_from_img"][:, :, :2].float()
        offset = (pred["x_img"].detach().float() - gt) @ linear.mT
        in_box = offset / offset.new_tensor((width, height))
        self._add(batch["id"], pred["x_img"], gt=gt, valid=valid, in_box=in_box)

    def compute(self) -> Report:
        """pck2d_percent (below 5 % of the box), pck2d_at10_percent, error_px (of the image), error_box_percent."""
        rows = self._sorted_rows()
        valid = rows["valid"]
        in_box = rows["in_box"].double().norm(dim=-1).masked_fill(~valid, torch.nan)
        in_px = (rows["pred"] - rows["gt"]).double().norm(dim=-1).masked_fill(~valid, torch.nan)
        values = {key: 100 * pose.fraction_below(in_box, limit) for key, limit in PCK2D.items()}
        values["error_px"] = pose.mean_over(in_px)
        values["error_box_percent"] = 100 * pose.mean_over(in_box)
        arrays = {key: value.numpy() for key, value in values.items()}
        metrics = _means(arrays)
        hits = (in_box < PCK2D["pck2d_percent"]).double().masked_fill(~valid, torch.nan)
        return Report(
            metrics=metrics,
            per_joint={"pck2d_percent": self._per_joint(100 * hits), "error_px": self._per_joint(in_px)},
            per_action=self._per_action(rows["id"], {"pck2d_percent": arrays["pck2d_percent"]}),
            counts={"poses": len(valid), "joints": int(valid.sum())},
            protocol=self.protocol,
        )


class PCKhEvaluator(Keypoint2DEvaluator):
    """2D joints where the size of the head is known: MPII's PCKh beside the numbers relative to the box.

    Args:
        head_px: (N,) px by id, NaN where unknown; such samples count in the other numbers only.
        variants: "standard", and "reference" for EpipolarPose's release, whose Mean@0.1 is taken at 0.11.
        strict: see lib.metrics.keypoints.pckh.
    """

    def __init__(
        self,
        skeleton: Skeleton | str,
        head_px: np.ndarray,
        actions: Sequence[str] | None = None,
        variants: Sequence[str] = ("standard",),
        strict: bool = False,
    ):
        super().__init__(skeleton, actions)
        for variant in variants:
            resolve(dict.fromkeys(VARIANTS), variant, key="evaluator variant")
        self.head_px, self.variants, self.strict = torch.as_tensor(head_px), tuple(variants), strict

    def compute(self) -> Report:
        """MPII's columns first, Head to Ankle, Mean (pckh_percent) and Mean@0.1 (pckh_at10_percent); then the base's."""
        report, rows = super().compute(), self._sorted_rows()
        head = self.head_px[rows["id"]]
        known = head.isfinite()
        truth = rows["pred"][known], rows["gt"][known], head[known]
        table = pckh_table(*truth, self.skeleton.joints, rows["valid"][known], strict=self.strict)
        if "reference" not in self.variants:
            table = {key: value for key, value in table.items() if key != "pckh_at11_percent"}
        hits = 100 * pckh(*truth, rows["valid"][known], strict=self.strict)
        return Report(
            metrics={key: value for key, value in table.items() if np.isfinite(value)} | report.metrics,
            per_joint={"pckh_percent": self._per_joint(hits)} | report.per_joint,
            per_action=report.per_action,
            counts=report.counts | {"heads": int(known.sum())},
        )


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean over the poses that have a value; metrics without any are left out."""
    known = {key: value[np.isfinite(value)] for key, value in values.items()}
    return {key: float(value.mean()) for key, value in known.items() if len(value)}


def _some(ids: Tensor, most: int = 5) -> str:
    first = ", ".join(str(i) for i in ids[:most].tolist())
    return first if len(ids) <= most else f"{first}, ..."
