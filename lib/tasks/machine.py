"""Clips of one person to 3D poses by a 3D pose machine, with self-supervised correction of each pose at test time.

Source: Wang et al., 3D Human Pose Machines with Self-supervised Learning, TPAMI 2020. MACHINE.STAGE says what learns: the 2D pose of each
frame (2d), the network of features over time (lift), the regression and the projection behind it (projector), or everything (joint). The
correction (TEST.CORRECTION projector) asks no label: it pulls the projection of a pose towards the 2D pose that was seen in the frame.
"""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lib.config import Config
from lib.dataset import protocols
from lib.dataset.annotations import Annotations, concat
from lib.dataset.clips import ClipSamples
from lib.dataset.image import IMAGENET, MACHINE, ImageSpec
from lib.dataset.mixed import MixedSamples
from lib.dataset.retarget import mean_lengths, retargeted
from lib.geometry.crop import invert, transform_points
from lib.geometry.heatmap import cells_from_patch, render_heatmaps
from lib.loss import heatmap_mse
from lib.loss.machine import bone_loss, euclid_loss
from lib.metrics import Keypoint2DEvaluator
from lib.metrics.machine import STAGES, MachineEvaluator
from lib.models import MODELS
from lib.models.pose_machine import Lifter, PoseMachine, mask_joints
from lib.registry import nearest, resolve
from lib.skeleton import get
from lib.tasks import data
from lib.tasks.base import Step
from lib.tasks.correction import ended_in_shares, through_projector, told_of_projector
from lib.tasks.integral import IntegralTask

log = logging.getLogger("parallax")

# What learns in each stage; the projector's stage also has a share in what it takes, but no gradient reaches that.
LEARNS = {
    "2d": ("trunk", "head2d"),
    "lift": ("lifter",),
    "projector": ("regressor", "projector"),
    "joint": ("trunk", "head2d", "lifter", "regressor", "projector"),
}
RANGE_MARGIN = 0.05  # share of the training poses' range that is added on both sides


