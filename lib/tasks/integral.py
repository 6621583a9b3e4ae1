"""Single-view pose from a person crop: 2D heatmaps, 2D integral, or the volumetric 3D integral network.

Sources: Sun et al., Integral Human Pose Regression, ECCV 2018; Xiao et al., Simple Baselines, ECCV 2018; Kocabas et al.,
EpipolarPose, CVPR 2019 (labels and evaluation protocol).
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lib import vis
from lib.config import Config
from lib.dataset.annotations import Annotations
from lib.dataset.formats import FORMATS
from lib.dataset.image import IMAGENET, ImageSpec
from lib.dataset.samples import CropSamples
from lib.geometry.crop import invert, transform_points
from lib.geometry.heatmap import (
    cells_from_patch,
    decode_heatmap,
    patch_from_cells,
    render_heatmaps,
    soft_argmax,
    touches_map,
)
from lib.loss import build_joint_loss, heatmap_mse
from lib.metrics import Keypoint2DEvaluator, PCKhEvaluator, PoseEvaluator
from lib.metrics.structure import Clusters
from lib.models import MODELS
from lib.registry import resolve
from lib.skeleton import get
from lib.tasks import data, structure
from lib.tasks.base import Step, Task
from lib.tasks.correction import as_evidence, ended, through_camera, told
from lib.tasks.restore import restore
from lib.weights.load import initialise

HEATMAP_LOSS = "HeatmapMSELoss"


def head_name(cfg: Config) -> str:
    """The network's output: MODEL.HEAD, or what MODEL.VOLUME of the published files stands for."""
    if cfg.MODEL.HEAD != "auto":
        return cfg.MODEL.HEAD
    return "volume" if cfg.MODEL.VOLUME else "heatmap_depth"


def build_model(cfg: Config, joints: int, name: str = "", head: str = "") -> nn.Module:
    """The network of the MODEL section with fresh weights; `name` and `head` in place of what the section says."""
    extra = cfg.MODEL.EXTRA
    data.check_halving(cfg)
    return resolve(MODELS, name or cfg.MODEL.NAME, key="MODEL.NAME")(
        layers=extra.NUM_LAYERS,
        joints=joints,
        head=head or head_name(cfg),
        depth_bins=cfg.MODEL.DEPTH_RES,
        deconv_filters=extra.NUM_DECONV_FILTERS[: extra.NUM_DECONV_LAYERS],
        deconv_kernels=extra.NUM_DECONV_KERNELS[: extra.NUM_DECONV_LAYERS],
        deconv_bias=extra.DECONV_WITH_BIAS,
        final_kernel=extra.FINAL_CONV_KERNEL,
        stages=extra.NUM_STAGES,
    )


