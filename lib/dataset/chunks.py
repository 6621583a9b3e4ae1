"""Samplings of tracks: windows of frames to train on, and whole tracks to judge on.

Everything that the samples of an epoch share is done once: keypoints in screen coordinates, the ends of tracks repeated, the mirror
image beside the original. A batch is then nothing but copies of slices, so it is made by the training process itself, on the device
where the tables lie. Windows, their order and the edges are those of Pavllo et al., VideoPose3D, CVPR 2019.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from lib.dataset.annotations import camera_columns
from lib.dataset.loader import Key
from lib.dataset.tracks import Tracks
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.geometry.screen import mirrored, screen_cameras, to_screen
from lib.skeleton import get

PIECE = 1000  # frames of a track that are evaluated at once


class Windows:
    """Training windows: `chunk` frames each, and the frames around them that the network also sees.

    A track of L frames has ceil(L / chunk) windows, laid out so that they reach beyond both ends alike; what lies outside a track
    repeats its first or last frame. With `mirror` every window comes a second time, mirrored.

    Args:
        start: (S+1,) first row of each track.
        chunk, pad, shift: frames; a window [a, b) sees [a - pad - shift, b + pad - shift).

    Attributes:
        track, first, flipped: (E,) of each window, first frame counted in its track (negative: before its beginning).
    """

    def __init__(self, start: np.ndarray, chunk: int = 1, pad: int = 0, shift: int = 0, mirror: bool = False):
        if chunk < 1 or pad < 0 or abs(shift) > pad:
            raise DataError(f"windows: chunk {chunk}, pad {pad}, shift {shift}; expected 1 or more, 0 or more, a shift within the padding")
        self.start, self.chunk, self.pad, self.shift = np.asarray(start, np.int64), chunk, pad, shift
        lengths = np.diff(self.start)
        counts = -(-lengths // chunk)
        copies = 2 if mirror else 1
        each = np.repeat(counts, copies)  # windows of a track, original before mirrored
        place = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
        which = np.repeat(np.arange(len(each)), each)
        self.track = which // copies
        self.flipped = which % copies == 1
        self.first = place * chunk - ((counts * chunk - lengths) // 2)[self.track]
        # rows of the padded tables: the same margins around every track
        self.left, self.right = pad + shift + chunk, pad - shift + chunk
        margins = np.arange(len(lengths)) * (self.left + self.right)
        self._origin = self.start[:-1] + margins + self.left
        self.rows = len(lengths) * (self.left + self.right) + int(lengths.sum())

    def __len__(self) -> int:
        return len(self.track)

    def table(self, values: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Values of all rows with repeated ends, and those of the mirror image behind them.   (N,...) -> (rows or 2 rows,...)"""
        frame = np.arange(self.rows) - np.repeat(self._origin, np.diff(self.start) + self.left + self.right)
        track = np.repeat(np.arange(len(self.start) - 1), np.diff(self.start) + self.left + self.right)
        row = self.start[track] + np.clip(frame, 0, np.diff(self.start)[track] - 1)
        row = torch.from_numpy(row)
        parts = [part.index_select(0, row) for part in (values, mirrored) if part is not None]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def seen(self, table: Tensor, entries: np.ndarray) -> Tensor:
        """What the network sees of some windows.   -> (B, chunk + 2 pad, ...)"""
        return self._slices(table, entries, -self.pad - self.shift, self.chunk + 2 * self.pad)

    def predicted(self, table: Tensor, entries: np.ndarray) -> Tensor:
        """The frames to be predicted.   -> (B, chunk, ...)"""
        return self._slices(table, entries, 0, self.chunk)

    def _slices(self, table: Tensor, entries: np.ndarray, offset: int, length: int) -> Tensor:
        first = self._origin[self.track[entries]] + self.first[entries] + offset + self.flipped[entries] * self.rows
        first = torch.from_numpy(first).to(table.device)
        if not table.is_cpu:
            return table[first[:, None] + torch.arange(length, device=table.device)]
        # On a processor copies of whole windows, rows of an overlapping view, are five times as fast as gathering frame by frame.
        width = table[0].numel()
        view = table.as_strided((len(table) - length + 1, length * width), (width, 1))
        return F.embedding(first, view).view(len(first), length, *table.shape[1:])


