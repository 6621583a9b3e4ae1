"""Files of 2D detectors, people over time, missing frames, and the archives made of them."""

import copy
import json
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest

from lib import skeleton as skeletons
from lib.dataset.formats import detections, h36m, keypoints_npz
from lib.dataset.formats.detections import convert, interpolate, people, read_video
from lib.dataset.formats.detector_files import read_detections
from lib.errors import DataError, ParallaxError
from lib.unpickle import load_npz
from lib.video import Clip
from scripts import prepare
from tests.conftest import GOLDEN, golden, golden_json

VIDEOS = ("video0", "video1", "video2")
COCO = skeletons.get("coco17").joints
SIZE = (640, 480)


def archive(name):
    return GOLDEN / "videopose3d" / f"detections_{name}.npz"


def body(layout="coco17", at=(300.0, 200.0), height=200.0):
    """A standing person, left joints at larger x, all of them at different places; (J,2) px."""
    up = {"ankle": 1.0, "heel": 1.02, "toe": 1.03, "knee": 0.75, "hip": 0.5, "pelvis": 0.5, "wrist": 0.5, "elbow": 0.32,
          "shoulder": 0.17, "thorax": 0.16, "neck": 0.14, "nose": 0.05, "eye": 0.03, "ear": 0.04, "head": -0.05}  # fmt: skip
    x = []
    for j, joint in enumerate(skeletons.get(layout).joints):
        side = {"l_": 1, "r_": -1}.get(joint[:2], 0)
        x.append((at[0] + height * side * 0.1, at[1] + height * next(v for k, v in up.items() if k in joint) + 0.01 * j))
    pelvis = skeletons.get(layout).find("pelvis")
    if pelvis is not None:
        x[pelvis] = tuple(np.mean([x[j] for j in skeletons.get(layout).indices(("l_hip", "r_hip"))], 0))
    return np.array(x)


def triples(x, score=0.9):
    return np.column_stack([x, np.full(len(x), score)]).ravel().tolist()


def by_frames(frames, **more):
    """A COCO list of results from {frame: [(J,2), ...]}."""
    return [{"image_id": t, "category_id": 1, "keypoints": triples(x), "score": 0.9, **more} for t, found in frames.items() for x in found]


def put(path, content):
    path.write_text(json.dumps(content))
    return path


