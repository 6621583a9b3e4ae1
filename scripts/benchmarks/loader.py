"""Training samples per second of one loader worker: decoding whole frames in the usual order, our order, and cached crops."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from lib.dataset.annotations import Annotations
from lib.dataset.augment import Augment
from lib.dataset.crop_cache import open_cache
from lib.dataset.image import ImageSpec
from lib.dataset.loader import Key, init_worker
from lib.dataset.occluders import procedural_occluders, resize
from lib.dataset.samples import CropSamples
from lib.errors import RunError
from lib.skeleton import get
from lib.synthetic.world import World
from scripts.benchmarks.harness import Entry, Report, machine, one_thread, race_apart

FRAMES = 5  # instants of the embedded world, each seen by four cameras
SIZE = (1000, 1002)  # px of a frame
JPEG_QUALITY = 80  # some 75 kB per frame
BATCH = 32
SEED = 0
SPEC = ImageSpec((256, 256))
PLAIN, OURS, CACHED = "plain: whole frame, float per sample", "ours: whole frame", "ours: crop cache"
NORMALIZE_PLAIN, NORMALIZE = "plain: sample by sample", "ours: the batch at once"
GREY_LEVELS = {OURS: (0.6, 4.0), CACHED: (6.0, 256.0)}  # from the plain order: on average, and at most


def run(args: argparse.Namespace) -> Report:
    """Race all orders, each in a process of its own.   -> harness.Report in samples/s"""
    one_thread()
    report = Report("loader", "samples", machine())
    with tempfile.TemporaryDirectory() as folder:
        ann = frames(Path(folder))
        for group, occlusion in (("train", False), ("train + occlusion", True)):
            names = (PLAIN, OURS, CACHED)
            entries = [Entry(n, as_worker, (sampling, ann, folder, n, occlusion)) for n in names]
            report.rows += race_apart(group, entries, args.points, args.rounds)
        entries = [Entry(n, as_worker, (normalizing, n)) for n in (NORMALIZE_PLAIN, NORMALIZE)]
        report.rows += race_apart("normalise", entries, args.points, args.rounds)
    report.aim("train", OURS, PLAIN, 1.4)
    report.aim("train", CACHED, PLAIN, 4.0)
    report.aim("train + occlusion", OURS, PLAIN, 1.2)
    report.aim("normalise", NORMALIZE, NORMALIZE_PLAIN, 4.0)
    return report


def frames(folder: Path) -> Annotations:
    """Frames of the embedded world as JPEG files below `folder`.   -> their table"""
    world = World(split="train", frames=FRAMES, size=SIZE)
    ann = world.annotations()
    for i, name in enumerate(ann.images):
        path = folder / name.decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), world.image(i)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return ann


# --------------------------------------------------------------------------------------------------------- contestants


def sampling(ann: Annotations, folder: str, name: str, occlusion: bool) -> tuple[Callable[[int], None], int, str]:
    """One way to make batches, checked against the plain one.   -> function (batch number), samples per batch, a note"""
    occluders = procedural_occluders(SEED) if occlusion else None
    augment = Augment(scale=0.25, rot_deg=30, rot_prob=0.6, color=0.2, flip_prob=0.5, occluders=occluders)
    plain = PlainSamples(ann, folder, augment)
    if name == PLAIN:
        return lambda number: plain.batch(keys_of(number, len(ann))), BATCH, _about_frames(ann, folder)
    cache = open_cache(ann, folder, Path(folder) / ".crops") if name == CACHED else None
    ours = CropSamples(ann, folder, SPEC, augment, seed=SEED, cache=cache)
    note = ""
    if cache is not None:
        epochs = [ours.__getitems__(keys_of(number, len(ann)))["patch_from_img"] for number in range(20)]
        crops = [cache.affines(np.array([k.index for k in keys_of(n, len(ann))]), A.double(), SPEC.size)[0] for n, A in enumerate(epochs)]
        size, wide, none = np.mean(cache.end - cache.start) / 1000, np.mean(np.array(crops) >= len(ann)), np.mean(np.array(crops) < 0)
        note = f"{size:.0f} kB a crop; {wide:.0%} need the wider one, {none:.0%} the frame"
    _check_equal(name, ours.__getitems__(keys_of(0, len(ann))), plain.batch(keys_of(0, len(ann))))
    return lambda number: ours.__getitems__(keys_of(number, len(ann))), BATCH, note


def normalizing(name: str) -> tuple[Callable[[int], None], int, str]:
    """One way to turn patches into network input, checked against the plain one.   -> as `sampling`"""
    patches = np.random.default_rng(SEED).integers(0, 256, (BATCH, 256, 256, 3), dtype=np.uint8)
    batch = torch.from_numpy(np.ascontiguousarray(patches.transpose(0, 3, 1, 2)))

    def plain(number: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([plain_input(patch, (1.0, 1.0, 1.0)) for patch in patches]))

    def ours(number: int) -> torch.Tensor:
        return SPEC.normalize(batch)

    if (ours(0) - plain(0)).abs().max() > 1e-5:
        raise RunError("normalise: the contestants do not agree")
    return (plain if name == NORMALIZE_PLAIN else ours), BATCH, ""


def as_worker(setup: Callable, *args) -> tuple[Callable[[int], object], int, str]:
    """A contestant in a process that is set up as those of a loader are.   -> as `setup`"""
    init_worker(0)
    return setup(*args)


def keys_of(number: int, count: int) -> list[Key]:
    """The keys of a batch; each epoch has its own augmentation."""
    return [Key(i % count, i // count) for i in range(number * BATCH, (number + 1) * BATCH)]


class PlainSamples:
    """The order of steps that published loaders share: sample by sample, the whole frame, floats early, a loop over joints."""

    def __init__(self, ann: Annotations, folder: str, augment: Augment):
        self.ann, self.folder, self.augment = ann, Path(folder), augment
        skeleton = get(ann.skeleton)
        X_cam = ann.observing().to_cam(torch.from_numpy(ann.X_world[ann.pose]).double()).numpy()
        self.depth_mm = X_cam[..., 2] - X_cam[:, skeleton.root_index, None, 2]
        self.flip = list(skeleton.flip)

    def batch(self, keys: list[Key]) -> tuple[torch.Tensor, torch.Tensor]:
        """-> network input (B, 3, H, W) float32, x_patch (B, J, 3) px"""
        images, labels = zip(*map(self.sample, keys), strict=True)
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))

    def sample(self, key: Key) -> tuple[np.ndarray, np.ndarray]:
        row = key.index
        params = self.augment.draw(np.random.default_rng((SEED, key.epoch, row)))
        frame = cv2.imread(str(self.folder / self.ann.image_path(row)), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        affine = plain_affine(self.ann.box[row], params.scale, params.rot_deg, params.flip)
        patch = cv2.warpAffine(frame.copy(), affine, SPEC.size, flags=cv2.INTER_LINEAR)
        patch = cv2.cvtColor(patch, cv2.COLOR_BGR2RGB)
        if self.augment.occluders is not None:
            patch = plain_occlusion(patch, self.augment.occluders.objects, np.random.default_rng(params.occlusion_seed))
        labels = np.zeros((self.ann.num_joints, 3), np.float32)
        for j in range(self.ann.num_joints):
            source = self.flip[j] if params.flip else j
            labels[j, :2] = affine @ np.append(self.ann.x_img[row, source].astype(np.float64), 1.0)
            labels[j, 2] = self.depth_mm[row, source] * (SPEC.size[0] / (2000.0 * params.scale))
        return plain_input(patch, params.color), labels


def plain_affine(box: np.ndarray, scale: float, rot_deg: float, flip: bool) -> np.ndarray:
    """The affine of one crop.   -> (2, 3) float64"""
    low, high = box[:2].astype(np.float64), box[2:].astype(np.float64)
    ratio, angle = np.array(SPEC.size) / ((high - low) * scale), np.deg2rad(rot_deg)
    mirror = -1.0 if flip else 1.0
    A = np.array([[mirror * np.cos(angle), np.sin(angle)], [mirror * -np.sin(angle), np.cos(angle)]]) * ratio[:, None]
    return np.column_stack([A, np.array(SPEC.size) / 2 - A @ ((low + high) / 2)])


def plain_occlusion(patch: np.ndarray, objects: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Objects blended in floating point; the draws are those of Occluders.paste_random."""
    size = patch.shape[1::-1]
    count = int(rng.integers(1, 8))
    which = rng.integers(len(objects), size=count)
    factors = rng.uniform(0.2, 1.0, size=count) * (min(size) / 256.0)
    centers = rng.uniform(0, 1, size=(count, 2)) * size
    result = patch.copy()
    for index, factor, center in zip(which, factors, centers, strict=True):
        item = resize(objects[index], factor)
        low = np.rint(center).astype(int) - np.array(item.shape[1::-1]) // 2
        start, stop = np.clip(low, 0, size), np.clip(low + item.shape[1::-1], 0, size)
        part = item[start[1] - low[1] : stop[1] - low[1], start[0] - low[0] : stop[0] - low[0]]
        target = result[start[1] : stop[1], start[0] : stop[0]]
        alpha = part[..., 3:].astype(np.float32) / 255
        result[start[1] : stop[1], start[0] : stop[0]] = alpha * part[..., :3] + (1 - alpha) * target
    return result


