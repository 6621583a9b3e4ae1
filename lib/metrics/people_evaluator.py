"""Evaluators of several people per frame: AP, recall and MPJPE as on CMU Panoptic, PCP as on Shelf and Campus."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.errors import DataError, RunError
from lib.metrics import people
from lib.metrics.evaluator import RowEvaluator, _some
from lib.metrics.pose import length
from lib.metrics.report import Report
from lib.registry import resolve
from lib.skeleton import Skeleton, get


class PeopleRows(RowEvaluator):
    """Base: a row per frame with all its people; batches may be padded to different numbers of them."""

    def _keep(self, pred: Mapping[str, Tensor], batch: Mapping[str, Tensor], **others: Tensor) -> None:
        """Store the predictions of a batch, after a check, and `others`: tensors with a frame per row."""
        name, joints, ids = type(self).__name__, self.skeleton.num, batch["id"].detach().cpu().long()
        X, score, found = (pred[key].detach().cpu() for key in ("X_world", "score", "found"))
        if X.ndim != 4 or X.shape[0] != len(ids) or X.shape[2:] != (joints, 3) or score.shape != X.shape[:2] or found.shape != X.shape[:2]:
            raise DataError(
                f"{name}: predictions have shapes X_world {tuple(X.shape)}, score {tuple(score.shape)}, found {tuple(found.shape)}; "
                f"expected ({len(ids)}, P, {joints}, 3) for skeleton {self.skeleton.name}, and ({len(ids)}, P) twice; "
                "set MODEL.NUM_JOINTS and DATASET.SKELETON to the same skeleton"
            )
        found = found.bool()
        valid = pred["valid"].detach().cpu().bool() if "valid" in pred else torch.ones(X.shape[:3], dtype=torch.bool)
        valid = valid & found[..., None]
        bad = ((~torch.isfinite(X).all(-1) & valid).any(-1) | (~torch.isfinite(score) & found)).any(-1)
        if bad.any():
            raise RunError(
                f"{name}: the predictions of {int(bad.sum())} of {len(ids)} frames are NaN or infinite (ids {_some(ids[bad])}), expected "
                "finite coordinates and scores; lower TRAIN.LR, set TRAIN.CLIP or AMP off, or check the checkpoint"
            )
        X, score = _wide(X).where(valid[..., None], 0.0), _wide(score).where(found, 0.0)
        row = {"id": ids, "X": X, "valid": valid, "score": score, "found": found}
        self._rows.append(row | {key: value.detach().cpu() for key, value in others.items()})

    def rows(self) -> dict[str, Tensor]:
        """All rows so far, concatenated, padded to the largest number of people; CPU tensors that can be sent to another process."""
        if not self._rows:
            return {}
        lacking = sorted({key for row in self._rows for key in row} - set.intersection(*(set(row) for row in self._rows)))
        if lacking:
            raise DataError(f"{type(self).__name__}: some batches have {', '.join(lacking)} and others have not; expected all or none")
        return {key: _stacked([row[key] for row in self._rows]) for key in self._rows[0]}


class PeopleEvaluator(PeopleRows):
    """Every person in the scene, in mm of the world: AP and recall at 25 to 150 mm, mAP, recall and MPJPE within 500 mm.

    Numbers (see lib.metrics.people): ap<mm>_percent and recall<mm>_percent for each threshold, their means map_percent and
    mar_percent, recall500_percent, mpjpe_mm over the people found within 500 mm; root_... of all of them where the predictions
    hold `centers`, as distances of one point; reprojection_percent, from 2D people, where the batches have them: a number to choose
    models by without any 3D label.

    Args:
        sequences: name for each id, for a table by sequence; None = none.
        root: joint that `centers` are compared with, or two joints whose middle it is; None = the skeleton's root.
        count_empty_frames: whether predictions in frames without people are false ones. None = as `rule` says.
        rule: "exact", or "reference" for the released evaluation of VoxelPose: empty frames do not count, and 1e-5 is added to
            the denominators of precision and recall.
        protocol: what else the report should say about how the poses came about.
        counts: what else it should count.
    """

    def __init__(
        self,
        skeleton: Skeleton | str,
        sequences: Sequence[str] | None = None,
        root: str | Sequence[str] | None = None,
        count_empty_frames: bool | None = None,
        rule: str = "exact",
        protocol: Mapping[str, Any] | None = None,
        counts: Mapping[str, int] | None = None,
    ):
        super().__init__(skeleton, sequences)
        resolve(dict.fromkeys(people.RULES), rule, key="people evaluator rule")
        self.rule, self.protocol, self.counts = rule, dict(protocol or {}), dict(counts or {})
        self.count_empty_frames = rule == "exact" if count_empty_frames is None else count_empty_frames
        root = root or self.skeleton.root
        self.root = self.skeleton.indices((root,) if isinstance(root, str) else root)

    def update(self, pred: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Add a batch of B frames.

        pred X_world (B,P,J,3) mm, score (B,P), found (B,P); optional valid (B,P,J), joints that a prediction has (the others are taken to
        be in the middle of those), and centers (B,P,3) mm. Batch id (B,); the truth X_world (B,M,J,3) mm, X_valid (B,M,J), n_people (B,)
        and the 2D people camera (B,V), x_img (B,V,M,J,2) px, conf (B,V,M,J), either of them optional.

        Raises:
            DataError: the number of joints is not the skeleton's, or only some batches have a truth.
            RunError: a prediction is NaN or infinite.
        """
        others: dict[str, Tensor] = {}
        if "X_world" in batch:
            others |= {"gt": _wide(batch["X_world"]), "gt_valid": _real(batch)}
            joints = others["gt"].shape[2]
            if joints != self.skeleton.num:
                raise DataError(
                    f"{type(self).__name__}: the true people have {joints} joints, expected the {self.skeleton.num} of skeleton "
                    f"{self.skeleton.name}; set DATASET.SKELETON"
                )
        if "centers" in pred:
            others["centers"] = _wide(pred["centers"].where(pred["found"].bool()[..., None], 0.0))
        if {"camera", "x_img", "conf"} <= set(batch):
            found = pred["found"].bool()
            X = pred["X_world"].where(found[..., None, None], 0.0)
            seen = people.reprojection_people(X, found, batch["camera"], batch["x_img"], batch["conf"], pred.get("valid"))
            others["reprojection"] = torch.stack([value.sum(1) for value in seen], 1)
        self._keep(pred, batch, **others)

    def compute(self) -> Report:
        """All numbers over all rows."""
        rows = self._sorted_rows()
        metrics, per_joint, per_action = {}, {}, {}
        counts = {"frames": len(rows["id"]), "predictions": int(rows["found"].sum()), **self.counts}
        if "gt" in rows:
            X, gt, valid = people.fill_joints(rows["X"], rows["valid"]), rows["gt"], rows["gt_valid"]
            distance = people.person_distances(X, gt, valid)
            metrics |= self._scores(distance, rows)
            counts |= {"people": int(valid.any(-1).sum()), "frames_without_people": int((~valid.any(-1).any(-1)).sum())}
            per_joint["mpjpe_mm"] = self._joint_errors(distance, rows)
            if "centers" in rows:
                point, known = gt[:, :, self.root].mean(2, keepdim=True), valid[:, :, self.root].all(2, keepdim=True)
                roots = people.person_distances(rows["centers"][:, :, None], point, known)
                metrics |= {f"root_{key}": value for key, value in self._scores(roots, rows | {"gt_valid": known}).items()}
            per_action = self._by_sequence(distance, rows)
        if "reprojection" in rows:
            sums = people.Reprojection(*rows["reprojection"].double().sum(0))
            ratios = {
                "reprojection_percent": sums.ospa(),
                "reprojection_matched_percent": float(sums.cost / sums.matched),
                "reprojection_found_percent": float(sums.matched / sums.seen),
                "reprojection_true_percent": float(sums.matched / sums.shown),
            }
            metrics |= {key: 100 * ratio for key, ratio in ratios.items() if math.isfinite(ratio)}  # none of nobody
        return Report(metrics, per_joint, per_action, counts, self._protocol())

    def _scores(self, distance: Tensor, rows: dict[str, Tensor]) -> dict[str, float]:
        assigned = self._assigned(distance, rows)
        eps = people.REFERENCE_EPS if self.rule == "reference" else 0.0
        table = {f"{mm:.0f}": people.average_precision(assigned, mm, eps) for mm in people.AP_MM}
        ap, recall = (np.array(column) for column in zip(*table.values(), strict=True))
        found = people.matched(assigned).distance
        values = {f"ap{mm}_percent": 100 * value for mm, (value, _) in table.items()}
        values |= {"map_percent": 100 * float(ap.mean()), f"recall{people.MATCH_MM:.0f}_percent": 100 * people.recall_at(assigned)}
        values |= {"mpjpe_mm": float(found.mean()) if len(found) else np.nan, "mar_percent": 100 * float(recall.mean())}
        values |= {f"recall{mm}_percent": 100 * value for mm, (_, value) in table.items()}
        return {key: value for key, value in values.items() if np.isfinite(value)}

    def _assigned(self, distance: Tensor, rows: dict[str, Tensor]) -> people.Assigned:
        return people.assign(distance, rows["score"], rows["found"], rows["gt_valid"].any(-1), self.count_empty_frames)

    def _joint_errors(self, distance: Tensor, rows: dict[str, Tensor]) -> dict[str, float]:
        """Mean error of each joint over the people found."""
        pairs = people.matched(self._assigned(distance, rows))
        person = pairs.person % max(distance.shape[2], 1)
        error = length(rows["X"][pairs.frame, pairs.slot].double() - rows["gt"][pairs.frame, person].double())
        known = rows["valid"][pairs.frame, pairs.slot] & rows["gt_valid"][pairs.frame, person]
        return self._per_joint(error.masked_fill(~known, torch.nan))

    def _by_sequence(self, distance: Tensor, rows: dict[str, Tensor]) -> dict[str, dict[str, float]]:
        if self.actions is None:
            return {}
        names, group = np.unique(np.asarray(self.actions)[rows["id"].numpy()], return_inverse=True)
        table: dict[str, dict[str, float]] = {"map_percent": {}, "recall500_percent": {}, "mpjpe_mm": {}}
        for k, name in enumerate(names):
            own = torch.from_numpy(group == k)
            part = self._scores(distance[own], {key: rows[key][own] for key in ("score", "found", "gt_valid")})
            for metric, column in table.items():
                if metric in part:
                    column[str(name)] = part[metric]
        return table

    def _protocol(self) -> dict[str, Any]:
        return {
            "skeleton": self.skeleton.name,
            "people": {"rule": self.rule, "count_empty_frames": self.count_empty_frames, "matched_within_mm": people.MATCH_MM},
            "reprojection_limit": people.REPROJECTION_LIMIT,
            **self.protocol,
        }


