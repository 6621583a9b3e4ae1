"""Pairs of a predicted and a true pose: from predictions.npz of any run, or from the pickles of EpipolarPose's release.

Poses are in mm, in the axes of the camera, relative to the root joint; networks see them without the root.
"""

import dataclasses
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib import skeleton as skeletons
from lib import unpickle
from lib.dataset.loader import Key
from lib.dataset.samples import Keyed
from lib.errors import MALFORMED, DataError
from lib.files import new_file
from lib.registry import nearest

PUBLISHED = "mpii16"  # joint order of the release's pickles
SMALLEST_STD_MM = 1.0  # a coordinate that does not vary would be divided by nothing
HOW = "write it with `python refiner/main.py --mode build` (refiner/README.md)"


@dataclass(frozen=True, eq=False)
class Pairs:
    """N pairs over the J joints of a skeleton, root included."""

    skeleton: str
    inp: np.ndarray  # (N,J,3) float32 mm, predicted, relative to its root
    out: np.ndarray  # (N,J,3) float32 mm, true, relative to its root
    valid: np.ndarray  # (N,J) bool, joints with a truth; always so for the root
    inp_root: np.ndarray  # (N,3) float32 mm, where the roots are in the camera; 0 = unknown
    out_root: np.ndarray
    subjects: np.ndarray  # (N,) texts, '' = unknown
    actions: np.ndarray  # (N,) texts, '' = unknown

    def __len__(self) -> int:
        return len(self.inp)

    def select(self, rows: np.ndarray) -> "Pairs":
        """The pairs at `rows` (indices or a mask)."""
        arrays = [f.name for f in dataclasses.fields(self) if f.name != "skeleton"]
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in arrays})

    def of_subjects(self, names: Sequence[str], kept: bool = True) -> "Pairs":
        """The pairs of some subjects, or with `kept` False all others. Raises DataError for a subject that is not there."""
        known = np.unique(self.subjects).tolist()
        for name in names:
            if name not in known:
                guess = nearest(name, known)
                hint = f"did you mean {guess}?" if guess else f"it has {', '.join(filter(None, known)) or 'no subjects'}"
                raise DataError(f"the pairs have no subject {name!r}; {hint}")
        return self.select(np.isin(self.subjects, list(names)) == kept)

    def to_skeleton(self, name: str) -> "Pairs":
        """The same pairs over other joints, by joint name.

        Raises:
            DataError: a joint cannot be made from those there are; the message names it.
        """
        if name == self.skeleton:
            return self
        root = skeletons.get(name).root_index
        inp, present = skeletons.convert(self.inp, self.skeleton, name)
        out, _ = skeletons.convert(self.out, self.skeleton, name)
        share, _ = skeletons.convert(self.valid[..., None].astype(np.float32), self.skeleton, name)
        if not present.all():
            absent = [joint for joint, there in zip(skeletons.get(name).joints, present, strict=True) if not there]
            raise DataError(
                f"the pairs are over skeleton {self.skeleton}, which has no {', '.join(absent)}, but {name} is wanted; "
                f"set DATASET.SKELETON to {self.skeleton}, or predict with a network for {name}"
            )
        return _pairs(
            name, inp + self.inp_root[:, None], out + self.out_root[:, None], share[..., 0] > 0.999,
            self.subjects, self.actions, root,
        )  # fmt: skip