# ---------------------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("name", VIDEOS)
def test_detectron_archives_give_the_published_keypoints(name):
    case = next(c for c in golden_json("videopose3d", "custom_detections")["cases"] if name in c["file"])
    expected = golden("videopose3d", "custom_detections")
    raw = read_video(archive(f"{name}.mp4"), rule="best_box")
    assert np.flatnonzero(raw.missing).tolist() == case["missing"] and len(raw) == case["end_frame"]
    assert raw.size == (case["metadata"]["w"], case["metadata"]["h"]) and raw.layout == "coco17"
    got = interpolate(raw)
    np.testing.assert_allclose(got.keypoints, expected[f"{name}/keypoints"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.boxes, expected[f"{name}/bounding_boxes"], rtol=1e-5, atol=1e-5)
    assert (got.filled.all(1) == raw.missing).all() and not (got.filled.any(1) & ~raw.missing).any()
    assert case["interpolated"] == got.missing.sum() and (got.scores[got.missing] == 0).all()


def test_six_rows_are_the_finer_place_and_a_miss_repeats_the_pose():
    got = detections.read_sequence(archive("detectron_h36m_style"))
    np.testing.assert_allclose(got, golden("videopose3d", "custom_detections")["detectron_h36m_style"], rtol=1e-5, atol=1e-5)
    assert (got[2] == got[1]).all() and (got[3] == got[1]).all()
    raw = read_video(archive("detectron_h36m_style"), rule="best_box")
    np.testing.assert_allclose(raw.keypoints[~raw.missing], got[~raw.missing], rtol=1e-5)


def test_metadata_is_inferred_from_the_name_as_published():
    table = golden_json("videopose3d", "custom_detections")["metadata_inference"]
    for name, expected in table.items():
        assert detections.metadata(keypoints_npz.layout_of(name)) == expected
    assert keypoints_npz.layout_of("mine") == ""
    with pytest.raises(DataError, match="cannot hold the joints of body25b"):
        detections.metadata("body25b")


# --------------------------------------------------------------------------------------------------------- readers


@pytest.mark.parametrize("layout", ["openpose25", "body25b", "openpose18"])
def test_openpose_folders(layout, tmp_path):
    x = body(layout)
    for t in (7, 8, 9, 11):  # 10 is no file, 8 has no one
        person = {"person_id": [-1], "pose_keypoints_2d": triples(x + t)}
        other = {"person_id": [-1], "pose_keypoints_2d": triples(body(layout, (80, 90), 60), 0.3)}
        put(tmp_path / f"walk_{t:012d}_keypoints.json", {"version": 1.3, "people": [] if t == 8 else [other, person]})
    hidden = json.loads((tmp_path / "walk_000000000011_keypoints.json").read_text())
    hidden["people"][1]["pose_keypoints_2d"][:3] = [0, 0, 0]
    put(tmp_path / "walk_000000000011_keypoints.json", hidden)
    got = read_video(tmp_path, size=SIZE)
    assert got.layout == layout and len(got) == 5 and got.first == 7 and got.size == SIZE
    assert got.missing.tolist() == [False, True, False, True, False]
    np.testing.assert_allclose(got.keypoints[2], x + 9)
    assert np.isnan(got.keypoints[4, 0]).all() and got.scores[4, 0] == 0 and np.isfinite(got.keypoints[4, 1:]).all()
    coco = convert(got, "coco17")
    np.testing.assert_allclose(coco.keypoints[0], x[[skeletons.get(layout).index(j) for j in COCO]] + 7)


def test_real_openpose_files(samples):
    found = read_detections(samples / "pose2sim" / "single" / "pose" / "cam01_json")
    assert found.layout == "body25b" and found.frames == 40
    everyone = people(found)
    assert [int((~p.missing).sum()) for p in everyone] == [40, 40, 1]
    main = interpolate(convert(everyone[0], "coco17"))
    assert np.isfinite(main.keypoints).all()
    step = np.linalg.norm(np.diff(main.keypoints[:, [COCO.index("l_hip"), COCO.index("r_hip")]].mean(1), axis=0), axis=-1)
    assert step.max() < 30  # px: no jump to the by-stander
    two = people(read_detections(samples / "pose2sim" / "multi" / "pose-associated" / "cam02_json"))
    assert len(two) == 2 and not any(p.missing.any() for p in two)


@pytest.mark.parametrize("joints, layout", [(17, "coco17"), (26, "halpe26"), (136, "halpe26")])
def test_alphapose_results(joints, layout, tmp_path):
    x = body(layout)
    full = np.concatenate([x, np.zeros((joints - len(x), 2))])
    rows = [
        {"image_id": f"{t}.jpg", "category_id": 1, "keypoints": triples(full + t), "score": 2.9, "box": [10, 20, 30, 40], "idx": [3.0]}
        for t in (2, 3, 5)
    ]
    got = read_video(put(tmp_path / "results.json", rows))
    assert got.layout == layout and len(got) == 6 and got.person == 3  # frames count from 0.jpg
    assert got.missing.tolist() == [True, True, False, False, True, False]
    coco = convert(got, "coco17")
    np.testing.assert_allclose(coco.keypoints[5], x[:17] + 5)
    assert got.boxes[5].tolist() == [10, 20, 40, 60]


def test_coco_results_and_annotations(tmp_path):
    x = body()
    got = read_video(put(tmp_path / "results.json", by_frames({1: [x], 2: [x + 1], 4: [x + 3]})))
    assert len(got) == 4 and got.first == 1 and np.flatnonzero(got.missing).tolist() == [2]
    flags = triples(x, 2)
    flags[2] = 0  # the nose is not labelled
    images = [{"id": i, "file_name": f"f{9 - i}.jpg", "width": 640, "height": 480} for i in (5, 6, 7)]
    content = {
        "images": images,
        "annotations": [{"id": 1, "image_id": 5, "category_id": 1, "keypoints": flags, "bbox": [1, 2, 3, 4]},
                        {"id": 2, "image_id": 6, "category_id": 1, "keypoints": flags, "iscrowd": 1}],
        "categories": [{"id": 1, "keypoints": [j.replace("l_", "left_").replace("r_", "right_") for j in COCO]}],
    }  # fmt: skip
    got = read_video(put(tmp_path / "annotations.json", content))
    assert got.size == SIZE and got.missing.tolist() == [True, True, False]  # in the order of the names
    assert np.isnan(got.keypoints[2, 0]).all() and (got.scores[2, 1:] == 1).all()
    content["categories"][0]["keypoints"][1] = "tail"
    with pytest.raises(DataError, match="no known layout"):
        read_video(put(tmp_path / "animal.json", content))
    with pytest.raises(DataError, match="no frames of one video"):
        read_video(put(tmp_path / "images.json", by_frames({785: [x], 400830: [x]})))


def test_mmpose_json(tmp_path):
    x = body()
    person = {"keypoints": x.tolist(), "keypoint_scores": [0.8] * 17, "bbox": [[1, 2, 3, 4]], "bbox_score": 0.7}
    frames = [{"frame_id": t, "instances": [person] if t != 2 else []} for t in (1, 2, 3)]
    names = {str(i): j.replace("l_", "left_").replace("r_", "right_") for i, j in enumerate(COCO)}
    demo = put(tmp_path / "demo.json", {"meta_info": {"keypoint_id2name": names}, "instance_info": frames})
    for path in (demo, put(tmp_path / "inferencer.json", frames)):
        got = read_video(path)
        assert got.layout == "coco17" and got.missing.tolist() == [False, True, False]
        np.testing.assert_allclose(got.keypoints[2], x)
    assert len(read_video(put(tmp_path / "picture.json", [person]))) == 1
    whole = person | {"keypoints": x.tolist() + [[0, 0]] * 116, "keypoint_scores": [0.8] * 133}
    np.testing.assert_allclose(read_video(put(tmp_path / "whole.json", [whole])).keypoints[0], x)


def test_what_predict_writes(tmp_path):
    x = body("mpii16")
    record = {"skeleton": "mpii16", "box": [0, 0, 9, 9], "x_img": x.tolist(), "conf": [0.5] * 16}
    frames = [{"frame": 0, "people": [record]}, {"frame": 2, "people": [record]}]
    content = {"video": "a.mp4", "width": 640, "height": 480, "fps": 30.0, "units": "x_img px", "frames": frames}
    got = read_video(put(tmp_path / "a.json", content))
    assert (got.layout, got.size, got.fps, len(got)) == ("mpii16", SIZE, 30.0, 3) and got.missing.tolist() == [False, True, False]
    joints = np.array(skeletons.get("mpii16").joints)
    np.savez(tmp_path / "a.npz", joints=joints, x_img=np.stack([x, x + 1]), conf=np.full((2, 16), 0.5), box=np.zeros((2, 4)),
             frame=np.array([0, 1]), person=np.zeros(2, int))  # fmt: skip
    got = read_video(tmp_path / "a.npz", size=SIZE)
    np.testing.assert_allclose(got.keypoints, np.stack([x, x + 1]))
    picture = {"image": "a.jpg", "width": 640, "height": 480, "units": "x_img px", "people": [record]}
    assert len(read_video(put(tmp_path / "b.json", picture))) == 1
    record["skeleton"] = "mpii61"
    with pytest.raises(DataError, match="c.json: .*'mpii61' is not one of .*mpii16"):
        read_video(put(tmp_path / "c.json", picture))


def test_arrays_need_a_layout(tmp_path):
    x = np.stack([body() + t for t in range(4)])
    x[2] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match="--layout"):
        read_video(tmp_path / "x.npy")
    got = read_video(tmp_path / "x.npy", "coco17")
    assert got.missing.tolist() == [False, False, True, False]
    np.savez(tmp_path / "x.npz", keypoints=np.concatenate([x, np.full((4, 17, 1), 0.5)], -1), layout="coco17", size=SIZE, fps=30)
    got = read_video(tmp_path / "x.npz")
    assert (got.scores[0] == 0.5).all() and got.size == SIZE and got.fps == 30
    np.save(tmp_path / "two.npy", np.stack([x, np.nan_to_num(x) + 50]))  # (M,T,J,2)
    assert len(people(read_detections(tmp_path / "two.npy", "coco17"))) == 2
    with pytest.raises(DataError, match="17 joints, but mpii16 has 16"):
        read_video(tmp_path / "x.npy", "mpii16")


