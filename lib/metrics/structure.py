"""Pose Structure Score: is a predicted pose in the same cluster of typical poses as the true one?

Source: Kocabas et al., EpipolarPose, CVPR 2019, section 3.4. PSS@K is the part of the poses whose prediction falls into the
truth's of K clusters, found by k-means among poses that are divided by their norm. It does not change with the scale of a pose,
but with its rotation; and it judges the pose as a whole, so one wrong limb counts as much as four.

The paper leaves some things open. Here poses are centred on the root, in the frame of the camera, with all joints of a skeleton;
the clusters are those of the true poses of a training set. They are part of the metric, not of a network: making them from 3D
truth does not turn self-supervised training into supervised training. Numbers compare only where the clusters are the same file.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.errors import MALFORMED, ConfigError, DataError, GeometryError
from lib.files import replaced
from lib.skeleton import SKELETONS, Skeleton, get

VERSION = 1
COUNTS = (50, 100)  # the published K
ITERATIONS = 300  # k-means of poses settles after some dozens
CHUNK = 4096  # poses; their distances to 100 centers stay in a core's cache


@dataclass(frozen=True, eq=False)
class Clusters:
    """K typical poses and how they were found."""

    centers: Tensor  # (K,J,3) float64, no unit: root-centred poses of norm 1, and means of them
    skeleton: str  # name in lib.skeleton.SKELETONS, the order of the J axis
    source: str = ""  # what they were fitted to, such as the name of a split
    step: int = 1  # every step-th instant of it
    poses: int = 0  # so many poses
    seed: int = 0
    n_init: int = 0

    @property
    def metric(self) -> str:
        """Name of the score in reports: pss50_percent."""
        return f"pss{len(self.centers)}_percent"

    def describe(self) -> dict[str, str | int]:
        """How they were found, for the protocol of a results file."""
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "centers"}
        return {"clusters": len(self.centers), "root": get(self.skeleton).root, "frame": "camera", **kept}


def normalise(X: Tensor, root: int) -> Tensor:
    """Poses centred on the root and divided by their norm; a pose without extent stays zero.   (N,J,3) -> (N,3J) float64"""
    X = X.double()
    X = (X - X[:, root, None]).flatten(1)
    return X / X.norm(dim=1, keepdim=True).clamp_min(torch.finfo(X.dtype).tiny)


def fit(
    X: Tensor, skeleton: Skeleton | str, clusters: int = 50, seed: int = 0, n_init: int = 10, source: str = "", step: int = 1
) -> Clusters:
    """k-means of true poses: the best of `n_init` runs of Lloyd's iteration from k-means++ seeds (Arthur and
    Vassilvitskii, SODA 2007).

    Args:
        X: (N,J,3) poses in the frame of their camera, any unit and origin; every joint known.
        skeleton: that of the J axis.
        source, step: stored with the clusters, see Clusters.

    Raises:
        DataError: fewer poses than clusters, or a coordinate that is not finite.
        GeometryError: the shape does not fit the skeleton.
        ConfigError: less than one cluster or run.
    """
    skeleton = get(skeleton) if isinstance(skeleton, str) else skeleton
    _check(X, skeleton)
    if clusters < 1 or n_init < 1:
        raise ConfigError(f"pose structure: {clusters} clusters from {n_init} runs; expected at least 1 of each")
    if len(X) < clusters:
        raise DataError(
            f"pose structure: {len(X)} poses cannot make {clusters} clusters; fit to more poses (a smaller frame step), or ask for fewer"
        )
    bad = int((~X.flatten(1).isfinite().all(1)).sum())
    if bad:
        raise DataError(f"pose structure: {bad} of {len(X)} poses have joints that are not finite; leave out poses with unknown joints")
    points = normalise(X.cpu(), skeleton.root_index)
    generator = torch.Generator().manual_seed(seed)
    centers, _ = min((_lloyd(points, _seeds(points, clusters, generator)) for _ in range(n_init)), key=lambda found: found[1])
    return Clusters(centers.unflatten(1, (-1, 3)), skeleton.name, source, step, len(X), seed, n_init)


def assign(X: Tensor, clusters: Clusters) -> Tensor:
    """Index of the nearest cluster of each pose.   (N,J,3) any unit and origin -> (N,) int64

    Raises:
        GeometryError: the shape does not fit the clusters' skeleton.
    """
    skeleton = get(clusters.skeleton)
    _check(X, skeleton)
    return _nearest(normalise(X, skeleton.root_index), clusters.centers.to(X.device).flatten(1))[0]


def pss(pred: Tensor, gt: Tensor, clusters: Clusters, valid: Tensor | None = None) -> Tensor:
    """1 where prediction and truth are in the same cluster, else 0; NaN where a joint is not valid.

    Args:
        pred, gt: (N,J,3) in the camera's frame, any unit, each centred here on its own root.
        valid: (N,J) joints that are known; None means all.

    Returns:
        (N,) float64; the mean over a set is its PSS.

    Raises:
        GeometryError: shapes that do not fit each other or the clusters' skeleton.
    """
    _check(pred, get(clusters.skeleton))
    if pred.shape != gt.shape or (valid is not None and valid.shape != gt.shape[:2]):
        raise GeometryError(
            f"pose structure: pred has shape {tuple(pred.shape)}, gt {tuple(gt.shape)}"
            + ("" if valid is None else f", valid {tuple(valid.shape)}")
            + "; expected the same poses in all"
        )
    same = (assign(pred, clusters) == assign(gt, clusters)).double()
    return same if valid is None else same.masked_fill(~valid.bool().all(1), torch.nan)


def save(path: str | Path, clusters: Clusters) -> None:
    """Writes clusters as .npz, with version, joint order and how they were found.

    Raises:
        DataError: the file is there already, or cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise DataError(f"{path}: is there already, and scores that were measured with it need it; delete it, or choose another name")
    arrays = {name: np.array(value) for name, value in vars(clusters).items() if name != "centers"}
    arrays |= {"version": np.array(VERSION), "joints": np.array(get(clusters.skeleton).joints), "centers": clusters.centers.cpu().numpy()}
    with replaced(path, advice="make the folder writable, or choose another", parents=False) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: str | Path, skeleton: Skeleton | str | None = None) -> Clusters:
    """Clusters that `save` wrote; of `skeleton`, where one is given.

    Raises:
        DataError: the file is missing, damaged, of another version or of another skeleton.
    """
    path = Path(path)
    again = "make it with scripts/prepare.py pss"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        return _clusters(path, found, skeleton, again)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {again}") from None
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: not a readable file of pose clusters ({error}); delete it and {again}") from None


