"""Pose machines and corrections at test time on pictures and videos: clips in time order, one person each; poses before and after."""

import json

import cv2
import numpy as np
import pytest
import torch

from lib.config import defaults
from lib.correction import DECISIONS
from lib.dataset.clips import LENGTH
from lib.engine import checkpoint
from lib.errors import ConfigError, DataError, WeightsError
from lib.predictor import Predictor
from lib.tasks import build
from scripts import predict as script
from tests.test_tasks_machine import SMALL
from tests.tiny_dataset import NETWORK

SIZE = (60, 90)  # height, width
BOXES = [(5.0, 5, 50, 55), (20.0, 5, 70, 55)]


def saved(path, settings):
    torch.manual_seed(0)
    cfg = defaults().with_values(settings)
    task = build(cfg)
    with torch.no_grad():  # untrained last layers hardly answer to anything
        for name, value in task.model.named_parameters():
            value *= {"lifter.fc_final.weight": 300.0, "regressor.change.weight": 5.0}.get(name, 1.0)
    state = {"format": 1, "kind": "parallax", "task": cfg.TASK, "model": task.model.state_dict(), "config": cfg.to_dict()}
    checkpoint.save(path, state | {"image_spec": task.image_spec.to_dict(), "skeleton": task.skeleton})
    return path


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """Trained with a correction, whose decisions are that of the settings; --correct alone turns it on."""
    settings = SMALL | {"MACHINE.STAGE": "projector", "MACHINE.CLIP": LENGTH, "TEST.CORRECTION": "projector", "CORRECTION.LR": 3e-4}
    return saved(tmp_path_factory.mktemp("machine") / "machine.pth.tar", settings | {"CORRECTION.TAU_MM": 0.0})


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 255, (8, *SIZE, 3), dtype=np.uint8)


def poses(people):
    return np.array([p.X_root for p in people])


def test_a_picture_is_a_clip_of_one_frame_in_mm(machine, frames):
    predictor = Predictor.from_checkpoint(machine, "cpu")
    pose, other = predictor(frames[0], BOXES[0]), predictor(frames[0], BOXES[0], box_mm=500.0)
    assert predictor.clip == LENGTH and pose.skeleton.name == "h36m16" and pose.correction is None
    assert pose.X_root.shape == (16, 3) and not pose.X_root[0].any() and pose.x_img.shape == (16, 2)
    np.testing.assert_array_equal(pose.X_root, other.X_root)
    assert "people are as large as those of training" in pose.assumed
    spread = [np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean()) for x in (pose.X_root[:, :2], pose.x_img)]
    assert pose.X_cam[0, 2] == pytest.approx(90 * spread[0] / spread[1], rel=1e-3)  # parallel projection, focal length of 90 px


def test_frames_of_one_person_are_lifted_as_the_clips_of_an_evaluation(machine, frames):
    """Eight frames: a clip of five, and one that reaches back for the other three."""
    predictor = Predictor.from_checkpoint(machine, "cpu")
    found = [p for people in predictor.predict_frames(frames, [[BOXES[0]]] * 8, people=[[7]] * 8, batch_size=3) for p in people]
    batches = []
    for first in (0, 3):
        crops = [predictor.predict_frames([image], [[BOXES[0]]])[0][0].box for image in frames[first : first + LENGTH]]
        assert len({tuple(box) for box in crops}) == 1
        made = predictor.predict_frames(frames[first : first + LENGTH], [[BOXES[0]]] * LENGTH, people=[[0]] * LENGTH)
        batches.append(poses([people[0] for people in made]))
    np.testing.assert_allclose(poses(found), np.concatenate([batches[0], batches[1][2:]]), atol=1e-2)
    alone = poses([predictor(image, BOXES[0]) for image in frames])
    assert np.abs(poses(found) - alone).max() > 1  # each frame is seen with those around it
    # The second layer of a stack runs backwards: the last frame of a clip tells the ones before, never the next clip's.
    changed = frames.copy()
    changed[7] = 0
    again = [p for people in predictor.predict_frames(changed, [[BOXES[0]]] * 8, people=[[7]] * 8) for p in people]
    moved = np.abs(poses(again) - poses(found)).max((1, 2)) > 1e-2
    assert moved.tolist() == [False] * 5 + [True] * 3


