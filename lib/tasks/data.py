"""What the tasks over person crops share: from the configuration to annotations, augmentation and samples."""

from pathlib import Path

from lib.config import Config
from lib.dataset import formats, load
from lib.dataset.annotations import Annotations
from lib.dataset.augment import Augment
from lib.dataset.occluders import procedural_occluders
from lib.registry import resolve
from lib.skeleton import get
from lib.tasks.world import ensure


def skeleton_name(cfg: Config) -> str:
    """The joints that the network learns: DATASET.SKELETON, else those of the dataset's files.

    Raises:
        ConfigError: MODEL.NUM_JOINTS is another number.
    """
    name = cfg.DATASET.SKELETON or resolve(formats.FORMATS, cfg.DATASET.DATASET, key="DATASET.DATASET").SKELETON
    joints = get(name).num
    if cfg.MODEL.NUM_JOINTS != joints:
        raise cfg.error(
            "MODEL.NUM_JOINTS", f"is {cfg.MODEL.NUM_JOINTS}, but skeleton {name} has {joints} joints; set it to {joints}"
        )
    return name


def annotations(cfg: Config, split: str, step: int = 1) -> Annotations:
    """One split of the configured dataset, every `step`-th frame; the embedded world is generated when it is not there yet."""
    root = Path(cfg.DATASET.ROOT)
    if cfg.DATASET.DATASET == "synthetic":
        ensure(
            root,
            pretrain=cfg.SYNTH.PRETRAIN,
            train=cfg.SYNTH.TRAIN,
            valid=cfg.SYNTH.VALID,
            size=tuple(cfg.SYNTH.SIZE),
            rig=cfg.SYNTH.RIG,
            seed=cfg.SYNTH.SEED,
            objects=cfg.SYNTH.OBJECTS,
        )
    ann = load(cfg.DATASET.DATASET, root, split, cfg.DATASET.OPTIONS, skeleton_name(cfg))
    return ann.protocol(cfg.DATASET.SUBJECTS, step, cfg.DATASET.VIEWS)


def augmentation(cfg: Config) -> Augment:
    """The training augmentation of the DATASET section."""
    d = cfg.DATASET
    return Augment(
        scale=d.SCALE_FACTOR,
        rot_deg=d.ROT_FACTOR,
        rot_prob=d.ROT_PROB,
        color=d.COLOR_FACTOR,
        flip_prob=d.FLIP_PROB if d.FLIP else 0.0,
        occluders=procedural_occluders(cfg.SEED) if d.OCCLUSION else None,
    )
