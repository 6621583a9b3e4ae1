"""EpipolarPose: a single-view 3D network that learns from several views without a 3D label (Kocabas et al., CVPR 2019).

A frozen 2D teacher predicts joints in every view, its predictions are triangulated with the known cameras, and the 3D joints,
brought into each camera, supervise the student. Only the student trains: training both collapses all joints to one point.
With EPIPOLAR.EXTRINSICS estimated the cameras' R and t come from the same predictions (the paper's "without R/t").
"""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lib.config import Config
from lib.dataset.annotations import Annotations
from lib.dataset.loader import eval_loader, to_device
from lib.dataset.samples import CropSamples, ViewSamples
from lib.errors import MALFORMED, DataError, WeightsError
from lib.files import replaced
from lib.geometry.camera import Cameras
from lib.geometry.crop import invert, transform_points
from lib.geometry.precision import solve_dtype
from lib.geometry.rig_recovery import MAX_SAMPSON_PX
from lib.ranks import once
from lib.skeleton import check_same, get
from lib.tasks import data
from lib.tasks.base import Step, Task
from lib.tasks.integral import IntegralTask
from lib.tasks.labels import Labels, Rule, make_labels, relabel, triangulate_views
from lib.tasks.restore import assumed, restore
from lib.tasks.rigs import Scale, log_rigs, recover_rigs, without_poses

AGAIN = "delete it, and it is made again"
UNWRITABLE = "make the folder of the data set writable, or set EPIPOLAR.LABELS online"
ANNOTATION = "annotation"  # EPIPOLAR.TEACHER: annotated 2D joints instead of a network, the paper's "2D GT"
log = logging.getLogger("parallax")


