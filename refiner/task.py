"""How the refinement unit is trained and judged: predicted poses in, true poses as labels.

Source: Kocabas et al., EpipolarPose, CVPR 2019, section 3.3.
"""

import dataclasses
import logging

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lib.config import Config
from lib.metrics import PoseEvaluator, pose
from lib.metrics.report import Report
from lib.metrics.structure import Clusters
from lib.skeleton import get
from lib.tasks import data, structure
from lib.tasks.base import Step, Task
from lib.weights.load import load_into, read
from refiner.data import Pairs, PairSamples, Statistics, mirrored, without_root
from refiner.data import read as read_pairs
from refiner.model import Refiner

log = logging.getLogger("parallax")
STATISTICS = tuple(field.name for field in dataclasses.fields(Statistics))
# What the release's refiner calls 14 joints are these 13: the hip is not an output, neck and head are skipped.
THIRTEEN = tuple(joint for joint in pose.JOINT_SETS["14"] if joint != "pelvis")


class RefineEvaluator(PoseEvaluator):
    """The numbers of PoseEvaluator for the refined poses, and as `input_*` for the poses that went in.

    Both count the same joints: all of the skeleton, the root with its error of zero, as everywhere else. The definitions of the
    release's refiner, whose poses have no root, stand beside them as `*_without_root_mm`: no joint is centred again after an
    alignment, and all joints but the root take part in it.
    """

    BEFORE = ("mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm", "mpjpe14_mm", "mpjpe_without_root_mm", "pa_mpjpe_without_root_mm")

    def update(self, pred: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """Add a batch: pred X_cam, batch X_input and X_cam (B,J,3) mm; batch X_valid (B,J), id."""
        self._add(
            batch["id"], pred["X_cam"], gt=batch["X_cam"].float(), valid=batch["X_valid"].bool(), input=batch["X_input"].float()
        )

    def compute(self) -> Report:
        """All numbers over all rows, and how many joints they count."""
        report = super().compute()
        report.counts["joints_a_pose_with_its_root"] = len(self.joints or self.skeleton.joints)
        return report

    def _values(self, id: Tensor, pred: Tensor, gt: Tensor, valid: Tensor, input: Tensor) -> dict[str, Tensor]:
        values, before = (self._one(id, X, gt, valid) for X in (pred, input))
        names = (*self.BEFORE, *(clusters.metric for clusters in self.structure))
        return values | {f"input_{name}": before[name] for name in names if name in before}

    def _one(self, id: Tensor, X: Tensor, gt: Tensor, valid: Tensor) -> dict[str, Tensor]:
        others = [j for j in range(self.skeleton.num) if j != self.root]
        centred, true = ((Y - Y[:, self.root, None])[:, others] for Y in (X.double(), gt.double()))
        names = [self.skeleton.joints[j] for j in others]
        return super()._values(id, X, gt, valid) | without_root_values(centred, true, valid[:, others], names)


def without_root_values(pred: Tensor, gt: Tensor, valid: Tensor | None, names: list[str]) -> dict[str, Tensor]:
    """The definitions of the release's refiner, for root-relative poses without root.   (N,J-1,3) -> values (N,)"""
    errors, aligned = pose.joint_errors(pred, gt, None, valid), pose.aligned_joint_errors(pred, gt, valid)
    values = {"mpjpe_without_root_mm": pose.mean_over(errors), "pa_mpjpe_without_root_mm": pose.mean_over(aligned)}
    if set(THIRTEEN) <= set(names):
        thirteen = [names.index(joint) for joint in THIRTEEN]
        values["mpjpe13_without_root_mm"] = pose.mean_over(errors, thirteen)
        values["pa_mpjpe13_without_root_mm"] = pose.mean_over(aligned, thirteen)
    for axis, error in zip("xyz", pose.axis_errors(pred, gt, None, valid).unbind(-1), strict=True):
        values[f"mpjpe_{axis}_without_root_mm"] = pose.mean_over(error)
    return values


class RefineTask(Task):
    """A network on poses: mean squared error of both of its predictions, in normalised coordinates.

    The statistics that normalise are kept with the weights (`task_extra` of a checkpoint). They come from the checkpoint that is
    resumed, judged or started from, else from REFINE.NORM, else from the training pairs; never from a file that merely lies there.
    """

    sections = ("DATASET", "MODEL", "TRAIN", "TEST", "DEBUG", "REFINE")
    sees = "pose"
    models = ("refiner",)

    @classmethod
    def overfit(cls, cfg: Config) -> dict:
        return {"REFINE.VALID": cfg.REFINE.TRAIN, "REFINE.HOLDOUT": [], "REFINE.NOISE_MM": 0.0, "REFINE.JOINT_DROP": 0.0}

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.skeleton = data.skeleton_name(cfg)
        section = cfg.REFINE
        self.keep = without_root(self.skeleton)
        self.model = Refiner(
            len(self.keep), section.WIDTH, section.STAGES, section.DROPOUT, section.LEAKY, section.RESIDUAL
        )
        for name in STATISTICS:
            self.register_buffer(name, torch.zeros(3 * len(self.keep)))
        self.has_statistics = False
        self.structure: tuple[Clusters, ...] | None = None
        if cfg.MODEL.PRETRAINED:
            checkpoint = read(cfg.MODEL.PRETRAINED)
            log.info("weights: %s: %s", cfg.MODEL.PRETRAINED, load_into(self.model, checkpoint, strict=True).summary())
            self.load_extra_state(checkpoint.meta.get("task_extra") or {})

    # --- data

    def train_data(self) -> dict[str, Dataset]:
        cfg = self.cfg
        pairs = self.training_pairs()
        self._ensure_statistics(pairs)
        flip = cfg.DATASET.FLIP_PROB if cfg.DATASET.FLIP else 0.0
        return {"train": PairSamples(pairs, cfg.REFINE.NOISE_MM, cfg.REFINE.JOINT_DROP, flip, cfg.SEED)}

    def eval_data(self) -> dict[str, Dataset]:
        section = self.cfg.REFINE
        if section.VALID:
            pairs = self._read("VALID")
        elif section.HOLDOUT:
            pairs = self._read("TRAIN").of_subjects(section.HOLDOUT)
        else:
            raise self.cfg.error("REFINE.VALID", "is empty; give pairs to judge on, or subjects of REFINE.TRAIN as REFINE.HOLDOUT")
        subjects = self.cfg.TEST.SUBJECTS
        self._ensure_statistics()
        return {"valid": PairSamples(pairs.of_subjects(subjects) if subjects else pairs)}

    def training_pairs(self) -> Pairs:
        """The pairs of REFINE.TRAIN, of DATASET.SUBJECTS and without REFINE.HOLDOUT.

        Raises:
            ConfigError: REFINE.TRAIN is empty.
            DataError: the file is not there or not usable, or a subject is not in it.
        """
        pairs = self._read("TRAIN")
        pairs = pairs.of_subjects(self.cfg.DATASET.SUBJECTS) if self.cfg.DATASET.SUBJECTS else pairs
        return pairs.of_subjects(self.cfg.REFINE.HOLDOUT, kept=False) if self.cfg.REFINE.HOLDOUT else pairs

    def _read(self, key: str) -> Pairs:
        path = self.cfg.REFINE[key]
        if not path:
            raise self.cfg.error(f"REFINE.{key}", "is empty; give predictions.npz of a run, or a published .pkl (refiner/README.md)")
        return read_pairs(path, self.skeleton)

    def _ensure_statistics(self, pairs: Pairs | None = None) -> None:
        if self.has_statistics:
            return
        if self.cfg.REFINE.NORM:
            self._set_statistics(Statistics.read(self.cfg.REFINE.NORM, 3 * len(self.keep)))
            return
        if pairs is None and not self.cfg.REFINE.TRAIN:
            raise self.cfg.error(
                "REFINE.NORM", "is empty, and these weights come without the means and deviations of their training data; give the "
                "norm.pkl that belongs to them, or their training pairs as REFINE.TRAIN"
            )  # fmt: skip
        pairs = self.training_pairs() if pairs is None else pairs
        self._set_statistics(Statistics.of(pairs, shared=self.cfg.REFINE.RESIDUAL))

    def _set_statistics(self, statistics: Statistics) -> None:
        for name in STATISTICS:
            getattr(self, name).copy_(getattr(statistics, name))
        self.has_statistics = True

    def statistics(self) -> Statistics:
        """The means and deviations that belong to the weights, on the host."""
        return Statistics(*(getattr(self, name).detach().cpu().clone() for name in STATISTICS))

    def extra_state(self) -> dict:
        return dataclasses.asdict(self.statistics()) if self.has_statistics else {}

    def load_extra_state(self, state: dict) -> None:
        if state:
            self._set_statistics(Statistics(*(state[name] for name in STATISTICS)))

    # --- training

    def forward(self, batch: dict[str, dict], step: Step) -> dict[str, Tensor]:
        b = batch["train"]
        target = (b["X_out"].flatten(1) - self.label_mean) / self.label_std
        weight = b["valid"][..., None].expand(b["X_out"].shape).flatten(1).to(target.dtype)
        losses = [_masked_mse(p.float(), target, weight) for p in self.model(self._normalised(b["X_in"], b["kept"]))]
        return {"total": losses[0] + losses[1], "first": losses[0], "second": losses[1]}

    def _normalised(self, X: Tensor, kept: Tensor) -> Tensor:
        """(B,J-1,3) mm, (B,J-1) -> (B,3(J-1)); a hidden joint is at its mean."""
        x = ((X.flatten(1) - self.input_mean) / self.input_std).view(X.shape)
        return (x * kept[..., None]).flatten(1)

    # --- prediction

    def predict(self, batch: dict) -> dict[str, Tensor]:
        """Refined poses where the input's root is.

        Returns:
            X_cam (B,J,3) mm, and X_input (B,J,3), the poses that went in.
        """
        X_input, kept = batch["X_input"], batch["kept"]
        root = get(self.skeleton).root_index
        X = X_input - X_input[:, root, None]
        refined = self.refine(X, kept)
        if self.cfg.TEST.FLIP_TEST:
            flip = torch.tensor(get(self.skeleton).flip, device=X.device)
            refined = (refined + mirrored(self.refine(mirrored(X, flip), kept), flip)) / 2
        return {"X_cam": refined + X_input[:, root, None], "X_input": X_input}

    def refine(self, X: Tensor, kept: Tensor | None = None) -> Tensor:
        """Root-relative poses of this task's skeleton.   (B,J,3) mm -> (B,J,3) mm"""
        keep = torch.tensor(self.keep, device=X.device)
        x = X[:, keep]
        kept = torch.ones(x.shape[:2], dtype=torch.bool, device=X.device) if kept is None else kept
        result = self.model(self._normalised(x, kept))[1].float() * self.label_std + self.label_mean
        return torch.zeros_like(X).index_copy(1, keep, result.view(x.shape))

    def protocol(self) -> dict:
        section = self.cfg.REFINE
        return super().protocol() | {"split": section.VALID or f"{', '.join(section.HOLDOUT)} of {section.TRAIN}"}

    def evaluator(self, dataset: PairSamples) -> RefineEvaluator:
        actions = dataset.pairs.actions
        if self.structure is None:  # found once; the same at every evaluation of a run
            self.structure = structure.clusters(self.cfg, self.skeleton)
        return RefineEvaluator(
            self.skeleton,
            actions=actions.tolist() if (actions != "").any() else None,
            joints=self.cfg.TEST.JOINTS or None,
            variants=self.cfg.TEST.VARIANTS,
            structure=self.structure,
        )


def _masked_mse(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return ((pred - target).square() * weight).sum() / weight.sum().clamp(min=1)
