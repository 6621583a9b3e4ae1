"""Several people, several calibrated cameras, without 3D labels: 2D labels of which nobody says who is who in another view.

Source: Srivastav et al., SelfPose3d, CVPR 2024, on the network of VoxelPose. Stages (SSL.STAGE): "backbone", the 2D network on the
labels; "root", people's places from places drawn at random and projected into the views; "pose", poses that fit the labels of another
augmentation of the same views than the one they were found in; "finetune", the same with surer labels.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lib.config import Config
from lib.dataset import load
from lib.dataset.annotations import Annotations, unmatched
from lib.dataset.frames import FrameSamples
from lib.geometry.heatmap import summed_heatmaps
from lib.geometry.voxel_targets import draw_roots, fitting_margins, joints_in_patch, people_in_views, root_heatmaps, root_volume
from lib.loss.selfpose3d import attended_heatmap_loss, attention_penalty, drawn_roots_loss, matched_l1, root_consistency_loss
from lib.loss.voxels import view_heatmap_loss
from lib.models.attention import AttentionNet
from lib.tasks import data
from lib.tasks.base import Step
from lib.tasks.voxelpose import VoxelPoseTask

AUGMENTED = 2  # augmentations of each frame; the plain frame comes after them


class SelfPose3dTask(VoxelPoseTask):
    """Whole frames of all views to the people in them, learned from 2D labels alone.

    A model is chosen by how well its people, projected, agree with the 2D people of the evaluated frames. These are the pseudo labels of
    SSL.VALID_LABELS; without any they are the 2D side of DATASET.TEST_SET, which on annotated sets such as CMU Panoptic is the 3D truth,
    projected. `judged_by` in the report's protocol says which. Where there is a 3D truth, errors in mm are reported beside it.
    """

    sections = (*VoxelPoseTask.sections, "SSL")
    parts_key = "SSL.STAGE"

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.SSL.STAGE == "root" and not cfg.VOXEL.ROOT_HEATMAP:
            raise cfg.error("VOXEL.ROOT_HEATMAP", "is false, but stage root draws heatmaps of the root alone; set it to true")
        if self.in_space:
            self.key_metric = ("reprojection_percent", "min")

    @classmethod
    def overfit(cls, cfg: Config) -> dict:
        return {"SSL.COLORS": 0, "SSL.CUTS": [0, 0], "SSL.FULL_VIEWS": 0, "SSL.VALID_LABELS": cfg.SSL.LABELS}

    def learned(self) -> tuple[str, ...]:
        ssl = self.cfg.SSL
        if ssl.STAGE in ("backbone", "root"):
            return ("backbone",) if ssl.STAGE == "backbone" else ("root_net",)
        with_backbone = ssl.TRAIN_BACKBONE and self.from_images
        return (("backbone",) if with_backbone else ()) + (("attn",) if self._attends else ()) + ("pose_net",)

    @property
    def _attends(self) -> bool:
        return self.cfg.SSL.ATTENTION and self.from_images and self.cfg.SSL.STAGE in ("pose", "finetune")

    def attention(self, joints: int) -> nn.Module | None:
        if not self._attends:
            return None
        extra = self.cfg.MODEL.EXTRA  # its maps are as large as those of the backbone
        return AttentionNet(
            joints,
            self.cfg.SSL.ATTENTION_LAYERS,
            deconv_filters=extra.NUM_DECONV_FILTERS[: extra.NUM_DECONV_LAYERS],
            deconv_kernels=extra.NUM_DECONV_KERNELS[: extra.NUM_DECONV_LAYERS],
            deconv_bias=extra.DECONV_WITH_BIAS,
            final_kernel=extra.FINAL_CONV_KERNEL,
            stages=extra.NUM_STAGES,
        )

    # --- data

    def train_data(self) -> dict[str, Dataset]:
        ssl = self.cfg.SSL
        if ssl.STAGE == "backbone":
            return {"train": self.frames(self.labels(), self.augmentation())}
        augment = self.augmentation(color_ops=ssl.COLORS, cuts=tuple(ssl.CUTS))
        return {"train": self.frames(self.labels(), augment, n_augment=AUGMENTED, keep_people=ssl.FULL_VIEWS, roots=self.roots)}

    def labels(self) -> Annotations:
        """2D people without identities and 3D poses: pseudo labels, or what the annotations have of that."""
        d = self.cfg.DATASET
        if self.cfg.SSL.LABELS:
            ann = self._labels_of(self.cfg.SSL.LABELS).protocol(d.SUBJECTS, d.TRAIN_FRAME, d.VIEWS)
        else:
            ann = data.annotations(self.cfg, d.TRAIN_SET, d.TRAIN_FRAME, d.SUBJECTS)
        return unmatched(ann)

    def _labels_of(self, name: str) -> Annotations:
        return load("pseudo_labels", self.cfg.DATASET.ROOT, name, skeleton=self.skeleton)

    def eval_data(self) -> dict[str, Dataset]:
        """The frames that are judged by; their 2D people are those of SSL.VALID_LABELS, where that is given."""
        sets = super().eval_data()
        if self.cfg.SSL.VALID_LABELS:
            sets["valid"].with_labels(self._labels_of(self.cfg.SSL.VALID_LABELS))
        return sets

    # --- training

    def forward(self, batch: dict[str, dict], step: Step) -> dict[str, Tensor]:
        if self.cfg.SSL.STAGE == "backbone":
            return super().forward(batch, step)
        b = batch["train"]
        samples, copies = b["patch_from_img"].shape[:2]
        sides = self._sides(b)
        hm, hm_from_img = self.heatmaps(sides)
        hm, hm_from_img = (x.unflatten(0, (samples, copies)).transpose(0, 1) for x in (hm, hm_from_img))  # (A+1,B,V,...), plain last
        if self.cfg.SSL.STAGE == "root":
            losses = self._root_losses(hm, hm_from_img, b)
        else:
            losses = self._pose_losses(hm, hm_from_img, b, sides, step)
        total = sum(self._weights[name] * value for name, value in losses.items())
        return losses | {"total": self.differentiable(total)}

    @property
    def _weights(self) -> dict[str, float]:
        ssl, v = self.cfg.SSL, self.cfg.VOXEL
        return {
            "heatmaps": v.WEIGHT_2D, "projected": v.WEIGHT_POSE, "attention": ssl.WEIGHT_ATTENTION, "joints": ssl.WEIGHT_L1,
            "drawn_roots": ssl.WEIGHT_DRAWN, "consistency": ssl.WEIGHT_CONSISTENCY,
        }  # fmt: skip

    @staticmethod
    def _sides(batch: dict) -> dict:
        """Every augmentation as a sample of its own: (B,A+1,...) -> (B (A+1),...); labels and cameras are repeated."""
        samples, copies = batch["patch_from_img"].shape[:2]
        row = torch.arange(samples, device=batch["patch_from_img"].device).repeat_interleave(copies)
        own = {name: batch[name].flatten(0, 1) for name in ("image", "patch_from_img", "flipped") if name in batch}
        return own | {name: batch[name][row] for name in ("x_img", "conf", "camera")}

    def _root_losses(self, hm: Tensor, hm_from_img: Tensor, batch: dict) -> dict[str, Tensor]:
        """hm (A+1,B,V,J,h,w), hm_from_img (A+1,B,V,2,3)"""
        net, space = self.model.root_net, self.model.root_net.space
        copies, samples = hm.shape[:2]
        lead, affines = (copies, samples), hm_from_img.flatten(0, 1)
        camera = batch["camera"][torch.arange(samples, device=hm.device).repeat(copies)]
        volume = net.volume(net.select(hm.flatten(0, 1)), camera, affines).unflatten(0, lead)

        roots, there = draw_roots(copies * samples, space.size, space.center, self.cfg.VOXEL.MAX_PEOPLE, self._margins(space.size))
        roots, there = roots.to(affines), there.to(hm.device)
        seen = root_heatmaps(roots, there, camera, affines, (hm.shape[-1], hm.shape[-2]), self.cfg.LOSS.SIGMA, rule=self.cfg.VOXEL.RULE)
        target = root_volume(roots, there, space.size, space.center, space.shape, self.cfg.VOXEL.ROOT_SIGMA_MM)
        drawn = net.volume(seen, camera, affines)
        return {
            "drawn_roots": drawn_roots_loss(drawn.unflatten(0, lead), target.unflatten(0, lead)),
            "consistency": root_consistency_loss(volume[:-1], volume[-1]),
        }

    def _margins(self, size) -> tuple[tuple[float, float], ...]:
        """How far within the space places are drawn, along x, y and z.   size (3,) mm -> three (low, high) mm"""
        asked = self.cfg.SSL.DRAWN_WITHIN
        return tuple(zip(asked[::2], asked[1::2], strict=True)) if asked else fitting_margins(size)

    def _pose_losses(self, hm: Tensor, hm_from_img: Tensor, batch: dict, sides: dict, step: Step) -> dict[str, Tensor]:
        """hm (A+1,B,V,J,h,w), hm_from_img (A+1,B,V,2,3); `sides`: see `_sides`

        Poses found in one augmentation meet the labels of the other. Samples in which nobody is found do not count.
        """
        cfg, size = self.cfg, (hm.shape[-1], hm.shape[-2])
        copies, samples = hm.shape[:2]
        labels = sides | {"conf": (sides["conf"] > 0).float()}
        target = self.drawn(labels, hm_from_img.transpose(0, 1).flatten(0, 1), size).unflatten(0, (samples, copies)).transpose(0, 1)
        losses = {"heatmaps": view_heatmap_loss(hm, target)} if "backbone" in self.parts else {}

        proposals = self.locate(hm[-1].detach(), batch["camera"], hm_from_img[-1])
        row = proposals.found.any(1).nonzero()[:, 0]
        found, count = proposals.found[row].repeat(AUGMENTED, 1), len(row)
        camera, centers = batch["camera"][row.repeat(AUGMENTED)], proposals.centers[row].repeat(AUGMENTED, 1, 1)
        X = self.model.pose(hm[:-1, row].flatten(0, 1), camera, hm_from_img[:-1, row].flatten(0, 1), centers, found)
        X = X.unflatten(0, (AUGMENTED, count)).flip(0)  # each to the other augmentation

        sums = {"projected": 0.0} | ({"attention": 0.0} if self._attends else {}) | ({"joints": 0.0} if self._matches(step) else {})
        if not count:
            return losses | {name: hm.new_zeros(()) for name in sums}
        known = found[:count, :, None].expand(-1, -1, X.shape[3])
        patch_from_img, rule = batch["patch_from_img"].transpose(0, 1), cfg.VOXEL.RULE
        for a in range(AUGMENTED):
            x, seen = people_in_views(X[a], known, camera[:count], hm_from_img[a, row], rule)
            attention = self._attention(batch, a)[row] if self._attends else None
            sums["projected"] += attended_heatmap_loss(summed_heatmaps(x, seen, size, cfg.LOSS.SIGMA), target[a, row], attention)
            if self._attends:
                sums["attention"] += attention_penalty(attention)
            if self._matches(step):
                affine, img = patch_from_img[a, row], batch["camera"].size[row]
                label, conf = joints_in_patch(batch["x_img"][row], batch["conf"][row], affine, self.image_spec.size, img)
                x, seen = people_in_views(X[a], known, camera[:count], affine, rule)
                sums["joints"] += matched_l1(x, seen, label, conf, self.image_spec.size, cfg.SSL.DROP_WORST, rule)
        return losses | sums

    def _matches(self, step: Step) -> bool:
        """Whether projected joints are compared as well."""
        return self.cfg.SSL.WEIGHT_L1 > 0 and step.epoch >= self.cfg.SSL.L1_EPOCH

    def _attention(self, batch: dict, augmentation: int) -> Tensor:
        """Where the labels of an augmentation are to be trusted.   -> (B,V,J,h,w)"""
        image = batch["image"][:, augmentation]
        attention = self.model.attn(self.image_spec.normalize(image.flatten(0, 1))).float().unflatten(0, image.shape[:2])
        return torch.where(batch["flipped"][:, augmentation, None, None, None, None], attention[:, :, self.flip], attention)

    # --- prediction

    def predict(self, batch: dict) -> dict[str, Tensor]:
        """People of each instant, see VoxelPoseTask. While places alone are learned, a person is a root: the other joints are at the same
        point and `valid` (B,P,J) is false for them.
        """
        if self.cfg.SSL.STAGE != "root":
            return super().predict(batch)
        hm, hm_from_img = self.heatmaps(batch)
        proposals = self.model.locate(hm, batch["camera"], hm_from_img)
        centers = torch.where(proposals.found[..., None], proposals.centers, 0.0)
        X = centers[:, :, None].expand(-1, -1, hm.shape[2], -1)
        joint = torch.zeros(hm.shape[2], dtype=torch.bool, device=hm.device)
        joint[self.roots] = True
        valid = proposals.found[..., None] & joint
        return {"X_world": X, "valid": valid, "score": proposals.score, "found": proposals.found, "centers": centers}

    def figures(self, batch: dict, pred: dict[str, Tensor], limit: int) -> dict:
        """As VoxelPoseTask; none of places alone."""
        return {} if self.cfg.SSL.STAGE == "root" else super().figures(batch, pred, limit)

    def evaluator(self, dataset: FrameSamples):
        evaluator, ssl = super().evaluator(dataset), self.cfg.SSL
        side = "the 2D side of its 3D truth" if len(dataset.ann.X_world) else "the 2D people"
        judged_by = ssl.VALID_LABELS or f"{side} in {self.cfg.DATASET.TEST_SET}"
        evaluator.protocol |= {"supervision": "2D labels, people not matched between views", "stage": ssl.STAGE, "judged_by": judged_by}
        return evaluator
