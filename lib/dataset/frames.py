"""Whole frames: all views of an instant, with all of its people (VoxelPose, SelfPose3d)."""

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations, camera_columns, number_within
from lib.dataset.augment import FrameAugment, FrameParams
from lib.dataset.image import ImageSpec, read_bgr, warp
from lib.dataset.loader import Key
from lib.dataset.samples import Keyed, floats32
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.geometry.crop import letterbox_affine

log = logging.getLogger("parallax")

TRIES = 100  # frames and augmentations drawn for one sample before `keep_people` is given up for it
AWAY = 1e6  # px; where a view that is not there shows everything


class FrameSamples(Keyed):
    """All views of an instant, letterboxed into the network's input, with the joints of up to M = `max_people` people.

    A batch of B holds: id (B,) row of `instants`; view_there (B,V) bool; image (B,V,3,H,W) uint8 RGB, unless the table has none or
    `images` is False; patch_from_img (B,V,2,3) from original px to those of the network's input, mirror included; flipped (B,) bool;
    camera Cameras (B,V) of the original images; x_img (B,V,M,J,2) px of the original images and conf (B,V,M,J), 0 = unknown; X_world
    (B,M,J,3) mm; X_valid (B,M,J); n_people (B,) people with a 3D pose. Labels are never mirrored; in a mirrored image (`flipped`) left
    and right of the joints' maps change places, so swap the network's maps (skeleton.flip) before they meet a label or a voxel.

    Slots are packed from 0. People with a 3D pose come first and have the same slot in every view and in X_world; people without one
    (pseudo labels, whom nobody matched between views) follow view by view, the surest first: the same slot means nothing there.

    With `n_augment` A > 0 the frame comes A + 1 times, plain at last: image (B,A+1,V,3,H,W), patch_from_img (B,A+1,V,2,3), flipped
    (B,A+1). Without, it comes once, augmented if `augment` is given.

    A frame without anybody is known by a row whose confidences are all 0 and whose pose is -1: it brings image and camera. Images of
    views may differ in size. A view that is not there (`allow_missing`) has a black image, no joint, and a camera and an affine that map
    everything out of sight.
    """

    def __init__(
        self,
        ann: Annotations,
        root: str | Path,  # image paths are relative to it
        spec: ImageSpec,
        views: Sequence[int] | None = None,  # slots of the cameras and their order; None = all
        max_people: int = 10,
        augment: FrameAugment | Sequence[FrameAugment] | None = None,  # one for all, or one for each of the A
        n_augment: int = 0,
        allow_missing: bool = False,  # keep instants that lack a view; False: leave them out
        images: bool = True,  # False: keypoints only, though there are images
        keep_people: int = 0,  # K > 0: draw again unless the K fullest views keep everybody's root in each augmentation, see `_keeps`
        roots: int | Sequence[int] | None = None,  # joint that keep_people looks at, or several: their mean; None = the skeleton's root
        seed: int = 0,
    ):
        if max_people < 1 or n_augment < 0 or keep_people < 0:
            raise DataError(
                f"frame samples: max_people {max_people}, n_augment {n_augment}, keep_people {keep_people}; expected at least 1, 0 and 0"
            )
        self.augments = _augments(augment, n_augment)
        if len(ann) == 0:
            raise DataError("frame samples: the annotation table is empty, expected one observation or more; check split, subjects, views")
        slots = list(views) if views else np.unique(ann.view).tolist()
        unknown = sorted(set(slots) - set(np.unique(ann.view).tolist()))
        if len(set(slots)) < len(slots) or unknown:
            known = np.unique(ann.view).tolist()
            raise DataError(f"frame samples: views {slots}, expected different ones of {known}; see DATASET.VIEWS")
        self.ann, self.root, self.spec, self.views, self.seed = ann, Path(root), spec, slots, seed
        self.labels = ann  # whose 2D people are shown
        self.max_people, self.n_augment, self.keep_people = max_people, n_augment, keep_people
        self.images = images and bool((ann.image >= 0).any())
        self.skeleton = skeletons.get(ann.skeleton)
        self._cameras(ann)
        self._group(ann, allow_missing)
        if keep_people:
            self._find_roots(ann, self.skeleton.root_index if roots is None else roots)

    def __len__(self) -> int:
        return len(self.instants)

    def __repr__(self) -> str:
        return f"FrameSamples({len(self)} instants, views {self.views}, images {self.images})"

    def describe(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """What predictions.npz says of instants, see `Annotations.describe`; images, views and cameras are (N,V)."""
        ann, rows = self.ann, self.frames[ids]
        sequence, frame = self.instants[ids].T
        names = {"subjects": ann.subjects[sequence], "actions": ann.actions[sequence]}
        columns = {key: np.char.decode(name, "utf-8") for key, name in names.items()}
        columns |= {"skeleton": np.array(ann.skeleton), "frames": frame, "views": np.tile(self.views, (len(ids), 1))}
        if self.images:
            image = np.where(rows >= 0, ann.image[rows], -1)
            columns["images"] = np.char.decode(np.where(image >= 0, ann.images[image], b""), "utf-8")
        return columns | camera_columns(ann.cameras, self.camera[ids])

    # --- the tables

    def _cameras(self, ann: Annotations) -> None:
        chosen = np.isin(ann.view, self.views)
        lacking = int((ann.camera[chosen] < 0).sum())
        if lacking:
            raise DataError(
                f"frame samples: {lacking} of {int(chosen.sum())} observations have no camera, expected a calibrated one for each; drop "
                "them with ann.select, or calibrate the cameras"
            )
        # The last row is the camera of a view that is not there: its one pixel shows nothing of the world; see also AWAY.
        eye, pixel = torch.eye(3, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
        blind = eye + torch.tensor([[0, 0, -AWAY], [0, 0, -AWAY], [0, 0, 0]], dtype=torch.float64)
        self.cameras = Cameras.cat([ann.cameras, Cameras.make(blind[None], eye[None], 0 * eye[:1], size=pixel)])
        self._size = self.cameras.size.numpy().copy()  # (C + 1, 2) px; unknown ones are looked up in the first image
        used = np.unique(ann.camera[chosen])
        unknown = used[(self._size[used] <= 0).any(1)]
        if len(unknown) and not self.images:
            raise DataError(f"frame samples: camera {unknown[0]} has no image size and there are no images; give the calibration one")

    def _group(self, ann: Annotations, allow_missing: bool) -> None:
        """instants (G,2) sequence and frame; poses (G,M) rows of X_world; people (G,V,M) and frames (G,V) rows of `ann`; camera (G,V).
        -1 = none.
        """
        order, starts = ann.group("sequence", "frame")
        count, views = len(starts) - 1, len(self.views)
        group = np.empty(len(ann), dtype=np.int64)
        group[order] = np.repeat(np.arange(count), np.diff(starts))
        column = np.full(int(ann.view.max()) + 1, -1)
        column[self.views] = np.arange(views)
        column = column[ann.view]
        rows = np.flatnonzero(column >= 0)
        cell = group[rows] * views + column[rows]
        has_image = ann.image[rows] >= 0
        self._check_cells(ann, rows, cell)

        frames = np.full(count * views, -1)
        frames[cell] = rows
        if self.images:
            frames[:] = -1
            frames[cell[has_image]] = rows[has_image]
        camera = np.where(frames >= 0, ann.camera[frames], -1).reshape(count, views)
        if not self.images:  # nobody was found there, but where the camera stands is known
            camera = _filled(camera, ann.sequence[order[starts[:-1]]])
        there = camera >= 0

        # Poses: the same slot in all views, ordered by person; those that only views not asked for see count as well.
        posed = np.flatnonzero(ann.pose >= 0)
        posed = posed[np.lexsort([ann.pose[posed], ann.person[posed], group[posed]])]
        _, first, inverse = np.unique(group[posed] * (len(ann.X_world) + 1) + ann.pose[posed], return_index=True, return_inverse=True)
        pose_order = np.argsort(first, kind="stable")  # by instant, then person
        rank = np.empty_like(pose_order)
        rank[pose_order] = np.arange(len(pose_order))
        owner = group[posed[first[pose_order]]]
        n_posed = np.bincount(owner, minlength=count)
        slot = np.full(len(ann), -1)
        before = np.append(0, np.cumsum(n_posed))
        slot[posed] = rank[inverse] - before[group[posed]]
        if n_posed.max(initial=0) > self.max_people:
            worst = int(n_posed.argmax())
            row = order[starts[worst]]
            raise DataError(
                f"frame samples: {int((n_posed > self.max_people).sum())} instants hold more than {self.max_people} people, the fullest "
                f"{n_posed[worst]} (sequence {ann.sequence[row]}, frame {ann.frame[row]}); raise max_people to that number"
            )
        poses = np.full((count, self.max_people), -1)
        poses[owner, np.arange(len(owner)) - before[owner]] = ann.pose[posed[first[pose_order]]]

        free = rows[(ann.pose[rows] < 0) & (ann.conf[rows] > 0).any(1)]
        cells = group[free] * views + column[free]
        by_view = np.lexsort([free, -ann.conf[free].sum(1), cells])
        free, cells = free[by_view], cells[by_view]
        new = np.append(True, np.diff(cells) != 0)[: len(cells)]
        at = np.arange(len(cells))
        slot[free] = n_posed[group[free]] + at - np.maximum.accumulate(np.where(new, at, 0))
        lost = int((slot[rows] >= self.max_people).sum())
        if lost:
            log.warning(
                "%d of %d people in 2D are left out, the least sure of views with more than %d; raise max_people", lost, len(rows),
                self.max_people,
            )  # fmt: skip
        people = np.full((count, views, self.max_people), -1)
        shown = rows[(slot[rows] >= 0) & (slot[rows] < self.max_people)]
        target = (group[shown], column[shown], slot[shown])
        people[target] = shown
        twice = np.flatnonzero(people[target] != shown)
        if len(twice):
            row = shown[twice[0]]
            raise DataError(
                f"frame samples: pose {ann.pose[row]} appears twice in sequence {ann.sequence[row]}, frame {ann.frame[row]}, view "
                f"{ann.view[row]}; a person is seen once by each view"
            )

        keep = there.any(1) if allow_missing else there.all(1)
        self.left_out = int((~keep).sum())  # instants
        if self.left_out:
            log.info("left out %d of %d instants that lack a view of %s", self.left_out, count, self.views)
        if not keep.any():
            kept = ", ".join(f"{v}: {n}" for v, n in zip(self.views, there.sum(0).tolist(), strict=True))
            raise DataError(
                f"frame samples: none of {count} instants is seen by all of the views {self.views} (instants per view: {kept}); set "
                "DATASET.VIEWS to views that see the same instants, or DATASET.ALLOW_MISSING true"
            )
        first_rows = order[starts[:-1]][keep]
        self.instants = np.stack([ann.sequence[first_rows], ann.frame[first_rows]], 1)
        self.poses, self.people, self.frames, self.camera = poses[keep], people[keep], frames.reshape(count, views)[keep], camera[keep]
        self.people[self.camera < 0] = -1

    @staticmethod
    def _check_cells(ann: Annotations, rows: np.ndarray, cell: np.ndarray) -> None:
        """DataError where the rows of one frame name two images or two cameras."""
        for what in ("image", "camera"):
            value = getattr(ann, what)[rows]
            known = np.flatnonzero(value >= 0)
            known = known[np.argsort(cell[known], kind="stable")]
            clash = np.flatnonzero((np.diff(cell[known]) == 0) & (np.diff(value[known]) != 0))
            if len(clash):
                row = rows[known[clash[0] + 1]]
                raise DataError(
                    f"frame samples: sequence {ann.sequence[row]}, frame {ann.frame[row]}, view {ann.view[row]} has two {what}s; all "
                    "people of a view at an instant share one"
                )

    def _find_roots(self, ann: Annotations, joints: int | Sequence[int]) -> None:
        """Of every row the root in the original image, NaN where it is unknown or outside the image, and whether it is of somebody."""
        joints = [joints] if isinstance(joints, int) else list(joints)
        known = (ann.conf[:, joints] > 0).all(1)
        x = np.where(known[:, None], ann.x_img[:, joints].astype(np.float64).mean(1), np.nan)
        size = self._size[ann.camera]
        inside = (x >= 0).all(1) & ((x <= size - 1) | (size <= 0)).all(1)
        self._root = np.append(np.where(inside[:, None], x, np.nan), np.full((1, 2), np.nan), 0)  # row -1: nobody
        self._somebody = np.append((ann.conf > 0).any(1), False)

    def with_labels(self, labels: Annotations) -> "FrameSamples":
        """Itself, with the 2D people of another table, picture by picture, such as pseudo labels; 3D poses stay those they were.

        From now on x_img and conf are those of `labels`, packed from 0, the surest first, in every view by itself.

        Raises:
            DataError: the labels lack a picture of the frames, or have other joints; or these samples are augmented.
        """
        if self.augments:
            raise DataError("frame samples: other labels are for frames that are evaluated, not for augmented ones")
        skeletons.check_same(self.ann.skeleton, labels.skeleton, "the frames and the pseudo labels they are judged by")
        number_of = {name: number for number, name in enumerate(labels.images)}
        place = np.array([number_of.get(name, -1) for name in self.ann.images] + [-1])  # last: no picture
        number = place[np.where(self.frames >= 0, self.ann.image[self.frames], -1)]  # (G,V)
        there = self.camera >= 0
        lost = there & ~np.isin(number, labels.image)
        if lost.any():
            row = int(self.frames[tuple(np.argwhere(lost)[0])])
            name = self.ann.image_path(row) if row >= 0 and self.ann.image[row] >= 0 else "a view without a picture"
            raise DataError(
                f"pseudo labels: {lost.sum()} of the {there.sum()} pictures of the frames have none, the first is {name}; make them for "
                "the whole split with scripts/prepare.py pseudo-labels"
            )
        rows = np.flatnonzero((labels.person >= 0) & (labels.conf > 0).any(1))
        rows = rows[np.lexsort([rows, -labels.conf[rows].sum(1), labels.image[rows]])]
        image = labels.image[rows]
        slot = number_within(image)
        kept = slot < self.max_people
        if not kept.all():
            log.warning("%d of %d people in 2D are left out, the least sure of views with more than %d; raise max_people", (~kept).sum(),
                        len(kept), self.max_people)  # fmt: skip
        table = np.full((len(labels.images) + 1, self.max_people), -1)  # last: no picture
        table[image[kept], slot[kept]] = rows[kept]
        self.labels, self.people = labels, table[np.where(there, number, -1)]
        return self

    # --- the samples

    def __getitems__(self, keys: Sequence[Key | int]) -> dict:
        drawn = [self._choose(key) for key in self._keys(keys)]
        index = np.array([i for i, _ in drawn])
        params = [p for _, p in drawn]  # B times A' of FrameParams
        camera = self.camera[index]
        there = torch.from_numpy(camera >= 0)
        size = self._sizes(index)
        patch_from_img = self._affines(size, params)  # (B,A',V,2,3)
        away = torch.tensor([[1.0, 0, -AWAY], [0, 1, -AWAY]], dtype=torch.float64)
        patch_from_img = torch.where(there[:, None, :, None, None], patch_from_img, away)
        sides = {"flipped": torch.tensor([[p.flip for p in ps] for ps in params]), "patch_from_img": patch_from_img}
        if self.images:
            sides["image"] = self._read(index, patch_from_img.numpy(), params)
        if not self.n_augment:
            sides = {name: value[:, 0] for name, value in sides.items()}

        people = self.people[index]  # (B,V,M)
        conf = np.where(people[..., None] >= 0, self.labels.conf[people], 0)
        x_img = np.where(conf[..., None] > 0, self.labels.x_img[people], 0).astype(np.float64)
        poses = self.poses[index]
        X_valid = np.zeros((*poses.shape, self.ann.num_joints), dtype=bool)
        X_world = np.zeros((*X_valid.shape, 3))
        known = poses >= 0
        X_valid[known] = self.ann.X_valid[poses[known]]
        X_world[known] = np.where(X_valid[known][..., None], self.ann.X_world[poses[known]], 0)
        return floats32(
            sides,
            id=torch.from_numpy(index.astype(np.int64)),
            view_there=there,
            camera=self.cameras[torch.from_numpy(camera.astype(np.int64))],
            x_img=torch.from_numpy(x_img),
            conf=torch.from_numpy(conf),
            X_world=torch.from_numpy(X_world),
            X_valid=torch.from_numpy(X_valid),
            n_people=torch.from_numpy(known.sum(1)),
        )

    def _choose(self, key: Key) -> tuple[int, list[FrameParams]]:
        """The instant of a sample and what is done to it: that of the key, unless its people are lost (see `keep_people`)."""
        rng, index, views = self._rng(key), key.index, len(self.views)
        for _ in range(TRIES if self.keep_people and self.augments else 1):
            params = [augment.draw(rng, views) for augment in self.augments]
            if not self.keep_people or not params or self._keeps(index, params):
                break
            index = int(rng.integers(len(self)))
        else:
            log.warning("instant %d: of %d frames and augmentations none keeps its people in sight; it is taken as it is", key.index, TRIES)
            index, params = key.index, [FrameParams(paint_seeds=p.paint_seeds) for p in params]
        return index, params + [FrameParams()] if self.n_augment or not params else params

    def _keeps(self, index: int, params: Sequence[FrameParams]) -> bool:
        """SelfPose3d's rule: every view shows somebody's root in each augmentation, and the `keep_people` fullest views, in the mean and
        rounded down, as many roots as the view with most people has people, those whose root is unknown included.
        """
        there = self.camera[index] >= 0
        people = self.people[index][there]  # (V,M)
        root = torch.from_numpy(self._root[people])  # (V,M,2)
        size = self._sizes(np.array([index]))[:, there]
        x = torch.cat([root, torch.ones_like(root[..., :1])], -1)
        x = torch.einsum("avij,vmj->avmi", self._affines(size, [list(params)])[0], x)
        left = ((x >= 0) & (x < torch.tensor(self.spec.size))).all(-1).sum(-1)  # (A,V); comparisons with NaN are false
        full = int(self._somebody[people].sum(-1).max())
        most = left.sort(-1, descending=True)[0][:, : self.keep_people].double().mean(-1)
        return bool((left > 0).all() and (most.long() == full).all())

    def _affines(self, size: np.ndarray, params: Sequence[Sequence[FrameParams]]) -> Tensor:
        """The whole image centred in the patch, as large as fits.   size (B,V,2) px, params B times A' -> (B,A',V,2,3)"""
        scale, turn = (torch.tensor([[getattr(p, k) for p in ps] for ps in params], dtype=torch.float64) for k in ("scale", "rot_deg"))
        flip = torch.tensor([[p.flip for p in ps] for ps in params])
        return letterbox_affine(size[:, None], self.spec.size, scale[..., None], turn[..., None], flip[..., None])

    def _sizes(self, index: np.ndarray) -> np.ndarray:
        """Of the images of instants; one px where a view is not there.   (B,) -> (B,V,2) px"""
        camera, frames = self.camera[index], self.frames[index]
        unknown = (self._size[camera] <= 0).any(-1) & (camera >= 0)
        for c, row in zip(camera[unknown], frames[unknown], strict=True):
            height, width = read_bgr(self.root / self.ann.image_path(row)).shape[:2]
            self._size[c] = width, height
        return np.where(camera[..., None] >= 0, self._size[camera], 1.0)

    def _read(self, index: np.ndarray, patch_from_img: np.ndarray, params: Sequence[Sequence[FrameParams]]) -> Tensor:
        """Every image decoded once and warped as often as it is asked for.   -> (B,A',V,3,H,W) uint8 RGB"""
        width, height = self.spec.size
        image = np.zeros((*patch_from_img.shape[:3], 3, height, width), dtype=np.uint8)
        for b, v in zip(*np.nonzero(self.camera[index] >= 0), strict=True):
            source = self._read_frame(self.frames[index[b], v], self.camera[index[b], v])
            for a, p in enumerate(params[b]):
                patch = cv2.cvtColor(warp(source, patch_from_img[b, a, v], self.spec.size), cv2.COLOR_BGR2RGB)
                if p.paint_seeds:
                    patch = self.augments[a].paint(patch, p.paint_seeds[v])
                cv2.split(patch, list(image[b, a, v]))
        return torch.from_numpy(image)

    def _read_frame(self, row: int, camera: int) -> np.ndarray:
        path = self.root / self.ann.image_path(row)
        image = read_bgr(path)
        width, height = self._size[camera].tolist()
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{path}: the image is {image.shape[1]} x {image.shape[0]} px, but its camera is calibrated for {width:.0f} x "
                f"{height:.0f}; use the original images, or scale calibration and annotations with them"
            )
        return image


def _augments(augment: FrameAugment | Sequence[FrameAugment] | None, count: int) -> list[FrameAugment]:
    """One augmentation per augmented view of the frame."""
    given = [] if augment is None else [augment] * max(count, 1) if isinstance(augment, FrameAugment) else list(augment)
    if (given or count) and len(given) != max(count, 1):
        raise DataError(f"frame samples: {len(given)} augmentations for n_augment {count}; give one for all, or one for each")
    return given


def _filled(camera: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    """Where a view has one camera throughout a sequence, that one also at instants without an observation.   (G,V), (G,) -> (G,V)"""
    _, group = np.unique(sequence, return_inverse=True)
    high = np.full((group.max() + 1, camera.shape[1]), -1)
    low = np.full_like(high, np.iinfo(high.dtype).max)
    np.maximum.at(high, group, camera)
    np.minimum.at(low, group, np.where(camera >= 0, camera, low[0, 0]))
    return np.where((camera < 0) & (high == low)[group], high[group], camera)
