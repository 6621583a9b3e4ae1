"""Films: where joints are drawn, what the panels show, and that frames are made one after another."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from lib.drawing import animation
from lib.drawing.animation import GAP, HEAD, Film, Stage, followed
from lib.drawing.paint import FLOOR, LEFT, RIGHT
from lib.errors import DataError, RunError
from lib.skeleton import get
from lib.tasks.rigs import adult_pose
from lib.video import Clip, Video

H36M = get("h36m17")
MIDDLE = np.array([0.0, 0.0, 850.0])


def facing_away() -> np.ndarray:
    """An adult at rest who looks along y, as the viewer does; arms a bit aside.   (17,3) mm, upright"""
    X = adult_pose() @ np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # given looking along x
    for side, sign in (("l", -1), ("r", 1)):
        X[H36M.indices([f"{side}_elbow", f"{side}_wrist"])] += [[150.0 * sign, 0, 0], [300.0 * sign, 0, 0]]
    return X


def colored(picture: np.ndarray, color) -> np.ndarray:
    """Where pixels have about the hue of a colour.   -> (N,2) x, y"""
    p = picture.astype(float) - picture.mean(-1, keepdims=True)
    c = np.array(color, float) - np.mean(color)
    alike = (p @ c) / (np.linalg.norm(p, axis=-1) * np.linalg.norm(c) + 1e-9)
    return np.argwhere((alike > 0.95) & (np.linalg.norm(p, axis=-1) > 60))[:, ::-1]


@pytest.mark.parametrize(("azimuth", "sign"), [(0.0, 1), (180.0, -1), (20.0, 1)])
def test_left_limbs_of_a_person_who_walks_away_are_left_in_the_picture(azimuth, sign):
    stage = Stage(H36M, 240, azimuth)
    X = facing_away()
    at, _ = stage.project(X, MIDDLE)
    for joint in ("hip", "shoulder", "wrist", "ankle"):
        left, right = at[H36M.index(f"l_{joint}")], at[H36M.index(f"r_{joint}")]
        assert sign * (right[0] - left[0]) > 20
    picture = stage.draw(X, MIDDLE)
    blue, orange = colored(picture, LEFT), colored(picture, RIGHT)
    assert len(blue) > 300 and sign * (np.median(orange[:, 0]) - np.median(blue[:, 0])) > 20
    assert at[H36M.index("head"), 1] < at[H36M.index("pelvis"), 1] < at[H36M.index("l_ankle"), 1]
    wrist = at[H36M.index("l_wrist")]
    assert np.linalg.norm(blue - wrist, axis=1).min() < 3  # drawn where it is projected to


def test_the_view_is_a_perspective_of_the_given_height():
    stage = Stage(H36M, 300, azimuth=0.0, elevation=0.0, half_mm=1000.0)
    points = MIDDLE + [[0, 0, 0], [0, 0, 1000], [1000, 0, 0], [0, 4200, 1000], [0, -2100, 1000]]
    at, mm_per_px = stage.project(points, MIDDLE)
    np.testing.assert_allclose(at, 149.5 + np.array([[0, 0], [0, -150], [150, 0], [0, -75], [0, -300]]))
    np.testing.assert_allclose(mm_per_px, 20 / 3 * np.array([1, 1, 1, 2, 0.5]))
    raised, _ = Stage(H36M, 300, elevation=30.0).project(MIDDLE + [[0, 500, 0], [0, -500, 0]], MIDDLE)
    assert raised[0, 1] < 149.5 < raised[1, 1]  # from above, what is further away is higher in the picture
    right, _ = Stage(H36M, 300, azimuth=90.0).project(MIDDLE + [[0, 500, 0]], MIDDLE)
    assert right[0, 0] > 180  # the viewer stands to the right and looks back: ahead is right


def test_the_nearer_limb_covers_the_further_one():
    X = np.full((17, 3), np.nan)
    X[H36M.indices(["l_elbow", "l_wrist"])] = [[-300, 200, 900], [300, 200, 900]]
    X[H36M.indices(["r_elbow", "r_wrist"])] = [[0, -200, 600], [0, -200, 1200]]
    stage = Stage(H36M, 200, elevation=0.0)
    (x, y) = np.rint(stage.project([0.0, 0, 900], MIDDLE)[0]).astype(int)
    front = stage.draw(X, MIDDLE)[y, x].astype(int)
    back = stage.draw(X * [1, -1, 1], MIDDLE)[y, x].astype(int)
    assert front[0] > front[2] + 40 and back[2] > back[0] + 40  # orange before blue, then blue before orange


def test_poses_without_joints_and_far_away_are_drawn():
    stage = Stage(H36M, 64)
    empty = stage.draw(np.full((17, 3), np.nan), MIDDLE)
    assert empty.shape == (64, 64, 3) and len(colored(empty, LEFT)) == 0
    assert stage.draw(facing_away() * 1e6, MIDDLE).shape == (64, 64, 3)


def test_the_view_follows_a_walk_smoothly():
    X = facing_away()[None] + np.arange(200)[:, None, None] * [0.0, 25.0, 0.0]
    X[::2, 0, :2] += 40  # a shaking root
    middle, half = followed(X, 0, 50.0)
    assert middle.shape == (200, 3) and np.abs(middle[40:160, 1] - X[40:160, 7, 1]).max() < 60
    assert np.abs(np.diff(middle[40:160, 0])).max() < 2 and 900 < half < 1500


@pytest.fixture
def video(tmp_path) -> Video:
    """Eight frames of 80 x 60 px, each of another grey."""
    writer = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 20, (80, 60))
    for i in range(8):
        writer.write(np.full((60, 80, 3), 20 * i, np.uint8))
    writer.release()
    return Video.open(tmp_path / "in.mp4")


def film(frames=8, **more) -> Film:
    """Someone who walks away with a swing of the arm; keypoints outside the picture."""
    X = np.repeat(facing_away()[None], frames, 0) + np.arange(frames)[:, None, None] * [0.0, 60.0, 0.0]
    X[:, H36M.index("l_wrist"), 1] += 300 * np.sin(np.arange(frames))
    x = np.full((frames, 17, 2), -1000.0)
    values = {"keypoints": x, "poses": {"3D reconstruction": X}, "size": (80, 60), "fps": 20.0, "height": 60}
    return Film(layout=H36M, skeleton=H36M, **(values | more))


def test_pictures_stand_side_by_side_over_the_right_frames(video):
    shown = film(video=video, skip=1, limit=5, downsample=2)
    pictures = list(shown.pictures())
    assert len(pictures) == len(shown) == 3 and shown.rate == 10
    assert {p.shape for p in pictures} == {(60 + HEAD, 80 + GAP + 60, 3)}
    greys = [p[HEAD + 5 : HEAD + 55, 5:75].mean() for p in pictures]
    np.testing.assert_allclose(greys, [30, 70, 100], atol=4)  # frames 1 and 2, 3 and 4, 5
    assert len(colored(pictures[0][:, 80 + GAP :], LEFT)) > 20
    both = film(poses={"a": film().poses["3D reconstruction"], "b": film().poses["3D reconstruction"]})
    assert next(both.pictures()).shape == (60 + HEAD, 80 + 2 * (GAP + 60), 3)
    assert (next(both.pictures())[HEAD + 5 : HEAD + 55, 5:75] == FLOOR).all()  # no video: an empty canvas


def test_frames_are_read_as_pictures_are_asked_for(video, monkeypatch):
    read, plain = [], Video.frames

    def counted(self, *args, **kwargs):
        for number, frame in plain(self, *args, **kwargs):
            read.append(number)
            yield number, frame

    monkeypatch.setattr(animation.Video, "frames", counted)
    pictures = film(video=video).pictures()
    assert read == []
    next(pictures), next(pictures)
    assert read == [0, 1]


def test_a_video_that_ends_early_holds_its_last_frame(video):
    pictures = list(film(11, video=video).pictures())
    assert len(pictures) == 11
    np.testing.assert_array_equal(pictures[10][HEAD:, :80], pictures[7][HEAD:, :80])


def test_keypoints_are_scaled_with_the_frame_and_averaged(video):
    x = np.full((8, 17, 2), np.nan)
    x[:, H36M.index("l_ankle")] = (20, 30)
    x[:, H36M.index("l_knee")] = (20, 10)
    x[1::2] += (4, 0)
    picture = next(film(keypoints=x, poses={}, video=video, height=120, downsample=2).pictures())
    blue = colored(picture[HEAD:], LEFT)
    assert abs(np.median(blue[:, 0]) - (22.5 * 2 - 0.5)) < 1.5 and blue[:, 1].min() < 24 and blue[:, 1].max() > 54


@pytest.mark.parametrize(
    ("more", "message"),
    [({"skip": 8}, "--skip 8"), ({"poses": {"truth": np.zeros((7, 17, 3))}}, r"truth.*\(7, 17, 3\).*8 frames"),
     ({"size": (60, 80)}, "80 x 60.*60 x 80")],
)  # fmt: skip
def test_wrong_films_are_named(video, more, message):
    with pytest.raises(DataError, match=message):
        film(video=video, **more)


def test_pictures_of_another_size_and_pictures_beyond_a_gif_are_told(tmp_path, caplog, monkeypatch):
    picture = np.zeros((20, 40, 3), np.uint8)
    with pytest.raises(RunError, match=r"a.mp4: picture 1 has shape \(20, 20, 3\), the others \(20, 40, 3\)"), \
            Clip(tmp_path / "a.mp4", None, 10.0) as clip:  # fmt: skip
        clip.add(picture)
        clip.add(picture[:, :20])
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("lib.video.GIF_FRAMES", 3)
    with Clip(None, tmp_path / "a.gif", 10.0) as clip:
        for _ in range(5):
            clip.add(picture)
    assert "a.gif: ends after 3 pictures of 5" in caplog.text


def test_a_video_that_ends_too_early_is_told(tmp_path, caplog):
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    for _ in range(40):
        writer.write(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    writer.release()
    assert len(list(Video.open(path).frames())) == 40 and not caplog.text
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    given = len(list(Video.open(path).frames()))
    assert 0 < given < 40 and f"a.avi: ends after {given} of the 40 frames that it announces" in caplog.text


def film_to(folder: Path, mp4: bool, gif: bool) -> list[str]:
    shown = film(8)
    with Clip(folder / "f.mp4" if mp4 else None, folder / "f.gif" if gif else None, shown.rate) as clip:
        for picture in shown.pictures():
            clip.add(picture)
    return sorted(p.name for p in folder.iterdir())


def test_films_are_written_as_mp4_and_gif(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    assert film_to(tmp_path / "a", True, True) == ["f.gif", "f.mp4"]
    assert film_to(tmp_path / "b", True, False) == ["f.mp4"] and film_to(tmp_path / "c", False, True) == ["f.gif"]
    made = Video.open(tmp_path / "b/f.mp4")
    assert (made.width, made.height, made.fps) == (80 + GAP + 60, 60 + HEAD, 20) and len(list(made.frames())) == 8
    with Image.open(tmp_path / "c/f.gif") as gif:
        assert gif.size == (80 + GAP + 60, 60 + HEAD) and gif.n_frames == 4 and gif.info["duration"] == 100  # 10 a second


def test_a_phone_video_held_upright_is_shown_upright(video):
    """Phones store such pictures lying and a rotation beside them, in the matrix of the track header."""
    data = bytearray(video.path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version and flags, 5 times and numbers, reserved, layer, volume: 40 bytes
    one = 1 << 16
    assert struct.unpack(">9i", data[at : at + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 60 * one, 0, 1 << 30)
    path = video.path.with_name("phone.mp4")
    path.write_bytes(data)
    phone = Video.open(path)
    assert (phone.width, phone.height) == (60, 80)
    picture = next(film(video=phone, size=(60, 80), height=80).pictures())
    assert picture.shape[:2] == (80 + HEAD, 60 + GAP + 80)
