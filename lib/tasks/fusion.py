"""2D and 3D labels together: heatmaps and the depth at the joints, from crops with 3D labels and crops with 2D labels alone.

Source: Zhou et al., Towards 3D Human Pose Estimation in the Wild: a Weakly-supervised Approach, ICCV 2017. Three stages, a file each: 2D
alone (MODEL.HEAD heatmap), 2D and 3D, and with the variance of bone lengths where there is no depth (FUSION.WEIGHT_VARIANCE).
"""

import dataclasses
import logging

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lib.config import Config
from lib.dataset.annotations import Annotations, strong_and_weak
from lib.dataset.formats import FORMATS
from lib.dataset.image import HG3D, HG3D_HOURGLASS, ImageSpec
from lib.dataset.mixed import MixedSamples
from lib.dataset.samples import CropSamples
from lib.errors import DataError
from lib.geometry.crop import invert, transform_points
from lib.geometry.heatmap import cells_from_patch, decode_heatmap, joint_cells, patch_from_cells, read_depth, render_heatmaps
from lib.geometry.precision import solve_dtype
from lib.geometry.weak_perspective import (
    BONE_SUM_MM,
    H36M_BONES,
    LIMB_BONES,
    LIMB_SUM_MM,
    MPII_BONES,
    bone_lengths,
    crop_pose,
    h36m_pose,
    mm_per_unit,
    mpii_from_h36m,
    with_middle_thorax,
)
from lib.loss import heatmap_mse
from lib.loss.fusion import bone_groups, bone_variance_loss, depth_loss, hourglass_loss
from lib.models import MODELS
from lib.models.fusion import Maps
from lib.registry import resolve
from lib.skeleton import get
from lib.tasks import data
from lib.tasks.base import Step
from lib.tasks.integral import IntegralTask, mirror, plain_mirror

H36M = "h36m17"
log = logging.getLogger("parallax")