# ------------------------------------------------------------------------------------------------------- identity


def crossing(tmp_path, seed=0, frames=60):
    """Two people walk through each other, unseen in turn where they meet; results in any order, scores that change places."""
    rng, rows, truth = np.random.default_rng(seed), [], []
    for t in range(frames):
        both = [body(at=(100 + 6.0 * t, 150), height=200), body(at=(460 - 6.0 * t, 160), height=190)]
        truth.append(both)
        for i in rng.permutation(2):
            if i == 1 and 27 <= t <= 31:
                continue
            noisy = both[i] + rng.normal(0, 1.5, (17, 2))
            rows.append({"image_id": t, "category_id": 1, "keypoints": triples(noisy, 0.9 - 0.1 * i), "score": rng.random()})
    return put(tmp_path / "crossing.json", rows), np.array(truth)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_people_cross(seed, tmp_path):
    path, truth = crossing(tmp_path, seed)
    everyone = people(read_detections(path))
    assert [int((~p.missing).sum()) for p in everyone] == [60, 55]
    for i, person in enumerate(everyone):
        off = np.linalg.norm(person.keypoints - truth[:, i], axis=-1)[~person.missing]
        assert off.max() < 10
    second = interpolate(read_video(path, person=1))
    assert np.linalg.norm(second.keypoints - truth[:, 1], axis=-1).max() < 12  # over the frames in which it was unseen
    jumping = read_video(path, rule="best_box")
    assert np.linalg.norm(jumping.keypoints - truth[:, 0], axis=-1).max() > 100  # the published rule goes from one to the other
    with pytest.raises(DataError, match="no person 2; 2 were found"):
        read_video(path, person=2)
    with pytest.raises(DataError, match="rule track only"):
        read_video(path, rule="best_box", person=0)


