"""People in pictures by torchvision's Faster R-CNN, and their joints by its Keypoint R-CNN, from weights that are at hand; nothing is
downloaded here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lib.engine.distributed import HOST, choose_device
from lib.errors import MALFORMED, WeightsError
from lib.weights.catalogue import CATALOGUE

PERSON = 1  # in the label set of COCO
CLASSES = 91
DETECTORS = ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn")  # the best one first
JOINTS = "keypointrcnn_resnet50_fpn"  # finds COCO's 17 joints along with the boxes
ADVICE = (
    f"give the people's boxes (--box, --boxes), run `python scripts/download.py {DETECTORS[0]}`, or put its file, "
    f"{CATALOGUE[DETECTORS[0]].url}, into models/"
)
JOINTS_ADVICE = (
    f"run `python scripts/download.py {JOINTS}` where there is a network, or put its file, {CATALOGUE[JOINTS].url}, into models/, or name "
    "it with --weights"
)


def find_people(image: np.ndarray, model: nn.Module, threshold: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """The people in a picture, the most certain one first.

    Args:
        image: (H, W, 3) uint8 RGB.
        model: takes a list of (3, H, W) in 0..1 and gives a list of {"boxes" (M, 4) px, "labels" (M,), "scores" (M,)}.
        threshold: least score.

    Returns:
        boxes (N, 4) float32 x0 y0 x1 y1 px, scores (N,) float32.
    """
    device = next((p.device for p in model.parameters()), HOST)
    x = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        (found,) = model.eval()([x])
    kept = (found["labels"] == PERSON) & (found["scores"] >= threshold)
    boxes, scores = found["boxes"][kept].float().cpu().numpy(), found["scores"][kept].float().cpu().numpy()
    order = np.argsort(-scores, kind="stable")
    return boxes[order], scores[order]


def load_detector(weights: str | Path | None = None, device: str = "auto") -> nn.Module:
    """A Faster R-CNN of torchvision on a device, ready to find people.

    Args:
        weights: file of one of DETECTORS, recognised by its keys; None = torchvision's own file name in torch's cache of
            downloads or in models/.
        device: "auto", or the name of a torch device.

    Raises:
        WeightsError: there are no weights, or the file is none of these.
    """
    target = choose_device(device)
    path, state = _state(weights, DETECTORS, "person", ADVICE)
    from torchvision.models import detection

    name = _architecture(state)
    if name is None:
        raise WeightsError(f"{path}: holds no Faster R-CNN of torchvision; expected the state_dict of {', '.join(DETECTORS)}; {ADVICE}")
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=CLASSES)
    return _filled(model, state, path, name, ADVICE).to(target).eval()


def find_joints(images: Sequence[np.ndarray], model: nn.Module, threshold: float = 0.7) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The people in several pictures with COCO's 17 joints, in each picture the most certain one first.

    Args:
        images: (H, W, 3) uint8 RGB each.
        model: as for `find_people`, and with "keypoints" (M, 17, 3) px and "keypoints_scores" (M, 17), which are logits.
        threshold: least score of a person.

    Returns:
        Of each picture keypoints (N, 17, 3) float32 px and confidence, the logistic function of the score; boxes (N, 4) px; scores (N,).
    """
    device = next((p.device for p in model.parameters()), HOST)
    x = [torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float() / 255 for image in images]
    with torch.inference_mode():
        found = model.eval()(x)
    people = []
    for one in found:
        kept = (one["labels"] == PERSON) & (one["scores"] >= threshold)
        order = one["scores"][kept].argsort(descending=True, stable=True)
        boxes, scores, place, logits = (one[key][kept][order].float().cpu() for key in ("boxes", "scores", "keypoints", "keypoints_scores"))
        joints = torch.cat([place[..., :2], logits.sigmoid()[..., None]], -1)
        people.append((joints.numpy(), boxes.numpy(), scores.numpy()))
    return people


def load_joint_detector(weights: str | Path | None = None, device: str = "auto") -> nn.Module:
    """torchvision's Keypoint R-CNN on a device, ready to find people and their joints; arguments and errors as for `load_detector`."""
    target = choose_device(device)
    path, state = _state(weights, (JOINTS,), "joint", JOINTS_ADVICE)
    from torchvision.models import detection

    if not isinstance(state, Mapping) or not any(key.startswith("roi_heads.keypoint_predictor.") for key in state):
        raise WeightsError(f"{path}: holds no Keypoint R-CNN of torchvision; expected the state_dict of {JOINTS}; {JOINTS_ADVICE}")
    model = getattr(detection, JOINTS)(weights=None, weights_backbone=None, num_classes=2, num_keypoints=17)
    return _filled(model, state, path, JOINTS, JOINTS_ADVICE).to(target).eval()


