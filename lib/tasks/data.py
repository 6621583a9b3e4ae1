"""What the tasks over person crops share: from the configuration to annotations, augmentation and samples."""

import dataclasses
import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.config import Config
from lib.dataset import formats, load
from lib.dataset.annotations import Annotations, widened, without_3d
from lib.dataset.augment import Augment
from lib.dataset.crop_cache import FOLDER, CropCache, open_cache
from lib.dataset.image import ImageSpec
from lib.dataset.occluders import Occluders, procedural_occluders, voc_occluders
from lib.dataset.samples import CropSamples
from lib.registry import resolve
from lib.skeleton import get
from lib.tasks.world import ensure, ensure_native

log = logging.getLogger("parallax")

MPII = "mpii16"
WEAK_SET = {"ROOT": str, "SPLIT": str, "OPTIONS": Mapping, "BOX_SCALE": float | int}  # what a key of `weak_sets` says of a set


def skeleton_name(cfg: Config) -> str:
    """The joints that the network learns: DATASET.SKELETON or MPII_ORDER, else those of the dataset's files.

    Raises:
        ConfigError: MODEL.NUM_JOINTS is another number, or SKELETON and MPII_ORDER contradict each other.
    """
    asked = cfg.DATASET.SKELETON
    if cfg.DATASET.MPII_ORDER and asked not in ("", MPII):
        raise cfg.error("DATASET.MPII_ORDER", f"is true, but DATASET.SKELETON is {asked}; set one of the two")
    if cfg.DATASET.MPII_ORDER:
        asked = MPII
    name = asked or resolve(formats.FORMATS, cfg.DATASET.DATASET, key="DATASET.DATASET").SKELETON
    joints = get(name).num
    if cfg.MODEL.NUM_JOINTS != joints:
        raise cfg.error(
            "MODEL.NUM_JOINTS", f"is {cfg.MODEL.NUM_JOINTS}, but skeleton {name} has {joints} joints; set it to {joints}"
        )
    return name


def check_halving(cfg: Config) -> None:
    """ConfigError unless the ResNet of MODEL.EXTRA halves the crop without a rest, so that its maps lie on the crop."""
    stages, size = cfg.MODEL.EXTRA.NUM_STAGES, cfg.MODEL.IMAGE_SIZE
    step = 2 ** (stages + 1)
    if any(side % step for side in size):
        raise cfg.error("MODEL.IMAGE_SIZE", f"is {size}, but a ResNet of {stages} stages takes multiples of {step}; change one of the two")


def annotations(cfg: Config, split: str, step: int = 1, subjects: Sequence[str] = (), skeleton: str = "") -> Annotations:
    """One split of the configured dataset, every `step`-th frame of the named subjects (none named: of all), in the joints that the
    network learns or those of another skeleton.

    The embedded world is generated when it is not there yet.
    """
    root, synth = Path(cfg.DATASET.ROOT), cfg.SYNTH
    counts = {"pretrain": synth.PRETRAIN, "train": synth.TRAIN, "valid": synth.VALID}
    world = counts | {"size": tuple(synth.SIZE), "rig": synth.RIG, "seed": synth.SEED, "people": tuple(synth.PEOPLE)}
    world |= {"objects": synth.OBJECTS, "zoom": synth.ZOOM, "length": synth.LENGTH, "strangers": synth.STRANGERS}
    if cfg.DATASET.DATASET == "synthetic":
        ensure(root, **world)
    elif synth.NATIVE:
        ensure_native(cfg.DATASET.DATASET, root, **world)
    ann = load(cfg.DATASET.DATASET, root, split, cfg.DATASET.OPTIONS, skeleton or skeleton_name(cfg))
    return ann.protocol(subjects, step, cfg.DATASET.VIEWS)


def options(cfg: Config) -> dict[str, Any]:
    """The options of the data's layout that are in effect: DATASET.OPTIONS, and the defaults of what it does not name."""
    layout = resolve({**formats.FORMATS, **formats.TRACKS}, cfg.DATASET.DATASET, key="DATASET.DATASET")
    _, _, *known = inspect.signature(layout.read).parameters.values()  # root and split come first
    return {p.name: p.default for p in known if p.default is not p.empty} | dict(cfg.DATASET.OPTIONS)


