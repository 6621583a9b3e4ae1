"""Several people, several calibrated cameras, supervised: heatmaps of the views, people in the space they share, poses of each.

Source: Tu et al., VoxelPose, ECCV 2020. VOXEL.PARTS says which of the three networks learn, so the 2D network is trained by this task
as well: alone, or along with the others.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lib import vis
from lib.config import Config
from lib.dataset.annotations import Annotations
from lib.dataset.augment import FrameAugment
from lib.dataset.frames import FrameSamples
from lib.dataset.image import IMAGENET, ImageSpec
from lib.drawing.space_view import space_sheet
from lib.geometry.camera import Cameras
from lib.geometry.crop import transform_points
from lib.geometry.heatmap import people_heatmaps
from lib.geometry.volume import Space
from lib.geometry.voxel import space_from_cameras
from lib.geometry.voxel_targets import joints_in_patch, root_points, root_volume
from lib.loss.voxels import match_people, pose_loss, view_heatmap_loss, volume_loss
from lib.metrics.evaluator import RowEvaluator
from lib.metrics.peaks import PeakEvaluator, peak_hits
from lib.metrics.people_evaluator import PeopleEvaluator
from lib.models.voxelpose import Proposals, VoxelPose
from lib.skeleton import get
from lib.tasks import data
from lib.tasks.base import Step, Task
from lib.tasks.integral import build_model as build_backbone
from lib.tasks.integral import mirror
from lib.weights.adapters import Checkpoint
from lib.weights.load import initialise

STRIDE = 4  # of the heatmaps where keypoints are drawn
PEAK_RADIUS = 2  # cells; at stride 4 eight pixels


class VoxelPoseTask(Task):
    """Whole frames of all views to the people in them, in mm of the world."""

    sections = ("DATASET", "MODEL", "LOSS", "VOXEL", "TRAIN", "TEST", "DEBUG", "SYNTH")
    sees = "views"
    models = ("voxelpose",)
    parts_key = "VOXEL.PARTS"  # that names what is trained

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        v = cfg.VOXEL
        self.skeleton = data.skeleton_name(cfg)
        skeleton = get(self.skeleton)
        self.image_spec = ImageSpec(tuple(cfg.MODEL.IMAGE_SIZE), **IMAGENET)
        self.from_images = v.HEATMAPS == "network"
        self.roots = self._root_joints()
        self.parts = self.learned()
        if not self.parts:
            raise cfg.error(self.parts_key, "is empty, so that nothing would learn; name some of backbone, root_net and pose_net")
        self.in_space = "root_net" in self.parts or "pose_net" in self.parts  # else the 2D network alone is trained, judged and kept
        if bool(v.SPACE_SIZE) != bool(v.SPACE_CENTER):
            raise cfg.error("VOXEL.SPACE_SIZE", "and SPACE_CENTER belong together; set both, or neither to find them from the cameras")
        if "backbone" in self.parts and not self.from_images:
            raise cfg.error(self.parts_key, "trains the backbone, but VOXEL.HEATMAPS keypoints needs none; leave it out, or set network")
        self.space_known = bool(v.SPACE_SIZE)
        space = Space(v.SPACE_SIZE, v.SPACE_CENTER, v.CUBES) if self.space_known else Space(shape=v.CUBES)
        self.model = VoxelPose(
            skeleton.num,
            space,
            backbone=build_backbone(cfg, skeleton.num, "pose3d_resnet", "heatmap") if self.from_images else None,
            attention=self.attention(skeleton.num),
            root=self.roots if v.ROOT_HEATMAP else None,
            person_size=v.PERSON_SIZE,
            person_shape=v.PERSON_CUBES,
            max_people=v.MAX_PEOPLE,
            threshold=v.THRESHOLD,
            nms_radius_mm=v.NMS_RADIUS_MM,
            beta=v.BETA,
            max_people_per_chunk=v.CHUNK or None,
            rule=v.RULE,
            start=v.START,
            in_space=self.in_space,
        )
        if self.from_images or cfg.MODEL.PRETRAINED:  # ImageNet's weights are for the 2D network
            initialise(self.model if cfg.MODEL.PRETRAINED else self.model.backbone, cfg, self.skeleton, v.NEW_JOINTS)
        if cfg.CHANNELS_LAST and self.from_images:
            self.model.backbone.to(memory_format=torch.channels_last)
        self.model.freeze(*(part for part, module in self.model.named_children() if part not in self.parts))
        # Poses of a network that does not learn, and may be untrained, say nothing of people's places.
        in_space = "map_percent" if "pose_net" in self.parts else "root_map_percent"
        self.key_metric = (in_space if self.in_space else "peak_f1_percent", "max")
        self.register_buffer("flip", torch.as_tensor(skeleton.flip.copy()), persistent=False)

    def learned(self) -> tuple[str, ...]:
        """Parts of the network that are trained."""
        return tuple(self.cfg.VOXEL.PARTS)

    def called(self) -> list[nn.Module]:
        """The 2D networks and the 3D ones; what lies between them, geometry of any number of people, is left as it is."""
        spatial = [net.v2v_net for net in (self.model.root_net, self.model.pose_net) if net is not None]
        return [net for net in (self.model.backbone, self.model.attn) if net is not None] + spatial

    def attention(self, joints: int) -> nn.Module | None:
        """The attention network, where training needs one."""
        return None

    def _root_joints(self) -> list[int]:
        skeleton, names = get(self.skeleton), self.cfg.VOXEL.ROOT_JOINTS
        unknown = [name for name in names if name not in skeleton.joints]
        if unknown:
            found = f"{unknown} are no joints of {self.skeleton}; expected some of {', '.join(skeleton.joints)}"
            raise self.cfg.error("VOXEL.ROOT_JOINTS", found)
        return list(skeleton.indices(names)) if names else [skeleton.root_index]

    def adapted(self, checkpoint: Checkpoint) -> Checkpoint:
        """SelfPose3d's files may hold its attention network, which only its training uses."""
        if self.model.attn is not None:
            return checkpoint
        state = {name: value for name, value in checkpoint.state_dict.items() if not name.startswith("attn.")}
        return dataclasses.replace(checkpoint, state_dict=state)

    # --- data

    def train_data(self) -> dict[str, Dataset]:
        d = self.cfg.DATASET
        return {"train": self.frames(data.annotations(self.cfg, d.TRAIN_SET, d.TRAIN_FRAME, d.SUBJECTS), self.augmentation())}

    def augmentation(self, **painting) -> FrameAugment:
        """Of training frames, as the DATASET section says; `painting`: colours and cuts, see FrameAugment."""
        d = self.cfg.DATASET
        flip_prob = d.FLIP_PROB if d.FLIP else 0.0
        return FrameAugment(rot_deg=d.ROT_FACTOR, rot_prob=d.ROT_PROB, scale=d.SCALE_FACTOR, flip_prob=flip_prob, **painting)

    def eval_data(self) -> dict[str, Dataset]:
        d = self.cfg.DATASET
        return {"valid": self.frames(data.annotations(self.cfg, d.TEST_SET, d.VAL_FRAME, self.cfg.TEST.SUBJECTS))}

    def frames(self, ann: Annotations, augment: FrameAugment | None = None, **options) -> FrameSamples:
        """Whole frames of a table; the first ones read tell the space, where the configuration does not."""
        cfg = self.cfg
        samples = FrameSamples(
            ann, cfg.DATASET.ROOT, self.image_spec, cfg.DATASET.VIEWS or None, cfg.VOXEL.MAX_PEOPLE, augment,
            images=self.from_images, seed=cfg.SEED, allow_missing=cfg.DATASET.ALLOW_MISSING, **options,
        )  # fmt: skip
        if not self.space_known and self.in_space:
            fullest = samples.camera[(samples.camera >= 0).sum(1).argmax()]
            self.set_space(*space_from_cameras(samples.cameras[torch.from_numpy(fullest[fullest >= 0]).long()]))
        return samples

    def set_space(self, size, center) -> None:
        """Where people may be, from now on.   size (3,), center (3,) mm"""
        self.model.root_net.space = Space(size, center, self.cfg.VOXEL.CUBES)
        self.space_known = True

    def extra_state(self) -> dict:
        if not self.in_space or not self.space_known:
            return {}
        space = self.model.root_net.space
        return {"space_size": list(space.size), "space_center": list(space.center)}

    def load_extra_state(self, state: dict) -> None:
        if state and self.in_space and not self.cfg.VOXEL.SPACE_SIZE:
            self.set_space(state["space_size"], state["space_center"])

    def facts(self) -> dict:
        if not self.in_space:
            return {}
        space = self.model.root_net.space
        return {"space_size_mm": list(space.size), "space_center_mm": list(space.center), "voxel_mm": list(space.pitch)}

    # --- training

    def forward(self, batch: dict[str, dict], step: Step) -> dict[str, Tensor]:
        v, b = self.cfg.VOXEL, batch["train"]
        hm, hm_from_img = self.heatmaps(b)
        losses, total = {}, 0.0
        if "backbone" in self.parts:
            losses["heatmaps"] = self.heatmap_loss(hm, hm_from_img, b)
            total = total + v.WEIGHT_2D * losses["heatmaps"]
        if self.in_space:
            proposals = self.locate(hm, b["camera"], hm_from_img)
            roots, known = root_points(b["X_world"], b["X_valid"], self.roots)
            if "root_net" in self.parts:
                space = self.model.root_net.space
                target = root_volume(roots, known, space.size, space.center, space.shape, v.ROOT_SIGMA_MM)
                losses["roots"] = volume_loss(proposals.volume, target)
                total = total + v.WEIGHT_ROOT * losses["roots"]
            if "pose_net" in self.parts:
                match = match_people(proposals.centers, roots, known, v.MATCH_MM)
                poses = self.model.pose(hm, b["camera"], hm_from_img, proposals.centers, match >= 0)
                losses["poses_mm"] = pose_loss(poses, b["X_world"], b["X_valid"], match)
                total = total + v.WEIGHT_POSE * losses["poses_mm"]
        return losses | {"total": self.differentiable(total)}

    def differentiable(self, total: Tensor) -> Tensor:
        """The same number; where nobody was found it depends on no weight, and its gradient is 0: a step that changes nothing."""
        return total if total.requires_grad else total + 0 * next(p for p in self.model.parameters() if p.requires_grad).sum()

    def locate(self, hm: Tensor, cameras: Cameras, hm_from_img: Tensor) -> Proposals:
        """People in the space; without gradient unless the root network learns."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "root_net" in self.parts):
            return self.model.locate(hm, cameras, hm_from_img)

    def heatmaps(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Maps of all views with their own left and right, and where in them a pixel is.   -> (B,V,J,h,w), (B,V,2,3)"""
        if not self.from_images:
            size = [side // STRIDE for side in self.image_spec.size]
            hm_from_img = self._hm_from_img(batch, size)
            return self.drawn(batch, hm_from_img, size), hm_from_img
        image = self.image_spec.normalize(batch["image"].flatten(0, 1))
        if self.cfg.CHANNELS_LAST:
            image = image.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and "backbone" in self.parts):
            hm = self.model.backbone(image).float()
            if self.cfg.TEST.FLIP_TEST and not self.training:
                hm = (hm + mirror(self.model.backbone(mirror(image)).float())[:, self.flip]) / 2
        hm = hm.unflatten(0, batch["image"].shape[:2])
        mirrored = batch["flipped"][:, None, None, None, None]
        hm = torch.where(mirrored, hm[:, :, self.flip], hm)
        return hm, self._hm_from_img(batch, (hm.shape[-1], hm.shape[-2]))

    def _hm_from_img(self, batch: dict, size) -> Tensor:
        scale = batch["patch_from_img"].new_tensor([n / side for n, side in zip(size, self.image_spec.size, strict=True)])
        return batch["patch_from_img"] * scale[:, None]

    def _shown(self, batch: dict, hm_from_img: Tensor) -> tuple[Tensor, Tensor]:
        """Joints of 2D people in the heatmaps.   -> x_hm (B,V,M,J,2) cells, conf (B,V,M,J), 0 outside the image and the network's input"""
        conf = joints_in_patch(batch["x_img"], batch["conf"], batch["patch_from_img"], self.image_spec.size, batch["camera"].size)[1]
        return transform_points(hm_from_img, batch["x_img"].flatten(2, 3)).unflatten(2, conf.shape[2:]), conf

    def drawn(self, batch: dict, hm_from_img: Tensor, size) -> Tensor:
        """Labelled or detected joints as heatmaps; those outside the network's input are left out.   -> (B,V,J,h,w)"""
        x_hm, conf = self._shown(batch, hm_from_img)
        return people_heatmaps(x_hm, conf, size, self.cfg.LOSS.SIGMA, self.cfg.VOXEL.SCALED_SIGMA, snap=self.cfg.VOXEL.RULE == "reference")

    def heatmap_loss(self, hm: Tensor, hm_from_img: Tensor, batch: dict) -> Tensor:
        """Mean squared error to the labelled joints' blobs, where anybody shows the joint in the picture and the network's input.

        hm (B,V,J,h,w) -> ()
        """
        shown = batch | {"conf": (batch["conf"] > 0).float()}
        target = self.drawn(shown, hm_from_img, (hm.shape[-1], hm.shape[-2]))
        weight = (self._shown(batch, hm_from_img)[1] > 0).any(2)
        return view_heatmap_loss(hm, target, weight.float())

    # --- prediction

    def predict(self, batch: dict) -> dict[str, Tensor]:
        """People of each instant.

        Returns:
            X_world (B,P,J,3) mm, score (B,P), found (B,P) bool, centers (B,P,3) mm: who has not been found is 0. Where the 2D network
            alone is trained: peaks (B,J,4), see lib.metrics.peaks.
        """
        hm, hm_from_img = self.heatmaps(batch)
        if not self.in_space:
            return {"peaks": self._peaks(hm, hm_from_img, batch)}
        proposals = self.model.locate(hm, batch["camera"], hm_from_img)
        X = self.model.pose(hm, batch["camera"], hm_from_img, proposals.centers, proposals.found)
        return {"X_world": X, "score": proposals.score, "found": proposals.found, "centers": proposals.centers}

    def _peaks(self, hm: Tensor, hm_from_img: Tensor, batch: dict) -> Tensor:
        x_hm, conf = self._shown(batch, hm_from_img)
        hits = peak_hits(hm.flatten(0, 1), x_hm.flatten(0, 1), conf.flatten(0, 1) > 0, self.cfg.VOXEL.THRESHOLD, PEAK_RADIUS)
        return hits.unflatten(0, hm.shape[:2]).sum(1)

    def protocol(self) -> dict:
        return {"options": data.options(self.cfg), "flip_test": self.cfg.TEST.FLIP_TEST and self.from_images}

    def evaluator(self, dataset: FrameSamples) -> RowEvaluator:
        counts = {"instants_left_out": dataset.left_out}
        if not self.in_space:
            return PeakEvaluator(self.skeleton, self.cfg.VOXEL.THRESHOLD, PEAK_RADIUS, {"views": dataset.views}, counts)
        ann, skeleton = dataset.ann, get(self.skeleton)
        names = [b" ".join((ann.subjects[s], ann.actions[s])).decode().strip() for s in dataset.instants[:, 0]]
        space = self.model.root_net.space
        protocol = {"views": dataset.views, "space_mm": [list(space.size), list(space.center)], "voxels": list(space.shape)}
        return PeopleEvaluator(
            self.skeleton, names, [skeleton.joints[j] for j in self.roots], protocol=protocol,
            rule="reference" if self.cfg.VOXEL.RULE == "reference" else "exact", counts=counts,
        )  # fmt: skip

    def figures(self, batch: dict, pred: dict[str, Tensor], limit: int) -> dict[str, np.ndarray]:
        """The first instant of the batch: all views with the people found in them, and the space they are in."""
        if not self.in_space or "image" not in batch:
            return {}
        sheets = {}
        for i in range(min(limit, 2, len(batch["id"]))):  # pictures are few and drawn one by one
            found = pred["found"][i]
            X = pred["X_world"][i][found].cpu().float()
            if not len(X):
                continue
            cams = batch["camera"][i]
            x_img, _ = cams.project(X.to(cams.R).flatten(0, 1)[None].expand(len(cams), -1, -1))
            x = transform_points(batch["patch_from_img"][i], x_img.to(batch["patch_from_img"])).unflatten(1, X.shape[:2])
            truth = batch["X_world"][i][batch["X_valid"][i].all(-1)].cpu() if "X_world" in batch else None
            images = batch["image"][i].permute(0, 2, 3, 1).cpu().numpy()
            sheets[f"people_{i}"] = vis.multi_view_sheet(
                images, get(self.skeleton), x.cpu(), X, truth if truth is not None and len(truth) else None
            )
            space, names = self.model.root_net.space, [f"view {v}" for v in range(len(cams))]
            sheets[f"space_{i}"] = space_sheet(
                cams, get(self.skeleton), X, truth, pred["centers"][i][found], (space.size, space.center), names
            )
        return sheets
