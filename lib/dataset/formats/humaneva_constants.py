"""HumanEva-I: what its captures and the archives made from them have in common. Lengths mm, 60 frames per second.

The release's intrinsics are not used by the archives (K is NaN). Source: Sigal et al., IJCV 2010; Pavllo et al., CVPR 2019.
"""

import numpy as np

from lib.dataset.formats.h36m_constants import placed
from lib.errors import DataError
from lib.geometry.camera import Cameras

FPS = 60.0
SIZE = (640, 480)
CAMERA_IDS = ("C1", "C2", "C3")  # views 0 to 2
SUBJECTS = ("S1", "S2", "S3", "S4")  # S4 has no poses, and its cameras no place
DAMAGED = ("S3", "ThrowCatch 1")
# Rotation from camera to world as a unit quaternion w x y z, then the camera's centre in mm
EXTRINSICS = {
    "S1": (
        (0.424207, -0.4983646, -0.5802981, 0.4847012, 4062.227, 663.2477, 1528.397),
        (0.6503354, -0.7481602, -0.0919284, 0.0941766, 844.8131, -3805.2092, 1504.9929),
        (0.0664734, -0.0690535, 0.7416416, -0.6639132, -797.67377, 3916.3174, 1433.6602),
    ),
    "S2": (
        (0.4214752, -0.4961493, -0.5838273, 0.4851187, 4112.9121, 626.4929, 1545.2988),
        (0.6501393, -0.7476588, -0.0954617, 0.0959808, 923.574, -3877.9243, 1504.5518),
        (0.0699353, -0.0712403, 0.7421637, -0.662742, -781.4915, 3838.8853, 1444.9929),
    ),
    "S3": (
        (0.424207, -0.4983646, -0.5802981, 0.4847012, 4062.2271, 663.2477, 1528.397),
        (0.6503354, -0.7481602, -0.0919284, 0.0941766, 844.8131, -3805.2092, 1504.9929),
        (0.0664734, -0.0690535, 0.7416416, -0.6639132, -797.6738, 3916.3174, 1433.6602),
    ),
}
ACTIONS = ("Walking 1", "Jog 1", "ThrowCatch 1", "Gestures 1", "Box 1")
# First and one past the last mocap frame of each split, by ACTIONS
FRAMES = {
    "Train/S1": ((590, 1203), (367, 740), (473, 945), (395, 801), (385, 789)),
    "Train/S2": ((438, 876), (398, 795), (550, 1128), (500, 901), (382, 734)),
    "Train/S3": ((448, 939), (401, 842), (493, 1027), (533, 1102), (512, 1021)),
    "Validate/S1": ((5, 590), (5, 367), (5, 473), (5, 395), (5, 385)),
    "Validate/S2": ((5, 438), (5, 398), (5, 550), (5, 500), (5, 382)),
    "Validate/S3": ((5, 448), (5, 401), (5, 493), (5, 533), (5, 512)),
}
# Frame of each camera's video, from 1, at which mocap frame 0 was taken
SYNC = {
    "S1": ((82, 81, 82), (51, 51, 50), (61, 61, 60), (45, 45, 44), (57, 57, 56)),
    "S2": ((115, 115, 114), (100, 100, 99), (127, 127, 127), (122, 122, 121), (119, 119, 117)),
    "S3": ((80, 80, 80), (65, 65, 65), (79, 79, 79), (83, 83, 82), (1, 1, 1)),
}


def person(subject: str) -> str:
    """Who stands behind a subject of the archives: `Unlabeled/Train/S1` -> `S1`."""
    return subject.rpartition("/")[2]


def cameras(subject: str) -> Cameras:
    """The rig of a subject such as Train/S1, (3,) float64; without place (R = 1, t = 0) for S4.

    Raises:
        DataError: not a subject of HumanEva.
    """
    name = person(subject)
    if name not in SUBJECTS:
        raise DataError(f"subject {subject!r}: HumanEva has Train/, Validate/ or Unlabeled/ {', '.join(SUBJECTS)}; correct its name")
    K = np.full((len(CAMERA_IDS), 3, 3), np.nan)
    K[:, 2] = 0, 0, 1
    R, center = placed(EXTRINSICS[name]) if name in EXTRINSICS else (np.eye(3), np.zeros(3))
    return Cameras.make(K, R, center=center, size=np.array(SIZE, np.float64))