class ChunkSamples(Dataset):
    """Training windows of tracks.

    A batch of B holds: id (B,) number of the window; x_screen (B, chunk + 2 pad, J_in, F) screen coordinates, then further features;
    and where tracks have 3D poses, X_cam (B, chunk, J, 3) mm, absolute. With `cameras`, camera (B,) in screen units. Of mirrored
    windows everything is mirrored, left and right exchanged.

    Args:
        features: numbers per keypoint that are kept.
        order: "seeded", or "reference" for VideoPose3D's sequence of permutations, whose last batch of an epoch is not filled up; one
            window of one frame, whose batch norms have nothing to average, joins the batch before.
        seed: of the order "reference".
        device: where the tables lie, and with them the batches.

    Raises:
        DataError: no tracks, too few features, or cameras without intrinsics where they are needed.
    """

    in_process = True  # see make_loader

    def __init__(
        self, tracks: Tracks, chunk: int = 1, pad: int = 0, shift: int = 0, flip: bool = True, features: int = 2,
        cameras: bool = False, order: str = "seeded", seed: int = 1234, device: torch.device | str = "cpu",
    ):  # fmt: skip
        tracks = tracks.select(tracks.lengths > 0)
        if not len(tracks):
            raise DataError("lifting: there are no tracks, expected one or more; check subjects, actions and the frame step")
        self.tracks, self.windows = tracks, Windows(tracks.start, chunk, pad, shift, flip)
        keypoints = screen_keypoints(tracks, features)
        mirror = torch.from_numpy(get(tracks.layout).flip.copy())
        flipped = keypoints[:, mirror] if flip else None
        if flip:
            flipped[..., 0] *= -1
        self.x_screen = self.windows.table(keypoints, flipped).to(device)
        self.X_cam: Tensor | None = None
        if tracks.has_3d.all():
            X_cam = torch.from_numpy(tracks.X_cam)
            flipped = X_cam[:, torch.from_numpy(get(tracks.skeleton).flip.copy())] if flip else None
            if flip:
                flipped[..., 0] *= -1
            self.X_cam = self.windows.table(X_cam, flipped).to(device)
        self.cameras: Cameras | None = None
        if cameras:
            lacking = ~tracks.has_intrinsics
            if lacking.any():
                s = int(np.flatnonzero(lacking)[0])
                raise DataError(
                    f"lifting: the intrinsics of {int(lacking.sum())} of {len(tracks)} tracks are not known, the first is "
                    f"{tracks.subject[s]} camera {tracks.view[s]}; reprojection needs them: use a calibrated data set, or "
                    "TEMPORAL.UNLABELED []"
                )
            plain = screen_cameras(tracks.observing())
            self.cameras = Cameras.cat([plain, mirrored(plain)]).to(torch.float32).to(device)
        self.ragged = order == "reference"
        self.least = 2 if self.ragged and chunk == 1 else 1
        self._seed, self._drawn = seed, (np.random.RandomState(seed), -1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.windows)

    def order(self, epoch: int) -> np.ndarray:
        """The order of an epoch as VideoPose3D draws it: one random state, a permutation per epoch.   -> (E,)"""
        rng, last, order = self._drawn
        if epoch < last:
            rng, last = np.random.RandomState(self._seed), -1
        for _ in range(epoch - last):
            order = rng.permutation(len(self))
        self._drawn = rng, epoch, order
        return order

    def __getitems__(self, keys: Sequence[Key | int]) -> dict:
        entries = np.array([key[0] if isinstance(key, tuple) else key for key in keys], np.int64)
        batch = {"id": torch.from_numpy(entries), "x_screen": self.windows.seen(self.x_screen, entries)}
        if self.X_cam is not None:
            batch["X_cam"] = self.windows.predicted(self.X_cam, entries)
        if self.cameras is not None:
            row = self.windows.track[entries] + self.windows.flipped[entries] * len(self.tracks)
            batch["camera"] = self.cameras[torch.from_numpy(row).to(self.x_screen.device)]
        return batch


