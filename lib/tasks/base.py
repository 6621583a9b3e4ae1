"""The contract between what is trained (a task) and what trains it (the engine)."""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from lib.config import Config
from lib.dataset.image import ImageSpec
from lib.tasks.limbs import with_limbs
from lib.weights.adapters import Checkpoint


class Step(NamedTuple):
    """Where training stands; all that a task learns about the engine."""

    step: int  # optimizer steps done
    epoch: int
    progress: float  # 0 at the first step, 1 at the last


class Task(nn.Module):
    """How a model is trained and judged.

    A task is built from the configuration alone and reads no data until `train_data` or `eval_data` is called, so that a
    checkpoint can be turned into a predictor anywhere. The engine wraps the task itself for distributed training: one step is
    one call of `forward`, however often that calls the model.
    """

    sections: tuple[str, ...] = ()  # configuration sections it reads; a key set in any other one is an error
    key_metric: tuple[str, str] = ("mpjpe_mm", "min")  # what "best" means: a name of the report, and "min" or "max"
    corrections: tuple[str, ...] = ("off",)  # what TEST.CORRECTION may be
    models: tuple[str, ...] = ()  # what MODEL.NAME may be; () = the networks of lib.models that belong to no task, see OF_TASKS there
    cfg: Config
    model: nn.Module  # what a released checkpoint contains
    sees: str = "person"  # what its network is shown: "person" = a picture of one, "keypoints" over time, "views" of several people, "pose"
    image_spec: ImageSpec | None = None  # of networks that see pictures; stored with the weights
    clip: int = 1  # consecutive frames of one person that are looked at together; `predict` takes batches (B,T,...) of so many, too
    skeleton: str = ""  # joints of the model's output, stored with the weights

    @property
    def pose_skeleton(self) -> str:
        """Joints of the predictions, where they are not those of the model's output."""
        return self.skeleton

    @classmethod
    def overfit(cls, cfg: Config) -> dict[str, Any]:
        """{dotted key: value} that --overfit sets beside those of any task (lib.engine.batches.overfit_config), so that the samples that
        are learned come as they are, and are those that are judged.

        Raises:
            ConfigError: what is learned cannot be judged.
        """
        return {}

    def called(self) -> list[nn.Module]:
        """The modules that steps and predictions call; COMPILE compiles these, since a method that is called is not compiled."""
        return [self.model]

    def train_data(self) -> dict[str, Dataset]:
        """Training sets by name; the first defines the epoch, the others cycle beside it."""
        raise NotImplementedError

    def eval_data(self) -> dict[str, Dataset]:
        """Evaluation sets by name; the first decides which weights are best."""
        raise NotImplementedError

    def forward(self, batch: dict[str, dict], step: Step) -> dict[str, Tensor]:
        """Scalars of one step by name; "total" is minimised, the others are logged.

        `batch` holds one batch per training set, under the set's name.
        """
        raise NotImplementedError

    def predict(self, batch: dict) -> dict[str, Tensor]:
        """Joints of a batch (B first), test-time flip included; called under no_grad."""
        raise NotImplementedError

    def assumed(self) -> tuple[str, ...]:
        """In words, what the size of predicted poses rests on, where predictions have one (X_root and mm_per_px)."""
        return ()

    def evaluator(self, dataset: Dataset) -> Any:
        """A fresh evaluator (lib/metrics/evaluator.py) for one evaluation set."""
        raise NotImplementedError

    def judge(self, dataset: Dataset) -> Any:
        """What judges an evaluation set: its evaluator, with what the TEST section asks for beside the numbers of any task.

        Raises:
            ConfigError: the evaluator cannot tell that.
        """
        return with_limbs(self.cfg, self.evaluator(dataset), dataset)

    def protocol(self) -> dict[str, Any]:
        """What results.json says of how poses are made and judged, beside what holds for any task; the evaluator's word comes after it."""
        return {"flip_test": self.cfg.TEST.FLIP_TEST}

    def rows(self, pred: dict[str, Tensor], batch: dict) -> tuple[dict[str, Tensor], dict]:
        """Predictions and batch as the evaluator and predictions.npz take them, a row each; for samples that are several rows."""
        return pred, batch

    def figures(self, batch: dict, pred: dict[str, Tensor], limit: int) -> dict[str, np.ndarray]:
        """Pictures (H, W, 3) uint8 RGB of at most `limit` samples, by name; shown in TensorBoard and under figures/."""
        return {}

    def param_groups(self) -> list[dict]:
        """Parameter groups of the optimizer."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def adapted(self, checkpoint: Checkpoint) -> Checkpoint:
        """A file's weights under the names of `model`, for files that come in another shape; by default as they are.

        Raises:
            WeightsError: they cannot be what this task needs.
        """
        return checkpoint

    def on_epoch(self, epoch: int) -> None:
        """Called before each epoch: batch-norm momentum, stage switches."""

    def facts(self) -> dict[str, Any]:
        """What results.json says about the training besides the scores; plain values by name."""
        return {}

    def extra_state(self) -> dict:
        """What a checkpoint must keep besides the model; plain values and tensors."""
        return {}

    def load_extra_state(self, state: dict) -> None:
        """Takes back what `extra_state` gave."""