def test_numbers_in_the_file_go_before_tracking(tmp_path):
    x = body()
    rows = by_frames({t: [x + 200 * (t % 2)] for t in range(6)}, idx=4)  # jumps that no tracker follows
    rows += by_frames({t: [x + 1000] for t in range(2)}, idx=9)
    everyone = people(read_detections(put(tmp_path / "a.json", rows)))
    assert [p.person for p in everyone] == [4, 9] and not everyone[0].missing.any()
    for row in rows:
        del row["idx"]
    assert len(people(read_detections(put(tmp_path / "b.json", rows)))) > 2


# ---------------------------------------------------------------------------------------------------- missing frames


def holed(tmp_path, missing, frames=12):
    return read_video(put(tmp_path / "holed.json", by_frames({t: [body() + 2 * t] for t in range(frames) if t not in missing})), size=SIZE)


def test_gaps_are_filled_up_to_the_limit(tmp_path):
    video = holed(tmp_path, {2, 5, 6, 7})
    truth = np.stack([body() + 2 * t for t in range(12)])
    np.testing.assert_allclose(interpolate(video).keypoints, truth)
    short = interpolate(video, gap=2)
    assert np.flatnonzero(short.filled.any(1)).tolist() == [2] and np.flatnonzero(np.isnan(short.keypoints[:, 0, 0])).tolist() == [5, 6, 7]
    assert not interpolate(video, gap=0).filled.any()
    single = video.keypoints.copy()
    single[[0, 11], 3] = np.nan
    ends = interpolate(replace(video, keypoints=single))
    np.testing.assert_allclose(ends.keypoints[[0, 11], 3], single[[1, 10], 3])  # constant at both ends
    assert ends.filled[0].sum() == 1


def test_a_joint_that_is_never_found_is_told(tmp_path):
    video = holed(tmp_path, {2})
    x, scores = video.keypoints.copy(), video.scores.copy()
    x[:, [COCO.index("l_ear"), COCO.index("l_eye")]], scores[:, [COCO.index("l_ear"), COCO.index("l_eye")]] = np.nan, 0
    blind = replace(video, keypoints=x, scores=scores)
    assert detections.never_seen(blind) == {"l_eye": "nose", "l_ear": "nose"}
    got = interpolate(blind)
    np.testing.assert_array_equal(got.keypoints[:, COCO.index("l_ear")], got.keypoints[:, COCO.index("nose")])
    assert got.filled[:, COCO.index("l_ear")].all()
    with pytest.raises(DataError, match="none of the 12 frames"):
        interpolate(replace(video, keypoints=np.full_like(x, np.nan)))