class TrackSamples(Dataset):
    """Whole tracks, in pieces of at most `piece` frames with the frames around them, so that cutting changes nothing.

    A batch of B pieces holds: x_screen (B, T + 2 pad, J_in, F); frames (B, T) bool, which of the T frames belong to the piece;
    and of these M frames, one after another: id (M,), row in the tracks' table; X_cam (M, J, 3) mm and X_valid (M, J). Where all
    cameras are calibrated, also camera (B,) in screen units.
    """

    in_process = True

    def __init__(self, tracks: Tracks, pad: int = 0, shift: int = 0, features: int = 2, piece: int = PIECE):
        if not len(tracks) or not tracks.has_3d.all():
            raise DataError(
                f"lifting: {int((~tracks.has_3d).sum())} of {len(tracks)} tracks have no 3D poses to be judged by, expected some tracks, "
                "all with 3D; check DATASET.TEST_SET and TEST.SUBJECTS"
            )
        self.tracks, self.pad, self.shift = tracks, pad, shift
        self.keypoints = screen_keypoints(tracks, features)
        self.X_cam = torch.from_numpy(tracks.X_cam)
        self.cameras = screen_cameras(tracks.observing()).to(torch.float32) if tracks.has_intrinsics.all() else None
        counts = -(-tracks.lengths // piece)
        self.track = np.repeat(np.arange(len(tracks)), counts)
        place = np.arange(len(self.track)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.first = tracks.start[self.track] + place * piece  # rows
        self.last = np.minimum(self.first + piece, tracks.start[self.track + 1])

    def __len__(self) -> int:
        return len(self.track)

    def __getitems__(self, keys: Sequence[Key | int]) -> dict:
        pieces = np.array([key[0] if isinstance(key, tuple) else key for key in keys], np.int64)
        first, last, track = self.first[pieces], self.last[pieces], self.track[pieces]
        longest = int((last - first).max())
        row = first[:, None] + np.arange(-self.pad - self.shift, longest + self.pad - self.shift)
        row = np.clip(row, self.tracks.start[track][:, None], self.tracks.start[track + 1][:, None] - 1)
        own = first[:, None] + np.arange(longest)
        frames = own < last[:, None]
        ids = torch.from_numpy(own[frames])
        X_cam = self.X_cam[ids]
        camera = {"camera": self.cameras[torch.from_numpy(track)]} if self.cameras is not None else {}
        return camera | {
            "id": ids,
            "x_screen": self.keypoints[torch.from_numpy(row)],
            "frames": torch.from_numpy(frames),
            "X_cam": X_cam,
            "X_valid": torch.ones(X_cam.shape[:2], dtype=torch.bool),
        }

    def describe(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Subject, action, view, frame in its track, skeleton and camera of rows, for predictions.npz."""
        tracks = self.tracks
        s = np.searchsorted(tracks.start, ids, side="right") - 1
        names = {"subjects": tracks.subject[s], "actions": tracks.action[s], "views": tracks.view[s], "frames": ids - tracks.start[s]}
        return names | {"skeleton": np.array(tracks.skeleton)} | camera_columns(tracks.cameras, tracks.camera[s])


def screen_keypoints(tracks: Tracks, features: int = 2) -> Tensor:
    """The keypoints as a network sees them: x and y in screen coordinates, further features as they are.   -> (N,J_in,features)"""
    if tracks.keypoints.shape[2] < features:
        raise DataError(
            f"lifting: the keypoints have {tracks.keypoints.shape[2]} features, expected {features}; set TEMPORAL.FEATURES, or use "
            "keypoints with scores"
        )
    keypoints = torch.from_numpy(np.ascontiguousarray(tracks.keypoints[..., :features])).clone()
    size = tracks.observing().size.to(keypoints.dtype)[torch.from_numpy(tracks.track)]
    keypoints[..., :2] = to_screen(keypoints[..., :2], size)
    return keypoints