class FusionTask(IntegralTask):
    """A crop to joints in the image and depths relative to the root, in one unit; millimetres follow from the sum of bone lengths.

    Poses are given and judged in Human3.6M's 17 joints where the network's joints tell them, as published, else in the network's own.
    Neither the camera nor the distance of the person is used.
    """

    sections = (*IntegralTask.sections, "FUSION")
    corrections = ("off",)
    models = ("fusion", "hourglass")
    strict_pckh = True  # as in Zhou et al.'s release

    def _network(self) -> nn.Module:
        cfg, extra, f = self.cfg, self.cfg.MODEL.EXTRA, self.cfg.FUSION
        if cfg.MODEL.HEAD not in ("heatmap", "heatmap_depth"):
            raise cfg.error("MODEL.HEAD", f"is {cfg.MODEL.HEAD}, but TASK fusion has heatmaps; set heatmap_depth or heatmap")
        self.has_depth, self.hourglass = cfg.MODEL.HEAD == "heatmap_depth", cfg.MODEL.NAME == "hourglass"
        self.published = f.RULE == "published"
        if self.published and self.skeleton != data.MPII:
            raise cfg.error("FUSION.RULE", f"is published, which is for joints of MPII, but they are {self.skeleton}; set it to names")
        self.decode = self._decoding()
        self.image_spec = ImageSpec(tuple(cfg.MODEL.IMAGE_SIZE), **(HG3D_HOURGLASS if self.hourglass else HG3D))
        # Poses are sized in Human3.6M's joints if possible, and also given in them unless they are judged in 2D.
        self.as_h36m = self.sized_as_h36m = self.has_depth and self._tells_h36m()
        self._set_size()
        if self.has_depth:
            try:
                self.groups = bone_groups(self.skeleton, f.GROUPS or None)
            except DataError as error:
                raise cfg.error("FUSION.GROUPS", f"does not fit ({error})") from error
        build, joints = resolve(MODELS, cfg.MODEL.NAME, key="MODEL.NAME"), get(self.skeleton).num
        if self.hourglass:
            depth_modules = extra.DEPTH_MODULES if self.has_depth else None
            return build(joints, extra.NUM_STACKS, extra.NUM_MODULES, extra.NUM_FEATURES, depth_modules, self.image_spec.size)
        data.check_halving(cfg)
        return build(
            joints,
            layers=extra.NUM_LAYERS,
            depth=self.has_depth,
            deconv_filters=extra.NUM_DECONV_FILTERS[: extra.NUM_DECONV_LAYERS],
            deconv_kernels=extra.NUM_DECONV_KERNELS[: extra.NUM_DECONV_LAYERS],
            deconv_bias=extra.DECONV_WITH_BIAS,
            stages=extra.NUM_STAGES,
        )

    @classmethod
    def overfit(cls, cfg: Config) -> dict:
        return {"FUSION.ROT_FACTOR": 0.0}

    @property
    def dims(self) -> int:
        return 3 if self.has_depth else 2

    @property
    def pose_skeleton(self) -> str:
        return H36M if self.as_h36m else self.skeleton

    def _decoding(self) -> str:
        test = self.cfg.TEST
        if test.DECODE == "soft":
            raise self.cfg.error("TEST.DECODE", "is soft, but the heatmaps of TASK fusion are read at their maximum; set auto or argmax")
        if test.DECODE != "auto":
            return test.DECODE
        refined = self.hourglass if self.published else test.POST_PROCESS
        return "quarter" if refined else "argmax"

    # --- data

    def train_data(self) -> dict[str, Dataset]:
        cfg, f = self.cfg, self.cfg.FUSION
        ann = self._strong_set()
        weak = data.weak_sets(cfg, "FUSION.WEAK", self.skeleton)
        if f.SUBJECTS or f.VIEWS:
            ann, others = strong_and_weak(ann, f.SUBJECTS, f.VIEWS)
            weak = [(others, cfg)] * bool(len(others)) + weak
        ann = self._with_2d(ann)
        if self.has_depth and not f.BONE_SUM_MM:
            self._measure(ann)
        strong = self.crops(ann, train=True)
        if not weak:
            return {"train": strong}
        sets = [data.crops(other, part, self.image_spec, data.augmentation(cfg, f.ROT_FACTOR), depth_mm=None) for part, other in weak]
        mixed = MixedSamples(strong, sets, f.RATIO_3D, cfg.SEED)
        log.info("an epoch: %d crops with 3D labels of %d, %d with 2D labels alone", mixed.num_strong, len(strong), mixed.num_weak)
        return {"train": mixed}

    def _strong_set(self) -> Annotations:
        cfg = self.cfg.DATASET
        options = (self.cfg, cfg.TRAIN_SET, cfg.TRAIN_FRAME, cfg.SUBJECTS)
        if not self.published or resolve(FORMATS, cfg.DATASET, key="DATASET.DATASET").SKELETON != H36M:
            return data.annotations(*options)
        ann = data.annotations(*options, skeleton=H36M)
        taken = mpii_from_h36m(torch.arange(ann.num_joints)[:, None])[:, 0].numpy()
        fields = {name: getattr(ann, name)[:, taken] for name in ("X_world", "X_valid", "x_img", "conf", "visible")}
        return dataclasses.replace(ann, skeleton=self.skeleton, **fields)

    def _with_2d(self, ann: Annotations) -> Annotations:
        """The observations whose joints are labelled in the image: without, nothing says where depth is to be read."""
        labelled = (ann.conf > 0).any(1)
        if labelled.all():
            return ann
        if not labelled.any():
            raise DataError(
                f"none of the {len(ann)} observations of {self.cfg.DATASET.TRAIN_SET} has 2D labels, expected them beside the 3D ones; "
                "name a file of 2D joints in DATASET.OPTIONS (h36m_challenge: keypoints or cache), or train on other data"
            )
        log.info("%d of %d training observations have no 2D labels and are left out", (~labelled).sum(), len(ann))
        return ann.select(labelled)

    def _judged(self, **options) -> Annotations:
        """In the joints of the poses, if there are any; in 2D the network's own joints are judged."""
        if self.as_h36m:
            ann = super()._judged(**options, skeleton=H36M)
            if self._has_poses(ann):
                return ann
            self.as_h36m = False
        return super()._judged(**options)

    def crops(self, ann: Annotations, train: bool) -> CropSamples:
        """Person crops whose depth has the unit of x and y."""
        return data.crops(self.cfg, ann, self.image_spec, data.augmentation(self.cfg) if train else None, depth_mm=None)

    # --- the size of people

    def _tells_h36m(self) -> bool:
        if self.published and self.hourglass:  # it is sized and judged in its own joints
            return False
        try:
            self._h36m(torch.zeros(get(self.skeleton).num, 3))
        except DataError:
            return False
        return True

    def _h36m(self, x: Tensor) -> Tensor:
        """(..., J, C) -> (..., 17, C)"""
        return h36m_pose(x, self.skeleton, self.cfg.FUSION.RULE)

    def _set_size(self) -> None:
        """The bones that size a person, and their sum in mm, as long as no training pose was measured."""
        if self.sized_as_h36m:
            self.bones, usual = H36M_BONES, BONE_SUM_MM["published"]
        elif self.published:
            self.bones, usual = MPII_BONES, BONE_SUM_MM["hourglass"]
        else:
            self.bones, usual = LIMB_BONES, LIMB_SUM_MM
        self.bone_sum_mm = self.cfg.FUSION.BONE_SUM_MM or usual

    def _bone_lengths(self, pose: Tensor) -> Tensor:
        """Of poses in the network's joints.   (..., J, 3) -> (..., bones)"""
        return bone_lengths(self._h36m(pose) if self.sized_as_h36m else pose, H36M if self.sized_as_h36m else self.skeleton, self.bones)

    def _measure(self, ann: Annotations) -> None:
        """Sizes people by the bones that at least half of a table's poses have, and the mean of their sum."""
        rows = np.unique(ann.pose[ann.pose >= 0])
        X = np.where(ann.X_valid[rows, :, None], ann.X_world[rows], np.nan)
        lengths = self._bone_lengths(torch.from_numpy(X).double())
        known = lengths.isfinite().double().sum(0) >= max(1, len(rows) / 2)
        if not known.any():
            log.info("FUSION.BONE_SUM_MM: no training pose has bones; people are taken to be as large as in the paper")
            return
        self.bones = tuple(bone for bone, there in zip(self.bones, known.tolist(), strict=True) if there)
        self.bone_sum_mm = lengths[:, known].nanmean(0).sum().item()

    def facts(self) -> dict:
        return {"bone_sum_mm": self.bone_sum_mm, "bones": len(self.bones)} if self.has_depth else {}

    def extra_state(self) -> dict:
        return {"bone_sum_mm": self.bone_sum_mm, "bones": [list(bone) for bone in self.bones]} if self.has_depth else {}

    def load_extra_state(self, state: dict) -> None:
        if self.has_depth and state and not self.cfg.FUSION.BONE_SUM_MM:
            self.bone_sum_mm, self.bones = float(state["bone_sum_mm"]), tuple(map(tuple, state["bones"]))

    # --- training

    def forward(self, batch: dict[str, dict], step: Step) -> dict[str, Tensor]:
        """Scalars: heatmaps (sum over stacks of the mean squared error), depth, variance, and total, their weighted sum."""
        cfg, b = self.cfg, batch["train"]
        maps: Maps = self.model(self.prepare(b["image"]))
        size = (maps.hm.shape[-1], maps.hm.shape[-2])
        x_hm = cells_from_patch(b["x_patch"][..., :2], self.image_spec.size, size)
        cells, inside = joint_cells(x_hm, b["valid"], size, cut_off=self.published, missing_at_origin=self.published)
        if self.published:
            x_hm = cells.to(x_hm)
            # Of a joint just beside the map its edge shows a part; only crops with 3D labels were trained without it.
            drawn = inside | (b["has_depth"] == 0)[:, None] if self.has_depth else True
            target = render_heatmaps(x_hm, b["valid"].bool() & drawn, size, cfg.LOSS.SIGMA, snap="toward_zero")
            errors = [heatmap_mse(hm, target) for hm in maps.stacks]
        else:
            errors = [self.heatmap_supervision(hm, b["x_patch"], b["valid"]) for hm in maps.stacks]
        losses = {"heatmaps": 2 * sum(errors)}  # those are halves of mean squared errors
        if not self.has_depth:
            return losses | {"total": losses["heatmaps"]}
        weak = b["has_depth"] == 0
        label = b["x_patch"][..., 2] / max(self.image_spec.size)
        known = inside & (b["valid_depth"] > 0)
        if self.published and self.hourglass:
            parts = (x_hm, maps.depth, 2 * label, torch.where(weak[:, None], inside, known), weak, self.groups, max(size))
            losses["depth"], losses["variance"] = hourglass_loss(*parts, 1.0, 0.0), hourglass_loss(*parts, 0.0, 1.0)
        else:
            depth = self._depth_at(maps, cells)
            losses["depth"] = depth_loss(depth, label, known)
            losses["variance"] = bone_variance_loss(x_hm / max(size), depth, inside, weak, self.groups)
        total = losses["heatmaps"] + cfg.FUSION.WEIGHT_DEPTH * losses["depth"] + cfg.FUSION.WEIGHT_VARIANCE * losses["variance"]
        return losses | {"total": total}

    def _depth_at(self, maps: Maps, cells: Tensor) -> Tensor:
        """Depth of the joints in sides of the crop.   cells (B,J,2) -> (B,J)"""
        return maps.depth / 2 if self.hourglass else read_depth(maps.depth, cells)

    # --- prediction

    def predict(self, batch: dict) -> dict[str, Tensor]:
        """Joints of a batch of crops.

        Returns:
            x_img (B,J,2) px, conf (B,J) 0..1 and, from a network with depth, X_root (B,J,3) mm relative to the root in the camera's axes
            (weak perspective: parallel to the image), mm_per_px (B,) of the image at the person; where the batch knows the root's place
            also X_cam (B,J,3) mm, X_root put there. J is that of `pose_skeleton`.
        """
        maps = self._maps(batch["image"])
        size = (maps.hm.shape[-1], maps.hm.shape[-2])
        cells, conf = self._read(maps.hm, self.decode)
        x_img = transform_points(invert(batch["patch_from_img"]), patch_from_cells(cells, self.image_spec.size, size))
        if not self.has_depth:
            return {"x_img": x_img, "conf": conf.clamp(0, 1)}
        pose = crop_pose(cells, self._depth_at(maps, self._read(maps.hm, "argmax")[0]), size)
        mm_per_side = mm_per_unit(self._bone_lengths(pose).sum(-1), self.bone_sum_mm)
        if self.published and self.hourglass:
            pose = with_middle_thorax(pose)
        if self.as_h36m:
            pose, x_img, conf = self._h36m(pose), self._h36m(x_img), self._h36m(conf[..., None])[..., 0]
        X_root = (pose - pose[:, get(self.pose_skeleton).root_index, None]) * mm_per_side[:, None, None]
        patch_from_img = batch["patch_from_img"][..., :2].to(solve_dtype(maps.hm.device))
        sides_per_px = torch.linalg.det(patch_from_img).abs().sqrt() / max(self.image_spec.size)
        pred = {"x_img": x_img, "conf": conf.clamp(0, 1), "X_root": X_root, "mm_per_px": mm_per_side * sides_per_px.to(mm_per_side)}
        if "root_cam" in batch:
            pred["X_cam"] = X_root + batch["root_cam"][:, None].to(X_root)
        return pred

    def _read(self, hm: Tensor, method: str) -> tuple[Tensor, Tensor]:
        """Joints (B,J,2) cells and scores (B,J) of heatmaps; the release takes the highest cell whatever stands in it."""
        return decode_heatmap(hm, method, empty_at_origin=not self.published)

    def assumed(self) -> tuple[str, ...]:
        return (f"{len(self.bones)} bones of a person add up to {self.bone_sum_mm:.0f} mm",) if self.has_depth else ()

    def _maps(self, image: Tensor) -> Maps:
        """The network's maps, those of the mirrored image averaged in when TEST.FLIP_TEST."""
        x = self.prepare(image)
        maps = self.model(x)
        if not self.cfg.TEST.FLIP_TEST:
            return maps
        mirrored = plain_mirror if self.published else mirror  # cell x of the mirrored crop is cell w - 1 - x, or w - x
        flip, other = self.flip.to(image.device), self.model(mirrored(x))
        hm = (maps.hm + mirrored(other.hm)[:, flip]) / 2
        if maps.depth is None:
            return maps._replace(hm=hm)
        depth = other.depth if self.hourglass else mirrored(other.depth)
        return maps._replace(hm=hm, depth=(maps.depth + depth[:, flip]) / 2)

    def _protocol(self) -> dict[str, str]:
        return {"size": "; ".join(self.assumed()), "root_depth": "not used", "intrinsics": "not used"}