def test_people_never_see_one_another_nor_across_a_gap(machine, frames):
    predictor = Predictor.from_checkpoint(machine, "cpu")
    who = [[0, 1], [0, 1], [1], [0, 1], [1, 0], [0], [0, 1], [0]]
    boxes = [[BOXES[k] for k in people] for people in who]
    found = predictor.predict_frames(frames, boxes, people=who)
    assert [len(people) for people in found] == [2, 2, 1, 2, 2, 1, 2, 1]
    runs = {0: [(0, 2), (3, 8)], 1: [(0, 5), (6, 7)]}  # frames without a person end a run
    for person, spans in runs.items():
        for first, last in spans:
            own = predictor.predict_frames(frames[first:last], [[BOXES[person]]] * (last - first), people=[[0]] * (last - first))
            together = [found[i][who[i].index(person)] for i in range(first, last)]
            np.testing.assert_allclose(poses(together), poses([p[0] for p in own]), atol=1e-2)
    assert predictor.predict_frames(frames[:2], [[], []], people=[[], []]) == [[], []]
    with pytest.raises(DataError, match="people: one is twice in picture 1"):
        predictor.predict_frames(frames[:2], [[BOXES[0]], BOXES], people=[[0], [3, 3]])


def test_a_correction_is_asked_for_and_told(machine, frames):
    plain, corrected = (Predictor.from_checkpoint(machine, "cpu", correct=correct) for correct in (False, True))
    before, after = plain(frames[0], BOXES[0]), corrected(frames[0], BOXES[0])
    end = after.correction
    np.testing.assert_allclose(end.X_before, before.X_root, atol=1e-2)
    assert np.abs(after.X_root - end.X_before).max() > 0.1 and end.decision in DECISIONS
    assert 0 < end.after_px < end.before_px
    np.testing.assert_allclose(after.x_img, before.x_img, atol=1e-3)
    told = after.to_dict()["correction"]
    assert told["decision"] == end.decision and len(told["X_before"]) == 16 and "correction" not in before.to_dict()


def test_without_a_2d_head_the_projection_tells_the_place(tmp_path, frames):
    settings = SMALL | {"MACHINE.HEAD2D": "none", "MACHINE.STAGE": "projector"}
    path = saved(tmp_path / "blind.pth.tar", settings)
    pose = Predictor.from_checkpoint(path, "cpu")(frames[0], BOXES[0])
    assert pose.x_img.shape == (16, 2) and np.isfinite(pose.X_cam).all()
    with pytest.raises(ConfigError, match="--evidence"):
        Predictor.from_checkpoint(path, "cpu", correct=True)
    path = saved(tmp_path / "lift.pth.tar", settings | {"MACHINE.STAGE": "lift"})
    with pytest.raises(WeightsError, match="MACHINE.HEAD2D"):
        Predictor.from_checkpoint(path, "cpu")(frames[0], BOXES[0])