def read(path: str | Path, skeleton: str = "") -> Pairs:
    """Pairs of a file: `predictions.npz` of a run whose data has a 3D truth, or a published `train.pkl` / `valid.pkl`.

    Pairs whose root has no truth are left out.

    Args:
        skeleton: the joints that are wanted; '' = those of the file.

    Raises:
        DataError: the file is missing, damaged, of another kind, or lacks joints. Nothing in a pickle is executed.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; {HOW}")
    pairs = _read_pickle(path) if path.suffix in (".pkl", ".pickle") else _read_predictions(path)
    try:
        return pairs.to_skeleton(skeleton) if skeleton else pairs
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def write_published(pairs: Pairs, path: str | Path) -> int:
    """Writes a `train.pkl` / `valid.pkl` as the release reads it; the number of pairs written.

    A dict {inp, out} of (N,16,3) float32 in mm, MPII's order, relative to the hip. Pairs with a joint without truth cannot be
    told there and are left out.

    Raises:
        DataError: the joints cannot be converted, no pair is complete, the file exists or cannot be written.
    """
    pairs = pairs.to_skeleton(PUBLISHED)
    whole = pairs.select(pairs.valid.all(1))
    if not len(whole):
        raise DataError(f"{path}: not one of {len(pairs)} pairs has a truth for all {PUBLISHED} joints; use the .npz form")
    dump({"inp": whole.inp, "out": whole.out}, path)
    return len(whole)


def dump(value: object, path: str | Path) -> None:
    """Writes plain containers and arrays as a pickle that the release reads, with whichever NumPy it has.

    Raises:
        DataError: the file exists, or cannot be written.
    """
    data = pickle.dumps(value, protocol=2)
    # NumPy 2 writes its new internal name, which NumPy 1 lacks; the old one is known to both. It is written once, before any array.
    data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)
    with new_file(path) as part:
        part.write_bytes(data)


def _read_predictions(path: Path) -> Pairs:
    try:
        with np.load(path, allow_pickle=False) as file:
            z = {key: file[key] for key in file.files}
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: is damaged, or no .npz file ({error}); {HOW}") from None
    lacking = [key for key in ("X_cam", "X_cam_true", "X_valid") if key not in z]
    if lacking:
        raise DataError(
            f"{path}: holds {', '.join(z) or 'nothing'}, but no {', '.join(lacking)}: expected 3D predictions and their truth; "
            f"predict with a 3D network on a split that has a 3D truth, and {HOW}"
        )
    if "skeleton" not in z:
        raise DataError(f"{path}: does not name its skeleton (written by an older version?); {HOW}")
    skeleton = skeletons.get(str(z["skeleton"]))
    shape = (len(z["X_cam"]), skeleton.num, 3)
    if z["X_cam"].shape != shape or z["X_cam_true"].shape != shape or z["X_valid"].shape != shape[:2]:
        raise DataError(
            f"{path}: X_cam, X_cam_true, X_valid have shapes {z['X_cam'].shape}, {z['X_cam_true'].shape}, {z['X_valid'].shape}; "
            f"expected {shape} twice and {shape[:2]} for skeleton {skeleton.name}; {HOW}"
        )
    names = [z.get(key, np.full(shape[0], "")) for key in ("subjects", "actions")]
    if any(n.shape != shape[:1] for n in names) or any(z[key].dtype.kind not in "fiub" for key in ("X_cam", "X_cam_true", "X_valid")):
        raise DataError(f"{path}: poses that are no numbers, or not one subject and action for each of {shape[0]}; {HOW}")
    pairs = _pairs(skeleton.name, z["X_cam"], z["X_cam_true"], z["X_valid"].astype(bool), *names, skeleton.root_index)
    return _checked(path, pairs)


def _read_pickle(path: Path) -> Pairs:
    value = unpickle.load(path)
    joints = skeletons.get(PUBLISHED).num
    wanted = f"expected a dict {{inp, out}} of arrays (N, {joints}, 3) or (N, {joints * 3}), mm relative to the hip"
    if not isinstance(value, dict) or not {"inp", "out"} <= value.keys():
        found = f"a dict with {', '.join(map(str, value))}" if isinstance(value, dict) else type(value).__name__
        raise DataError(f"{path}: holds {found}; {wanted}")
    poses = []
    for key in ("inp", "out"):
        array = value[key]
        numbers = isinstance(array, np.ndarray) and array.dtype.kind in "fiu"
        if not numbers or array.ndim < 2 or array.size != len(array) * joints * 3 or array.shape[-1] not in (3, joints * 3):
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise DataError(f"{path}: {key} is {found}; {wanted}")
        poses.append(array.reshape(len(array), joints, 3))
    inp, out = poses
    if len(inp) != len(out):
        raise DataError(f"{path}: {len(inp)} inputs, but {len(out)} outputs; {wanted}")
    unknown = np.full(len(inp), "")
    valid = np.isfinite(out).all(-1)
    root = skeletons.get(PUBLISHED).root_index
    return _checked(path, _pairs(PUBLISHED, inp, out, valid, unknown, unknown, root))


def _pairs(
    skeleton: str, inp: np.ndarray, out: np.ndarray, valid: np.ndarray, subjects: np.ndarray, actions: np.ndarray, root: int
) -> Pairs:
    """Pairs from poses in the camera; those whose root has no truth are left out."""
    kept = valid[:, root]
    inp, out, valid = inp[kept].astype(np.float32), out[kept].astype(np.float32), valid[kept]
    inp_root, out_root = inp[:, root], out[:, root]
    out = np.where(valid[..., None], out - out_root[:, None], 0)
    return Pairs(skeleton, inp - inp_root[:, None], out, valid, inp_root, out_root, subjects[kept], actions[kept])


def _checked(path: Path, pairs: Pairs) -> Pairs:
    if not len(pairs):
        raise DataError(f"{path}: holds no pair whose root has a truth; {HOW}")
    for name, array in (("predicted", pairs.inp), ("true", pairs.out)):
        bad = ~np.isfinite(array).all((1, 2))
        if bad.any():
            raise DataError(f"{path}: {bad.sum()} of {len(pairs)} {name} poses hold NaN or infinity (row {bad.argmax()}); {HOW}")
    return pairs


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and standard deviation of each coordinate (D,), float32 mm: what the network's numbers mean."""

    input_mean: Tensor
    input_std: Tensor
    label_mean: Tensor
    label_std: Tensor

    @staticmethod
    def of(pairs: Pairs, shared: bool = False) -> "Statistics":
        """Those of training pairs, root left out.

        Args:
            shared: inputs are normalised as labels are, so that equal numbers mean equal poses (for a residual network).
        """
        keep = without_root(pairs.skeleton)
        valid = pairs.valid[:, keep]
        label = _moments(pairs.out[:, keep], valid)
        return Statistics(*(label if shared else _moments(pairs.inp[:, keep], np.ones_like(valid))), *label)

    @staticmethod
    def read(path: str | Path, size: int) -> "Statistics":
        """The release's norm.pkl: a tuple (data mean, data std, label mean, label std), each of `size` numbers.

        Raises:
            DataError: the file is missing, damaged or holds something else.
        """
        value = unpickle.load(path)
        wanted = f"expected a tuple of four arrays of {size} numbers (mean and std of inputs, then of labels)"
        if not isinstance(value, tuple | list) or len(value) != 4 or not all(isinstance(v, np.ndarray) for v in value):
            raise DataError(f"{path}: holds {type(value).__name__}; {wanted}")
        if any(v.size != size or v.dtype.kind not in "fiu" for v in value):
            raise DataError(f"{path}: holds arrays of shape {', '.join(str(v.shape) for v in value)}; {wanted}")
        tensors = [torch.tensor(v.reshape(-1).astype(np.float32)) for v in value]
        if not all(torch.isfinite(t).all() for t in tensors) or (tensors[1] <= 0).any() or (tensors[3] <= 0).any():
            raise DataError(f"{path}: a mean is not finite or a deviation not positive; {wanted}")
        return Statistics(*tensors)

    def write(self, path: str | Path) -> None:
        """Writes a norm.pkl; DataError where it exists or cannot be written."""
        dump(tuple(t.detach().cpu().numpy() for t in (self.input_mean, self.input_std, self.label_mean, self.label_std)), path)


