"""Clips: consecutive frames of one person before one camera, for networks that look at several frames of pictures.

A clip never leaves its track: it holds one person, one camera, one sequence, and no gap. Where a track is shorter than a clip, the last
frame is repeated and a mask says so; single pictures are clips of one frame.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.dataset.annotations import Annotations
from lib.dataset.augment import Augment, Params
from lib.dataset.crop_cache import CropCache
from lib.dataset.image import ImageSpec
from lib.dataset.loader import Key
from lib.dataset.samples import PersonCrops
from lib.errors import DataError
from lib.geometry.camera import Cameras

LENGTH = 5  # frames of a clip (Wang et al., 3D Human Pose Machines, TPAMI 2019)
MASKED = ("valid", "valid_depth", "has_depth", "conf", "X_valid", "X_rel_valid")  # nothing is known of a repeated frame


class Clips(NamedTuple):
    """K clips of T frames."""

    rows: np.ndarray  # (K,T) int64, rows of the table; behind the end of a track its last row
    mask: np.ndarray  # (K,T) bool, frames that are there
    judged: np.ndarray  # (K,T) bool: each row of the table is judged in one clip alone, though clips may overlap


def strands(ann: Annotations, stride: int = 1, gap: int = 0, stills: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The table cut into runs of frames that follow one another.

    Args:
        ann: the table.
        stride: every how many frames of a track are neighbours in a clip; a track becomes as many strands, so that no row is lost.
        gap: by how much the numbers of neighbouring frames may differ before a track is cut; 0 = the most frequent difference in the
            table, so that tables of every 25th frame need no setting.
        stills: every row is a run of its own; None = where no row has a camera, as in collections of pictures (MPII, COCO).

    Returns:
        rows (N,) int64, every row of the table once; starts (S+1,) int64: strand s is `rows[starts[s]:starts[s + 1]]`.

    Raises:
        DataError: a stride or gap that is no number of frames, or a person who is twice in one picture.
    """
    if stride < 1 or gap < 0:
        raise DataError(f"clips: stride {stride} and gap {gap}, expected 1 or more and 0 or more frames")
    if stills is None:
        stills = bool((ann.camera < 0).all())
    if stills:
        return np.arange(len(ann)), np.arange(len(ann) + 1)
    rows, starts = ann.group("sequence", "view", "person")
    track = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    step = np.diff(ann.frame[rows].astype(np.int64))
    inside = np.diff(track) == 0
    twice = np.flatnonzero(inside & (step == 0))
    if len(twice):
        row = rows[twice[0]]
        raise DataError(
            f"clips: person {ann.person[row]} is twice in frame {ann.frame[row]} of sequence {ann.sequence[row]}, view {ann.view[row]}; "
            "give each person of a picture another number, or set stills where the rows are single pictures"
        )
    values, counts = np.unique(step[inside], return_counts=True)
    most = gap or (int(values[counts.argmax()]) if len(values) else 1)
    piece = np.append(0, np.cumsum(~inside | (step > most)))
    place = np.arange(len(rows)) - np.searchsorted(piece, piece)
    strand = np.stack([piece, place % stride], 1)
    order = np.lexsort([place, strand[:, 1], piece])
    rows, strand = rows[order], strand[order]
    new = np.append(True, (np.diff(strand, axis=0) != 0).any(1))
    return rows, np.append(np.flatnonzero(new), len(rows))


def clips_from(rows: np.ndarray, starts: np.ndarray, strand: np.ndarray, first: np.ndarray, length: int) -> Clips:
    """Clips that begin at places of strands (see `strands`).   strand (K,), first (K,) counted in the strand; all is judged"""
    frames = (starts[strand + 1] - starts[strand])[:, None]
    place = first[:, None] + np.arange(length)
    mask = place < frames
    return Clips(rows[starts[strand][:, None] + np.minimum(place, frames - 1)], mask, mask)