class MachineTask(IntegralTask):
    """Clips (B,T) of crops to poses in mm relative to the root, in camera axes; no camera and no distance is used."""

    sections = (*IntegralTask.sections, "MACHINE")
    corrections = ("off", "projector")
    models = ("pose_machine",)
    model: PoseMachine

    def _network(self) -> nn.Module:
        cfg, m, extra = self.cfg, self.cfg.MACHINE, self.cfg.MODEL.EXTRA
        self.image_spec = ImageSpec(tuple(cfg.MODEL.IMAGE_SIZE), **(MACHINE if m.TRUNK == "cpm" else IMAGENET))
        if m.STAGE == "2d" and m.HEAD2D == "none":
            raise cfg.error("MACHINE.HEAD2D", "is none, but MACHINE.STAGE 2d trains that head; set fc, maps or lstm")
        if m.SELF and m.HEAD2D == "none":
            raise cfg.error("MACHINE.SELF", "is true, but MACHINE.HEAD2D is none, so that no 2D pose is seen; set it to fc, maps or lstm")
        evidence = cfg.CORRECTION.EVIDENCE
        if cfg.TEST.CORRECTION == "projector" and evidence == "network" and m.HEAD2D == "none":
            raise cfg.error("CORRECTION.EVIDENCE", "is network, but MACHINE.HEAD2D is none; set it to labels (scripts/predict.py "
                            "--evidence), or a 2D head to fc")
        if m.PROTOCOL:
            protocols.selection(m.PROTOCOL, "train")
        self.corrects = cfg.TEST.CORRECTION == "projector"
        if self.corrects and m.STAGE in ("2d", "lift"):
            raise cfg.error("TEST.CORRECTION", f"is projector, but none has learned yet in MACHINE.STAGE {m.STAGE}; leave it off before "
                            "stage projector")
        self.lengths: np.ndarray | None = None
        return resolve(MODELS, cfg.MODEL.NAME, key="MODEL.NAME")(
            self.skeleton,
            self.image_spec.size,
            trunk=m.TRUNK,
            channels=m.CHANNELS,
            hidden=m.HIDDEN,
            temporal=m.TEMPORAL,
            flags=m.FLAGS,
            num_stages=m.NUM_STAGES,
            head2d=m.HEAD2D,
            map_stages=m.MAP_STAGES,
            norm=m.NORM,
            joint_mask=m.JOINT_MASK,
            mask_to=m.MASK_TO,
            start=m.START,
            layers=extra.NUM_LAYERS,
            stages=extra.NUM_STAGES,
            deconv_filters=extra.NUM_DECONV_FILTERS[: extra.NUM_DECONV_LAYERS],
            deconv_kernels=extra.NUM_DECONV_KERNELS[: extra.NUM_DECONV_LAYERS],
            deconv_bias=extra.DECONV_WITH_BIAS,
        )

    def __init__(self, cfg):
        super().__init__(cfg)
        self.learned = [part for part in LEARNS[cfg.MACHINE.STAGE] if part not in cfg.MACHINE.FROZEN]
        if not any(hasattr(self.model, part) for part in self.learned):
            raise cfg.error("MACHINE.FROZEN", f"leaves nothing of stage {cfg.MACHINE.STAGE} to learn; leave some of it out")
        layers = {place for name, _ in self.model.named_parameters() for place in name.split(".")[:-1]}
        for name in cfg.MACHINE.LR_OF:
            if name not in layers:
                guess = nearest(name, layers) or "trunk, fc_final, change or project_2d"
                raise cfg.error("MACHINE.LR_OF", f"{name!r} is no layer or part of the network; did you mean {guess}?")
        for part, module in self.model.named_children():
            if part not in self.learned:
                module.requires_grad_(False)

    @classmethod
    def overfit(cls, cfg: Config) -> dict[str, Any]:
        # A protocol judges other people than it trains on.
        return {"MACHINE.PROTOCOL": "", "MACHINE.JOINT_MASK": {}, "MACHINE.MASK_2D": 0.0}

    def called(self) -> list[nn.Module]:
        """All parts but recurrent ones, which would fall to pieces frame by frame, and those whose weights a correction moves."""
        kept = ("regressor", "projector", "normalizer") if self.corrects else ("normalizer",)
        return [part for name, part in self.model.named_children() if name not in kept and not isinstance(part, Lifter)]

    def train(self, mode: bool = True) -> "MachineTask":
        """Parts that do not learn behave as in evaluation."""
        super().train(mode)
        for part, module in self.model.named_children():
            if part not in self.learned:
                module.eval()
        return self

    @property
    def clip(self) -> int:
        return self.cfg.MACHINE.CLIP

    @property
    def dims(self) -> int:
        return 2 if self.cfg.MACHINE.STAGE == "2d" else 3

    # --- data

    def train_data(self) -> dict[str, Dataset]:
        cfg, m, d = self.cfg, self.cfg.MACHINE, self.cfg.DATASET
        ann = data.annotations(cfg, d.TRAIN_SET, d.TRAIN_FRAME, d.SUBJECTS)
        if m.PROTOCOL:
            wanted = protocols.selection(m.PROTOCOL, "train").subjects
            if not {name.encode() for name in wanted} <= set(ann.subjects.tolist()):  # the third protocol trains on one of the other split
                ann = concat([ann, data.annotations(cfg, d.TEST_SET, d.TRAIN_FRAME)])
            ann = protocols.select(ann, m.PROTOCOL, "train", m.FRAMES, source=f"{d.ROOT} ({d.TRAIN_SET})")
        if m.RETARGET:
            ann, self.lengths = retargeted(ann)
        if m.STAGE == "lift" and m.RANGES == "fit":
            self.model.normalizer.fit(_relative_poses(ann), margin=RANGE_MARGIN)
        clips = self.clips(cfg, ann, train=True)
        stills = [self.clips(other, part, train=True) for part, other in data.weak_sets(cfg, "MACHINE.STILLS", self.skeleton)]
        if not stills:
            return {"train": clips}
        mixed = MixedSamples(clips, stills, m.RATIO_CLIPS, cfg.SEED)
        log.info("an epoch: %d clips of %d, %d single pictures with 2D labels", mixed.num_strong, len(clips), mixed.num_weak)
        return {"train": mixed}

    def eval_data(self) -> dict[str, Dataset]:
        if self.cfg.TEST.FLIP_TEST:
            log.warning("TEST.FLIP_TEST: poses of TASK machine are not averaged with those of mirrored clips; results say flip_test false")
        ann = self._judged()
        if self.cfg.MACHINE.PROTOCOL:
            source = f"{self.cfg.DATASET.ROOT} ({self.cfg.DATASET.TEST_SET})"
            ann = protocols.select(ann, self.cfg.MACHINE.PROTOCOL, "test", self.cfg.MACHINE.FRAMES, source=source)
        if self.cfg.MACHINE.RETARGET:
            ann, _ = retargeted(ann, self._training_lengths())
        if not self._has_poses(ann):
            self.key_metric = ("pck2d_percent", "max")
        return {"valid": self.clips(self.cfg, ann, train=False)}

    def _training_lengths(self) -> np.ndarray:
        """Mean lengths of the limbs of the training poses, which the test poses are given as well."""
        if self.lengths is None:
            ann = data.annotations(self.cfg, self.cfg.DATASET.TRAIN_SET, self.cfg.DATASET.TRAIN_FRAME, self.cfg.DATASET.SUBJECTS)
            self.lengths = mean_lengths(ann.X_world, ann.skeleton, ann.X_valid)
        return self.lengths

    def clips(self, cfg, ann: Annotations, train: bool) -> ClipSamples:
        """Clips of MACHINE.CLIP frames; in training they begin anywhere, in evaluation every frame is judged once."""
        m, ann = self.cfg.MACHINE, data.in_proportion(cfg, ann, self.image_spec)
        return ClipSamples(
            ann,
            cfg.DATASET.ROOT,
            self.image_spec,
            m.CLIP,
            m.STRIDE,
            random_start=train,
            augment=data.augmentation(self.cfg) if train else None,
            depth_mm=None,
            box_scale=cfg.DATASET.BOX_SCALE,
            seed=self.cfg.SEED,
            cache=data.crop_cache(cfg, ann) if train else None,
        )

    def extra_state(self) -> dict:
        return {} if self.lengths is None else {"limb_lengths_mm": self.lengths.tolist()}

    def load_extra_state(self, state: dict) -> None:
        if "limb_lengths_mm" in state:
            self.lengths = np.array(state["limb_lengths_mm"])

    # --- training

    def param_groups(self) -> list[dict]:
        """Biases, the layer of the lifted pose, and what MACHINE.LR_OF names have learning rates of their own."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(self._rate(name), []).append(parameter)
        return [{"params": parameters, "lr": self.cfg.TRAIN.LR * factor} for factor, parameters in groups.items()]

    def _rate(self, name: str) -> float:
        """The factor on TRAIN.LR of a parameter; of several names in MACHINE.LR_OF that it lies below, the innermost says it."""
        m, (*places, kind) = self.cfg.MACHINE, name.split(".")
        bias = kind.startswith("bias")
        own = next((m.LR_OF[place] for place in reversed(places) if place in m.LR_OF), None)
        if own is not None:
            return own[bias]
        last = m.LR_LAST if m.STAGE == "lift" and "fc_final" in places else 1.0
        return last * (m.LR_BIAS if bias else 1.0)

    def forward(self, batch: dict[str, dict], step: Step) -> dict[str, Tensor]:
        """Scalars, each a sum of squares over twice the number of frames.

        seen, maps: the 2D pose of the trunk's head; coarse, regressed: the lifted pose, and what the regression makes of it; *_bones: their
        bones; projected, projected_bones: the projection. total: what the stage minimises, weighted.
        """
        m, b = self.cfg.MACHINE, batch["train"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and "trunk" in self.learned):
            feat = self._features(b["image"], b["mask"])
        losses: dict[str, Tensor] = {}
        x, seen = self._shares(b), b["valid"].bool()
        if "head2d" in self.learned and m.HEAD2D != "none":
            losses |= self._head_losses(feat, x, seen, b)
        if m.STAGE == "2d":
            return losses | {"total": sum(losses.values())}
        target, known = self.model.normalizer.normalize(b["X_rel"]), b["X_rel_valid"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and "lifter" in self.learned):
            p3d = self.model.lift(feat, b["mask"])
        losses["coarse"] = euclid_loss(p3d, target, known)
        if m.STAGE == "lift":
            return losses | {"total": sum(losses.values())}
        # Frames that are not there would count in the batch norm that the projector may have.
        p3d, target, known, x, seen = (value[b["mask"]] for value in (p3d, target, known, x, seen))
        losses["coarse_bones"] = m.WEIGHT_BONES * bone_loss(p3d, target, self.skeleton, known)
        regressed = self.model.regress(p3d)
        projected = self.model.project(regressed)
        losses["regressed"] = euclid_loss(regressed, target, known)
        losses["regressed_bones"] = m.WEIGHT_BONES * bone_loss(regressed, target, self.skeleton, known)
        if m.SELF:  # by what is seen rather than by labels (the paper's last stage)
            with torch.no_grad():
                x, seen = self.model.locate(feat, b["mask"])[b["mask"]], torch.ones_like(seen)
        if m.MASK_2D and self.training:
            seen = seen & mask_joints(x, m.MASK_2D)[1]
        losses["projected"] = m.WEIGHT_2D * euclid_loss(projected, x, seen)
        if m.WEIGHT_BONES2D:
            losses["projected_bones"] = m.WEIGHT_BONES2D * bone_loss(projected, x, self.skeleton, seen)
        return losses | {"total": sum(losses.values())}

    def _features(self, image: Tensor, mask: Tensor) -> Tensor:
        """Features of the frames that are there, 0 for the others: a still goes through the trunk once, however long its clip is.

        image (B,T,3,H,W) uint8, mask (B,T) -> (B,T,C,h,w)
        """
        found = self.model.features(self.prepare(image[mask][:, None]))[:, 0]
        feat = found.new_zeros(*mask.shape, *found.shape[1:])
        feat[mask] = found
        return feat

    def _head_losses(self, feat: Tensor, x: Tensor, seen: Tensor, batch: dict) -> dict[str, Tensor]:
        if self.cfg.MACHINE.HEAD2D != "maps":
            return {"seen": euclid_loss(self.model.locate(feat, batch["mask"]), x, seen)}
        maps = [part.flatten(0, 1) for part in self.model.maps(feat)]
        size = (feat.shape[-1], feat.shape[-2])
        x_hm = cells_from_patch(batch["x_patch"].flatten(0, 1)[..., :2], self.image_spec.size, size)
        valid = batch["valid"].flatten(0, 1)
        target = render_heatmaps(x_hm, valid, size, self.cfg.LOSS.SIGMA)
        target = torch.cat([target, 1 - target.amax(1, keepdim=True)], 1)
        # The background is known where all joints are.
        weight = torch.cat([valid, valid.amin(1, keepdim=True)], 1).to(target)
        return {"maps": sum(heatmap_mse(part, target, weight) for part in maps)}

    def _shares(self, batch: dict) -> Tensor:
        """2D labels in sides of the crop.   -> (..., J, 2)"""
        return batch["x_patch"][..., :2] / batch["x_patch"].new_tensor(self.image_spec.size)

    def _evidence(self, batch: dict, feat: Tensor) -> tuple[Tensor, Tensor]:
        """The 2D pose that a correction goes by, in sides of the crop, and how far each joint is trusted.   -> (B,T,J,2), (B,T,J)"""
        if self.cfg.CORRECTION.EVIDENCE == "labels":
            return self._shares(batch), batch["valid"].float() * batch["conf"]
        x = self.model.locate(feat, batch["mask"])
        return x, torch.ones_like(x[..., 0])

    # --- prediction

    def prepare(self, image: Tensor) -> Tensor:
        """Network input of clips.   (B,T,3,H,W) uint8 RGB -> float, normalised"""
        return super().prepare(image.flatten(0, 1)).unflatten(0, image.shape[:2])

    def predict(self, batch: dict) -> dict[str, Tensor]:
        """Poses of clips (B,T,...), or of single pictures (B,...), which are clips of one frame.

        Returns:
            In stage 2d x_img (B,T,J,2) px and conf (B,T,J). Else X_root (B,T,J,3) mm relative to the root in camera axes, the result;
            X_coarse and X_regressed likewise, the lifted pose and the one before a correction; x_img and conf, the 2D pose seen, or without
            a head for it where the pose projects, once the projector has learned; with it mm_per_px (B,T) of the image at the person.
            Where the batch knows the root's place, X_cam and the stages are put there. With a correction, X_before (B,T,J,3) mm relative to
            the root is the pose before it, and see `lib.tasks.correction.ended`.
        """
        if batch["image"].ndim == 4:
            single = {name: value[:, None] for name, value in batch.items() if torch.is_tensor(value) and name != "id"}
            single["mask"] = torch.ones(len(batch["image"]), 1, dtype=torch.bool, device=batch["image"].device)
            return {name: value[:, 0] for name, value in self._predict(single).items()}
        return self._predict(batch)

    def _predict(self, batch: dict) -> dict[str, Tensor]:
        feat, x = self.model.see(self.prepare(batch["image"]), batch["mask"])
        if self.cfg.MACHINE.STAGE == "2d":
            return self._in_picture(x, batch)
        p3d = self.model.lift(feat, batch["mask"])
        mm = self.model.normalizer.denormalize
        pred = {"X_coarse": mm(p3d)}
        pred["X_root"] = pred["X_coarse"]
        if self.cfg.MACHINE.STAGE != "lift":
            regressed = self.model.regress(p3d)
            x = self.model.project(regressed) if x is None else x
            pred["X_regressed"] = pred["X_root"] = mm(regressed)
        if self.corrects:
            pred |= self._corrected(p3d, *self._evidence(batch, feat), batch)
        if x is not None:
            pred |= self._in_picture(x, batch)
            # Of a scaled parallel projection, which keeps the ratio of the joints' spreads.
            pred["mm_per_px"] = _spread(pred["X_root"][..., :2]) / _spread(pred["x_img"]).clamp(min=1e-6)
        if "root_cam" in batch:
            root = batch["root_cam"][..., None, :]
            pred |= {name: pred[name] + root for name in ("X_coarse", "X_regressed") if name in pred}
            pred["X_cam"] = pred["X_root"] + root
        return pred

    def _in_picture(self, x: Tensor, batch: dict) -> dict[str, Tensor]:
        """x_img and conf of 2D poses in shares of the crop.   x (B,T,J,2)"""
        img_from_patch = invert(batch["patch_from_img"]).flatten(0, 1)
        x_img = transform_points(img_from_patch, (x * x.new_tensor(self.image_spec.size)).flatten(0, 1)).unflatten(0, x.shape[:2])
        return {"x_img": x_img, "conf": torch.ones_like(x[..., 0])}

    def _corrected(self, p3d: Tensor, x: Tensor, conf: Tensor, batch: dict) -> dict[str, Tensor]:
        """The result of a correction, and how it went.   p3d (B,T,J,3), x (B,T,J,2) shares, conf (B,T,J)"""
        m = self.model
        found = through_projector(self.cfg, m.regressor, m.projector, m.normalizer.denormalize, self.skeleton, p3d, x, conf)
        px = x.new_tensor(self.image_spec.size) / torch.linalg.det(batch["patch_from_img"][..., :2].float()).abs().sqrt()[..., None]
        return {"X_root": found.X_root, "X_before": m.normalizer.denormalize(found.regressed)} | ended_in_shares(found, x, conf, px)

    def rows(self, pred: dict[str, Tensor], batch: dict) -> tuple[dict[str, Tensor], dict]:
        """The judged frames of clips, a row each."""
        judged = batch["judged"]
        fields = {"id": batch["row"][judged]}
        for name in ("image", "patch_from_img", "X_cam", "X_valid", "x_img", "conf", "root_cam"):
            if name in batch:
                fields[name] = batch[name][judged]
        return {name: value[judged] for name, value in pred.items()}, fields

    def assumed(self) -> tuple[str, ...]:
        return ("people are as large as those of training",)

    # --- evaluation

    def evaluator(self, dataset: ClipSamples):
        ann, test = dataset.ann, self.cfg.TEST
        actions = [ann.action(row) for row in range(len(ann))] if any(ann.actions) else None
        if not self._has_poses(ann):
            return Keypoint2DEvaluator(self.skeleton, actions)
        stages = {"lift": (), "projector": STAGES, "joint": STAGES}[self.cfg.MACHINE.STAGE]
        return MachineEvaluator(
            self.skeleton, stages, actions=actions, joints=test.JOINTS or None, variants=test.VARIANTS, protocol=self._protocol()
        )

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {"flip_test": False}  # whatever TEST.FLIP_TEST asks for

    def _protocol(self) -> dict[str, Any]:
        m = self.cfg.MACHINE
        told: dict[str, Any] = {"root_depth": "not used", "intrinsics": "not used", "clip": m.CLIP}
        if m.PROTOCOL:
            told |= protocols.describe(m.PROTOCOL, "test", m.FRAMES)
        if m.RETARGET:
            told["truth"] = "poses with the mean limbs of the training set"
        return told | (told_of_projector(self.cfg, self.cfg.CORRECTION.EVIDENCE) if self.corrects else {})

    def figures(self, batch: dict, pred: dict[str, Tensor], limit: int) -> dict[str, np.ndarray]:
        """Crops with the 2D pose seen, the 3D pose and the truth."""
        pred, rows = self.rows(pred, batch)
        if "x_img" not in pred:
            pred["x_img"] = rows["x_img"]
        return super().figures(rows, pred, limit)


def _spread(points: Tensor) -> Tensor:
    """Root mean square distance of joints from their middle.   (...,J,C) -> (...)"""
    return (points - points.mean(-2, keepdim=True)).float().square().sum(-1).mean(-1).sqrt()


def _relative_poses(ann: Annotations) -> Tensor:
    """Poses relative to the root in the axes of every camera that sees them, NaN where not annotated.   -> (N,J,3) mm"""
    pairs = np.unique(np.stack([ann.pose, ann.camera], 1)[(ann.pose >= 0) & (ann.camera >= 0)], axis=0)
    X = np.where(ann.X_valid[..., None], ann.X_world, np.nan)[pairs[:, 0]].astype(np.float64)
    X = torch.from_numpy(X - X[:, get(ann.skeleton).root_index, None])
    return torch.einsum("nij,nkj->nki", ann.cameras.R[torch.from_numpy(pairs[:, 1]).long()].double(), X)