def _clusters(path: Path, found: dict[str, np.ndarray], skeleton: Skeleton | str | None, again: str) -> Clusters:
    version = int(found.pop("version"))
    if version != VERSION:
        raise DataError(f"{path}: is of version {version}, expected {VERSION}; delete it and {again}")
    fields = {field.name: field.type for field in dataclasses.fields(Clusters)}
    if found.keys() != {*fields, "joints"}:
        raise DataError(f"{path}: holds {sorted(found)}, expected {sorted({*fields, 'joints'})}; delete it and {again}")
    name = str(found["skeleton"])
    if name not in SKELETONS:
        raise DataError(f"{path}: has clusters of an unknown skeleton, {name!r}; delete it and {again}")
    expected = name if skeleton is None else skeleton if isinstance(skeleton, str) else skeleton.name
    joints = list(get(expected).joints)
    if name != expected or found["joints"].tolist() != joints:
        raise DataError(
            f"{path}: has clusters of skeleton {name} ({', '.join(found['joints'].tolist())}), expected {expected} "
            f"({', '.join(joints)}); {again} for that skeleton"
        )
    centers = torch.from_numpy(found["centers"])
    if centers.shape[1:] != (len(joints), 3) or not centers.isfinite().all():
        raise DataError(
            f"{path}: centers have shape {tuple(centers.shape)}, expected (K, {len(joints)}, 3), all finite; delete it and {again}"
        )
    return Clusters(
        centers.double(), name, str(found["source"]), *(int(found[field]) for field in ("step", "poses", "seed", "n_init"))
    )


def _check(X: Tensor, skeleton: Skeleton) -> None:
    if X.ndim != 3 or X.shape[1:] != (skeleton.num, 3):
        raise GeometryError(f"pose structure: poses have shape {tuple(X.shape)}, expected (N, {skeleton.num}, 3) for {skeleton.name}")


def _nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of centers (K,D) to each of points (N,D), and its squared distance.   -> (N,) int64, (N,)"""
    bias, turned = centers.square().sum(1) / 2, centers.mT.contiguous()
    best = [torch.addmm(bias, part, turned, alpha=-1).min(1) for part in points.split(CHUNK)]  # half the distance, but for |x|^2
    label = torch.cat([found.indices for found in best]) if best else points.new_zeros(0, dtype=torch.int64)
    half = torch.cat([found.values for found in best]) if best else points.new_zeros(0)
    return label, (points.square().sum(1) + 2 * half).clamp_min(0)


def _seeds(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next seed is drawn with the square of its distance to the nearest one so far.   -> (K,D)"""
    chosen = torch.randint(len(points), (1,), generator=generator)
    distance = (points - points[chosen]).square().sum(1)
    for _ in range(1, clusters):
        weight = distance if distance.max() > 0 else torch.ones_like(distance)  # fewer different poses than clusters
        new = torch.multinomial(weight, 1, generator=generator)
        chosen = torch.cat([chosen, new])
        distance = torch.minimum(distance, (points - points[new]).square().sum(1))
    return points[chosen]


def _lloyd(points: Tensor, centers: Tensor) -> tuple[Tensor, float]:
    """Centers (K,D) after convergence, and the sum of the squared distances to them."""
    label, distance = _nearest(points, centers)
    for _ in range(ITERATIONS):
        count = torch.bincount(label, minlength=len(centers))
        centers = torch.zeros_like(centers).index_add_(0, label, points) / count.clamp_min(1)[:, None]
        empty = (count == 0).nonzero()[:, 0]
        centers[empty] = points[distance.topk(len(empty)).indices]  # a cluster that lost its poses starts at the worst fitted ones
        previous, (label, distance) = label, _nearest(points, centers)
        if torch.equal(previous, label):
            break
    return centers, float(distance.sum())