def test_a_checkpoint_that_has_nothing_to_correct_says_so(tmp_path, frames):
    path = saved(tmp_path / "lift.pth.tar", SMALL | {"MACHINE.STAGE": "lift"})
    assert Predictor.from_checkpoint(path, "cpu")(frames[0], BOXES[0]).X_root is not None
    with pytest.raises(ConfigError, match="MACHINE.STAGE lift"):
        Predictor.from_checkpoint(path, "cpu", correct=True)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A 2D network with the joints of Human3.6M."""
    return saved(tmp_path_factory.mktemp("flat") / "2d.pth.tar", NETWORK | {"MODEL.HEAD": "heatmap", "MODEL.DEPTH_RES": 1})


def test_another_network_can_tell_the_2d_joints(machine, flat, frames):
    evidence = Predictor.from_checkpoint(flat, "cpu")
    own, other = (Predictor.from_checkpoint(machine, "cpu", correct=True, evidence=e)(frames[0], BOXES[0]) for e in (None, evidence))
    np.testing.assert_allclose(own.correction.X_before, other.correction.X_before, atol=1e-3)
    assert np.abs(own.X_root - other.X_root).max() > 0.1
    seen = Predictor.from_checkpoint(machine, "cpu", correct=True, evidence=evidence)._joints([frames[0]], [[BOXES[0]]], 1)
    joints = evidence(frames[0], BOXES[0])
    wrist = joints.skeleton.index("r_wrist"), own.skeleton.index("r_wrist")
    np.testing.assert_allclose(seen["x_img"][0, wrist[1]], joints.x_img[wrist[0]], atol=1e-3)
    assert seen["conf"].amax() == 1


def test_poses_of_crops_are_corrected_through_the_camera(tmp_path, flat, frames):
    path = saved(tmp_path / "integral.pth.tar", NETWORK)
    K = [[200.0, 0, 45], [0, 200.0, 30], [0, 0, 1]]
    with pytest.raises(ConfigError, match="--evidence"):
        Predictor.from_checkpoint(path, "cpu", correct=True)
    predictor = Predictor.from_checkpoint(path, "cpu", correct=True, evidence=Predictor.from_checkpoint(flat, "cpu"))
    with pytest.raises(DataError, match="--focal"):
        predictor(frames[0], BOXES[0])
    plain = Predictor.from_checkpoint(path, "cpu")(frames[0], BOXES[0], K, 4000.0)
    for person in predictor.predict_boxes(frames[0], BOXES, K, 4000.0)[:1]:
        np.testing.assert_allclose(person.correction.X_before, plain.X_root, atol=0.1)
        assert person.correction.after_px < person.correction.before_px
        np.testing.assert_allclose(person.X_cam - person.X_cam[0], person.X_root, atol=1e-2)


@pytest.fixture
def clip(tmp_path, frames):
    path = tmp_path / "walk.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, SIZE[::-1])
    for frame in frames:
        writer.write(cv2.resize(frame[::8, ::8], SIZE[::-1]))
    writer.release()
    return path


def test_script_films_a_person_with_both_poses(machine, clip, tmp_path, capsys, monkeypatch):
    arguments = [str(clip), "--checkpoint", str(machine), "--device", "cpu", "--box", "5", "5", "50", "55"]
    monkeypatch.setattr(script, "BATCH", LENGTH)  # so that eight frames are more than a window
    monkeypatch.setattr(script, "PANEL", 64)
    assert script.main([*arguments, "--out", str(tmp_path / "plain")]) == 0
    assert "corrected" not in capsys.readouterr().err
    assert script.main([*arguments, "--out", str(tmp_path / "out"), "--correct"]) == 0
    said = capsys.readouterr().err
    assert "corrected 8 poses" in said and "px from the 2D joints" in said
    with np.load(tmp_path / "plain/walk.npz") as plain, np.load(tmp_path / "out/walk.npz") as arrays:
        assert arrays["frame"].tolist() == list(range(8)) and "X_before" not in plain.files
        np.testing.assert_allclose(arrays["X_before"], plain["X_root"], atol=0.05)
        assert (arrays["after_px"] < arrays["before_px"]).all() and set(arrays["decision"]) <= set(DECISIONS)
        boxes, images = plain["box"], script.Video.open(clip).frames()
        whole = Predictor.from_checkpoint(machine, "cpu").predict_frames(
            [image for _, image in images], [[box] for box in boxes], people=[[0]] * 8
        )
        np.testing.assert_allclose(plain["X_root"], poses([people[0] for people in whole]), atol=0.05)  # however it was cut
    record = json.loads((tmp_path / "out/walk.json").read_text())
    assert record["frames"][3]["people"][0]["correction"]["decision"] in DECISIONS


@pytest.mark.parametrize(
    ("extra", "message"),
    [(["--evidence", "x.pth"], "--evidence: expected --correct"), (["--keypoints", "k.npz", "--correct"], "--camera")],
)
def test_script_says_what_a_correction_needs(machine, clip, capsys, extra, message):
    arguments = [*([] if "--keypoints" in extra else [str(clip)]), "--checkpoint", str(machine), *extra]
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert message in capsys.readouterr().err
