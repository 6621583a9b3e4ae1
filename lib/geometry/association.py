"""People in calibrated views, associated without learning: which 2D people of different cameras are the same, and where they are.

Every pair of 2D people from two cameras is a hypothesis of a person in space: its joints, triangulated from the two, are projected into all
views and compared with the 2D people there. The hypothesis on which most views agree is taken, its 2D people are used up, and so on;
that is the consensus idea of RANSAC with whole people as samples. The epipolar distance of the pairs only says which hypotheses are worth
the trouble: alone it cannot tell apart people of equal height that level cameras see.

Frames F, views V, 2D people M per view (padded), joints J, people P. All frames are treated at once, in blocks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.crop import longer_side
from lib.geometry.epipolar import fundamental_from_cameras, sampson_distance
from lib.geometry.precision import no_autocast, result_dtype, solve_dtype
from lib.geometry.triangulation import enough_views, ransac_triangulate, triangulate

BLOCK = 1 << 22  # entries of the table hypotheses x views x 2D people x joints that are made at once
FAR = 1.0  # sizes of the person; no joint may be farther off than that, so a single outlier cannot spoil a match
SAME = 0.5  # agreement with a person found from which on a 2D person is another listing of the same
MIN_CONF = 0.3  # confidence from which on callers take a detected joint to be there
NEAR = 0.1  # of the person's size: joints of one view that the robust triangulation takes for agreeing


class Associated(NamedTuple):
    """People found by `associate_people`, the most certain first."""

    X_world: Tensor  # (F, P, J, 3) mm, 0 where not valid
    valid: Tensor  # (F, P, J) bool: at least two views agree on the joint
    found: Tensor  # (F, P) bool
    score: Tensor  # (F, P) support: number of views, each counted by how well it agrees (0 to 1)
    member: Tensor  # (F, P, V) long: the 2D person of each view, -1 = none
    views: Tensor  # (F, P, J) long: views that agree on the joint


@no_autocast
def associate_people(
    x_img: Tensor,
    conf: Tensor,
    cameras: Cameras,
    max_people: int = 10,
    min_views: int = 2,
    min_score: float = 1.4,
    limit: float = 0.1,
    apart_mm: float = 300.0,
    min_joints: int = 4,
    max_pairs: int = 512,
) -> Associated:
    """Find the people that 2D people of several calibrated views have in common.

    x_img (F,V,M,J,2) px of the stored images, conf (F,V,M,J) >= 0 with 0 for joints (or people) that are not there, cameras (V,) or (F,V)
    -> Associated. Differences in an image are measured in sizes of the 2D person there (longer side of the box around its joints).

    Args:
        max_people: P, the most that are looked for in a frame.
        min_views: views that must agree on a person.
        min_score: support that a person needs; 0 takes everyone. It is meant for people whom only two views see: at 1.4 both must err by
            3 % of the size or less. Two different people of similar pose can agree nearly as well, above all for level cameras;
            min_views=3 excludes that.
        limit: mean distance of joints, in sizes, at which a 2D person no longer agrees with a hypothesis.
        apart_mm: a hypothesis closer than that (mean over joints) to a person already found is the same person seen once more.
        min_joints: joints that two 2D people, or a 2D person and a hypothesis, must have in common.
        max_pairs: hypotheses judged per frame, those with the least epipolar distance.

    Raises:
        GeometryError: shapes do not fit, or there are fewer than two views.
    """
    if x_img.ndim != 5 or x_img.shape[-1] != 2 or conf.shape != x_img.shape[:-1] or cameras.shape[-1:] != x_img.shape[1:2]:
        raise GeometryError(
            f"associate_people: x_img {tuple(x_img.shape)}, conf {tuple(conf.shape)}, cameras {tuple(cameras.shape)}; "
            "expected (F,V,M,J,2), (F,V,M,J) and (V,) or (F,V)"
        )
    frames, views = conf.shape[:2]
    if views < 2:
        raise GeometryError(f"associate_people: found {views} views, expected at least two")
    if not conf.shape[2]:  # one place that nobody takes
        x_img, conf = x_img.new_zeros(frames, views, 1, *x_img.shape[3:]), conf.new_zeros(frames, views, 1, conf.shape[3])
    scene = _Scene.of(x_img, conf, cameras, limit, min_joints)
    pairs = min(max_pairs, views * (views - 1) // 2 * conf.shape[2] ** 2)
    step = max(1, BLOCK // max(1, pairs * conf.shape[1:].numel()))
    parts = [
        _search(scene.part(slice(start, start + step)), max_people, min_views, min_score, apart_mm, max_pairs)
        for start in range(0, frames, step)
    ]
    if not parts:
        member, score = conf.new_zeros(0, max_people, views, dtype=torch.long), conf.new_zeros(0, max_people)
    else:
        member, score = (torch.cat(part) for part in zip(*parts, strict=True))
    found = (member >= 0).sum(-1) >= min_views
    X, inlier = triangulate_people(x_img, conf, cameras, member)
    valid = enough_views(inlier) & found[..., None]
    dtype = result_dtype(x_img)
    return Associated(X.where(valid[..., None], 0.0), valid, found, score.to(dtype), member, inlier.sum(-2) * valid)


@no_autocast
def triangulate_people(
    x_img: Tensor, conf: Tensor, cameras: Cameras, member: Tensor, method: str = "reweighted", near: float | None = NEAR
) -> tuple[Tensor, Tensor]:
    """Triangulate people whose 2D people are known.

    x_img (F,V,M,J,2) px of the stored images, conf (F,V,M,J), cameras (V,) or (F,V), member (F,P,V) long, -1 = not seen in that view ->
    X (F,P,J,3) mm, used (F,P,V,J) bool: the views each joint was made from. Confidences are the weights. `near`: distance, in sizes of
    the 2D person, within which views agree on a joint, the others are left out; None = all views count (`method` of `triangulate`).
    """
    frames, people, views = member.shape
    x = cameras.undistort(x_img.flatten(2, 3)).unflatten(2, conf.shape[2:])
    weight = conf.to(x.dtype).where(conf > 0, 0.0)
    index = member.clamp(min=0).movedim(-1, 1)[..., None]  # (F,V,P,1)
    weight = weight.take_along_dim(index, 2).movedim(1, 2) * (member >= 0)[..., None]  # (F,P,V,J)
    x = x.take_along_dim(index[..., None], 2).movedim(1, 2)  # (F,P,V,J,2)
    P = cameras.P.expand(frames, views, 3, 4)[:, None].expand(frames, people, views, 3, 4)
    if near is None:
        return triangulate(x, P, weight, method), weight > 0
    # in units of the person's size in each view, so that one threshold fits all
    scale = 1 / longer_side(x, weight > 0).clamp(min=1.0)
    P = torch.cat([P[..., :2, :] * scale[..., None, None], P[..., 2:, :]], -2)
    return ransac_triangulate(x * scale[..., None, None], P, weight, near, method)


class _Scene(NamedTuple):
    """2D people of a block of frames, without distortion, in the type of solvers."""

    x: Tensor  # (F,V,M,J,2) px
    conf: Tensor  # (F,V,M,J)
    size: Tensor  # (F,V,M) px
    P: Tensor  # (F,V,3,4)
    limit: float
    min_joints: int

    @staticmethod
    def of(x_img: Tensor, conf: Tensor, cameras: Cameras, limit: float, min_joints: int) -> "_Scene":
        dtype = solve_dtype(x_img.device)
        cameras = cameras.to(dtype).expand(*conf.shape[:2])
        known = conf > 0
        x = cameras.undistort(x_img.to(dtype).where(known[..., None], 0.0).flatten(2, 3)).unflatten(2, conf.shape[2:])
        x = x.where(known[..., None], 0.0)
        conf = conf.to(dtype).where(known, 0.0)
        return _Scene(x, conf, longer_side(x, known).clamp(min=1.0), cameras.P, limit, min_joints)

    def part(self, rows: slice) -> "_Scene":
        return self._replace(**{name: getattr(self, name)[rows] for name in ("x", "conf", "size", "P")})


def _search(scene: _Scene, max_people: int, min_views: int, min_score: float, apart_mm: float, max_pairs: int) -> tuple[Tensor, Tensor]:
    """Members (f,P,V) and scores (f,P) of the people of a block of frames, by falling score."""
    frames, views = scene.conf.shape[:2]
    X, known, first, second = _hypotheses(scene, max_pairs)  # (f,K,J,3), (f,K,J), (f,K) twice
    support = _judge(scene, X, known)  # (f,K,V,M)
    free = (scene.conf > 0).sum(-1) >= scene.min_joints  # (f,V,M)
    alive = known.sum(-1) >= scene.min_joints  # (f,K)
    row = torch.arange(frames, device=X.device)
    members, scores = [], []
    for _ in range(max_people if X.shape[1] else 0):
        best = support.where(free[:, None], 0.0).amax(-1)  # (f,K,V)
        own = free.flatten(1).gather(1, first) & free.flatten(1).gather(1, second)
        usable = alive & own & ((best > 0).sum(-1) >= min_views)
        value, pick = best.sum(-1).where(usable, 0.0).max(1)
        some = (value > 0) & (value >= min_score)
        if not some.any():
            break
        # once more from all the views that agree, which moves the joints and may change who agrees
        member = _members(support[row, pick], free)  # (f,V)
        joined, seen = _joined(scene, member)
        again = _judge(scene, joined[:, None], seen[:, None])[:, 0]  # (f,V,M)
        better = _members(again, free)
        member = torch.where(((better >= 0).sum(-1) >= (member >= 0).sum(-1))[:, None], better, member).where(some[:, None], -1)
        members.append(member)
        scores.append(value.where(some, 0.0))
        frame, view = (member >= 0).nonzero(as_tuple=True)
        free = free & ~(again > SAME)  # nor may a second listing of the same person become somebody
        free[frame, view, member[frame, view]] = False
        alive = alive & ~(_mean_distance(X, known, joined, seen) < apart_mm)
        alive[row, pick] = False
    empty = torch.full((frames, views), -1, dtype=torch.long, device=X.device)
    members += [empty] * (max_people - len(members))
    scores += [scene.conf.new_zeros(frames)] * (max_people - len(scores))
    member, score = torch.stack(members, 1), torch.stack(scores, 1)
    order = score.masked_fill(~(member >= 0).any(-1), -torch.inf).sort(dim=1, descending=True, stable=True)[1]
    return member.take_along_dim(order[..., None], 1), score.take_along_dim(order, 1)


def _hypotheses(scene: _Scene, max_pairs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """People from pairs of 2D people in two views, those with the least epipolar distance.

    -> X (f,K,J,3) mm, known (f,K,J) bool, and the two 2D people (f,K) as view * M + slot
    """
    views, slots = scene.conf.shape[1:3]
    device = scene.x.device
    one, two = torch.triu_indices(views, views, 1, device=device)
    slot = torch.cartesian_prod(torch.arange(slots, device=device), torch.arange(slots, device=device))  # (M*M,2)
    first = (one[:, None] * slots + slot[:, 0]).flatten()  # (Q,)
    second = (two[:, None] * slots + slot[:, 1]).flatten()
    x, conf, size = scene.x.flatten(1, 2), scene.conf.flatten(1, 2), scene.size.flatten(1, 2)
    both = (conf[:, first] * conf[:, second]).sqrt()  # (f,Q,J)
    F = fundamental_from_cameras(scene.P[:, one], scene.P[:, two]).repeat_interleave(slots**2, 1)  # (f,Q,3,3)
    distance = sampson_distance(F, x[:, first], x[:, second]) / torch.minimum(size[:, first], size[:, second])[..., None]
    distance = (distance.clamp(max=FAR) * both).sum(-1) / both.sum(-1).clamp(min=1e-9)
    usable = ((both > 0).sum(-1) >= scene.min_joints) & (distance < scene.limit)
    keep = distance.where(usable, torch.inf).topk(min(max_pairs, distance.shape[1]), largest=False, sorted=True)
    most = int(usable.sum(1).max()) if usable.numel() else 0
    chosen = keep.indices[:, :most]
    first, second = first[chosen], second[chosen]  # (f,K)
    ends = torch.stack([first, second], -1)  # (f,K,2)
    flat = ends.flatten(1)
    pair = x.take_along_dim(flat[..., None, None], 1).unflatten(1, ends.shape[1:])  # (f,K,2,J,2)
    weight = conf.take_along_dim(flat[..., None], 1).unflatten(1, ends.shape[1:])
    P = scene.P.take_along_dim((flat // max(slots, 1))[..., None, None], 1).unflatten(1, ends.shape[1:])
    known = (weight > 0).all(2) & keep.values[:, :most].isfinite()[..., None]
    X = triangulate(pair, P, weight, "linear_ls")
    return X.where(known[..., None], 0.0), known, first, second


def _judge(scene: _Scene, X: Tensor, known: Tensor) -> Tensor:
    """How far every 2D person agrees with each hypothesis, 0 to 1.    X (f,K,J,3), known (f,K,J) -> (f,K,V,M)"""
    ones = torch.ones_like(X[..., :1])
    image = torch.einsum("fvab,fkjb->fkvja", scene.P, torch.cat([X, ones], -1))  # (f,K,V,J,3)
    depth = image[..., 2]
    front = (depth > 1e-6) & known[:, :, None]
    point = image[..., :2] / depth.where(front, 1.0)[..., None]
    size = scene.size[:, None, :, :, None]
    u, v = ((point[..., None, :, k] - scene.x[:, None, ..., k]) / size for k in (0, 1))  # (f,K,V,M,J)
    distance = (u * u + v * v).sqrt_().clamp_(max=FAR).where(front[:, :, :, None], FAR)
    common = known[:, :, None, None] & (scene.conf > 0)[:, None]
    weight = scene.conf[:, None] * common
    error = (distance * weight).sum(-1) / weight.sum(-1).clamp(min=1e-9)
    number = common.sum(-1)
    # few joints prove less than many
    support = (1 - error / scene.limit).clamp(min=0) * (number / known.shape[-1]).sqrt()
    return support.where(number >= scene.min_joints, 0.0)


def _members(support: Tensor, free: Tensor) -> Tensor:
    """The free 2D person of each view that agrees best, -1 = none does.    support, free (f,V,M) -> (f,V) long"""
    value, slot = support.where(free, 0.0).max(-1)
    return slot.where(value > 0, -1)


def _joined(scene: _Scene, member: Tensor) -> tuple[Tensor, Tensor]:
    """One person per frame from its members (f,V).    -> X (f,J,3), known (f,J) bool"""
    index = member.clamp(min=0)[..., None, None]
    weight = scene.conf.take_along_dim(index, 2)[:, :, 0] * (member >= 0)[..., None]  # (f,V,J)
    x = scene.x.take_along_dim(index[..., None], 2)[:, :, 0]
    return triangulate(x, scene.P, weight, "reweighted"), enough_views(weight)


def _mean_distance(X: Tensor, known: Tensor, Y: Tensor, seen: Tensor) -> Tensor:
    """Mean distance of hypotheses from one person per frame, inf without common joints.    (f,K,J,3), (f,J,3) -> (f,K)"""
    common = known & seen[:, None]
    distance = torch.linalg.vector_norm(X - Y[:, None], dim=-1).where(common, 0.0).sum(-1)
    return (distance / common.sum(-1).clamp(min=1)).masked_fill(~common.any(-1), torch.inf)
