"""The report of a run: one file that loads nothing, shows the right samples and numbers, and names what is missing."""

import base64
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from lib import config, report
from lib.dataset import tracks
from lib.dataset.chunks import TrackSamples
from lib.dataset.frames import FrameSamples
from lib.dataset.image import ImageSpec
from lib.dataset.samples import CropSamples
from lib.engine import commands, run_dir
from lib.engine.evaluation import join_arrays, predicted_arrays
from lib.errors import RunError
from lib.report import curves, run_files, samples, scenes
from scripts import report as script
from tests import tiny_dataset as tiny
from tests.engine_runs import fit, toy_folder
from tests.toy_task import ToyTask, toy_config

SPEC = ImageSpec((64, 64))
EVIL = "</script></pre><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """Elements with their attributes, the text outside of scripts and styles, and the cells of each table row."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words, self.rows, self.scripts = "", [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "wbr", "input", "line", "circle", "polyline"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.words += data
            if "td" in self.open or "th" in self.open:
                self.rows[-1][-1] += data

    def of(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


def parsed(folder: Path) -> Page:
    path = report.write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def assert_alone(page: Page) -> None:
    """Nothing is loaded, whatever the names say."""
    assert len(page.of("script")) == 2 and not page.open
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "audio", "video", "source")
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "data", "action", "srcset", "poster"):
            assert attrs.get(name, "#").startswith(("#", "data:image/jpeg;base64,")), (tag, attrs)
    assert "default-src 'none'" in page.of("meta")[1]["content"]