def sequential(rows: np.ndarray, starts: np.ndarray, length: int) -> Clips:
    """Clips one after another, which cover every row; the last of a strand reaches back to be full, and judges only what is new."""
    frames = np.diff(starts)
    counts = -(-frames // length)
    strand = np.repeat(np.arange(len(frames)), counts)
    begin = (np.arange(len(strand)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    first = np.maximum(np.minimum(begin, frames[strand] - length), 0)
    clips = clips_from(rows, starts, strand, first, length)
    return clips._replace(judged=clips.mask & (first[:, None] + np.arange(length) >= begin[:, None]))


class ClipSamples(PersonCrops):
    """Clips of T person crops. All frames of a clip are augmented alike.

    A batch of B holds what one of CropSamples holds with (B,T) in place of (B): image (B,T,3,H,W) uint8 RGB, patch_from_img, x_patch,
    valid, valid_depth, has_depth, depth_scale, flipped, camera, root_cam, X_cam, X_valid, x_img, conf. And: id (B,) number of the
    clip; row (B,T) rows of `ann`; mask (B,T) bool, frames that are there: the others repeat the last one, and nothing is valid in
    them; judged (B,T) bool, see Clips; X_rel (B,T,J,3) mm relative to the root, turned and mirrored as the patch is, and
    X_rel_valid (B,T,J) bool: what a network that sees the patch should find. A clip is a sequence of its own: its first frame starts
    it, and none within it starts another.

    An epoch has as many samples as there are clips that follow one another. With `random_start` each is drawn anew, with a uniform
    choice among all places at which a whole clip may begin (tracks that are shorter begin at their first frame). Without, they are
    those clips in their order, and every row is judged once.

    Args:
        ann, root, spec, augment, depth_mm, box_scale, seed, cache: as for CropSamples.
        length: frames of a clip, T.
        stride, gap, stills: see `strands`.

    Raises:
        DataError: no observation, one without image or box, a person twice in a picture, or numbers that make no clip.
    """

    def __init__(
        self,
        ann: Annotations,
        root: str | Path,
        spec: ImageSpec,
        length: int = LENGTH,
        stride: int = 1,
        random_start: bool = False,
        augment: Augment | None = None,
        depth_mm: float | None = 2000.0,
        box_scale: float = 1.0,
        seed: int = 0,
        cache: CropCache | None = None,
        gap: int = 0,
        stills: bool | None = None,
    ):
        super().__init__(ann, root, spec, augment, depth_mm, box_scale, seed, cache)
        if length < 1:
            raise DataError(f"clips: {length} frames, expected 1 or more; correct the length of clips")
        self.length, self.random_start = length, random_start
        self._rows, self._starts = strands(ann, stride, gap, stills)
        self.clips = sequential(self._rows, self._starts, length)
        # Places at which a clip may begin, counted through all strands.
        self._places = np.append(0, np.cumsum(np.maximum(np.diff(self._starts) - length + 1, 1)))

    def __len__(self) -> int:
        return len(self.clips.rows)

    def _choose(self, keys: Sequence[Key], rngs: Sequence[np.random.Generator]) -> Clips:
        if not self.random_start:
            index = np.array([key.index for key in keys])
            return Clips(*(part[index] for part in self.clips))
        drawn = np.array([int(rng.integers(self._places[-1])) for rng in rngs])
        strand = np.searchsorted(self._places, drawn, side="right") - 1
        return clips_from(self._rows, self._starts, strand, drawn - self._places[strand], self.length)

    def __getitems__(self, keys: Sequence[Key | int]) -> dict:
        keys = self._keys(keys)
        rngs = [self._rng(key) for key in keys]
        clips = self._choose(keys, rngs)
        params = [self._draw(rng) for rng in rngs]
        shape, there = clips.rows.shape, clips.mask
        # Every frame is made once; a place behind the end takes the last one before it, which is its clip's.
        made = self._labelled(clips.rows[there], [p for p, count in zip(params, there.sum(1), strict=True) for _ in range(count)])
        place = torch.from_numpy(np.cumsum(there) - 1)
        batch = {name: in_clips(value, place, shape) for name, value in made.items() if name != "id"}
        batch |= _seen(batch, params, self.root_joint, self.flip)
        mask = torch.from_numpy(there)
        for name in MASKED:
            value = batch[name]
            batch[name] = torch.where(mask.view(*shape, *[1] * (value.ndim - 2)), value, torch.zeros_like(value))
        return batch | {
            "id": torch.tensor([key.index for key in keys]),
            "row": torch.from_numpy(clips.rows),
            "mask": mask,
            "judged": torch.from_numpy(clips.judged),
        }


def in_clips(value: Tensor | Cameras, place: Tensor, shape: tuple[int, ...]) -> Tensor | Cameras:
    """Values (N,...) of frames as clips (B,T,...) of those at `place` (B T,); shape is (B, T)."""
    value = value[place]
    return value.reshape(*shape) if isinstance(value, Cameras) else value.unflatten(0, shape)


def _seen(batch: dict, params: Sequence[Params], root: int, flip: Tensor) -> dict[str, Tensor]:
    """X_rel and X_rel_valid of clips: the poses as the patches show them (see lib.geometry.crop.crop_affine for the signs)."""
    X, known = batch["X_cam"], batch["X_valid"] & batch["X_valid"][..., root, None]
    turn = np.radians([p.rot_deg for p in params])
    mirror = np.where([p.flip for p in params], -1.0, 1.0)
    seen_from_cam = np.zeros((len(params), 3, 3))
    seen_from_cam[:, 0, 0], seen_from_cam[:, 0, 1] = mirror * np.cos(turn), np.sin(turn)
    seen_from_cam[:, 1, 0], seen_from_cam[:, 1, 1], seen_from_cam[:, 2, 2] = -mirror * np.sin(turn), np.cos(turn), 1
    X = torch.where(known[..., None], X - X[..., root, None, :], 0).double()
    X = torch.einsum("bij,btkj->btki", torch.from_numpy(seen_from_cam), X).float()
    mirrored = batch["flipped"][..., None]
    known = torch.where(mirrored, known[..., flip], known)
    return {"X_rel": torch.where(mirrored[..., None], X[..., flip, :], X), "X_rel_valid": known}