class PCPEvaluator(PeopleRows):
    """Parts of the actors' bodies found right in 3D, in percent, as published for Shelf and Campus.

    Numbers (see lib.metrics.people.pcp3d): pcp_actor<k>_percent, their mean pcp_percent, pcp_recall500_percent, mpjpe_mm of the actors
    found within 500 mm; and a table of the groups of parts by actor.

    Args:
        skeleton: of the predictions; they are converted by name to the truth's 14 joints (shelf14).
        truth: (N,A,14,3) mm by id, NaN where an actor or a joint is absent; None = the batches bring it.
        head_rule: "plain" or "blended", see lib.metrics.people.to_fourteen.
        average_over: how many actors, from the first, make the average; None = all.
        rule: "exact", or "reference", where an actor who never appears has 0.
    """

    def __init__(
        self,
        skeleton: Skeleton | str,
        truth: np.ndarray | Tensor | None = None,
        head_rule: str = "plain",
        average_over: int | None = 3,
        rule: str = "exact",
        protocol: Mapping[str, Any] | None = None,
    ):
        super().__init__(skeleton)
        resolve(dict.fromkeys(people.RULES), rule, key="PCP rule")
        people.to_fourteen(torch.zeros(1, self.skeleton.num, 3), self.skeleton, head_rule)  # refuses what cannot be
        self.truth = None if truth is None else torch.as_tensor(truth)
        self._check_joints(self.truth)
        self.head_rule, self.average_over, self.rule, self.protocol = head_rule, average_over, rule, dict(protocol or {})

    def update(self, pred: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Add a batch of B frames: pred as for PeopleEvaluator.

        Batch id (B,) and, without `truth`, X_world (B,A,14,3) mm, X_valid (B,A,14). Slots are actors; where people are packed instead,
        actor (B,A) long says who each is, from 0 on, -1 = nobody.

        Raises:
            DataError: wrong numbers of joints. RunError: a prediction is NaN or infinite.
        """
        if self.truth is not None:
            gt = _wide(self.truth[batch["id"].detach().cpu()])
            valid = gt.isfinite().all(-1)
            gt = gt.where(valid[..., None], 0.0)
        else:
            gt, valid = _wide(batch["X_world"]), batch["X_valid"].bool()
            self._check_joints(gt)
            if "actor" in batch:
                gt, valid = _by_actor(gt, valid, batch["actor"])
        self._keep(pred, batch, gt=gt, gt_valid=valid)

    @staticmethod
    def _check_joints(gt: Tensor | None) -> None:
        fourteen = get(people.PCP_SKELETON)
        if gt is not None and (gt.ndim != 4 or gt.shape[2:] != (fourteen.num, 3)):
            raise DataError(
                f"PCPEvaluator: the true people have shape {tuple(gt.shape)}, expected (..., actors, {fourteen.num}, 3), the joints of "
                f"skeleton {fourteen.name}"
            )

    def compute(self) -> Report:
        """All numbers over all rows."""
        rows = self._sorted_rows()
        X = rows["X"].masked_fill(~rows["valid"][..., None], torch.nan)  # what is made of a missing joint is missing
        X, present = people.to_fourteen(X, self.skeleton, self.head_rule)
        has = X.isfinite().all(-1) & present
        pcp = people.pcp3d(X.where(has[..., None], 0.0), rows["found"], rows["gt"], rows["gt_valid"], None if has.all() else has)
        scores = people.pcp_scores(pcp, self.average_over, rule=self.rule)
        metrics = {f"pcp_actor{k + 1}_percent": 100 * value for k, value in enumerate(scores.actor.tolist())}
        near = pcp.error[pcp.error < people.MATCH_MM]
        metrics |= {"pcp_percent": 100 * scores.average, f"pcp_recall{people.MATCH_MM:.0f}_percent": 100 * scores.recall}
        metrics["mpjpe_mm"] = float(near.mean()) if len(near) else np.nan
        groups = {
            f"pcp_actor{k + 1}_percent": {name: 100 * v for name, v in zip(people.GROUPS, column, strict=True) if v == v}
            for k, column in enumerate(scores.group.T.tolist())
        }
        return Report(
            metrics={key: value for key, value in metrics.items() if np.isfinite(value)},
            per_joint={key: column for key, column in groups.items() if column},
            counts={
                "frames": len(rows["id"]),
                "actors_in_frames": int(pcp.known.any(-1).sum()),
                "predictions": int(rows["found"].sum()),
            },
            protocol={
                "skeleton": self.skeleton.name,
                "head_rule": self.head_rule,
                "average_over": self.average_over,
                "rule": self.rule,
                **self.protocol,
            },
        )


def _wide(x: Tensor) -> Tensor:
    """On the CPU in float32, or float64 where it was."""
    return x.detach().cpu().to(torch.promote_types(x.dtype, torch.float32))


def _real(batch: Mapping[str, Any]) -> Tensor:
    """X_valid of the people that the frame has, (B,M,J) bool."""
    valid = batch["X_valid"].bool()
    if "n_people" in batch:
        valid = valid & (torch.arange(valid.shape[1], device=valid.device) < batch["n_people"][:, None])[..., None]
    return valid


def _by_actor(gt: Tensor, valid: Tensor, actor: Tensor) -> tuple[Tensor, Tensor]:
    """People moved to the slots of the actors that they are; an actor whom nobody is has no valid joint."""
    actor, valid = actor.detach().cpu().long(), valid.detach().cpu()
    count = int(actor.max()) + 1 if actor.numel() else 0
    frame, slot = (actor >= 0).nonzero(as_tuple=True)
    who = actor[frame, slot]
    X, known = gt.new_zeros(len(gt), count, *gt.shape[2:]), valid.new_zeros(len(gt), count, gt.shape[2])
    X[frame, who], known[frame, who] = gt[frame, slot], valid[frame, slot]
    return X, known


def _stacked(parts: list[Tensor]) -> Tensor:
    """Parts of different numbers of people (dimension 1) in one, with zeros where they have fewer."""
    if parts[0].ndim < 2:
        return torch.cat(parts)
    most = max(part.shape[1] for part in parts)
    return torch.cat([torch.cat([part, part.new_zeros(len(part), most - part.shape[1], *part.shape[2:])], 1) for part in parts])