def test_joints_that_cannot_be_made_are_named(tmp_path):
    with pytest.raises(DataError, match="coco17 has no spine, head, which h36m17 needs"):
        convert(holed(tmp_path, set()), "h36m17")
    low = detections.confident(holed(tmp_path, set()), 0.95)
    assert low.missing.all()


# -------------------------------------------------------------------------------------------------------- archives


def test_custom_archives_are_those_of_the_ecosystem(tmp_path):
    video = interpolate(holed(tmp_path, {2, 5, 6, 7}), gap=1)
    path = detections.write_custom(tmp_path / "data_2d_custom_mine.npz", {"walk.mp4": video})
    content = {name: value.item() for name, value in load_npz(path).items()}
    x = content["positions_2d"]["walk.mp4"]["custom"]
    assert len(x) == 1 and x[0].dtype == np.float32 and x[0].shape == (12, 17, 2) and np.isfinite(x[0]).all()
    expected = golden_json("videopose3d", "custom_detections")["metadata_inference"]["detectron_pt_coco"]
    assert content["metadata"] == expected | {"video_metadata": {"walk.mp4": {"w": 640, "h": 480}}}
    assert content["details"]["walk.mp4"]["state"][:, 0].tolist() == [0, 0, 1, 0, 0, 2, 2, 2, 0, 0, 0, 0]
    with np.load(path, allow_pickle=True) as file:  # as the other programs read it
        assert file["positions_2d"].item()["walk.mp4"]["custom"][0].shape == (12, 17, 2)
    tracks = keypoints_npz.read(tmp_path, "all", "custom", "mine")
    assert tracks.keypoints.shape == (12, 17, 2) and tracks.layout == "coco17"
    before = path.read_bytes()
    with pytest.raises(DataError, match="never overwritten"):
        detections.write_custom(path, {"walk.mp4": video})
    assert path.read_bytes() == before and [p.name for p in tmp_path.glob("*.npz")] == [path.name]


def test_archives_refuse_what_cannot_be_right(tmp_path):
    video = holed(tmp_path, set())
    for size, said in (((0, 0), "--size W H"), ((20, 20), "lie outside of 20 x 20")):
        with pytest.raises(DataError, match=said):
            detections.write_custom(tmp_path / "a.npz", {"a": replace(video, size=size)})
    with pytest.raises(DataError, match="videos of 0 joint sets"):
        detections.write_custom(tmp_path / "a.npz", {})
    with pytest.raises(DataError, match="data_2d_custom_NAME.npz"):
        detections.archive_path(tmp_path / "mine.npz")
    assert not (tmp_path / "a.npz").exists()


def detectron(path, frames, rows=6, count=17):
    boxes, keypoints = np.empty((frames, 2), object), np.empty((frames, 2), object)
    for t in range(frames):
        boxes[t, 0], keypoints[t, 0] = [], []
        boxes[t, 1] = np.array([[1, 2, 3, 4, 0.5]])
        keypoints[t, 1] = np.full((1, rows, count), float(t))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, boxes=boxes, keypoints=keypoints)


def test_sequences_of_h36m_become_an_archive(tmp_path, capsys):
    root = tmp_path / "detections"
    for c, camera in enumerate(h36m.CAMERA_IDS):
        detectron(root / "S1" / f"TakingPhoto_1.{camera}.mp4.npz", 4 + c)
        detectron(root / "S11" / f"Directions.{camera}.mp4.npz", 3)
        detectron(root / "S11" / f"Walking.{camera}.mp4.npz", 3, rows=4)
        detectron(root / "S11" / f"_ALL.{camera}.mp4.npz", 3)
    out = tmp_path / "out" / "detectron_ft_h36m"
    assert prepare.main(["keypoints", "--h36m", str(root), str(out)]) == 0
    assert "known to be damaged" in capsys.readouterr().out
    content = {k: v.item() for k, v in load_npz(tmp_path / "out" / "data_2d_h36m_detectron_ft_h36m.npz").items()}
    positions = content["positions_2d"]
    assert {s: list(a) for s, a in positions.items()} == {"S1": ["Photo 1"], "S11": ["Walking"]}
    assert [x.shape for x in positions["S1"]["Photo 1"]] == [(4 + c, 17, 2) for c in range(4)]
    assert positions["S1"]["Photo 1"][0].dtype == np.float32 and content["metadata"]["layout_name"] == "h36m"
    assert prepare.main(["keypoints", "--h36m", str(root), str(out)]) == 2
    assert prepare.main(["keypoints", "--h36m", str(root), str(tmp_path / "out" / "mine")]) == 2
    assert "--layout NAME" in capsys.readouterr().err
    (root / "S11" / f"Walking.{h36m.CAMERA_IDS[2]}.mp4.npz").unlink()
    with pytest.raises(DataError, match=r"S11 'Walking' lacks camera 58860488"):
        detections.read_h36m(root)


