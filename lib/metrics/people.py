"""Several people per frame: who was found, how exactly, and the numbers that multi-person papers print.

Frames F, predicted people P, true people M, joints J; padded, with masks that say who is there: found (F,P), real (F,M). Poses are in
world mm. Everything is computed in float64 and batched over frames and people.

Sources of the measures: Tu et al., VoxelPose, ECCV 2020, section 4 (AP, recall, MPJPE on CMU Panoptic); Belagiannis et al., 3D Pictorial
Structures, CVPR 2014 (PCP on Shelf and Campus); Schuhmacher et al., IEEE TSP 2008 (OSPA, for reprojected people).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lib.errors import ConfigError, GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.crop import longer_side
from lib.geometry.precision import no_autocast, solve_dtype
from lib.metrics.pose import length
from lib.registry import resolve
from lib.skeleton import Skeleton, convert, get

AP_MM = (25.0, 50.0, 75.0, 100.0, 125.0, 150.0)
MATCH_MM = 500.0  # recall and MPJPE: a person farther away was not found
RULES = ("exact", "reference")
REFERENCE_EPS = 1e-5  # added to the denominators of precision and recall by VoxelPose's evaluation
BLOCK = 512  # frames whose tables of all pairs of people are made at once


class Assigned(NamedTuple):
    """Predictions of a set of frames, best score first (equal scores: by frame, then by slot), each with the person it is nearest to."""

    score: Tensor  # (N,)
    distance: Tensor  # (N,) mm, inf where the frame has nobody
    person: Tensor  # (N,) long, number of the true person among all of the set, frame * M + slot
    frame: Tensor  # (N,) long
    slot: Tensor  # (N,) long, of the prediction
    n_people: int  # true people in all frames, whether anybody found them or not
    total: int  # F * M, one more than the highest person


def person_distances(pred: Tensor, gt: Tensor, valid: Tensor) -> Tensor:
    """Mean distance of the joints of each prediction from those of each true person, over the person's valid joints.

    pred (F,P,J,3), gt (F,M,J,3) mm, valid (F,M,J) bool -> (F,P,M) mm, inf where a person has no valid joint. A root or any other
    single point is a pose of one joint. Raises GeometryError for shapes that do not fit.
    """
    if pred.ndim != 4 or gt.ndim != 4 or pred.shape[::2] != gt.shape[::2] or pred.shape[-1] != gt.shape[-1] or valid.shape != gt.shape[:3]:
        raise GeometryError(
            f"people: pred {tuple(pred.shape)}, gt {tuple(gt.shape)}, valid {tuple(valid.shape)}; "
            "expected (F,P,J,3), (F,M,J,3) and (F,M,J)"
        )
    valid = valid.bool()
    gt = gt.double().masked_fill(~valid[..., None], 0.0)
    known = valid.sum(-1)  # (F,M)
    blocks = []
    for start in range(0, len(pred), BLOCK):
        part = slice(start, start + BLOCK)
        error = length(pred[part, :, None].double() - gt[part, None])  # (f,P,M,J)
        total = error.where(valid[part, None], 0.0).sum(-1)
        blocks.append((total / known[part, None].clamp(min=1)).masked_fill(known[part, None] == 0, torch.inf))
    return torch.cat(blocks) if blocks else gt.new_zeros(0, pred.shape[1], gt.shape[1])


def assign(distance: Tensor, score: Tensor, found: Tensor, real: Tensor, count_empty_frames: bool = True) -> Assigned:
    """The true person nearest to each prediction; several predictions may have the same.

    distance (F,P,M) mm, score (F,P), found (F,P) bool, real (F,M) bool -> Assigned of the predictions found. Frames without people give
    predictions at distance inf, which are false at any threshold; with count_empty_frames=False they are left out, as VoxelPose's
    evaluation does, so that ghosts in an empty room cost nothing.
    """
    frames, _, people = distance.shape
    found, real = found.bool(), real.bool()
    if not count_empty_frames:
        found = found & real.any(1, keepdim=True)
    distance = distance.masked_fill(~real[:, None], torch.inf)
    nearest, person = _with_one(distance, 2).min(-1)
    frame, slot = found.nonzero(as_tuple=True)
    order = score[frame, slot].sort(descending=True, stable=True)[1]
    frame, slot = frame[order], slot[order]
    person = frame * people + person[frame, slot]
    return Assigned(score[frame, slot], nearest[frame, slot], person, frame, slot, int(real.sum()), frames * people)


def first_hits(assigned: Assigned, threshold: float) -> Tensor:
    """Whether a prediction is the best scored one of its person below (strictly) the threshold: the true positives.    -> (N,) bool"""
    near = assigned.distance < threshold
    rank = torch.arange(len(near), device=near.device)
    first = rank.new_full((max(assigned.total, 1),), len(near))
    first.scatter_reduce_(0, assigned.person[near], rank[near], "amin")
    return near & (first[assigned.person.clamp(max=len(first) - 1)] == rank)


def average_precision(assigned: Assigned, threshold: float, eps: float = 0.0) -> tuple[float, float]:
    """Average precision and recall of the predictions within a threshold in mm, each 0 to 1; NaN where there is nobody to find.

    A prediction is right if it is within the threshold of its person and no better scored one is. AP is the area below the
    precision made monotone, as in PASCAL VOC 2010. `eps` is added to both denominators (REFERENCE_EPS: VoxelPose's evaluation).
    """
    if not assigned.n_people:
        return torch.nan, torch.nan
    if not len(assigned.score):
        return 0.0, 0.0
    true = first_hits(assigned, threshold).double().cumsum(0)
    precision = true / (torch.arange(1, len(true) + 1, device=true.device) + eps)
    recall = true / (assigned.n_people + eps)
    envelope = precision.flip(0).cummax(0)[0].flip(0)
    steps = torch.diff(recall, prepend=recall.new_zeros(1))
    return float((steps * envelope).sum()), float(recall[-1])


def recall_at(assigned: Assigned, threshold: float = MATCH_MM) -> float:
    """Part of the true people that any prediction lies within (strictly) the threshold of; NaN where there is nobody to find."""
    return float(first_hits(assigned, threshold).sum()) / assigned.n_people if assigned.n_people else torch.nan


def matched(assigned: Assigned, threshold: float = MATCH_MM) -> Assigned:
    """The one prediction of each person that was found: the best scored within the threshold.

    MPJPE is the mean of its `distance`, over people; whom nobody found does not count there, but in the recall.
    """
    keep = first_hits(assigned, threshold)
    rows = (value[keep] for value in assigned[:5])
    return Assigned(*rows, assigned.n_people, assigned.total)


# ------------------------------------------------------------------------------------------------------ Shelf, Campus

PCP_SKELETON = "shelf14"
HEAD_RULES = ("plain", "blended")
# Parts of the body: its group, and the joints whose mean is either end.
PARTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("lower legs", ("r_ankle",), ("r_knee",)), ("upper legs", ("r_knee",), ("r_hip",)),
    ("upper legs", ("l_hip",), ("l_knee",)), ("lower legs", ("l_knee",), ("l_ankle",)),
    ("lower arms", ("r_wrist",), ("r_elbow",)), ("upper arms", ("r_elbow",), ("r_shoulder",)),
    ("upper arms", ("l_shoulder",), ("l_elbow",)), ("lower arms", ("l_elbow",), ("l_wrist",)),
    ("head", ("upper_neck",), ("head",)), ("torso", ("l_hip", "r_hip"), ("upper_neck",)),
)  # fmt: skip
GROUPS = ("head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")  # in the order of published tables
ALPHA = 0.5  # of the part's length: how far its ends may be off on average


class PCP(NamedTuple):
    """What `pcp3d` finds: frames F, actors A, parts L (in the order of PARTS)."""

    correct: Tensor  # (F,A,L) bool
    known: Tensor  # (F,A,L) bool, parts that have a truth
    error: Tensor  # (F,A) mm, mean joint error of the nearest prediction; inf without one, NaN without truth
    slot: Tensor  # (F,A) long, the nearest prediction; -1 without one


def to_fourteen(X: Tensor, skeleton: Skeleton | str, head_rule: str = "plain") -> tuple[Tensor, Tensor]:
    """Predicted poses in the 14 joints of Shelf and Campus, by the name of the rule for the two ends of the head.

    X (..., J, 3) mm, world with z up -> (..., 14, 3) and present (14,) bool. "plain": the bottom half-way from the shoulders to the head's
    centre (ears, or the nose), the top as far beyond (lib.skeleton). "blended": a quarter of that and three quarters of points on the way
    from the shoulders to the nose, the top's 1.5 times as high; it needs nose and shoulders. VoxelPose takes "blended" for
    Shelf and "plain" for Campus, SelfPose3d "blended" for both: numbers of different rules do not compare.

    Raises:
        ConfigError: unknown rule, or the skeleton lacks a joint that the rule needs.
    """
    resolve(dict.fromkeys(HEAD_RULES), head_rule, key="head rule")
    skeleton, fourteen = get(skeleton), get(PCP_SKELETON)
    if skeleton.joints == fourteen.joints:
        return X, torch.ones(fourteen.num, dtype=torch.bool, device=X.device)
    out, present = convert(X, skeleton, fourteen)
    if head_rule == "plain":
        return out, present
    if skeleton.find("nose") is None or not bool(present.all()):
        raise ConfigError(
            f"head rule 'blended': skeleton {skeleton.name} lacks the nose or one of {', '.join(fourteen.joints)}; use the rule 'plain'"
        )
    base = X[..., skeleton.indices(("l_shoulder", "r_shoulder")), :].mean(-2)
    rise = X[..., skeleton.index("nose"), :] - base
    out = out.clone()
    for joint, along in (("upper_neck", X.new_tensor([0.5, 0.5, 0.5])), ("head", X.new_tensor([0.75, 0.75, 1.5]))):
        k = fourteen.index(joint)
        out[..., k, :] = 0.75 * (base + rise * along) + 0.25 * out[..., k, :]
    return out, present


def pcp3d(pred: Tensor, found: Tensor, gt: Tensor, valid: Tensor, pred_valid: Tensor | None = None, alpha: float = ALPHA) -> PCP:
    """Percentage of correct parts, 3D: which parts of each actor the nearest prediction has right.

    pred (F,P,14,3), found (F,P), gt (F,A,14,3) mm, valid (F,A,14), pred_valid (F,P,14): joints that a prediction has, None = all. The
    prediction with the least mean joint error is an actor's, so one may serve several actors, as published. A part is right if the mean
    error of its two ends is at most alpha times its true length; without any prediction in the frame all parts are wrong, and so is a
    part whose joint the prediction lacks.
    """
    fourteen, found, valid = get(PCP_SKELETON), found.bool(), valid.bool()
    if pred_valid is not None:
        pred = fill_joints(pred, pred_valid.bool())
    distance = person_distances(pred, gt, valid).masked_fill(~found[..., None], torch.inf)  # (F,P,A)
    error, slot = _with_one(distance, 1).min(1)  # (F,A)
    if not pred.shape[1]:
        pred = pred.new_zeros(len(pred), 1, fourteen.num, 3)
    nearest = pred.double().take_along_dim(slot[..., None, None], 1)  # (F,A,14,3)

    weight = torch.zeros(2, len(PARTS), fourteen.num, dtype=torch.double, device=pred.device)  # ends as means of joints
    for row, (_, *ends) in enumerate(PARTS):
        for end, joints in enumerate(ends):
            weight[end, row, fourteen.indices(joints)] = 1 / len(joints)
    ends = torch.einsum("elj,fajc->efalc", weight, nearest)
    true = torch.einsum("elj,fajc->efalc", weight, gt.double().masked_fill(~valid[..., None], 0.0))
    needed = (weight > 0).any(0).double()  # (L,14)
    known = torch.einsum("lj,faj->fal", needed, (~valid).double()) == 0
    correct = length(ends - true).mean(0) <= alpha * length(true[0] - true[1])
    correct &= known & error.isfinite()[..., None]
    if pred_valid is not None:
        has = pred_valid.bool().take_along_dim(slot[..., None], 1)
        correct &= torch.einsum("lj,faj->fal", needed, (~has).double()) == 0
    there = valid.any(-1)
    slot = slot.masked_fill(~error.isfinite(), -1)
    return PCP(correct, known, error.masked_fill(~there, torch.nan), slot)


class PCPScores(NamedTuple):
    """Parts found, 0 to 1: of each actor, on average, in each group of parts; NaN for an actor who never appears."""

    actor: Tensor  # (A,)
    average: float
    group: Tensor  # (6,A), rows as in GROUPS
    recall: float


def pcp_scores(pcp: PCP, average_over: int | None = 3, recall_mm: float = MATCH_MM, rule: str = "exact") -> PCPScores:
    """Scores of a set of frames.

    average_over: how many actors, from the first, the average is taken over: three, as published (the fourth of Shelf is left out);
    None = all. rule "reference" gives an actor who never appears 0, in the average too, as the released evaluations do; "exact"
    leaves such an actor out. recall: part of the (frame, actor) pairs with a prediction closer than recall_mm.
    """
    resolve(dict.fromkeys(RULES), rule, key="PCP rule")
    correct, known = pcp.correct.double(), pcp.known.double()
    groups = torch.tensor([[part[0] == group for part in PARTS] for group in GROUPS], dtype=torch.double, device=correct.device)
    absent = 0.0 if rule == "reference" else torch.nan
    in_group = (torch.einsum("gl,fal->ga", groups, x) for x in (correct, known))
    actor = _ratio(correct.sum((0, 2)), known.sum((0, 2)), absent)
    there = ~pcp.error.isnan()
    near = (pcp.error < recall_mm).sum().double()
    average = actor[:average_over].nanmean()
    return PCPScores(actor, float(average), _ratio(*in_group, absent), float(_ratio(near, there.sum(), absent)))


# ------------------------------------------------------------------------------------------------------ reprojection

REPROJECTION_LIMIT = 0.5  # of the person's size in the image


class Reprojection(NamedTuple):
    """What `reprojection_people` finds in every view of every frame, as sums that can be added over frames."""

    cost: Tensor  # (F,V) sum of errors over matched people, in sizes of the person, each at most the limit
    matched: Tensor  # (F,V) pairs below the limit
    seen: Tensor  # (F,V) people in the 2D truth
    shown: Tensor  # (F,V) predicted people who should be in the image
    most: Tensor  # (F,V) the greater of the two

    def ospa(self, limit: float = REPROJECTION_LIMIT) -> float:
        """Mean error where a person without a partner costs the limit, of all views and frames; NaN without any person."""
        return float((self.cost + limit * (self.most - self.matched)).sum() / self.most.sum())


@no_autocast
def reprojection_people(
    X: Tensor,
    found: Tensor,
    cameras: Cameras,
    x_img: Tensor,
    conf: Tensor,
    valid: Tensor | None = None,
    limit: float = REPROJECTION_LIMIT,
    min_conf: float = 0.05,
) -> Reprojection:
    """How well predicted people, projected into the views, agree with 2D people there; it needs no 3D truth.

    X (F,P,J,3) mm, found (F,P), cameras (F,V) or (V,), x_img (F,V,M,J,2) px of the stored images, conf (F,V,M,J), 0 = unknown,
    valid (F,P,J): joints that a prediction has, None = all. Slots of different views need not be the same person: every view is matched by
    itself. The error of a pair is the mean distance of the joints that both have, weighted by their confidence, over the longer side of
    the box around the 2D person (joints with at least `min_conf`; they alone count), and below `limit`; pairs are taken from the least
    error on, one to one. Together with the limit for everyone without a partner this is OSPA of order 1 (Schuhmacher et al., 2008) with
    greedy pairs. A prediction should be in an image where at least half of its joints are in view.
    """
    frames, views = conf.shape[:2]
    slots, joints = X.shape[1:3]
    valid = torch.ones_like(X[..., 0], dtype=torch.bool) if valid is None else valid.bool()
    dtype = solve_dtype(X.device)
    X, x_img, cameras = X.to(dtype), x_img.to(dtype), cameras.to(dtype).expand(frames, views)
    weight = conf.to(dtype).where(conf >= min_conf, 0.0)  # (F,V,M,J)
    known = weight > 0
    size = longer_side(x_img, known)  # (F,V,M)
    seen = size > 0

    flat = X.flatten(1, 2)[:, None]  # (F,1,P*J,3)
    projected, depth = cameras.project(flat)
    projected, depth, visible = (v.unflatten(2, (slots, joints)) for v in (projected, depth, cameras.in_view(flat)))  # (F,V,P,J,...)
    inside = (visible & valid[:, None]).sum(-1)
    shown = found.bool()[:, None] & (2 * inside >= valid.sum(-1)[:, None].clamp(min=1))

    distance = torch.linalg.vector_norm(projected[:, :, :, None] - x_img.where(known[..., None], 0.0)[:, :, None], dim=-1)
    distance = distance.where((depth > 0)[:, :, :, None], torch.inf)  # (F,V,P,M,J)
    common = known[:, :, None] & valid[:, None, :, None]
    total = (weight[:, :, None] * common).sum(-1)
    error = (distance.where(common, 0.0) * weight[:, :, None]).sum(-1)
    error = (error / total / size.where(seen, 1.0)[:, :, None]).masked_fill(total == 0, torch.inf)  # (F,V,P,M)
    near = found.bool()[:, None, :, None] & seen[:, :, None] & (error < limit)
    result = greedy_pairs(error.where(near, torch.inf).flatten(0, 1))
    cost, pairs, partner = (value.unflatten(0, (frames, views)) for value in result)
    shown = shown | (partner >= 0)
    seen, shown = seen.sum(-1), shown.sum(-1)
    return Reprojection(cost, *(count.to(dtype) for count in (pairs, seen, shown, torch.maximum(seen, shown))))


def greedy_pairs(cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One-to-one pairs from the least cost on, in all tables at once.

    cost (N,P,M), inf = not to be paired -> sum of the costs (N,), number of pairs (N,), partner of each row (N,P) long, -1 = none
    """
    tables, rows, columns = cost.shape
    cost, index = cost.clone(), torch.arange(tables, device=cost.device)
    partner = torch.full((tables, rows), -1, dtype=torch.long, device=cost.device)
    total = cost.new_zeros(tables)
    for _ in range(min(rows, columns)):
        least, place = cost.flatten(1).min(1)
        some = least.isfinite()
        if not some.any():
            break
        row, column = place // columns, place % columns
        partner[index[some], row[some]] = column[some]
        total = total + least.where(some, 0.0)
        cost[index[some], row[some]] = torch.inf
        cost[index[some], :, column[some]] = torch.inf
    return total, (partner >= 0).sum(1), partner


def _with_one(distance: Tensor, dim: int) -> Tensor:
    """The table, or one of a single entry at distance inf where it has none along `dim`."""
    if distance.shape[dim]:
        return distance
    return distance.new_full([1 if k == dim else size for k, size in enumerate(distance.shape)], torch.inf)


def _ratio(part: Tensor, whole: Tensor, empty: float) -> Tensor:
    return (part / whole.clamp(min=1)).masked_fill(whole == 0, empty)


def fill_joints(X: Tensor, valid: Tensor) -> Tensor:
    """Joints that a pose lacks put at the middle of those it has.    X (..., J, 3), valid (..., J)"""
    known = X.where(valid[..., None], 0.0)
    middle = known.sum(-2, keepdim=True) / valid.sum(-1)[..., None, None].clamp(min=1)
    return known.where(valid[..., None], middle)