def plain_input(patch: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    """Network input of one patch, channel by channel.   (H, W, 3) uint8 -> (3, H, W) float32"""
    image = patch.astype(np.float32)
    for c in range(3):
        image[:, :, c] = np.clip(image[:, :, c] * color[c], 0, 255)
    image = np.transpose(image, (2, 0, 1)).copy()
    for c in range(3):
        image[c] = (image[c] - SPEC.mean[c]) / SPEC.std[c]
    return image


def _check_equal(name: str, batch: dict, plain: tuple[torch.Tensor, torch.Tensor]) -> None:
    """RunError unless a batch holds the plain order's labels, and its images but for rounding or resampling."""
    images, labels = plain
    if (batch["x_patch"] - labels).abs().max() > 2e-2:
        raise RunError(f"{name}: labels differ by {(batch['x_patch'] - labels).abs().max():.3g} px from those of the plain order")
    levels = ((SPEC.normalize(batch["image"]) - images).abs() * torch.tensor(SPEC.std)[:, None, None]).flatten(1)
    mean, most = GREY_LEVELS[name]
    if levels.mean() > mean or levels.max() > most:
        raise RunError(f"{name}: images differ by {levels.mean():.3g} grey levels (at most {levels.max():.3g}) from the plain order's")


def _about_frames(ann: Annotations, folder: str) -> str:
    sizes = [(Path(folder) / name.decode()).stat().st_size for name in ann.images]
    sides = ann.box[:, 2] - ann.box[:, 0]
    return f"{SIZE[0]} x {SIZE[1]} px, {np.mean(sizes) / 1000:.0f} kB a frame; box {np.mean(sides):.0f} px"