def test_the_command(tmp_path, capsys):
    source, _ = crossing(tmp_path)
    words = ["keypoints", str(source), str(tmp_path / "mine"), "--size", "640", "480", "--person", "1", "--gap", "3"]
    assert prepare.main(words) == 0
    said = capsys.readouterr().out
    assert "person 1 (taken): 55 frames" in said
    assert "missing frames: 5 of 60, longest gap 5; 0 interpolated, 5 beyond the limit (3)" in said
    assert (tmp_path / "data_2d_custom_mine.npz").exists() and (tmp_path / "data_2d_custom_mine.png").stat().st_size > 5000
    assert prepare.main(words) == 2 and "exists" in capsys.readouterr().err
    assert prepare.main([*words[:2], str(tmp_path / "other")]) == 2
    assert "--video FILE" in capsys.readouterr().err and not (tmp_path / "data_2d_custom_other.png").exists()


def test_the_command_on_a_folder_of_archives_gives_the_published_keypoints(tmp_path):
    (tmp_path / "in").mkdir()
    for name in VIDEOS:
        (tmp_path / "in" / f"{name}.mp4.npz").write_bytes(archive(f"{name}.mp4").read_bytes())
    assert prepare.main(["keypoints", str(tmp_path / "in"), str(tmp_path / "out" / "mine"), "--rule", "best_box"]) == 0
    content = load_npz(tmp_path / "out" / "data_2d_custom_mine.npz")
    positions, expected = content["positions_2d"].item(), golden("videopose3d", "custom_detections")
    assert list(positions) == [f"{name}.mp4" for name in VIDEOS]
    for name in VIDEOS:
        np.testing.assert_array_equal(positions[f"{name}.mp4"]["custom"][0], expected[f"{name}/keypoints"])
    assert content["metadata"].item()["video_metadata"]["video1.mp4"] == {"w": 641, "h": 481}


def test_the_command_with_videos(tmp_path, capsys):
    with Clip(tmp_path / "walk.mp4", None, 20.0) as clip:
        for t in range(12):
            clip.add(np.full((240, 320, 3), 20 * t, np.uint8))
    x = np.stack([body(at=(100 + 2 * t, 20), height=180) for t in range(12)])
    scores = np.full((12, 17, 1), 0.9)
    scores[4:6, 9] = 0.1
    x[4:6, 9] += 90
    np.savez(tmp_path / "a.npz", keypoints=np.concatenate([x, scores], -1), layout="coco17")
    out, picture, words = tmp_path / "data_2d_custom_a.npz", tmp_path / "look.png", ["--video", str(tmp_path / "walk.mp4")]
    assert prepare.main(["keypoints", str(tmp_path / "a.npz"), str(out), *words, "--min-score", "0.3", "--picture", str(picture)]) == 0
    assert "walk.mp4: array, 12 candidates in 12 frames (0 to 11), coco17, 320 x 240 px" in capsys.readouterr().out
    content = {name: value.item() for name, value in load_npz(out).items()}
    assert content["details"]["walk.mp4"]["fps"] == 20 and content["details"]["walk.mp4"]["state"].sum() == 2
    x[4:6, 9] -= 90
    np.testing.assert_allclose(content["positions_2d"]["walk.mp4"]["custom"][0], x, rtol=1e-5)
    shown = cv2.imread(str(picture))
    assert shown is not None and len(np.unique(shown[..., 0])) > 12  # the frames of the video are behind the joints
    two = ["keypoints", str(tmp_path / "a.npz"), str(tmp_path / "a.npz"), str(tmp_path / "b")]
    assert prepare.main([*two, *words]) == 2 and "1 videos for 2 files" in capsys.readouterr().err
    assert prepare.main([*two, "--size", "320", "240"]) == 2 and "a second video of the name a" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- damaged files