def _state(weights: str | Path | None, names: Sequence[str], what: str, advice: str) -> tuple[Path, object]:
    """The content of a file of weights, None = the first of `names` that is at hand."""
    path = Path(weights) if weights is not None else _at_hand(names, what, advice)
    try:
        return path, torch.load(path, map_location=HOST, weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file of detector weights; {advice}") from None
    except (OSError, *MALFORMED) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise WeightsError(f"{path}: damaged, or not a file of weights ({reason}); {advice}") from error


def _filled(model: nn.Module, state: Mapping, path: Path, name: str, advice: str) -> nn.Module:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path}: looks like {name} of torchvision, but does not fit it ({reason}); {advice}") from error
    return model


def _at_hand(models: Sequence[str], what: str, advice: str) -> Path:
    from torchvision.models import get_model_weights

    names = [get_model_weights(name).DEFAULT.url.rpartition("/")[2] for name in models]
    folders = (Path(torch.hub.get_dir()) / "checkpoints", Path("models"))
    for name in names:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    places = " and ".join(str(folder) for folder in folders)
    raise WeightsError(f"no weights of torchvision's {what} detector ({names[0]}, for example) in {places}; {advice}")


def _architecture(state) -> str | None:
    if not isinstance(state, Mapping):
        return None
    if "backbone.body.conv1.weight" in state:
        return DETECTORS[0 if any(key.startswith("rpn.head.conv.1.") for key in state) else 1]
    return DETECTORS[2] if "backbone.body.0.0.weight" in state and "roi_heads.box_predictor.cls_score.weight" in state else None


def anchor(box: np.ndarray, x_img: np.ndarray) -> np.ndarray:
    """Where the median of the joints (J, 2) px lies from the middle of a box (4,), in sides of it.   -> (2,), 0 without joints"""
    x = x_img[np.isfinite(x_img).all(-1)]
    return (np.median(x, 0) - (box[:2] + box[2:]) / 2) / (box[2:] - box[:2]).max() if len(x) else np.zeros(2)


def follow(box: np.ndarray, x_img: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The box of a person in the next frame, from box and joints in this one.

    The box moves with the median of the joints, which keeps the place in the box that it had in the first frame, by a quarter of the
    side at most. Its size stays while its longer side is 1.05 to 2.6 times that of the joints' extent; else it grows or shrinks by
    3 %. Where no joint is finite, all stays.

    box (4,) x0 y0 x1 y1 px, x_img (J, 2) px, start (2,) `anchor` of the first frame -> (4,) float64
    """
    box = np.asarray(box, np.float64)
    x = x_img[np.isfinite(x_img).all(-1)]
    if not len(x):
        return box
    size = box[2:] - box[:2]
    shift = np.clip(anchor(box, x) - start, -0.25, 0.25) * size.max()
    ratio = size.max() / max(1.0, (x.max(0) - x.min(0)).max())
    size = size * (1.03 if ratio < 1.05 else 0.97 if ratio > 2.6 else 1.0)
    center = (box[:2] + box[2:]) / 2 + shift
    return np.concatenate([center - size / 2, center + size / 2])


def in_order_of(boxes: np.ndarray, before: np.ndarray, least: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Found boxes in the order of those of the frame before, so that people keep their order; new people come last.

    boxes (N, 4), before (M, 4) px -> (N, 4), and (N,) which one of those before each is, M of new people; two boxes are the same
    person's when their overlap (IoU), the largest first, is at least `least`
    """
    boxes, before = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(before, np.float64).reshape(-1, 4)
    low, high = np.maximum(boxes[:, None, :2], before[:, :2]), np.minimum(boxes[:, None, 2:], before[:, 2:])
    common = (high - low).clip(0).prod(-1)
    area = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes, before)]
    overlap = common / np.maximum(area[0][:, None] + area[1] - common, 1e-9)
    place = np.full(len(boxes), len(before))
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        i, k = np.unravel_index(flat, overlap.shape)
        if overlap[i, k] >= least and place[i] == len(before) and k not in place:
            place[i] = k
    order = np.argsort(place, kind="stable")
    return boxes[order], place[order]
