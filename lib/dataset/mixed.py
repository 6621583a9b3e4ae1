"""Samples with 3D labels and samples with 2D labels alone, mixed at a ratio (Zhou et al., Towards 3D Human Pose Estimation in the
Wild, ICCV 2017).
"""

from collections.abc import Sequence

import numpy as np
import torch

from lib import skeleton as skeletons
from lib.dataset.clips import ClipSamples
from lib.dataset.loader import Key
from lib.dataset.samples import CropSamples, Keyed
from lib.errors import DataError
from lib.geometry.camera import Cameras

Crops = CropSamples | ClipSamples
STREAM = 1  # the place of the draw among the random numbers of a seed, beside those of orders and samples


class MixedSamples(Keyed):
    """One dataset of a strong set (3D labels) and weak sets (2D labels alone).

    An epoch has every weak sample once and round(ratio * weak samples) strong ones, different ones as far as there are so many, else all
    as often as each other but for one time, each time with another augmentation. Strong ones are drawn anew every epoch, as a function of
    (seed, epoch), and so that all of them are seen in every round of ceil(strong samples / drawn ones) epochs. Crop and augmentation of a
    sample are left to its own set, with that set's seed.

    The sets may also be of clips of one length; then a sample is a clip, and single pictures are clips of one frame.

    A batch holds what one of the sets holds, in the order of the keys, and weak (B,) bool. `id` counts through all sets: in the
    strong set it is the row of its table, or the number of the clip, in weak set k (from 0) that row + `offsets[k + 1]`.

    Raises:
        DataError: a negative ratio, sets of several skeletons, image specs or lengths of clips, or a weak set with 3D poses.
    """

    def __init__(
        self,
        strong: Crops,
        weak: Crops | Sequence[Crops],  # several count by their sizes; without any, every epoch has all strong samples
        ratio: float = 1.0,  # strong samples per weak one; inf: all strong ones once in every epoch; 0: none
        seed: int = 0,
    ):
        weak = [weak] if isinstance(weak, Crops) else list(weak)
        if not ratio >= 0:
            raise DataError(f"mixed samples: {ratio} strong samples per weak one, expected 0 or more; correct the ratio")
        for other in weak:
            _check_fits(strong, other)
        self.sets, self.ratio, self.seed = (strong, *weak), ratio, seed
        self.offsets = np.cumsum([0, *map(len, self.sets)])  # (sets + 1,)
        self.num_weak = int(self.offsets[-1]) - len(strong)
        wanted = ratio * self.num_weak if weak and ratio < np.inf else len(strong)
        self.num_strong = max(round(wanted), int(wanted > 0))  # in an epoch
        self._permutation = -1, np.empty(0, np.int64)  # of the round that was asked for last

    def __len__(self) -> int:
        return self.num_strong + self.num_weak

    def draw(self, epoch: int) -> np.ndarray:
        """The strong samples of an epoch: rows of the strong set, (num_strong,) int64."""
        total, part = len(self.sets[0]), self.num_strong
        if part in (0, total):
            return np.arange(part)
        if part > total:
            rest = np.random.default_rng((self.seed, epoch, 0, STREAM)).permutation(total)[: part % total]
            return np.append(np.tile(np.arange(total), part // total), rest)
        turn, place = divmod(epoch, -(-total // part))
        if self._permutation[0] != turn:
            self._permutation = turn, np.random.default_rng((self.seed, turn, 0, STREAM)).permutation(total)
        return self._permutation[1][(place * part + np.arange(part)) % total]

    def __getitems__(self, keys: Sequence[Key | int]) -> dict:
        keys = self._keys(keys)
        drawn = {epoch: self.draw(epoch) for epoch in {key.epoch for key in keys}}
        # The number of each sample through all sets: the drawn strong samples come first.
        number = np.array(
            [drawn[k.epoch][k.index] if k.index < self.num_strong else self.offsets[1] + k.index - self.num_strong for k in keys]
        )
        which = np.searchsorted(self.offsets, number, side="right") - 1
        # Epochs are counted so that a strong sample that comes again within one has random numbers of its own.
        times = max(1, -(-self.num_strong // len(self.sets[0])))
        again = [k.index // len(self.sets[0]) if k.index < self.num_strong else 0 for k in keys]
        parts, places = [], []
        for i in np.unique(which):
            at = np.flatnonzero(which == i)
            parts.append(self.sets[i].__getitems__([Key(int(number[p] - self.offsets[i]), keys[p].epoch * times + again[p]) for p in at]))
            places.append(at)
        order = torch.from_numpy(np.argsort(np.concatenate(places)))
        batch = {name: _joined([part[name] for part in parts])[order] for name in parts[0]}
        return batch | {"id": torch.from_numpy(number.astype(np.int64)), "weak": torch.from_numpy(which > 0)}


def _joined(values: Sequence[torch.Tensor | Cameras]) -> torch.Tensor | Cameras:
    return Cameras.cat(values) if isinstance(values[0], Cameras) else torch.cat(list(values))


def _check_fits(strong: Crops, weak: Crops) -> None:
    skeletons.check_same(strong.ann.skeleton, weak.ann.skeleton, "mixed samples")
    if strong.spec != weak.spec:
        raise DataError(f"mixed samples: images are made as {strong.spec} and as {weak.spec}, expected one image spec for all sets")
    found = [f"clips of {data.length} frames" if isinstance(data, ClipSamples) else "single frames" for data in (strong, weak)]
    if found[0] != found[1]:
        raise DataError(f"mixed samples: {found[0]} and {found[1]}, expected one length for all sets; pictures are clips too, with a mask")
    known = int((weak.ann.pose >= 0).sum())
    if known:
        raise DataError(
            f"mixed samples: {known} of {len(weak.ann)} weak observations have a 3D pose, expected none; "
            "remove them (lib.dataset.annotations.without_3d)"
        )