def leaves(value, path=()):
    """Paths of everything inside a JSON value, lists at their first two entries."""
    yield path
    inside = value.items() if isinstance(value, dict) else list(enumerate(value))[:2] if isinstance(value, list) else ()
    for key, child in inside:
        yield from leaves(child, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


def test_a_joint_beyond_any_picture_was_not_found(tmp_path):
    rows = by_frames({0: [body()], 1: [body()], 2: [body()]})
    rows[1]["keypoints"][3] = 1e300
    got = read_video(put(tmp_path / "a.json", rows), size=SIZE)
    assert np.argwhere(np.isnan(got.keypoints[..., 0])).tolist() == [[1, 1]]
    detections.write_custom(tmp_path / "data_2d_custom_a.npz", {"a": got})
    np.testing.assert_allclose(load_npz(tmp_path / "data_2d_custom_a.npz")["positions_2d"].item()["a"]["custom"][0][1], body(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["results", "annotations", "mmpose", "predict", "openpose"])
def test_damaged_json_is_an_error_of_the_data(kind, tmp_path):
    x = body()
    content = {
        "results": by_frames({0: [x], 1: [x]}, bbox=[1, 2, 3, 4], idx=1),
        "annotations": {"images": [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}],
                        "annotations": [{"image_id": 1, "keypoints": triples(x), "bbox": [1, 2, 3, 4], "category_id": 1}]},
        "mmpose": {"instance_info": [{"frame_id": 0, "instances":
                   [{"keypoints": x.tolist(), "keypoint_scores": [1] * 17, "bbox": [[1, 2, 3, 4]]}]}]},
        "predict": {"width": 9, "height": 9, "units": "px", "fps": 3, "frames":
                    [{"frame": 0, "people": [{"skeleton": "coco17", "box": [1, 2, 3, 4], "x_img": x.tolist(), "conf": [1] * 17}]}]},
        "openpose": {"version": 1.3, "people": [{"person_id": [-1], "pose_keypoints_2d": triples(x)}]},
    }[kind]  # fmt: skip
    path = tmp_path / "a.json"
    text = json.dumps(content)
    read_video(put(path, content))
    for cut in range(0, len(text) - 1, max(1, len(text) // 9)):
        path.write_text(text[:cut])
        with pytest.raises(DataError, match="a.json"):
            read_video(path)
    for place in leaves(content):
        for new in (None, "x", [], {}, -7, 1e300, float("nan"), 10**400, [[1]]):
            path.write_text(json.dumps(replaced(content, place, new)))
            try:
                people(read_detections(path))
            except ParallaxError:
                pass  # any other exception fails the test


def test_hostile_and_wrong_files(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    evil = np.empty(1, object)
    evil[0] = Evil()
    np.savez(tmp_path / "evil.npz", boxes=evil, keypoints=evil)
    np.savez(tmp_path / "archive.npz", positions_2d=np.zeros(3))
    np.savez(tmp_path / "some.npz", a=np.zeros((3, 17, 2)), b=np.zeros((3, 17, 2)))
    (tmp_path / "short.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "deep.json").write_text("[" * 100000)
    (tmp_path / "folder").mkdir()
    put(tmp_path / "none.json", [])
    put(tmp_path / "no_one.json", {"instance_info": [{"frame_id": 0, "instances": []}]})
    detectron(tmp_path / "odd.npz", 3, rows=5)
    expected = {
        "evil.npz": "nothing was run", "archive.npz": "archive of keypoints already", "some.npz": "holds a, b", "short.npy": "damaged",
        "noise.bin": "file of a 2D detector", "empty": "file of a 2D detector", "deep.json": "file of a 2D detector",
        "folder": "without JSON files", "none.json": "no known detector", "no_one.json": "no person in any frame",
        "odd.npz": "frame 0", "absent.json": "cannot be read",
    }  # fmt: skip
    for name, said in expected.items():
        with pytest.raises(DataError, match=said) as error:
            read_video(tmp_path / name)
        assert name in str(error.value)
    assert not (tmp_path / "pwned").exists()