def make_run(folder: Path, predictions: dict | None = None, root: Path | None = None, **results) -> Path:
    """A run directory with the given scores and predictions, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    if predictions is not None:
        np.savez(folder / "predictions.npz", **predictions)
    if root is not None:
        tree = config.defaults().with_values({"DATASET.ROOT": str(root), "TRAIN.LR": 0.5}).to_dict()
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder


def crops(root: Path, off_mm: float = 40.0) -> dict[str, np.ndarray]:
    """predictions.npz of crops whose wrists are off, by the more the later the row."""
    ann = tiny.make()
    root.mkdir(exist_ok=True)
    tiny.write_images(ann, root)
    data = CropSamples(ann, root, SPEC)
    batch = data.__getitems__(list(range(len(ann))))
    step = torch.arange(len(ann), dtype=torch.float32)[:, None] * off_mm
    X = batch["X_cam"].clone()
    X[:, -1, 0] += step[:, 0]
    return join_arrays([predicted_arrays({"x_img": batch["x_img"] + 1, "X_cam": X}, batch)], data)


# --- the whole page


def test_a_finished_run_is_told_in_one_file(tmp_path):
    _, results = fit(tmp_path)
    page = parsed(toy_folder(tmp_path))
    assert_alone(page)
    value = f"{results['metrics']['mpjpe_mm']:.2f}"
    assert ["mpjpe_mm", value] in page.rows and ["a", value] in page.rows  # all numbers; per joint
    assert ["TRAIN.LR_STEP", "[2]", json.dumps(list(config.defaults().TRAIN.LR_STEP))] in page.rows
    assert ["samples", "20"] in page.rows and "toy" in page.words and "Over 11 poses." in page.words
    curved = [attrs["aria-label"] for attrs in page.of("svg")]
    assert any(label.startswith("val/mpjpe_mm: from") for label in curved) and any("train/total" in label for label in curved)
    assert len(page.data["poses"]) == 9 and page.data["bones"] == []  # a skeleton that nobody knows is drawn as points
    assert "Epoch: [2][5/5]" in page.words
    assert any("valid toy" in attrs["alt"] for attrs in page.of("img"))


def test_text_of_files_stays_text(tmp_path):
    arrays = crops(tmp_path / "data")
    arrays["actions"] = np.array([EVIL] * len(arrays["ids"]))
    run = make_run(
        tmp_path / "run", arrays, tmp_path / EVIL.replace("/", ""), metrics={EVIL: 1.5}, per_joint={EVIL: {EVIL: 2.5}},
        per_action={"mpjpe_mm": {EVIL: 3.5}}, protocol={EVIL: EVIL}, facts={EVIL: [EVIL]}, counts={EVIL: 1}, task=EVIL, weights=EVIL,
        other_sets={EVIL: {}},
    )  # fmt: skip
    (run / "train.log").write_text(EVIL)
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": s, f"val/{EVIL}": s}) + "\n" for s in (1, 2)))
    (run / "figures").mkdir()
    cv2.imwrite(str(run / "figures" / "a<b>&'\".png"), np.zeros((8, 8, 3), np.uint8))
    (run / "figures" / "broken<i>.png").write_bytes(b"no picture")
    page = parsed(run)
    assert_alone(page)
    assert page.words.count(EVIL) > 10 and EVIL in page.data["poses"][0]["label"]
    assert [EVIL, "2.50"] in page.rows and [EVIL, "3.50"] in page.rows and not page.of("i")


def test_what_is_missing_is_named(tmp_path):
    page = parsed(make_run(tmp_path, metrics={"mpjpe_mm": 12.345, "none": None}))
    told = page.words[page.words.index("Not here") :]
    for name in ("config.yaml", "metrics.jsonl", "predictions.npz", "train.log"):
        assert f"{name} is not there" in told
    assert "figures/" in told and "12.35" in page.words
    (tmp_path / "results.json").unlink()
    (tmp_path / "predictions.npz").write_bytes(b"PK\x03\x04 damaged")
    (tmp_path / "config.yaml").write_text("a: [")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "val/x": 2}\n{"step": 2, "val/x": 3}\n{"st')
    page = parsed(tmp_path)
    for name in ("predictions.npz cannot be read", "config.yaml cannot be read", "results.json is not there"):
        assert name in page.words
    assert any("val/x" in attrs["aria-label"] for attrs in page.of("svg"))
    assert_alone(page)


def test_arrays_that_do_not_fit_together_are_named(tmp_path):
    arrays = {"ids": np.arange(4), "X_world": np.zeros((4, 2, 17, 3)), "found": np.ones((4, 3)), "skeleton": np.array("h36m17")}
    page = parsed(make_run(tmp_path, arrays, metrics={"a": 1.0}))
    assert "predictions.npz does not fit together" in page.words and ["a", "1.00"] in page.rows


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no such folder"):
        report.write_report(tmp_path / "nowhere")
    with pytest.raises(RunError, match="holds nothing of a run"):
        report.write_report(tmp_path)


def test_validations_stand_beside_the_run_and_have_reports_of_their_own(tmp_path):
    run = make_run(tmp_path / "x" / "name", metrics={"mpjpe_mm": 1.0}, root=tmp_path)
    make_run(run / "valid-other", metrics={"mpjpe_mm": 2.0})
    page = parsed(run)
    assert ["metric", "this set", "valid-other"] in page.rows and ["mpjpe_mm", "1.00", "2.00"] in page.rows
    own = parsed(run / "valid-other")
    assert "x/name/valid-other" in own.words and ["TRAIN.LR", "0.5", str(config.defaults().TRAIN.LR)] in own.rows


def test_the_script_writes_where_it_is_told(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", metrics={"mpjpe_mm": 1.0})
    monkeypatch.setattr("sys.argv", ["report.py", str(run), "--out", str(tmp_path / "page.html")])
    script.main()
    assert (tmp_path / "page.html").exists() and not (run / "report.html").exists()
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "no")])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 2 and "no such folder" in capsys.readouterr().err


# --- the end of a training


def test_training_ends_with_a_report_and_never_fails_by_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(commands, "build", ToyTask)
    commands.train(toy_config("OUTPUT_DIR", tmp_path / "dry"), dry_run=True)
    assert not (tmp_path / "dry").exists()
    commands.train(toy_config("OUTPUT_DIR", tmp_path))
    assert_alone(Page((toy_folder(tmp_path) / report.FILE).read_text()))

    def broken(run):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(report.page, "html", broken)
    with caplog.at_level(logging.WARNING, logger="parallax"):
        results = commands.train(toy_config("OUTPUT_DIR", tmp_path / "again"))
    assert results["metrics"]["mpjpe_mm"] > 0 and "no report was written (ZeroDivisionError: of all things)" in caplog.text
    assert not (toy_folder(tmp_path / "again") / report.FILE).exists()


# --- what evaluation leaves


def test_rows_tell_image_box_and_camera_of_a_crop(tmp_path):
    arrays, ann = crops(tmp_path), tiny.make()
    assert arrays["images"].tolist() == [ann.image_path(row) for row in range(len(ann))]
    assert np.array_equal(arrays["boxes"], ann.box) and np.array_equal(arrays["views"], ann.view)
    poses = samples.poses_of(arrays)
    x = poses.cameras(5).project_cam(torch.from_numpy(arrays["X_cam_true"][5]).double()).numpy()
    np.testing.assert_allclose(x, arrays["x_img_true"][5], atol=0.02)
    np.testing.assert_array_equal(arrays["x_img"], arrays["x_img_true"] + 1)


def test_rows_tell_images_and_cameras_of_a_whole_frame(tmp_path):
    ann = tiny.make(people=2)
    data = FrameSamples(ann, tmp_path, SPEC, views=[2, 0], max_people=3, images=True)
    ids = np.arange(len(data))
    told = data.describe(ids)
    assert told["images"].shape == told["cameras"].shape == (len(data), 2) and (told["views"] == [2, 0]).all()
    for row in ids:
        for v, view in enumerate((2, 0)):
            sequence, frame = data.instants[row]
            own = np.flatnonzero((ann.sequence == sequence) & (ann.frame == frame) & (ann.view == view))[0]
            assert told["images"][row, v] == ann.image_path(own)
            np.testing.assert_array_equal(told["camera_R"][told["cameras"][row, v]], ann.cameras.R[int(ann.camera[own])])


def test_rows_tell_the_camera_of_a_track():
    found = tracks.from_annotations(tiny.make())
    told = TrackSamples(found).describe(np.arange(len(found.X_cam)))
    np.testing.assert_array_equal(told["camera_t"][told["cameras"]], found.cameras.t.numpy()[found.camera[found.track]])
    assert len(np.unique(told["cameras"])) == 4


def test_several_people_are_kept_with_their_truth():
    X = torch.rand(2, 3, 4, 3)
    batch = {"id": torch.arange(2), "X_world": X, "X_valid": torch.ones(2, 3, 4, dtype=torch.bool)}
    kept = predicted_arrays({"X_world": X + 1, "maps": torch.zeros(2, 1, 1, 1)}, batch)
    assert set(kept) == {"ids", "X_world", "X_world_true", "X_valid"}
    assert np.array_equal(kept["X_world_true"], X.numpy())


# --- errors and choice


def test_errors_of_single_people_are_those_after_the_roots_were_put_on_each_other(tmp_path):
    arrays = crops(tmp_path)
    arrays["X_cam"] = arrays["X_cam"] + 1000.0
    poses = samples.poses_of(arrays)
    np.testing.assert_allclose(poses.error, np.arange(len(poses)) * 40 / 17, atol=1e-3)
    arrays["X_valid"][3, -1] = False  # the one that is wrong
    arrays["X_valid"][4] = False
    error = samples.poses_of(arrays).error
    assert error[3] == pytest.approx(0, abs=1e-3) and np.isnan(error[4])


def test_errors_of_several_people_count_who_was_missed():
    truth = np.random.default_rng(0).normal(0, 300, (3, 2, 15, 3))
    X = truth[:, ::-1].copy() + [30.0, 0.0, 40.0]
    found = np.array([[True, True], [True, False], [False, False]])
    arrays = {"ids": np.arange(3), "X_world": X, "X_world_true": truth, "X_valid": np.ones((3, 2, 15), bool), "found": found}
    poses = samples.poses_of(arrays | {"skeleton": np.array("panoptic15")})
    alone = np.linalg.norm(X[1, 0] - truth[1, 0], axis=-1).mean()
    np.testing.assert_allclose(poses.error, [50, (min(alone, 500) + 50) / 2, 500])
    arrays["X_valid"][0] = False
    assert np.isnan(samples.poses_of(arrays | {"skeleton": np.array("panoptic15")}).error[0])


def test_errors_in_the_image_are_shares_of_the_box():
    x = np.zeros((2, 17, 2))
    arrays = {"ids": np.arange(2), "x_img": x + [3.0, 4.0], "x_img_true": x, "conf_true": np.ones((2, 17)), "skeleton": np.array("h36m17")}
    assert samples.poses_of(arrays).error.tolist() == [5, 5] and samples.poses_of(arrays).unit == "px"
    arrays["conf_true"][1] = 0
    boxed = samples.poses_of(arrays | {"boxes": np.array([[0, 0, 50, 100.0]] * 2)})
    assert boxed.error[0] == 5 and boxed.unit == "%" and np.isnan(boxed.error[1])


def test_best_and_worst_are_of_different_recordings_and_no_row_comes_twice():
    n = 40
    names = np.array([f"a{i % 8}" for i in range(n)])
    names[:10] = "same"
    poses = samples.Poses({"ids": np.arange(n), "actions": names}, None, error=np.arange(n, dtype=float))
    groups = samples.choose(poses)
    assert groups["best"] == [0, 10, 11] and groups["worst"] == [39, 38, 37]
    rows = sum(groups.values(), [])
    assert len(groups["random"]) == 3 and len(set(rows)) == 9 and groups == samples.choose(poses)
    few = samples.Poses({"ids": np.arange(4)}, None, error=np.array([3.0, np.nan, 1.0, 2.0]))
    assert samples.choose(few) == {"best": [2, 3, 0], "random": [1]}
    blind = samples.Poses({"ids": np.arange(5)}, None, error=np.full(5, np.nan))
    assert list(samples.choose(blind)) == ["random"] and samples.choose(samples.poses_of({})) == {}


# --- pictures, scenes, curves, configuration


def test_pictures_show_the_images_of_the_data_set(tmp_path):
    arrays = crops(tmp_path / "data")
    run = make_run(tmp_path / "run", arrays, tmp_path / "data", metrics={"mpjpe_mm": 1.0})
    page = parsed(run)
    shown = [attrs for attrs in page.of("img") if "sample" in attrs["alt"]]
    assert len(shown) == 9 and "images of the samples" not in page.words
    assert shown[0]["alt"].startswith("best sample, ") and shown[3]["alt"].startswith("worst sample, ")
    data = base64.b64decode(shown[0]["src"].partition(",")[2])
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (420, 420, 3) and len(data) < 60_000
    (tmp_path / "data").rename(tmp_path / "gone")
    page = parsed(run)
    assert "no such image" in page.words and len([a for a in page.of("img") if "sample" in a["alt"]]) == 9  # skeletons


def test_frames_of_several_people_show_their_views(tmp_path):
    ann = tiny.make(people=2)
    tiny.write_images(ann, tmp_path)
    data = FrameSamples(ann, tmp_path, SPEC, max_people=2)
    batch = data.__getitems__(list(range(len(data))))
    pred = {"X_world": batch["X_world"] + 5, "found": torch.ones(len(data), 2, dtype=torch.bool)}
    arrays = join_arrays([predicted_arrays(pred, batch)], data)
    page = parsed(make_run(tmp_path / "run", arrays, tmp_path, metrics={"map_percent": 1.0}))
    shown = [attrs for attrs in page.of("img") if "sample" in attrs["alt"]]
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(shown[0]["src"].partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (2 * 315 + 4, 2 * 420 + 4, 3)  # four views of 160 x 120
    scene = page.data["poses"][0]
    assert scene["up"] == [0, 0, 1] and len(scene["people"]) == len(scene["truth"]) == 2 and "8.7 mm" in scene["label"]
    names = [camera["name"] for camera in page.data["rigs"][0]["cameras"]]
    assert names == ["view 0", "view 1", "view 2", "view 3"]


def test_cameras_stand_where_they_are_and_see_the_person_in_the_world(tmp_path):
    poses = samples.poses_of(crops(tmp_path))
    scene = scenes.camera_scene(poses, 0)
    rig = tiny.rig()
    places = np.array([camera["points"][4] for camera in scene["cameras"]])
    np.testing.assert_allclose(places, rig.center.numpy(), atol=0.51)
    assert scene["up"] == [0, 0, 1] and scene["count"] == 4
    ann = tiny.make()
    np.testing.assert_allclose(scene["truth"][0], ann.X_world[ann.pose[0]], atol=0.6)
    corners = np.array(scene["cameras"][1]["points"][:4], float)
    x = rig[1].project(torch.from_numpy(corners), distort=False)[0].numpy()
    np.testing.assert_allclose(x, [[0, 0], [160, 0], [160, 120], [0, 120]], atol=0.5)
    assert scenes.camera_scene(samples.poses_of({k: v for k, v in poses.arrays.items() if k != "cameras"}), 0) is None


def test_a_calibration_for_each_frame_is_one_camera_where_it_stands_still_and_some_places_where_it_moves():
    n, rig = 40, tiny.rig()
    fields = {f"camera_{f}": np.repeat(getattr(rig, f)[:1].numpy(), n, 0) for f in ("K", "R", "t", "dist", "size")}
    arrays = {"ids": np.arange(n), "X_cam": np.zeros((n, 17, 3)), "cameras": np.arange(n), "views": np.zeros(n, int)} | fields
    still = scenes.camera_scene(samples.poses_of(arrays), 0)
    assert len(still["cameras"]) == still["count"] == 1 and still["cameras"][0]["name"] == "view 0"
    arrays["camera_t"] = arrays["camera_t"] + np.arange(n)[:, None] * 10.0
    moving = scenes.camera_scene(samples.poses_of(arrays), 0)
    assert len(moving["cameras"]) == scenes.MOST_CAMERAS and moving["count"] == n and moving["cameras"][0]["name"] == ""


def test_long_curves_are_thinned_and_steep_ones_logarithmic():
    records = [{"step": s, "train/total": 1000.0 / s, "train/loss": 1000.0 / s, "val/once": 1} for s in range(1, 1001)]
    records += [{"step": 1000, "val/mpjpe_mm": None}, {"val/mpjpe_mm": 3.0}]
    records = [{k: v for k, v in r.items() if k != "val/once" or r["step"] == 7} for r in records]
    found = curves.series(records)
    assert list(found) == ["train/total"]  # the one loss is the total; what was measured once is no curve
    text = curves.panel("train/total", found["train/total"])
    assert "1000 values, means of 5, log scale" in text
    points = re.search(r'polyline points="([^"]*)"', text).group(1).split()
    xy = np.array([point.split(",") for point in points], float)
    assert len(xy) == 200 and (np.diff(xy[:, 0]) > 0).all() and (np.diff(xy[:, 1]) > 0).all()  # svg counts downwards
    flat = curves.panel("val/x", [(5.0, 2.0), (6.0, 2.0)])
    assert "nan" not in flat and "inf" not in flat


def test_configuration_is_told_by_its_differences():
    tree = config.defaults().with_values({"TRAIN.LR": 0.5, "DATASET.OPTIONS": {"b": 1}}).to_dict()
    changed = run_files.config_difference(tree)
    assert changed == [("DATASET.OPTIONS.b", 1, None), ("TRAIN.LR", 0.5, config.defaults().TRAIN.LR)]
    tree["TRAIN"]["FROM_THE_FUTURE"] = 7
    assert ("TRAIN.FROM_THE_FUTURE", 7, None) in run_files.config_difference(tree)
    assert run_files.config_difference(config.defaults().to_dict()) == []
    assert run_dir.flatten(tree)["TRAIN.FROM_THE_FUTURE"] == 7