def without_root(skeleton: str) -> np.ndarray:
    """Indices of all joints but the root, (J-1,)."""
    skeleton = skeletons.get(skeleton)
    return np.flatnonzero(np.arange(skeleton.num) != skeleton.root_index)


def _moments(X: np.ndarray, valid: np.ndarray) -> tuple[Tensor, Tensor]:
    """(N,J,3), (N,J) -> mean (3J,), std (3J,)"""
    weight = np.broadcast_to(valid[..., None], X.shape).reshape(len(X), -1)
    x = X.reshape(len(X), -1).astype(np.float64)
    count = weight.sum(0).clip(min=1)
    mean = (x * weight).sum(0) / count
    std = np.sqrt(((x - mean) ** 2 * weight).sum(0) / count).clip(min=SMALLEST_STD_MM)
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)


class PairSamples(Keyed):
    """Pairs as training or evaluation samples, indexed with a Key; the random numbers are those of (seed, epoch, index).

    Args:
        noise_mm: standard deviation of the noise added to each input coordinate.
        joint_drop: probability that an input joint is hidden from the network.
        flip_prob: probability of the mirror image: x -> -x, left and right exchanged.

    A batch holds
        id (B,)   X_in (B,J-1,3) mm   kept (B,J-1) False = hidden   X_out (B,J-1,3) mm   valid (B,J-1): for the network, without root
        X_input, X_cam (B,J,3) mm, X_valid (B,J): as they were, in the camera where its place was known: for the evaluation
    """

    def __init__(
        self, pairs: Pairs, noise_mm: float = 0.0, joint_drop: float = 0.0, flip_prob: float = 0.0, seed: int = 0
    ):
        self.pairs, self.seed = pairs, seed
        self.noise_mm, self.joint_drop, self.flip_prob = noise_mm, joint_drop, flip_prob
        self.keep = without_root(pairs.skeleton)
        self.flip = skeletons.get(pairs.skeleton).flip

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, keys: Sequence[Key | int]) -> dict[str, Tensor]:
        keys = self._keys(keys)
        rows = np.array([key.index for key in keys])
        pairs = self.pairs.select(rows)
        inp, out, valid = pairs.inp, pairs.out, pairs.valid
        kept = np.ones((len(rows), len(self.keep)), bool)
        if self.noise_mm > 0 or self.joint_drop > 0 or self.flip_prob > 0:
            draws = [self._rng(key) for key in keys]
            flip = np.array([rng.random() for rng in draws]) < self.flip_prob
            kept = np.stack([rng.random(len(self.keep)) for rng in draws]) >= self.joint_drop
            noise = np.stack([rng.standard_normal(inp.shape[1:], dtype=np.float32) for rng in draws])
            inp, out = (np.where(flip[:, None, None], mirrored(X, self.flip), X) for X in (inp, out))
            valid = np.where(flip[:, None], valid[:, self.flip], valid)
            inp = inp + self.noise_mm * noise
        samples = {
            "id": rows,
            "X_in": inp[:, self.keep].astype(np.float32),
            "kept": kept,
            "X_out": out[:, self.keep],
            "valid": valid[:, self.keep],
            "X_input": pairs.inp + pairs.inp_root[:, None],
            "X_cam": pairs.out + pairs.out_root[:, None],
            "X_valid": pairs.valid,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in samples.items()}


def mirrored(X, flip):
    """The mirror image of poses, x -> -x and sides exchanged; arrays or tensors (...,J,3), flip (J,)."""
    X = X[..., flip, :] + 0  # a copy
    X[..., 0] *= -1
    return X