class PoseReader:
    """From the network's output to joints in the patch, x, y and the depth relative to the root, all in px of the patch.

    One object per head and decoding, so that a frozen teacher and its student are read by the same code.

    Args:
        head: of the network, see PoseResNet.
        patch: (width, height) of the network's input, px; the depth range is as long as the patch is wide.
        decode: "soft" for maps of logits, else a method of decode_heatmap.
    """

    def __init__(self, head: str, patch: tuple[int, int], decode: str):
        self.head, self.patch, self.decode = head, patch, decode
        self.dims = 2 if head == "heatmap" else 3

    def __call__(self, output: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Joints and how sure the network is of each; differentiable unless heatmaps are read at their maximum.

        output of the network -> x_patch (B,J,2|3) px, conf (B,J) 0..1: the largest probability, or the heatmap's peak
        """
        maps, depth = output if self.head == "heatmap_depth" else (output, None)
        if self.decode == "soft":
            cells, conf = soft_argmax(maps, maps.ndim - 2, score=True)
        else:
            cells, conf = decode_heatmap(maps, self.decode)
        shape = (maps.shape[-1], maps.shape[-2])
        if depth is not None:
            bins = torch.arange(depth.shape[-1], dtype=cells.dtype, device=cells.device)
            cells = torch.cat([cells, (depth.to(cells.dtype).softmax(-1) * bins).sum(-1, keepdim=True)], -1)
            shape = (*shape, depth.shape[-1])
        elif self.head == "volume":
            shape = (*shape, maps.shape[-3])
        return patch_from_cells(cells, self.patch, shape), conf.clamp(0, 1)

    def normalized(self, x_patch: Tensor) -> Tensor:
        """Px to the units of the published losses: sides of the patch, from its centre.   (...,2|3) -> same, about -0.5..0.5"""
        width, height = self.patch
        scale = x_patch.new_tensor([width, height, width][: x_patch.shape[-1]])
        shift = x_patch.new_tensor([0.5, 0.5, 0.0][: x_patch.shape[-1]])
        return x_patch / scale - shift


class IntegralTask(Task):
    """Supervised by joints in the crop; a sample without 3D supervises x and y alone."""

    sections = ("DATASET", "MODEL", "LOSS", "TRAIN", "TEST", "DEBUG", "SYNTH", "CORRECTION")
    corrections = ("off", "camera")
    auto_key = "mpjpe_mm"  # what TEST.KEY auto means in 3D
    strict_pckh = False  # as in EpipolarPose's release

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.skeleton = data.skeleton_name(cfg)
        self.model = self._network()
        initialise(self.model, cfg, self.skeleton)
        if cfg.CHANNELS_LAST:
            self.model.to(memory_format=torch.channels_last)
        if cfg.TEST.KEY != "auto" and self.dims == 2:
            raise cfg.error("TEST.KEY", f"is {cfg.TEST.KEY}, but MODEL.HEAD {self.head} has no depth; set it to auto")
        key = self.auto_key if cfg.TEST.KEY == "auto" else cfg.TEST.KEY
        self.key_metric = (key, "min") if self.dims == 3 else ("pck2d_percent", "max")
        self.flip = torch.as_tensor(get(self.skeleton).flip.copy())
        self.structure: tuple[Clusters, ...] | None = None
        by_network = cfg.TEST.CORRECTION == "camera" and cfg.CORRECTION.EVIDENCE == "network"
        self.detector = self._detector() if by_network else None

    def _detector(self) -> Task:
        """The network whose 2D joints poses are corrected by, frozen."""
        path = self.cfg.CORRECTION.NETWORK
        if not path:
            raise self.cfg.error(
                "CORRECTION.NETWORK",
                "is empty, but a network's own 2D joints agree with its poses already; give the checkpoint of a 2D network that sees the "
                "same crops (scripts/predict.py: --evidence), or set CORRECTION.EVIDENCE labels to go by the 2D joints of the data",
            )
        detector = restore(path, sees=["person"])
        if detector.image_spec.size != self.image_spec.size or detector.clip > 1:
            found = f"{detector.clip} frames at once" if detector.clip > 1 else f"crops of {detector.image_spec.size} px"
            expected = f"expected one of single crops of {self.image_spec.size} px, as MODEL.IMAGE_SIZE has it"
            raise self.cfg.error("CORRECTION.NETWORK", f"{path}: sees {found}; {expected}")
        return detector.requires_grad_(False)

    def _network(self) -> nn.Module:
        """The network with fresh weights, after all that reads its output and feeds it was set up."""
        cfg = self.cfg
        self.image_spec = ImageSpec(tuple(cfg.MODEL.IMAGE_SIZE), **IMAGENET)
        self.head = head_name(cfg)
        self.heatmap_loss = cfg.LOSS.FN == HEATMAP_LOSS
        if self.heatmap_loss and self.head != "heatmap":
            raise cfg.error("LOSS.FN", f"{HEATMAP_LOSS} trains MODEL.HEAD heatmap, but it is {self.head}; set one of the two")
        self.reader = PoseReader(self.head, self.image_spec.size, self._decoding())
        self.soft = PoseReader(self.head, self.image_spec.size, "soft")  # of the losses: a maximum has no gradient
        if not self.heatmap_loss:
            self.joint_loss = build_joint_loss(cfg.LOSS.FN, cfg.LOSS.NORM, cfg.LOSS.SIZE_AVERAGE, cfg.LOSS.BETA)
        return build_model(cfg, get(self.skeleton).num)

    @property
    def dims(self) -> int:
        """Coordinates of a predicted joint: 3 with depth, else 2."""
        return self.reader.dims

    def _decoding(self) -> str:
        asked = self.cfg.TEST.DECODE
        if self.head == "volume" and asked not in ("auto", "soft"):
            raise self.cfg.error("TEST.DECODE", f"is {asked}, but MODEL.HEAD volume is read by soft-argmax alone; set it to auto or soft")
        if self.heatmap_loss and asked == "soft":
            found = f"is soft, but LOSS.FN {HEATMAP_LOSS} trains heatmaps to be read at their maximum"
            raise self.cfg.error("TEST.DECODE", f"{found}; set it to auto, dark, quarter or argmax")
        if asked != "auto":
            return asked
        if not self.heatmap_loss:
            return "soft"
        return "quarter" if self.cfg.TEST.POST_PROCESS else "argmax"

    # --- data

    def train_data(self) -> dict[str, Dataset]:
        cfg = self.cfg.DATASET
        return {"train": self.crops(data.annotations(self.cfg, cfg.TRAIN_SET, cfg.TRAIN_FRAME, cfg.SUBJECTS), train=True)}

    def eval_data(self) -> dict[str, Dataset]:
        ann = self._judged()
        if not self._has_poses(ann):
            self.key_metric = ("pckh_percent" if np.isfinite(ann.head_px).any() else "pck2d_percent", "max")
        return {"valid": self.crops(ann, train=False)}

    def _judged(self, **options) -> Annotations:
        """The annotations of an evaluation, by `data.annotations`."""
        cfg = self.cfg.DATASET
        return data.annotations(self.cfg, cfg.TEST_SET, cfg.VAL_FRAME, self.cfg.TEST.SUBJECTS, **options)

    def _has_poses(self, ann: Annotations) -> bool:
        """Whether this network's poses can be judged in 3D on these annotations."""
        return self.dims == 3 and bool((ann.pose >= 0).any())

    def crops(self, ann: Annotations, train: bool) -> CropSamples:
        """Person crops of annotations, augmented when they are for training."""
        return data.crops(self.cfg, ann, self.image_spec, data.augmentation(self.cfg) if train else None, self.cfg.DATASET.DEPTH_RANGE)

    # --- training

    def prepare(self, image: Tensor) -> Tensor:
        """Network input of images.   (B,3,H,W) uint8 RGB -> float, normalised, in the model's memory format"""
        x = self.image_spec.normalize(image)
        return x.contiguous(memory_format=torch.channels_last) if self.cfg.CHANNELS_LAST else x

    def forward(self, batch: dict[str, dict], step: Step) -> dict[str, Tensor]:
        b = batch["train"]
        output = self.model(self.prepare(b["image"]))
        if self.heatmap_loss:
            return {"total": self.heatmap_supervision(output, b["x_patch"], b["valid"])}
        return self.joint_supervision(output, b["x_patch"], b["valid"], b["valid_depth"])

    def heatmap_supervision(self, maps: Tensor, x_patch: Tensor, valid: Tensor) -> Tensor:
        """Mean squared error to Gaussians centred on the joints, or with LOSS.SNAP on their cells, rendered on the device.

        maps (B,J,h,w), x_patch (B,J,3) px, valid (B,J) -> ()
        """
        height, width = maps.shape[-2:]
        x_hm = cells_from_patch(x_patch[..., :2], self.image_spec.size, (width, height))
        snap = "toward_zero" if self.cfg.LOSS.SNAP else False
        target = render_heatmaps(x_hm, valid, (width, height), self.cfg.LOSS.SIGMA, snap=snap)
        inside = touches_map(x_hm, (width, height), 3 * self.cfg.LOSS.SIGMA)  # a blob wholly outside teaches nothing
        return heatmap_mse(maps, target, valid * inside)

    def joint_supervision(
        self,
        output: Tensor | tuple[Tensor, Tensor],
        x_patch: Tensor,  # (B,J,3) px
        valid: Tensor,  # (B,J)
        valid_depth: Tensor,  # (B,J)
    ) -> dict[str, Tensor]:
        """Loss on the normalised joints, read softly however TEST.DECODE reads them; depth counts Z_WEIGHT times."""
        pred = self.soft(output)[0]
        dims = pred.shape[-1]
        target = x_patch[..., :dims]
        weight = torch.stack([valid, valid, valid_depth * self.cfg.DATASET.Z_WEIGHT], -1)[..., :dims]
        losses = {"total": self.joint_loss(self.soft.normalized(pred), self.soft.normalized(target), weight)}
        with torch.no_grad():
            error = (pred - target).abs()
            losses["xy_px"] = _masked_mean(error[..., :2].mean(-1), valid)
            if dims == 3:
                losses["depth_px"] = _masked_mean(error[..., 2], valid_depth)
        return losses

    # --- prediction

    def predict(self, batch: dict) -> dict[str, Tensor]:
        """Joints of a batch of crops.

        Returns:
            x_img (B,J,2) px, conf (B,J) 0..1 and, from a network with depth, z_mm (B,J) relative to the root; where the batch
            knows cameras and root depths also X_cam (B,J,3) mm. As in the published protocol (Sun et al., ECCV 2018), the
            root's depth and the camera are those of the ground truth. With TEST.CORRECTION X_cam is corrected by the joints of the
            network CORRECTION.NETWORK, or by x_img and conf of the batch; X_before (B,J,3) mm relative to the root is the pose before
            that, and see `lib.tasks.correction.ended`.
        """
        x_patch, conf = self.predict_patch(batch["image"])
        pred = {"conf": conf, "x_img": transform_points(invert(batch["patch_from_img"]), x_patch[..., :2])}
        if x_patch.shape[-1] == 3:
            pred["z_mm"] = x_patch[..., 2] / batch["depth_scale"][:, None]
            if "camera" in batch and "root_cam" in batch:
                depth = pred["z_mm"] + batch["root_cam"][:, None, 2]
                pred["X_cam"] = batch["camera"].unproject_cam(pred["x_img"], depth).to(depth.dtype)
                if self.cfg.TEST.CORRECTION == "camera":
                    pred |= self._corrected(pred["X_cam"], batch)
        return pred

    def _corrected(self, X_cam: Tensor, batch: dict) -> dict[str, Tensor]:
        """The poses, moved until they agree with the 2D joints that are gone by, and how that went.   X_cam (B,J,3) mm"""
        x_img, conf = batch["x_img"], batch["conf"]
        if self.detector is not None:
            seen = self.detector.predict({key: batch[key] for key in ("image", "patch_from_img", "depth_scale")})
            x_img, conf = as_evidence(seen["x_img"], seen["conf"], self.detector.pose_skeleton, self.skeleton)
        root = X_cam[:, get(self.skeleton).root_index]
        found = through_camera(self.cfg, X_cam - root[:, None], x_img, batch["camera"], conf, root, self.skeleton)
        return {"X_cam": found.X_cam, "X_before": X_cam - root[:, None]} | ended(found)

    def predict_patch(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Joints in the patch and their confidence, mirrored image averaged in when TEST.FLIP_TEST.

        image (B,3,H,W) uint8 -> (B,J,2|3) px, (B,J)
        """
        x = self.prepare(image)
        joints, conf = self.reader(self.model(x))
        if not self.cfg.TEST.FLIP_TEST:
            return joints, conf
        flip = self.flip.to(image.device)
        mirrored, mirrored_conf = (value[:, flip] for value in self.reader(self.model(mirror(x))))
        mirrored = torch.cat([self.image_spec.size[0] - mirrored[..., :1], mirrored[..., 1:]], -1)
        return (joints + mirrored) / 2, (conf + mirrored_conf) / 2

    def evaluator(self, dataset: CropSamples):
        ann, test = dataset.ann, self.cfg.TEST
        actions = [ann.action(row) for row in range(len(ann))] if any(ann.actions) else None
        if not self._has_poses(ann):
            if np.isfinite(ann.head_px).any():
                return PCKhEvaluator(self.pose_skeleton, ann.head_px, actions, test.VARIANTS, self.strict_pckh)
            return Keypoint2DEvaluator(self.pose_skeleton, actions)
        layout = resolve(FORMATS, self.cfg.DATASET.DATASET, key="DATASET.DATASET")
        if hasattr(layout, "evaluator"):
            return layout.evaluator(self.pose_skeleton, actions, test.JOINTS, self.cfg.DATASET.OPTIONS, test.VARIANTS, self._protocol())
        if self.structure is None:  # found once; the same at every evaluation of a run
            self.structure = structure.clusters(self.cfg, self.pose_skeleton)
        return PoseEvaluator(
            self.pose_skeleton,
            actions=actions,
            joints=test.JOINTS or None,
            variants=test.VARIANTS,
            structure=self.structure,
            protocol=self._protocol(),
        )

    def protocol(self) -> dict:
        boxes = f"annotated, side x {self.cfg.DATASET.BOX_SCALE:g}"
        return super().protocol() | {"options": data.options(self.cfg), "boxes": boxes}

    def _protocol(self) -> dict[str, str]:
        """What a report says about how poses came about, see `predict`."""
        protocol = {"root_depth": "of the ground truth", "intrinsics": "of the ground truth"}
        if self.cfg.TEST.CORRECTION == "camera":
            source = "the data" if self.detector is None else self.cfg.CORRECTION.NETWORK
            protocol |= told(self.cfg, f"the 2D joints of {source}")
        return protocol

    def figures(self, batch: dict, pred: dict[str, Tensor], limit: int):
        rows = []
        patch_from_img = batch["patch_from_img"][:limit].cpu()
        x_patch = transform_points(patch_from_img, pred["x_img"][:limit].float().cpu())
        for i in range(len(patch_from_img)):  # pictures are few and drawn one by one
            image = batch["image"][i].permute(1, 2, 0).cpu().numpy()
            X = pred["X_cam"][i].cpu() if "X_cam" in pred else None
            truth = None
            if "X_cam" in pred:  # joints that are not labelled lie nowhere, rather than at the camera
                truth = batch["X_cam"][i].masked_fill(~batch["X_valid"][i, :, None].bool(), torch.nan).cpu()
            rows.append(vis.SheetRow(image, x_patch[i], X, truth))
        return {"predictions": vis.pose_sheet(rows, get(self.pose_skeleton))}


def mirror(image: Tensor) -> Tensor:
    """The patch of the mirrored crop, x -> W - x, as `crop_affine` makes it in training.   (...,W) -> (...,W)

    A plain flip, x -> W - 1 - x, would move the person by one pixel off the middle, where the network has always seen the root:
    at 64 px that costs more than the second look gains. Column 0 shows what lies just outside, and is repeated.
    """
    flipped = plain_mirror(image)
    return torch.cat([flipped[..., :1], flipped[..., :-1]], -1)


def plain_mirror(image: Tensor) -> Tensor:
    """Columns in reverse, x -> W - 1 - x.   (...,W) -> (...,W)"""
    return image.flip(-1)


def _masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    return (value * mask).sum() / mask.sum().clamp(min=1)
