"""3D poses from 2D keypoints over time, with labels for all people or for some of them.

Source: Pavllo et al., 3D Human Pose Estimation in Video with Temporal Convolutions and Semi-Supervised Training (VideoPose3D), CVPR 2019.
People without labels teach through reprojection: a second network places the root joint before the camera, and the pose there must
project to the keypoints it was made from, with bones as long on average as those of labelled people.
"""

import dataclasses
import logging
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from lib import dataset, vis
from lib.config import Config
from lib.correction import Reprojected
from lib.dataset.chunks import ChunkSamples, TrackSamples
from lib.dataset.tracks import Tracks
from lib.geometry.camera import Cameras
from lib.geometry.screen import project_held, screen_cameras
from lib.loss.lifting import bone_length_loss, position_loss, trajectory_loss
from lib.metrics.sequences import SequenceEvaluator
from lib.models import MODELS
from lib.models.temporal import momentum
from lib.registry import resolve
from lib.skeleton import get
from lib.tasks import data
from lib.tasks.base import Step, Task
from lib.tasks.correction import by_keypoints, told
from lib.tasks.world import ensure_motion
from lib.weights.adapters import Checkpoint
from lib.weights.load import load_into, read
from lib.weights.temporal import causal_of, to_lifting_state

log = logging.getLogger("parallax")

MM = 1000.0  # networks speak metres, as published weights do
SEEDS = {"train": 1234, "unlabeled": 4321}  # of the published orders
LARGE_TABLES = 2**32  # bytes; larger ones stay with the host unless TEMPORAL.TABLES says device
DEFAULT_SKELETON = "h36m17"
TOLD = ("tangential", "fps", "screen_focal")
CANVAS = 256  # px, side of the drawn keypoints


class LiftingModel(nn.Module):
    """The network of the poses, and the one of the root's trajectory where there is one; both see the same keypoints."""

    def __init__(self, pose: nn.Module, trajectory: nn.Module | None):
        super().__init__()
        self.pose, self.trajectory = pose, trajectory

    def forward(self, x: Tensor, single: bool = False) -> tuple[Tensor, Tensor | None]:
        """x (B,T,J_in,F) screen coordinates -> poses (B,T',J,3) m around the root, root (B,T',1,3) m before the camera or None

        `single`: T' = 1 frame of as many as the network sees, by strided convolutions.
        """
        pose = self.pose.single(x) if single else self.pose(x)
        if self.trajectory is None:
            return pose, None
        return pose, self.trajectory.single(x) if single else self.trajectory(x)


class Lift(NamedTuple):
    """Lifted poses in mm."""

    X_root: Tensor  # (B,T,J,3), around the root joint
    root: Tensor | None  # (B,T,1,3), of the root joint before the camera


def build_model(cfg: Config, joints_in: int, joints_out: int) -> LiftingModel:
    """The networks of the TEMPORAL section with fresh weights."""
    t = cfg.TEMPORAL

    def network(joints: int) -> nn.Module:
        return resolve(MODELS, cfg.MODEL.NAME, key="MODEL.NAME")(
            joints_in, t.FEATURES, joints, tuple(t.WIDTHS), t.CAUSAL, t.DROPOUT, t.CHANNELS, t.DENSE
        )

    with_trajectory = bool(t.UNLABELED) if t.TRAJECTORY == "auto" else t.TRAJECTORY == "true"
    return LiftingModel(network(joints_out), network(1) if with_trajectory else None)