def weak_sets(cfg: Config, key: str, skeleton: str) -> list[tuple[Annotations, Config]]:
    """The sets of 2D labels that a key names: without any 3D label, each with the configuration that its crops follow.

    Raises:
        ConfigError: the key does not say where they are, or says more than that.
    """
    sets = []
    for name, values in cfg.flat()[key].items():
        if not isinstance(values, Mapping) or not {"ROOT", "SPLIT"} <= values.keys() <= WEAK_SET.keys():
            raise cfg.error(key, f"{name}: found {values!r}; expected ROOT and SPLIT, and OPTIONS and BOX_SCALE if needed")
        for part, value in values.items():
            if not isinstance(value, WEAK_SET[part]):
                raise cfg.error(key, f"{name}.{part}: found {value!r}, which is none")
        own = {"OPTIONS": {}} | dict(values)
        split = own.pop("SPLIT")
        other = cfg.with_values(
            {"DATASET.DATASET": name, "DATASET.SKELETON": skeleton, "DATASET.VIEWS": []} | {f"DATASET.{k}": v for k, v in own.items()}
        )
        sets.append((without_3d(annotations(other, split, cfg.DATASET.TRAIN_FRAME)), other))
    return sets


def augmentation(cfg: Config, rot_deg: float | None = None) -> Augment:
    """The training augmentation of the DATASET section, with another spread of rotations if given."""
    d = cfg.DATASET
    return Augment(
        scale=d.SCALE_FACTOR,
        rot_deg=d.ROT_FACTOR if rot_deg is None else rot_deg,
        rot_prob=d.ROT_PROB,
        color=d.COLOR_FACTOR,
        flip_prob=d.FLIP_PROB if d.FLIP else 0.0,
        occluders=occluders(cfg) if d.OCCLUSION else None,
    )


def occluders(cfg: Config) -> Occluders:
    """Objects to paste: those of Pascal VOC in DATASET.VOC, or made-up ones where that folder is missing or not named."""
    if cfg.DATASET.VOC and Path(cfg.DATASET.VOC).is_dir():
        return voc_occluders(cfg.DATASET.VOC)
    if cfg.DATASET.VOC:
        log.warning("DATASET.VOC: there is no folder %s; made-up objects are pasted instead of those of Pascal VOC", cfg.DATASET.VOC)
    return procedural_occluders(cfg.SEED)


def crops(cfg: Config, ann: Annotations, spec: ImageSpec, augment: Augment | None, depth_mm: float | None) -> CropSamples:
    """Person crops of annotations as the DATASET section asks, for training if `augment`; a person of whom a view shows less than two of
    the labelled joints has none. Those with a single label are judged all the same: MPII's evaluation counts every record.
    depth_mm: see CropSamples.
    """
    shown, labelled = ann.visible.sum(1), (ann.conf > 0).sum(1)
    shown = (shown > 1) | (labelled == 0) | ((shown == labelled) & (augment is None))
    ann = in_proportion(cfg, ann if shown.all() else ann.select(shown), spec)
    cache = crop_cache(cfg, ann) if augment is not None else None
    return CropSamples(ann, cfg.DATASET.ROOT, spec, augment, depth_mm, cfg.DATASET.BOX_SCALE, cfg.SEED, cache)


def in_proportion(cfg: Config, ann: Annotations, spec: ImageSpec) -> Annotations:
    """The table with boxes as wide and high as the network's input, so that crops do not stretch people; DATASET.BOX_FIT says how."""
    return dataclasses.replace(ann, box=widened(ann.box, spec.size[0] / spec.size[1], within=cfg.DATASET.BOX_FIT == "within"))


def crop_cache(cfg: Config, ann: Annotations) -> CropCache | None:
    """The cache of a training table's crops that DATASET.CACHE asks for, made when it is not there yet; None = off."""
    d = cfg.DATASET
    if not d.CACHE:
        return None
    across = d.CACHE_SIZE / d.CACHE_MARGIN
    if across < max(cfg.MODEL.IMAGE_SIZE):
        log.warning(
            "DATASET.CACHE_SIZE %d with CACHE_MARGIN %g keeps %.0f px of a box, but MODEL.IMAGE_SIZE shows it on %d px: crops will be "
            "blurred; set CACHE_SIZE to %d", d.CACHE_SIZE, d.CACHE_MARGIN, across, max(cfg.MODEL.IMAGE_SIZE),
            math.ceil(max(cfg.MODEL.IMAGE_SIZE) * d.CACHE_MARGIN),
        )  # fmt: skip
    folder = Path(d.ROOT) / FOLDER if d.CACHE == "auto" else Path(d.CACHE)
    return open_cache(ann, d.ROOT, folder, d.CACHE_SIZE, d.CACHE_MARGIN, d.BOX_SCALE, progress=True)
