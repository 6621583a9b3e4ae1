"""Samplings of the annotation table: torch datasets, indexed with a `Key` (or a number: epoch 0).

A sample is a pure function of (seed, epoch, index). A loader asks for a whole batch at once (`__getitems__`), so
geometry is computed for all of its crops together and only decoding, warping and painting run per image.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations, check_crops
from lib.dataset.augment import NEUTRAL, Augment, Params
from lib.dataset.crop_cache import CropCache
from lib.dataset.image import ImageSpec, read_bgr, warp
from lib.dataset.loader import Key
from lib.dataset.rig import PAIRINGS, view_pairs, view_table
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.geometry.crop import crop_affine, transform_points
from lib.registry import unknown

log = logging.getLogger("parallax")


class Keyed(Dataset):
    """A dataset whose samples are a function of (seed, epoch, index), asked for in whole batches."""

    seed: int

    def __getitem__(self, key: Key | int) -> dict:
        batch = self.__getitems__([key])
        return {name: value[0] for name, value in batch.items()}

    def __getitems__(self, keys: Sequence[Key | int]) -> dict:
        raise NotImplementedError

    def _keys(self, keys: Sequence[Key | int]) -> list[Key]:
        keys = [key if isinstance(key, tuple) else Key(int(key)) for key in keys]
        for key in keys:
            if not 0 <= key[0] < len(self):
                raise IndexError(f"sample {key[0]} of {len(self)}")  # ends a plain for loop over the dataset
        return [Key(*key) for key in keys]

    def _rng(self, key: Key) -> np.random.Generator:
        return np.random.default_rng((self.seed, key.epoch, key.index))


class PersonCrops(Keyed):
    """What samplings of person crops share."""

    def __init__(
        self,
        ann: Annotations,
        root: str | Path,  # image paths are relative to it
        spec: ImageSpec,
        augment: Augment | None = None,  # None: no augmentation
        depth_mm: float | None = 2000.0,  # depth range that is as long as the patch is wide; None = isotropic, see `_depth_scale`
        box_scale: float = 1.0,  # factor on the annotated boxes
        seed: int = 0,
        cache: CropCache | None = None,  # crops of `ann`, row by row; None: decode the images
    ):
        if (depth_mm is not None and not depth_mm > 0) or not box_scale > 0:
            raise DataError(f"samples: depth range {depth_mm} mm and box scale {box_scale} must be positive")
        check_crops(ann)
        self.ann, self.root, self.spec, self.augment = ann, Path(root), spec, augment
        self.depth_mm, self.box_scale, self.seed = depth_mm, box_scale, seed
        if cache is not None and not np.array_equal(cache.names, ann.images[ann.image]):
            raise DataError(f"{cache.path}: holds the crops of another table than the samples'; open the cache for the same one")
        self.cache = cache
        skeleton = skeletons.get(ann.skeleton)
        self.root_joint = skeleton.root_index
        self.flip = torch.tensor(skeleton.flip)
        # Row -1 of cameras and poses is that of observations which have none: K = R = 1, no size, no valid joint.
        eye = torch.eye(3, dtype=torch.float64)
        none = Cameras.make(eye[None], eye[None], torch.zeros(1, 3, dtype=torch.float64))
        self.cameras = Cameras.cat([ann.cameras, none])
        self._camera_size = self.cameras.size.numpy()
        self.X_world, self.X_valid = ann.X_world, ann.X_valid
        if (ann.pose < 0).any() or (ann.camera < 0).any():
            self.X_world = np.append(self.X_world, np.zeros_like(self.X_world, shape=(1, ann.num_joints, 3)), 0)
            self.X_valid = np.append(self.X_valid, np.zeros((1, ann.num_joints), dtype=bool), 0)

    def _draw(self, rng: np.random.Generator) -> Params:
        return NEUTRAL if self.augment is None else self.augment.draw(rng)

    def _crop(self, rows: np.ndarray, params: Sequence[Params]) -> dict[str, Tensor]:
        """The image side of R crops.

        -> image (R,3,H,W) uint8 RGB, patch_from_img (R,2,3), depth_scale (R,) px per mm, flipped (R,)
        """
        box = self.ann.box[rows].astype(np.float64)
        scale = np.array([p.scale for p in params])
        patch_from_img = crop_affine(
            torch.from_numpy((box[:, :2] + box[:, 2:]) / 2),
            torch.from_numpy((box[:, 2:] - box[:, :2]) * self.box_scale),
            torch.tensor(self.spec.size, dtype=torch.float64),
            scale=torch.from_numpy(scale),
            rot_deg=torch.tensor([p.rot_deg for p in params], dtype=torch.float64),
            flip=torch.tensor([p.flip for p in params]),
        )
        width, height = self.spec.size
        image = np.empty((len(rows), 3, height, width), dtype=np.uint8)
        crop, affine = np.full(len(rows), -1), patch_from_img  # -1: from the whole image
        if self.cache is not None:
            crop, affine = self.cache.affines(rows, patch_from_img, self.spec.size)
        for i, (row, A) in enumerate(zip(rows, affine.numpy(), strict=True)):
            source = self._read(row) if crop[i] < 0 else self._read_crop(row, crop[i])
            patch = cv2.cvtColor(warp(source, A, self.spec.size), cv2.COLOR_BGR2RGB)
            patch = patch if self.augment is None else self.augment.paint(patch, params[i])
            cv2.split(patch, list(image[i]))  # into the planes of the batch, three times as fast as a transposed copy
        return {
            "image": torch.from_numpy(image),
            "patch_from_img": patch_from_img,
            "depth_scale": self._depth_scale(rows, patch_from_img, scale),
            "flipped": torch.tensor([p.flip for p in params]),
        }

    def _depth_scale(self, rows: np.ndarray, patch_from_img: Tensor, scale: np.ndarray) -> Tensor:
        """Patch px per mm of depth, (R,) float64.

        `depth_mm` of them are as long as the patch is wide. With None, depth has the unit that x and y have at the root's distance
        (weak perspective): mean focal length / depth of the root * patch px per image px, and 1 where camera, pose or root are
        missing or the root lies behind the camera.
        """
        if self.depth_mm is not None:
            return torch.from_numpy(self.spec.size[0] / (self.depth_mm * scale))
        cameras = self.cameras[torch.from_numpy(self.ann.camera[rows].astype(np.int64))]
        poses = np.where(self.ann.camera[rows] >= 0, self.ann.pose[rows], -1)
        X_root, known = self._labels_3d(poses, self.root_joint)
        depth = cameras.to_cam(X_root)[:, 0, 2]
        focal = (cameras.K[:, 0, 0] + cameras.K[:, 1, 1]) / 2
        zoom = torch.linalg.det(patch_from_img[..., :2]).abs().sqrt()
        known = known[:, 0] & (depth > 0)
        return torch.where(known, focal / torch.where(known, depth, 1) * zoom, 1)

    def _read(self, row: int) -> np.ndarray:
        image = read_bgr(self.root / self.ann.image_path(row))
        self._check_size(row, image.shape[1], image.shape[0])
        return image

    def _read_crop(self, row: int, crop: int) -> np.ndarray:
        self._check_size(row, *self.cache.image_size[row].tolist())
        return self.cache.read(crop)

    def _check_size(self, row: int, width: int, height: int) -> None:
        expected = self._camera_size[self.ann.camera[row]].tolist()
        if expected[0] > 0 and expected != [width, height]:
            raise DataError(
                f"{self.root / self.ann.image_path(row)}: the image is {width} x {height} px, but its camera is calibrated for "
                f"{expected[0]:.0f} x {expected[1]:.0f}; use the original images, or scale calibration and annotations "
                "with them"
            )

    def _labels_2d(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """x_img (R,J,2) float64 px, 0 where conf is 0; conf (R,J) float32."""
        conf = self.ann.conf[rows]
        x_img = np.where(conf[..., None] > 0, self.ann.x_img[rows], 0).astype(np.float64)
        return torch.from_numpy(x_img), torch.from_numpy(conf)

    def _labels_3d(self, poses: np.ndarray, joint: int | None = None) -> tuple[Tensor, Tensor]:
        """X_world (R,J,3) float64 mm, 0 where not valid; X_valid (R,J) bool. Of one joint, J = 1."""
        joints = slice(None) if joint is None else slice(joint, joint + 1)
        valid = self.X_valid[poses, joints]
        X_world = np.where(valid[..., None], self.X_world[poses, joints], 0).astype(np.float64)
        return torch.from_numpy(X_world), torch.from_numpy(valid)

    def _labelled(self, rows: np.ndarray, params: Sequence[Params]) -> dict:
        """R crops with their labels, as CropSamples gives them; `id` is the row."""
        crop = self._crop(rows, params)
        x_img, conf = self._labels_2d(rows)
        poses = np.where(self.ann.camera[rows] >= 0, self.ann.pose[rows], -1)  # depth needs a camera
        X_world, X_valid = self._labels_3d(poses)
        cameras = self.cameras[torch.from_numpy(self.ann.camera[rows].astype(np.int64))]
        X_cam = torch.where(X_valid[..., None], cameras.to_cam(X_world), 0)
        has_depth = X_valid[:, self.root_joint]
        root_cam = X_cam[:, self.root_joint]
        if self.depth_mm is None:  # there is no scale behind the camera
            has_depth = has_depth & (root_cam[:, 2] > 0)

        valid, valid_depth = conf > 0, X_valid & has_depth[:, None]
        depth_px = (X_cam[..., 2] - root_cam[:, None, 2]) * crop["depth_scale"][:, None]
        x_patch = torch.cat([transform_points(crop["patch_from_img"], x_img), depth_px[..., None]], -1)
        known = torch.stack([valid, valid, valid_depth], -1)
        x_patch = torch.where(known, x_patch, 0)
        mirrored = crop["flipped"][:, None]
        known = torch.where(mirrored[..., None], known[:, self.flip], known)
        x_patch = torch.where(mirrored[..., None], x_patch[:, self.flip], x_patch)
        return floats32(
            crop,
            id=torch.from_numpy(rows.astype(np.int64)),
            camera=cameras,
            x_patch=x_patch,
            valid=known[..., 0].float(),
            valid_depth=known[..., 2].float(),
            has_depth=has_depth.float(),
            root_cam=root_cam,
            X_cam=X_cam,
            X_valid=X_valid,
            x_img=x_img,
            conf=conf,
        )


class CropSamples(PersonCrops):
    """One person crop per observation, with 2D and 3D labels in the frame of the patch.

    A batch of B holds: id (B,) row of `ann`; image (B,3,H,W) uint8 RGB; patch_from_img (B,2,3); x_patch (B,J,3): px,
    px and depth px relative to the root (z mm * depth_scale); valid (B,J) 0/1 for x and y; valid_depth (B,J) 0/1 for
    depth; has_depth (B,) 0/1; depth_scale (B,) px per mm, such that depth is isotropic with x and y where `depth_mm` is
    None; flipped (B,). Of the mirrored patch are image, patch_from_img, x_patch, valid and valid_depth. The rest is
    never mirrored: camera (B,), root_cam (B,3) mm, X_cam (B,J,3) mm, X_valid (B,J), x_img (B,J,2) px, conf (B,J).
    """

    def __len__(self) -> int:
        return len(self.ann)

    def __getitems__(self, keys: Sequence[Key | int]) -> dict:
        keys = self._keys(keys)
        rows = np.array([key.index for key in keys])
        return self._labelled(rows, [self._draw(self._rng(key)) for key in keys])


class ViewSamples(PersonCrops):
    """One person at one instant, seen by V cameras, each view cropped (and augmented) on its own.

    A batch of B holds: id (B,) row of `ann` of the first view; row (B,V) rows of `ann`; pose (B,) row of `ann.X_world`
    or -1; image (B,V,3,H,W) uint8 RGB; patch_from_img (B,V,2,3); depth_scale (B,V) px per mm; flipped (B,V); camera
    (B,V); box (B,V,4) px; x_img (B,V,J,2) px; conf (B,V,J); X_world (B,J,3) mm; X_valid (B,J). Labels are those of the
    full images: never mirrored.

    `pairs`: "all" = every view at once; "neighbours" = each pair of neighbouring cameras; "consecutive" = each pair of
    views i, i + 1; "random_neighbours" = per sample and epoch a random camera and a random neighbour of it. Instants
    that lack a needed view are left out, and their number is logged. `views` restricts and orders the view slots
    (None: all).
    """

    def __init__(
        self,
        ann: Annotations,
        root: str | Path,
        spec: ImageSpec,
        views: Sequence[int] | None = None,
        pairs: str = "all",
        augment: Augment | None = None,
        depth_mm: float | None = 2000.0,
        box_scale: float = 1.0,
        seed: int = 0,
        cache: CropCache | None = None,
    ):
        if pairs not in PAIRINGS:
            raise unknown(pairs, PAIRINGS, "EPIPOLAR.PAIRS")
        check_crops(ann)
        slots = list(views) if views else np.unique(ann.view).tolist()
        if len(slots) < 2 or len(set(slots)) < len(slots):
            raise DataError(f"view samples: views {slots}, expected two different ones or more; see DATASET.VIEWS")
        super().__init__(ann, root, spec, augment, depth_mm, box_scale, seed, cache)
        if (ann.camera < 0).any():
            lacking = int((ann.camera < 0).sum())
            raise DataError(
                f"view samples: {lacking} of {len(ann)} observations have no camera, expected a calibrated one for "
                "each; "
                "drop them with ann.select, or use crop samples"
            )
        self.views, self.pairs = slots, pairs
        table = view_table(ann, slots)  # (G, V) rows, -1 = not seen
        if pairs == "all":
            self.table = table[(table >= 0).all(1)]
            kept = len(self.table)
        else:
            joined = view_pairs(ann, table, pairs)  # (G, V, V)
            has_pair = joined.any((1, 2))
            kept = int(has_pair.sum())
            if pairs == "random_neighbours":
                self.table, self.joined = table[has_pair], joined[has_pair]
            else:
                group, a, b = np.nonzero(np.triu(joined))
                self.table = np.stack([table[group, a], table[group, b]], 1)
        lost = len(table) - kept
        if lost:
            log.info("left out %d of %d instants that lack a view (%s of views %s)", lost, len(table), pairs, slots)
        if not kept:
            need = "all" if pairs == "all" else "two matching ones"
            raise DataError(
                f"view samples: none of {len(table)} instants is seen by {need} of the views {slots}; "
                "set DATASET.VIEWS to views that see the same instants"
            )

    def __len__(self) -> int:
        return len(self.table)

    def _choose(self, key: Key, rng: np.random.Generator) -> np.ndarray:
        """The rows of one sample, (V,)."""
        if self.pairs != "random_neighbours":
            return self.table[key.index]
        joined, (first, second) = self.joined[key.index], rng.random(2)
        a = _pick(joined.any(1), first)
        return self.table[key.index, [a, _pick(joined[a], second)]]

    def __getitems__(self, keys: Sequence[Key | int]) -> dict:
        chosen, params = [], []
        for key in self._keys(keys):
            rng = self._rng(key)
            chosen.append(self._choose(key, rng))
            params += [self._draw(rng) for _ in chosen[-1]]
        rows = np.stack(chosen)  # (B, V)
        shape = rows.shape
        crop = {name: value.unflatten(0, shape) for name, value in self._crop(rows.reshape(-1), params).items()}
        x_img, conf = self._labels_2d(rows)
        poses = self.ann.pose[rows[:, 0]]
        X_world, X_valid = self._labels_3d(poses)
        return floats32(
            crop,
            id=torch.from_numpy(rows[:, 0].astype(np.int64)),
            row=torch.from_numpy(rows.astype(np.int64)),
            pose=torch.from_numpy(poses.astype(np.int64)),
            camera=self.cameras[torch.from_numpy(self.ann.camera[rows].astype(np.int64))],
            box=torch.from_numpy(self.ann.box[rows]),
            x_img=x_img,
            conf=conf,
            X_world=X_world,
            X_valid=X_valid,
        )


def _pick(mask: np.ndarray, share: float) -> int:
    """A true place of the mask, at a share 0..1 of them."""
    places = np.flatnonzero(mask)
    return int(places[int(share * len(places))])


def floats32(crop: dict, **labels) -> dict:
    """One batch dictionary; labels and affines were computed in float64, networks want float32."""
    values = crop | labels
    return {k: v.to(torch.float32) if v.dtype == torch.float64 else v for k, v in values.items()}