class EpipolarTask(IntegralTask):
    """The student is an IntegralTask; what differs is where its labels come from.

    EPIPOLAR.LABELS cached: the teacher sees each training image once, before training (as published; fastest). online: the teacher
    predicts on the student's own augmented crops in every step.
    """

    sections = (*IntegralTask.sections, "EPIPOLAR")

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if self.dims != 3:
            raise cfg.error("MODEL.HEAD", f"is {self.head}, but the student of TASK epipolar needs depth; set it to volume")
        if cfg.EPIPOLAR.METHOD == "ransac" and cfg.EPIPOLAR.PAIRS != "all" and not self.online:
            raise cfg.error("EPIPOLAR.PAIRS", f"is {cfg.EPIPOLAR.PAIRS}, but METHOD ransac chooses its views itself; set PAIRS all")
        if cfg.EPIPOLAR.METHOD == "ransac" and not cfg.EPIPOLAR.THRESHOLD_PX > 0:
            found = "is 0, but METHOD ransac tells by it which views agree"
            raise cfg.error("EPIPOLAR.THRESHOLD_PX", f"{found}; set a reprojection error in px of the full image, or METHOD reweighted")
        if cfg.EPIPOLAR.EXTRINSICS == "estimated" and cfg.EPIPOLAR.SCALE == "baseline" and not cfg.EPIPOLAR.BASELINE_MM > 0:
            raise cfg.error("EPIPOLAR.BASELINE_MM", "is 0, but SCALE baseline needs the distance of the first two cameras; set it, in mm")
        self.teacher: Task | None = None
        self.predicted: tuple[np.ndarray, ...] | None = None  # x_img of a table, the teacher's x_img and conf: from rigs to labels
        self.rig_errors: dict[str, dict[str, float]] = {}  # of estimated cameras, where the truth is known; see log_rigs

    @property
    def auto_key(self) -> str:
        return "n_mpjpe_mm" if self.cfg.EPIPOLAR.EXTRINSICS == "estimated" else IntegralTask.auto_key  # the scale is an assumption

    @property
    def online(self) -> bool:
        return self.cfg.EPIPOLAR.LABELS == "online"

    def train(self, mode: bool = True):
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()  # its batch-norm statistics are frozen as well
        return self

    # --- data

    def train_data(self) -> dict[str, Dataset]:
        cfg = self.cfg
        ann = data.annotations(cfg, cfg.DATASET.TRAIN_SET, cfg.DATASET.TRAIN_FRAME, cfg.DATASET.SUBJECTS)
        if not cfg.EPIPOLAR.TEACHER:
            raise cfg.error("EPIPOLAR.TEACHER", f"is empty; give the checkpoint of a 2D network, or '{ANNOTATION}' for annotated 2D")
        ann = self.located(ann)
        if self.online:
            self.teacher, self.predicted = self.load_teacher(), None
            return {"train": self.views(ann)}
        labels = self.cached_labels(ann)
        root = get(self.skeleton).root_index
        kept = labels.X_valid[labels.pose].mean()
        log.info("labels: %.1f %% of %d joints kept, triangulated from %s", 100 * kept, labels.X_valid.size, self.teacher_name)
        return {"train": self.crops(relabel(ann, labels, root, cfg.DATASET.DEPTH_RANGE), train=True)}

    def located(self, ann: Annotations) -> Annotations:
        """The table as labels may know it: itself, or without any trace of R and t where they are to be estimated."""
        if self.cfg.EPIPOLAR.EXTRINSICS == "known":
            return ann
        recovered = self.recovered_cameras(ann)
        self.rig_errors = log_rigs(recovered, ann)
        return without_poses(ann, recovered)

    def facts(self) -> dict:
        return {"rig_errors": self.rig_errors} if self.rig_errors else {}

    def extra_state(self) -> dict:
        return self.facts()  # so that a later judgement of the weights tells them, too

    def load_extra_state(self, state: dict) -> None:
        self.rig_errors = state.get("rig_errors", self.rig_errors)

    @property
    def teacher_name(self) -> str:
        name = self.cfg.EPIPOLAR.TEACHER
        return "annotated 2D joints" if name == ANNOTATION else name

    def views(self, ann: Annotations) -> ViewSamples:
        """The synchronised crops of one person, as many as EPIPOLAR.PAIRS asks for."""
        cfg, ann = self.cfg, data.in_proportion(self.cfg, ann, self.image_spec)
        return ViewSamples(
            ann,
            cfg.DATASET.ROOT,
            self.image_spec,
            pairs=cfg.EPIPOLAR.PAIRS,
            augment=data.augmentation(cfg),
            depth_mm=cfg.DATASET.DEPTH_RANGE,
            box_scale=cfg.DATASET.BOX_SCALE,
            seed=cfg.SEED,
            cache=data.crop_cache(cfg, ann),
        )

    @property
    def rule(self) -> Rule:
        """The triangulation of the EPIPOLAR section."""
        e = self.cfg.EPIPOLAR
        return Rule(e.METHOD, e.PAIRS, e.THRESHOLD_PX, e.MIN_CONF)

    def load_teacher(self) -> Task | None:
        """The frozen 2D network on the student's device, or None where the annotated 2D teaches."""
        path = self.cfg.EPIPOLAR.TEACHER
        if path == ANNOTATION:
            return None
        teacher = restore(path, fallback=self.cfg)
        check_same(teacher.pose_skeleton, self.skeleton, f"EPIPOLAR.TEACHER {path} and DATASET.SKELETON")
        if self.online and teacher.image_spec != self.image_spec:
            raise self.cfg.error(
                "MODEL.IMAGE_SIZE",
                f"is {tuple(self.cfg.MODEL.IMAGE_SIZE)}, but the teacher {path} was trained on crops of {teacher.image_spec.size}; "
                "with EPIPOLAR.LABELS online both see the same crop: use the teacher's size, or LABELS cached",
            )
        return teacher.requires_grad_(False).eval().to(next(self.model.parameters()).device)

    # --- cached labels

    def cached_labels(self, ann: Annotations) -> Labels:
        """Labels of a training table from the cache file, made first where there is none; the file belongs to teacher and options."""
        key = self.cache_key(ann)
        path = self.cache_path(self.cfg.EPIPOLAR.CACHE or f"labels-{key[:12]}.npz")
        once([path], lambda: _write(path, key, vars(self.fresh_labels(ann))), UNWRITABLE)
        self.predicted = None
        labels = Labels(**_read(path, key, "labels of another teacher, rig or EPIPOLAR section", "or set another EPIPOLAR.CACHE"))
        if labels.pose.shape != (len(ann),):
            raise DataError(f"{path}: holds labels of {len(labels.pose)} observations, expected {len(ann)}; {AGAIN}")
        return labels

    def fresh_labels(self, ann: Annotations) -> Labels:
        """Labels of a table from the teacher's predictions, triangulated now."""
        known = self.predicted is not None and self.predicted[0] is ann.x_img
        x_img, conf = self.predicted[1:] if known else self.teacher_predictions(ann)
        return make_labels(ann, x_img, conf, self.rule, next(self.model.parameters()).device)

    def recovered_cameras(self, ann: Annotations) -> Cameras:
        """Cameras whose R and t come from the teacher's joints, kept in a file beside the labels."""
        e = self.cfg.EPIPOLAR
        options = [e.SCALE, e.BODY_MM, e.BASELINE_MM, self.cfg.DATASET.DEPTH_RANGE, e.RIG_FRAMES, e.MIN_CONF]
        search = {"method": e.RIG_METHOD, "limit_px": e.RIG_LIMIT_PX}
        if search != {"method": "lmeds", "limit_px": MAX_SAMPSON_PX}:  # rigs that were made before there was a choice stay valid
            options.append(search)
        key = self.digest(options, ann, (ann.cameras.K.numpy(), ann.cameras.dist.numpy()))
        path = self.cache_path(f"rigs-{key[:12]}.npz")

        def recover() -> None:
            self.predicted = (ann.x_img, *self.teacher_predictions(ann))
            scale = Scale(e.SCALE, e.BODY_MM, e.BASELINE_MM, self.cfg.DATASET.DEPTH_RANGE)
            cameras, rigs = recover_rigs(ann, *self.predicted[1:], scale, e.RIG_FRAMES, min_conf=e.MIN_CONF, **search)
            for name, rig in rigs.items():
                log.info("%s: %d instants, median reprojection error %.2f px", name, len(rig.frames), rig.error_px)
            _write(path, key, {"R": cameras.R.numpy(), "t": cameras.t.numpy()})

        once([path], recover, UNWRITABLE)
        found = _read(path, key, "rigs of another teacher or EPIPOLAR section", "and so are the labels")
        return dataclasses.replace(ann.cameras, R=torch.from_numpy(found["R"]), t=torch.from_numpy(found["t"]))

    def cache_path(self, name: str) -> Path:
        return Path(self.cfg.DATASET.ROOT) / self.cfg.DATASET.TRAIN_SET / name

    def cache_key(self, ann: Annotations) -> str:
        """Changes whenever the labels would."""
        e = self.cfg.EPIPOLAR
        return self.digest([e.PAIRS, e.METHOD, e.THRESHOLD_PX, e.MIN_CONF], ann, (ann.cameras.P.numpy(),))

    def digest(self, options: list, ann: Annotations, calibration: tuple[np.ndarray, ...]) -> str:
        """Of options, the teacher, what it sees of a table, and as much of the calibration as is read."""
        digest = hashlib.sha256()
        teacher = self.cfg.EPIPOLAR.TEACHER
        if teacher != ANNOTATION:
            try:
                digest.update(Path(teacher).read_bytes())
            except OSError as error:
                raise WeightsError(
                    f"{teacher}: the teacher cannot be read ({error.strerror}); train a 2D network first, and set EPIPOLAR.TEACHER to it"
                ) from error
        crop = self.cfg.DATASET
        options = [*options, teacher == ANNOTATION, crop.BOX_SCALE, crop.BOX_FIT, self.skeleton]
        if teacher != ANNOTATION and (values := assumed(teacher, self.cfg)):
            options.append(values)
        digest.update(json.dumps(options).encode())
        for array in (ann.sequence, ann.frame, ann.view, ann.person, ann.box, ann.camera, ann.x_img, *calibration):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def teacher_predictions(self, ann: Annotations) -> tuple[np.ndarray, np.ndarray]:
        """2D joints of every observation, from the teacher's view of its un-augmented crop.   -> (N,J,2) px, (N,J)"""
        teacher = self.load_teacher()
        if teacher is None:
            return ann.x_img, ann.conf
        device = next(self.model.parameters()).device
        shown = data.in_proportion(self.cfg, ann, teacher.image_spec)
        crops = CropSamples(shown, self.cfg.DATASET.ROOT, teacher.image_spec, box_scale=self.cfg.DATASET.BOX_SCALE)
        x_img = np.zeros_like(ann.x_img)
        conf = np.zeros_like(ann.conf)
        loader = eval_loader(crops, self.cfg.TEST.BATCH_SIZE, self.cfg.WORKERS)
        with torch.inference_mode():
            for batch in tqdm(loader, desc="teacher", unit="batch", leave=False):
                pred = teacher.predict(to_device(batch, device))
                rows = batch["id"].numpy()
                x_img[rows] = pred["x_img"].float().cpu().numpy()
                conf[rows] = pred["conf"].float().cpu().numpy()
        return x_img, conf

    # --- online labels

    def forward(self, batch: dict[str, dict], step: Step) -> dict[str, Tensor]:
        if not self.online:
            return super().forward(batch, step)
        b = batch["train"]
        x_patch, valid, error = self.online_labels(b)
        losses = self.joint_supervision(
            self.model(self.prepare(b["image"].flatten(0, 1))), x_patch.flatten(0, 1), valid.flatten(0, 1), valid.flatten(0, 1)
        )
        return losses | {"labels_kept": valid.mean(), "labels_error_px": error}

    @torch.no_grad()
    def online_labels(self, b: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Labels in each view's crop from the views of this batch.

        Returns:
            x_patch (B,V,J,3) px with the depth relative to the root, valid (B,V,J) 0 or 1, mean reprojection error () px.
        """
        if self.teacher is None:
            x_img, conf = b["x_img"], b["conf"]
        else:
            x_img, conf = self.see(b)
        dtype = solve_dtype(x_img.device)
        cameras = b["camera"].to(dtype)
        X_world, kept, error = triangulate_views(x_img.to(dtype), conf.to(dtype), cameras, self.rule)
        root = get(self.skeleton).root_index
        X_cam = cameras.to_cam(X_world[:, None])  # (B,V,J,3)
        x_label = cameras.project(X_world[:, None])[0]
        x_patch = transform_points(b["patch_from_img"].to(dtype), x_label)
        z = (X_cam[..., 2] - X_cam[..., root : root + 1, 2]) * b["depth_scale"][..., None]
        label = torch.cat([x_patch, z[..., None]], -1)
        valid = (kept & kept[:, root : root + 1])[:, None].expand(x_img.shape[:3])
        label = torch.where(valid[..., None], label, 0.0)
        flip = self.flip.to(label.device)
        mirrored = b["flipped"][..., None].bool()
        label = torch.where(mirrored[..., None], label[..., flip, :], label)
        valid = torch.where(mirrored, valid[..., flip], valid)
        used = (error > 0) & error.isfinite()  # 0: not used, inf: behind the camera
        return label.float(), valid.float(), (error.where(used, 0.0).sum() / used.sum().clamp(min=1)).float()

    def see(self, b: dict) -> tuple[Tensor, Tensor]:
        """The teacher's joints in the full images.   -> (B,V,J,2) px, (B,V,J)"""
        views = b["image"].shape[:2]
        x_patch, conf = self.teacher.predict_patch(b["image"].flatten(0, 1))
        x_patch, conf = x_patch[..., :2].unflatten(0, views), conf.unflatten(0, views)
        flip = self.flip.to(conf.device)
        mirrored = b["flipped"][..., None].bool()
        x_patch = torch.where(mirrored[..., None], x_patch[..., flip, :], x_patch)
        conf = torch.where(mirrored, conf[..., flip], conf)
        return transform_points(invert(b["patch_from_img"]), x_patch), conf


def _write(path: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    with replaced(path, advice=UNWRITABLE) as part, part.open("wb") as file:
        np.savez_compressed(file, key=np.array(key), **arrays)


def _read(path: Path, key: str, other: str, advice: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: not a readable label file ({error}); {AGAIN}") from error
    if str(found.pop("key", "")) != key:
        raise DataError(f"{path}: holds {other}; {AGAIN}, {advice}")
    return found