class TemporalTask(Task):
    """Windows of keypoints to the poses at their frames; what is predicted is relative to the root joint."""

    sections = ("DATASET", "MODEL", "TEMPORAL", "TRAIN", "TEST", "DEBUG", "SYNTH", "CORRECTION")
    corrections = ("off", "camera")
    models = ("temporal",)
    sees = "keypoints"

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        t = cfg.TEMPORAL
        self.skeleton = cfg.DATASET.SKELETON or DEFAULT_SKELETON
        self.layout = t.LAYOUT or self.skeleton
        joints = get(self.skeleton).num
        if cfg.MODEL.NUM_JOINTS != joints:
            found = f"is {cfg.MODEL.NUM_JOINTS}, but skeleton {self.skeleton} has {joints} joints; set it to {joints}"
            raise cfg.error("MODEL.NUM_JOINTS", found)
        self.model = build_model(cfg, get(self.layout).num, joints)
        if cfg.MODEL.PRETRAINED:
            report = load_into(self.model, self.adapted(read(cfg.MODEL.PRETRAINED)))
            log.info("weights: %s: %s", cfg.MODEL.PRETRAINED, report.summary())
        self.pad, self.shift = self.model.pose.pad, self.model.pose.shift
        self.single = t.CHUNK == 1 and t.OPTIMIZED and not t.DENSE
        self.projecting = bool(t.UNLABELED) and t.PROJECTION != "none"
        # What a user of the network must know of its training data; known once they are read, and kept with the weights.
        self.tangential = "h36m"  # lens formula
        self.fps = 0.0  # frames per second, 0 = unknown
        self.screen_focal = 0.0  # mean focal length of the cameras in screen units, 0 = unknown
        skeleton = get(self.skeleton)
        self.root = skeleton.root_index
        self.register_buffer("flip_in", torch.as_tensor(get(self.layout).flip.copy()), persistent=False)
        self.register_buffer("flip_out", torch.as_tensor(skeleton.flip.copy()), persistent=False)
        self.register_buffer("bones", torch.as_tensor(skeleton.bones.copy()), persistent=False)
        self._check()

    def _check(self) -> None:
        """Combinations of keys that cannot work, said before anything is read."""
        cfg, t = self.cfg, self.cfg.TEMPORAL
        if t.UNLABELED and self.model.trajectory is None:
            raise cfg.error("TEMPORAL.UNLABELED", "needs the trajectory network; set TEMPORAL.TRAJECTORY auto or true")
        if self.projecting and self.layout != self.skeleton:
            found = f"compares projected joints of {self.skeleton} with keypoints of {self.layout}, which are other points of the body"
            raise cfg.error("TEMPORAL.UNLABELED", f"{found}; use keypoints of the same skeleton, or TEMPORAL.PROJECTION none")
        if t.ORDER == "reference" and cfg.TRAIN.ACCUMULATE > 1:
            raise cfg.error("TEMPORAL.ORDER", "reference has smaller last batches, which cannot be accumulated; set TRAIN.ACCUMULATE 1")
        if cfg.TRAIN.BATCH_SIZE == 1 and self.single:
            raise cfg.error("TRAIN.BATCH_SIZE", "is 1, but the batch norms of single frames need two samples; set it to 2 or more")

    def adapted(self, checkpoint: Checkpoint) -> Checkpoint:
        """VideoPose3D's files hold two networks under names of their own, and do not say whether these are causal: the YAML must."""
        told = self.cfg.TEMPORAL.CAUSAL if self.cfg.source("TEMPORAL.CAUSAL") != "default" else None
        causal_of(checkpoint, told)
        return dataclasses.replace(checkpoint, state_dict=to_lifting_state(checkpoint))

    # --- data

    def tracks(self, split: str, subjects: tuple[str, ...] = (), actions: tuple[str, ...] = ()) -> Tracks:
        """The tracks of a split, checked against the skeletons of the networks.

        Raises:
            ConfigError: the data have other skeletons.    DataError: they cannot be read, or nothing is left.
        """
        cfg = self.cfg
        if cfg.SYNTH.NATIVE:
            ensure_motion(cfg.DATASET.ROOT, seed=cfg.SYNTH.SEED, seconds=cfg.SYNTH.MOTION_SECONDS)
        found = dataset.load_tracks(cfg.DATASET.DATASET, cfg.DATASET.ROOT, split, cfg.DATASET.OPTIONS)
        found = found.protocol(subjects, actions, cfg.DATASET.VIEWS)
        if found.layout != self.layout:
            other = f"is {self.layout}, but the keypoints are those of {found.layout}; set it to {found.layout}"
            raise cfg.error("TEMPORAL.LAYOUT", other)
        if found.has_3d.any() and found.skeleton != self.skeleton:
            other = f"is {self.skeleton}, but the poses are those of {found.skeleton}; set it to {found.skeleton}"
            raise cfg.error("DATASET.SKELETON", other)
        self.tangential = found.tangential
        return found

    def train_data(self) -> dict[str, Dataset]:
        cfg, t = self.cfg, self.cfg.TEMPORAL
        labeled = self.tracks(cfg.DATASET.TRAIN_SET, cfg.DATASET.SUBJECTS, t.ACTIONS)
        labeled = labeled.select(labeled.has_3d)
        if t.SUBSET_OF == "recordings":
            labeled = labeled.recordings(t.SUBSET).thinned(cfg.DATASET.TRAIN_FRAME)
        else:
            labeled = labeled.subset(t.SUBSET, cfg.DATASET.TRAIN_FRAME)
        self.fps = labeled.fps
        if labeled.has_intrinsics.all():
            self.screen_focal = float(screen_cameras(labeled.observing()).K[:, 0, 0].mean())
        sets = {"train": self.windows(labeled, "train")}
        if t.UNLABELED:
            unlabeled = self.tracks("all", t.UNLABELED, t.ACTIONS).thinned(cfg.DATASET.TRAIN_FRAME)
            sets["unlabeled"] = self.windows(unlabeled.without_3d(), "unlabeled")
        return sets

    def windows(self, tracks: Tracks, name: str) -> ChunkSamples:
        """Training windows of tracks; those without labels come with their cameras."""
        cfg, t = self.cfg, self.cfg.TEMPORAL
        device = self.flip_in.device
        size = tracks.keypoints.nbytes + tracks.X_cam.nbytes
        if t.TABLES == "host" or (t.TABLES == "auto" and size * (1 + cfg.DATASET.FLIP) > LARGE_TABLES):
            device = torch.get_default_device()
        return ChunkSamples(
            tracks,
            t.CHUNK,
            self.pad,
            self.shift,
            flip=cfg.DATASET.FLIP,
            features=t.FEATURES,
            cameras=self.projecting and name == "unlabeled",
            order=t.ORDER,
            seed=SEEDS[name],
            device=device,
        )

    def eval_data(self) -> dict[str, Dataset]:
        cfg = self.cfg
        tracks = self.tracks(cfg.DATASET.TEST_SET, cfg.TEST.SUBJECTS, cfg.TEMPORAL.ACTIONS).thinned(cfg.DATASET.VAL_FRAME)
        if cfg.TEST.CORRECTION == "camera" and not tracks.has_intrinsics.all():
            raise cfg.error("TEST.CORRECTION", f"is camera, but {cfg.DATASET.TEST_SET} has recordings of unknown cameras; set it to off")
        return {"valid": TrackSamples(tracks, self.pad, self.shift, cfg.TEMPORAL.FEATURES)}

    def on_epoch(self, epoch: int) -> None:
        first, last = self.cfg.TEMPORAL.BN_MOMENTUM
        value = momentum(epoch, self.cfg.TRAIN.END_EPOCH, first, last)
        for network in self.model.children():
            network.set_momentum(value)

    def extra_state(self) -> dict:
        return {name: getattr(self, name) for name in TOLD}

    def load_extra_state(self, state: dict) -> None:
        for name in TOLD:
            setattr(self, name, state.get(name, getattr(self, name)))

    # --- training

    def forward(self, batch: dict[str, dict], step: Step) -> dict[str, Tensor]:
        t = self.cfg.TEMPORAL
        labeled, unlabeled = batch["train"], batch.get("unlabeled")
        if step.epoch < t.WARMUP_EPOCHS:
            unlabeled = None
        count = len(labeled["x_screen"])
        x = labeled["x_screen"] if unlabeled is None else torch.cat([labeled["x_screen"], unlabeled["x_screen"]])
        pose, trajectory = self.model(x, self.single)
        pose = pose.float()
        X = labeled["X_cam"] / MM
        root = X[..., self.root, None, :]
        losses = {"pose_m": position_loss(pose[:count], X - root)}
        losses["total"] = losses["pose_m"]
        if trajectory is not None:
            trajectory = trajectory.float()
            losses["trajectory"] = trajectory_loss(trajectory[:count], root)
            losses["total"] = losses["total"] + t.WEIGHT_TRAJECTORY * losses["trajectory"]
        if unlabeled is not None:
            free = self.unlabeled_losses(pose[:count], pose[count:], trajectory[count:], unlabeled)
            losses["total"] = losses["total"] + sum(weight * free[name] for name, weight in self._weights(free).items())
            losses |= free
        return losses

    def unlabeled_losses(self, labeled_pose: Tensor, pose: Tensor, trajectory: Tensor, batch: dict) -> dict[str, Tensor]:
        """What people without labels teach.   poses (B,T,J,3) m, trajectory (B,T,1,3) m -> scalars by name"""
        losses = {}
        if self.projecting:
            seen = self.reproject((pose + trajectory) * MM, batch["camera"], self.cfg.TEMPORAL.PROJECTION == "full")
            losses["reprojection"] = position_loss(seen, self.observed(batch["x_screen"], pose.shape[1]))
        losses["bones_m"] = bone_length_loss(labeled_pose, pose, self.bones)
        return losses

    def _weights(self, losses: dict[str, Tensor]) -> dict[str, float]:
        t = self.cfg.TEMPORAL
        weights = {"reprojection": t.WEIGHT_PROJECTION, "bones_m": t.WEIGHT_BONES}
        return {name: weights[name] for name in losses if weights[name]}

    def reproject(self, X_cam: Tensor, cameras: Cameras, distort: bool = True) -> Tensor:
        """X_cam (B,T,J,3) mm, screen cameras (B,) -> (B,T,J,2) screen coordinates"""
        flat = project_held(X_cam.flatten(1, 2), cameras, distort, self.tangential, self.cfg.TEMPORAL.NEAR_MM)
        return flat.unflatten(1, X_cam.shape[1:3])

    def observed(self, x_screen: Tensor, frames: int) -> Tensor:
        """The keypoints of the predicted frames in a window.   (B,frames + 2 pad,J,F) -> (B,frames,J,2)"""
        first = self.pad if self.cfg.TEMPORAL.CAUSAL_TARGET == "reference" else self.pad + self.shift
        return x_screen[:, first : first + frames, :, :2]

    # --- prediction

    def lift(self, x_screen: Tensor) -> Lift:
        """Poses at every frame of clips, whose first and last frames are repeated beyond their ends.

        x_screen (B,T,J_in,F) -> X_root (B,T,J,3) mm, root (B,T,1,3) mm or None
        """
        frames = x_screen.flatten(2).mT
        padded = F.pad(frames, (self.pad + self.shift, self.pad - self.shift), mode="replicate").mT
        return self.lift_padded(padded.unflatten(2, x_screen.shape[2:]))

    def lift_padded(self, x_screen: Tensor) -> Lift:
        """As `lift`, where the frames around are given.   x_screen (B,T + 2 pad,J_in,F)"""
        if not self.cfg.TEST.FLIP_TEST:
            pose, trajectory = self.model(x_screen)
            return Lift(pose.float() * MM, None if trajectory is None else trajectory.float() * MM)
        mirror = x_screen[:, :, self.flip_in].clone()
        mirror[..., 0] *= -1
        pose, trajectory = self.model(torch.cat([x_screen, mirror]))
        return Lift(_unflipped(pose, self.flip_out), None if trajectory is None else _unflipped(trajectory, None))

    def predict(self, batch: dict) -> dict[str, Tensor]:
        """Poses of the frames of track pieces, one row each.

        Returns:
            X_root (M,J,3) mm; X_cam (M,J,3) mm, there where the root joint truly is, so that poses alone are judged; and from a
            network with a trajectory root (M,3) mm, and before calibrated cameras reprojection (M,): how far the lifted pose's image
            there is from the keypoints on average, in screen coordinates. With TEST.CORRECTION updates (M,) and decision (M,), see
            lib.correction.DECISIONS.
        """
        lifted, frames = self.lift_padded(batch["x_screen"]), batch["frames"]
        X_root = lifted.X_root[frames]
        root = None if lifted.root is None else lifted.root[frames][:, 0]
        ended = {}
        if self.cfg.TEST.CORRECTION == "camera":
            found = self.corrected(batch, X_root, root)
            X_root, root = found.X_root, None if root is None else found.root
            ended = {"updates": found.steps, "decision": found.decision}
        pred = {"X_root": X_root, "X_cam": X_root + batch["X_cam"][:, self.root, None]} | ended
        if root is not None:
            pred["root"] = root
            if "camera" in batch and self.layout == self.skeleton:
                seen = self.reproject(lifted.X_root + lifted.root, batch["camera"])
                offset = seen - self.observed(batch["x_screen"], frames.shape[1])
                pred["reprojection"] = offset.norm(dim=-1).mean(-1)[frames]
        return pred

    def corrected(self, batch: dict, X_root: Tensor, root: Tensor | None) -> Reprojected:
        """The poses of a batch, moved until they agree with the keypoints they were lifted from, with bones as long as the piece's mean."""
        frames = batch["frames"]
        piece, first = frames.nonzero()[:, 0], self.pad + self.shift
        x = batch["x_screen"][:, first : first + frames.shape[1]][frames]
        return by_keypoints(self.cfg, X_root, x, self.layout, self.skeleton, piece, batch["camera"][piece], root, self.tangential)

    def protocol(self) -> dict:
        return super().protocol() | {"options": data.options(self.cfg)}

    def evaluator(self, dataset: TrackSamples) -> SequenceEvaluator:
        tracks, test = dataset.tracks, self.cfg.TEST
        actions = tracks.base_action()
        groups = [f"{s}/{a}" for s, a in zip(tracks.subject, actions, strict=True)] if test.BY_SUBJECT else actions
        protocol = {"root_position": "of the ground truth", "keypoints": self.layout, "frames_seen": self.model.pose.receptive_field}
        if test.CORRECTION == "camera":
            protocol |= told(self.cfg, "the keypoints that poses are lifted from")
        return SequenceEvaluator(self.skeleton, tracks.start, groups, test.JOINTS or None, test.VARIANTS, protocol)

    def figures(self, batch: dict, pred: dict[str, Tensor], limit: int) -> dict[str, np.ndarray]:
        """Frames spread over the batch: the keypoints, the pose made of them, and the true one."""
        chosen = torch.linspace(0, len(batch["id"]) - 1, min(limit, len(batch["id"]))).long()
        x = self.observed(batch["x_screen"], batch["frames"].shape[1])[batch["frames"]][chosen.to(batch["x_screen"].device)].cpu()
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        x = ((x - (low + high) / 2) / (high - low).amax(-1, keepdim=True) * 0.85 + 0.5) * CANVAS
        rows = []
        for i, row in enumerate(chosen.tolist()):  # pictures are few and drawn one by one
            canvas = np.zeros((CANVAS, CANVAS, 3), np.uint8)
            rows.append(vis.SheetRow(canvas, x[i], pred["X_cam"][row].cpu(), batch["X_cam"][row].cpu()))
        return {"predictions": vis.pose_sheet(rows, get(self.skeleton))}


def _unflipped(output: Tensor, flip: Tensor | None) -> Tensor:
    """Mean of outputs and of those of the mirror image, turned back, in mm.   (2B,T,J,3) m -> (B,T,J,3) mm"""
    plain, mirrored = output.float().unflatten(0, (2, -1))
    mirrored = (mirrored if flip is None else mirrored[:, :, flip]) * mirrored.new_tensor([-1.0, 1.0, 1.0])
    return (plain + mirrored) * (MM / 2)
