"""The pictures of a report: images of the data set with their 2D poses, made small and put into the page itself."""

import base64
from pathlib import Path

import cv2
import numpy as np
import torch

from lib.dataset.image import read_image
from lib.drawing.paint import TRUTH, below, beside, cut_out
from lib.errors import DataError, ParallaxError
from lib.report.samples import Poses, try_cameras
from lib.vis import PEOPLE, draw_skeleton_2d, draw_skeleton_3d

SIDE = 420  # longest side of a sample's picture, px
FIGURE = 1400  # width of a figure, px
MARGIN = 1.4  # of what is shown around joints; boxes have one of their own
VIEWS, GAP = 4, 4  # of a whole frame that are shown, and px between two pictures
LONGEST = 2 * SIDE + GAP  # of pictures beside each other
QUALITY = 82  # of JPEG


def data_uri(image: np.ndarray, longest: int) -> str:
    """A picture (H,W,3) uint8 RGB, made no longer than `longest` px, as the text of a JPEG that needs no file."""
    scale = longest / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def sample_picture(poses: Poses, row: int, root: Path | None) -> tuple[np.ndarray | None, str]:
    """A sample as it is seen: its image, or images, with the predicted and the true 2D pose; without an image the 3D pose from two sides.

    Args:
        root: folder of the data set.

    Returns:
        The picture (H,W,3) uint8 RGB, or None where there is nothing to draw; and why no image is shown, '' where one is.
    """
    why = "predictions.npz names no images"
    if root is None:
        why = "the run's configuration, which names the data set, is not there"
    elif "images" in poses.arrays:
        try:
            whole = poses.in_world or poses.arrays["images"].ndim == 2
            shown = _frame(poses, row, root) if whole else _person(poses, row, root)
            return np.ascontiguousarray(shown), ""
        except (DataError, cv2.error) as error:
            why = str(error)
    return _from_two_sides(poses, row), why


def _person(poses: Poses, row: int, root: Path) -> np.ndarray:
    """The surroundings of one person."""
    image = read_image(root / str(poses.arrays["images"][row]))
    layers = [(_truth_2d(poses, row), TRUTH, 0.5), (_found_2d(poses, row), None, 1.0)]  # joints, color, width
    layers = [layer for layer in layers if layer[0] is not None]
    boxed = "boxes" in poses.arrays and np.isfinite(poses.arrays["boxes"][row]).all()
    if boxed:
        corners = poses.arrays["boxes"][row].reshape(2, 2).astype(float)
    else:
        corners = np.concatenate([x for x, _, _ in layers]) if layers else np.array([[0.0, 0.0], image.shape[1::-1]])
        corners = corners[np.isfinite(corners).all(-1)]
        corners = corners if len(corners) else np.array([[0.0, 0.0], image.shape[1::-1]])
    low, high = corners.min(0), corners.max(0)
    half = np.full(2, max(10.0, (high - low).max() / 2 * (1.05 if boxed else MARGIN))).clip(max=2 * max(image.shape[:2]))
    middle = (low + high) / 2
    picture, corner = cut_out(image, np.concatenate([middle - half, middle + half]))
    scale = SIDE / picture.shape[0]
    picture = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for x, color, width in layers if poses.skeleton is not None else ():
        picture = draw_skeleton_2d(picture, (x - corner + 0.5) * scale - 0.5, poses.skeleton, color=color, thickness=SIDE / 80 * width)
    return picture


def _found_2d(poses: Poses, row: int) -> np.ndarray | None:
    """Predicted joints in the image, of networks without any those of the 3D pose.   -> (J,2) px"""
    if "x_img" in poses.arrays:
        return poses.arrays["x_img"][row].astype(float)
    return _projected(poses, row, "X_cam")


def _truth_2d(poses: Poses, row: int) -> np.ndarray | None:
    if "x_img_true" not in poses.arrays:
        return _projected(poses, row, "X_cam_true")
    x, conf = poses.arrays["x_img_true"][row].astype(float), poses.arrays.get("conf_true")
    return x if conf is None else np.where(conf[row][:, None] > 0, x, np.nan)


def _projected(poses: Poses, row: int, key: str) -> np.ndarray | None:
    cameras = try_cameras(poses, row)
    if cameras is None or key not in poses.arrays:
        return None
    x = cameras.project_cam(torch.from_numpy(poses.arrays[key][row].astype(np.float64))).numpy()
    if key == "X_cam_true" and "X_valid" in poses.arrays:
        x = np.where(poses.arrays["X_valid"][row][:, None].astype(bool), x, np.nan)
    return x


def _frame(poses: Poses, row: int, root: Path) -> np.ndarray:
    """Some views of a whole frame, two beside each other."""
    names = np.atleast_1d(poses.arrays["images"][row])
    cameras = try_cameras(poses, row)
    if cameras is None or len(cameras) != len(names):
        raise DataError("predictions.npz holds no camera for each image; judge the weights again with scripts/valid.py")
    chosen = np.unique(np.linspace(0, len(names) - 1, min(VIEWS, len(names))).round().astype(int))
    return _tiled([_view(poses, row, root / str(names[v]), cameras[int(v)]) for v in chosen if names[v]])


def _tiled(tiles: list[np.ndarray]) -> np.ndarray:
    if not tiles:
        raise DataError("no view of this frame has an image")
    return below([beside(tiles[i : i + 2], GAP) for i in range(0, len(tiles), 2)], GAP)


def _view(poses: Poses, row: int, path: Path, camera) -> np.ndarray:
    """One view with the true people in grey under those that were found."""
    image = read_image(path)
    scale = SIDE / max(image.shape[:2])
    picture = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for X, own in ((poses.truth, False), (poses.X, True)):
        for i, person in enumerate(() if X is None or poses.skeleton is None else X[row]):
            if np.isfinite(person).any():
                x, depth = camera.project(torch.from_numpy(np.nan_to_num(person)).double())
                seen = np.isfinite(person).all(-1) & (depth.numpy() > 0)
                x = np.where(seen[:, None], (x.numpy() + 0.5) * scale - 0.5, np.nan)
                color = PEOPLE[i % len(PEOPLE)] if own else TRUTH
                picture = draw_skeleton_2d(picture, x, poses.skeleton, color=color, thickness=SIDE / (160 if own else 220))
    return picture


def _from_two_sides(poses: Poses, row: int) -> np.ndarray | None:
    if poses.X is None or poses.skeleton is None:
        return None
    X, truth = poses.X[row], None if poses.truth is None else poses.truth[row]
    X = X[np.isfinite(X).any((1, 2))]
    if not len(X) and truth is None:
        return None
    try:
        return beside(
            [
                draw_skeleton_3d(X, poses.skeleton, truth, SIDE // 2, azimuth, 10.0, "z" if poses.in_world else "-y")
                for azimuth in (0.0, 70.0)
            ],
            GAP,
        )
    except ParallaxError:
        return None
