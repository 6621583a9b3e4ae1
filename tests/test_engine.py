"""The engine on a toy task: schedules, what a run leaves, stops, number formats, commands."""

import hashlib
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.engine import Interrupted, Trainer, commands, distributed, optim, run_dir
from lib.engine.batches import overfit_config, part_of
from lib.engine.distributed import HOST
from lib.engine.evaluation import is_better
from lib.engine.logger import Meter
from lib.errors import ConfigError, RunError, WeightsError
from tests.engine_runs import (
    assert_close,
    assert_equal,
    final,
    fit,
    hashes,
    make_trainer,
    toy_folder,
    weights,
)
from tests.toy_task import INPUTS, ToyTask, toy_config

ROOT = Path(__file__).resolve().parents[1]


# ------------------------------------------------------------------------------------------ schedules and optimizers


def train_section(**values) -> SimpleNamespace:
    defaults = dict(
        OPTIMIZER="adam", LR=0.1, SCHEDULE="constant", LR_STEP=(2, 4), LR_FACTOR=0.1, WARMUP_STEPS=0, WD=0.0
    )
    return SimpleNamespace(**{**defaults, "MOMENTUM": 0.9, "NESTEROV": False, "AMSGRAD": False, **values})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 1, 49: 1}),
        ("multistep", {0: 1, 19: 1, 20: 0.1, 39: 0.1, 40: 0.01, 49: 0.01}),  # epochs 2 and 4, of 10 steps each
        ("exponential", {0: 1, 9: 1, 10: 0.1, 25: 0.01}),
        ("cosine", {0: 1, 25: 0.5, 50: 0.0}),
    ],
)
def test_schedule_is_a_function_of_the_step(schedule, expected):
    train = train_section(SCHEDULE=schedule)
    for step in reversed(expected):  # any order gives the same
        assert optim.lr_factor(step, train, 10, 50) == pytest.approx(expected[step], abs=1e-12)


def test_warmup_rises_to_the_schedule():
    train = train_section(WARMUP_STEPS=4)
    assert [optim.lr_factor(step, train, 10, 50) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    train = train_section(SCHEDULE="cosine", WARMUP_STEPS=10)
    assert optim.lr_factor(10, train, 10, 50) == 1  # the cosine begins where the warm-up ends
    assert optim.lr_factor(30, train, 10, 50) == pytest.approx(0.5)


def one_step(train, weight=2.0, grad=1.0, group=None) -> float:
    p = torch.nn.Parameter(torch.tensor([weight]))
    optimizer = optim.build_optimizer([{"params": [p], **(group or {})}], train)
    p.grad = torch.tensor([grad])
    optim.set_lr(optimizer, 1.0)
    optimizer.step()
    return p.item()


def test_optimizers_make_the_step_of_their_definition():
    assert one_step(train_section()) == pytest.approx(1.9)  # Adam's first step is the rate
    assert one_step(train_section(WD=0.5)) == pytest.approx(1.9)  # L2: only the size of the gradient changes
    assert one_step(train_section(OPTIMIZER="adamw", WD=0.5)) == pytest.approx(2 * (1 - 0.05) - 0.1)  # decoupled
    assert one_step(train_section(OPTIMIZER="sgd")) == pytest.approx(1.9)
    assert one_step(train_section(OPTIMIZER="rmsprop")) == pytest.approx(2 - 0.1 / 0.01**0.5)  # over the root of (1 - alpha) g^2
    assert one_step(train_section(OPTIMIZER="sgd", WD=0.5)) == pytest.approx(2 - 0.1 * (1 + 0.5 * 2))
    assert one_step(train_section(OPTIMIZER="sgd", NESTEROV=True)) == pytest.approx(2 - 0.1 * 1.9)
    assert one_step(train_section(OPTIMIZER="sgd"), group={"lr": 0.5}) == pytest.approx(1.5)


@pytest.mark.parametrize("amsgrad", [True, False])
def test_amsgrad_divides_by_the_largest_second_moment_so_far(amsgrad):
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optim.build_optimizer([{"params": [p]}], train_section(AMSGRAD=amsgrad))
    optim.set_lr(optimizer, 1.0)
    place, m, v, largest = 0.0, 0.0, 0.0, 0.0
    for t, grad in enumerate([1.0] + [0.01] * 300, 1):
        p.grad = torch.tensor([grad], dtype=torch.float64)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        largest = max(largest, v) if amsgrad else v
        place -= 0.1 * (m / (1 - 0.9**t)) / ((largest / (1 - 0.999**t)) ** 0.5 + 1e-8)
    assert p.item() == pytest.approx(place, rel=1e-9)


def test_gradients_are_clipped_to_their_norm():
    p = torch.nn.Parameter(torch.zeros(2))
    for clip, expected in ((0.0, [3.0, 4.0]), (10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])):
        p.grad = torch.tensor([3.0, 4.0])
        assert optim.gradient_norm([p], clip).item() == 5
        torch.testing.assert_close(p.grad, torch.tensor(expected))


# ------------------------------------------------------------------------------------------------------ one whole run


def test_run_directory_holds_what_users_know(tmp_path):
    trainer, results = fit(tmp_path)
    folder = toy_folder(tmp_path)
    expected = "config.yaml train.log metrics.jsonl tensorboard figures results.json predictions.npz"
    weights_files = "checkpoint.pth.tar model_best.pth.tar final_state.pth.tar"
    assert {p.name for p in folder.iterdir()} == {*expected.split(), *weights_files.split()}
    lines = re.findall(
        r"Epoch: \[(\d)\]\[(\d)/5\]\tTime [\d.]+s\tSpeed [\d.]+ samples/s\tData [\d.]+s\tLoss [\d.]+\tLR",
        (folder / "train.log").read_text(),
    )
    assert ["".join(pair) for pair in lines] == "02 04 05 11 13 15 22 24 25".split()
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "eval"] == [5, 10, 15]
    assert all({"event", "step", "epoch", "seconds"} <= e.keys() for e in events)
    best = min(e["val/mpjpe_mm"] for e in events if e["event"] == "eval")
    stored = json.loads((folder / "results.json").read_text())
    assert stored["metrics"]["mpjpe_mm"] == best == results["metrics"]["mpjpe_mm"]
    assert {"task", "dataset", "protocol", "metrics", "per_joint", "per_action", "counts", "seconds", "git_commit",
            "config_hash", "weights_sha256", "skeleton"} <= stored.keys()  # fmt: skip
    assert stored["weights_sha256"] == hashlib.sha256((folder / "model_best.pth.tar").read_bytes()).hexdigest()
    assert stored["counts"] == {"poses": 11} and stored["skeleton"] == "toy3"
    assert stored["facts"] == {"samples": 20}
    assert_equal(final(tmp_path), weights(trainer))


def test_train_log_begins_before_the_first_step(tmp_path):
    trainer = make_trainer(tmp_path)
    logging.getLogger("parallax").info("weights: from scratch")
    trainer.fit()
    text = (toy_folder(tmp_path) / "train.log").read_text()
    assert text.index("weights: from scratch") < text.index("Epoch:")
    assert text.count("Epoch: [0][2/5]") == 1


def test_predictions_are_plain_arrays_sorted_by_id(tmp_path):
    fit(tmp_path, "TEST.BATCH_SIZE", 3)
    with np.load(toy_folder(tmp_path) / "predictions.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays["ids"].tolist() == list(range(11))
    assert arrays["X_cam"].shape == arrays["X_cam_true"].shape == (11, 3, 3)


def test_checkpoint_holds_plain_values_only(tmp_path):
    trainer, _ = fit(tmp_path)
    state = torch.load(toy_folder(tmp_path) / "checkpoint.pth.tar", weights_only=True)
    assert {"format", "kind", "model", "task_extra", "optimizer", "scheduler", "scaler", "step", "best", "config",
            "image_spec", "skeleton", "rng"} <= state.keys()  # fmt: skip
    assert (state["format"], state["kind"], state["step"], len(state["rng"])) == (1, "parallax", 15, 1)
    assert state["config"]["TRAIN"]["LR"] == 0.01
    best = torch.load(toy_folder(tmp_path) / "model_best.pth.tar", weights_only=True)
    assert "model" in best and "config" in best and "optimizer" not in best and "rng" not in best
    assert best["best"] == trainer.best


def test_same_seed_same_weights_other_seed_others(tmp_path):
    runs = [weights(fit(tmp_path / str(i), "SEED", seed)[0]) for i, seed in enumerate((1, 1, 2))]
    assert_equal(runs[0], runs[1])
    assert not torch.equal(runs[0]["0.weight"], runs[2]["0.weight"])


def test_evaluating_more_often_does_not_change_training(tmp_path):
    class Drawing(ToyTask):
        def predict(self, batch):
            torch.rand(3), np.random.rand(2)
            return super().predict(batch)

        def on_epoch(self, epoch):
            torch.rand(5)

    often = fit(tmp_path / "a", task_class=Drawing)[0]
    for every in (3, 0):  # 0: only at the end
        seldom = fit(tmp_path / f"b{every}", "TRAIN.EVAL_EVERY", every)[0]
        assert_equal(weights(often), weights(seldom))
        assert seldom.evaluated_step == seldom.step


def test_accumulated_batches_are_one_big_batch(tmp_path):
    big = fit(tmp_path / "a", "TRAIN.BATCH_SIZE", 6, "TRAIN.CLIP", 0.5, dropout=0.0)[0]
    small = fit(tmp_path / "b", "TRAIN.BATCH_SIZE", 2, "TRAIN.ACCUMULATE", 3, "TRAIN.CLIP", 0.5, dropout=0.0)[0]
    assert big.step == small.step == 12 and len(small.task.calls) == 36
    assert_close(weights(big), weights(small))


def test_max_steps_ends_within_an_epoch_and_is_judged(tmp_path):
    trainer, results = fit(tmp_path, "TRAIN.MAX_STEPS", 7)
    assert trainer.step == 7 and trainer.evaluated_step == 7 and results["metrics"]
    assert [round(c.progress, 3) for c in trainer.task.calls] == [round(i / 6, 3) for i in range(7)]
    assert trainer.task.epochs == [0, 1]


class InParts(ToyTask):
    def called(self):
        return [self.model[0], self.model[3]]


def test_compile_is_for_what_the_task_calls(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append((self, options)))
    cfg = toy_config("COMPILE", True)
    whole, parts = Trainer(cfg, ToyTask(cfg)).task, Trainer(cfg, InParts(cfg)).task
    assert compiled == [(module, {}) for module in (whole.model, parts.model[0], parts.model[3])]
    compiled.clear()
    frozen = Trainer(cfg, InParts(cfg), frozen=True).task
    assert compiled == [(module, {"options": {"freezing": True}}) for module in frozen.called()]


def test_what_cannot_be_judged_is_told_before_training(tmp_path):
    trainer = make_trainer(tmp_path, "TEST.PCP", "rooted", "TRAIN.EVAL_EVERY", 0)
    with pytest.raises(ConfigError, match="TEST.PCP: is rooted, but here no 3D poses"):
        trainer.fit()
    assert not trainer.task.calls and not list(tmp_path.iterdir())


def test_results_say_what_the_task_tells_of_its_protocol(tmp_path):
    class Telling(ToyTask):
        def protocol(self):
            return super().protocol() | {"frame_stride": "its own", "boxes": "found"}

    plain, told = fit(tmp_path / "a")[1]["protocol"], fit(tmp_path / "b", task_class=Telling)[1]["protocol"]
    assert plain["flip_test"] is False and plain["frame_stride"] == 1 and not {"boxes", "excluded"} & plain.keys()
    assert told == plain | {"frame_stride": "its own", "boxes": "found"}


# ---------------------------------------------------------------------------------------- stops, quick looks, formats


def test_loss_that_is_not_finite_stops_before_the_optimizer_moves(tmp_path):
    class Remembering(ToyTask):
        def at_step(self, step):
            super().at_step(step)
            self.before = {k: v.clone() for k, v in self.model.state_dict().items()}

    trainer = make_trainer(tmp_path, "TRAIN.SHUFFLE", False, bad=9, task_class=Remembering)
    with pytest.raises(RunError, match=r"step 2 \(epoch 0\): total is nan.*train 8, 9, 10, 11; extra") as caught:
        trainer.fit()
    assert "TRAIN.LR" in str(caught.value)
    assert_equal(weights(trainer), trainer.task.before)
    assert not (toy_folder(tmp_path) / run_dir.LAST).exists()


def test_gradient_that_is_not_finite_stops_too(tmp_path):
    class Infinite(ToyTask):
        def forward(self, batch, step):
            total = sum(p.abs().sum() for p in self.model.parameters())
            return {"total": total + (self.model[0].weight * 0).sum().sqrt()}  # the root has no slope at 0

    with pytest.raises(RunError, match="step 0.*grad_norm is nan"):
        fit(tmp_path, task_class=Infinite)


def test_overfit_repeats_one_batch_and_writes_nothing(tmp_path):
    trainer, results = fit(tmp_path, "TRAIN.MAX_STEPS", 120, "PRINT_FREQ", 500, overfit=True, dropout=0.0)
    assert not list(tmp_path.iterdir())
    assert len({c.step for c in trainer.task.calls}) == 120 and results["metrics"]
    first = make_trainer(tmp_path, overfit=True, dropout=0.0)
    values = []
    first.train_step = lambda batch, step=first.train_step: values.append((step(batch), batch)) or values[-1][0]
    first.fit()
    assert values[-1][0]["total"] < 0.3 * values[0][0]["total"]
    assert all(batch is values[0][1] for _, batch in values)


def test_overfit_sets_what_the_task_adds():
    cfg = toy_config("DATASET.SUBJECTS", ["S1"])
    changed = overfit_config(cfg, {"SSL.COLORS": 0, "TEST.SUBJECTS": []})
    assert changed.DATASET.TEST_SET == "train" and not changed.DATASET.FLIP and changed.SSL.COLORS == 0 and changed.TEST.SUBJECTS == ()
    assert overfit_config(cfg, ToyTask.overfit(cfg)).TEST.SUBJECTS == ("S1",)


def test_dry_run_makes_one_step_and_writes_nothing(tmp_path):
    trainer, results = fit(tmp_path, dry_run=True)
    assert len(trainer.task.calls) == 1 and results["counts"]["poses"] == 11 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("off", torch.float32)])
def test_number_formats_on_the_cpu(tmp_path, amp, dtype):
    seen = set()

    class Watching(ToyTask):
        def forward(self, batch, step):
            seen.add(self.model[0](batch["train"]["x"]).dtype)
            return super().forward(batch, step)

    trainer, results = fit(tmp_path, "AMP", amp, "TRAIN.MAX_STEPS", 3, task_class=Watching)
    assert seen == {dtype} and np.isfinite(results["metrics"]["mpjpe_mm"])
    assert trainer.scaler.is_enabled() == (amp == "fp16")
    assert results["protocol"]["number_format"] == str(dtype).removeprefix("torch.")
    assert {v.dtype for v in weights(trainer).values()} == {torch.float32}


def test_auto_takes_bf16_only_where_it_is_fast(monkeypatch):
    for fast, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(distributed, "has_fast_bf16", lambda device, fast=fast: fast)
        assert distributed.autocast_dtype("auto", HOST) is expected
    assert isinstance(distributed.has_fast_bf16(HOST), bool)


def test_device_errors_tell_what_exists():
    assert distributed.choose_device(HOST.type) == HOST
    with pytest.raises(ConfigError, match="not a device"):
        distributed.choose_device("gpu0")
    with pytest.raises(ConfigError, match="no such device|does not exist"):
        distributed.choose_device("cuda:99")


def test_random_state_is_restored_whole():
    distributed.seed_all(5)
    state = distributed.rng_state(HOST)
    draws = [(torch.rand(2).tolist(), np.random.rand(2).tolist(), __import__("random").random()) for _ in range(2)]
    distributed.set_rng_state(state, HOST)
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist(), __import__("random").random()) == draws[0]
    assert draws[0] != draws[1]


def test_small_parts():
    batch = {"a": torch.arange(6), "b": {"c": torch.arange(12).view(6, 2)}}
    assert part_of(batch, 1, 3)["a"].tolist() == [2, 3] and part_of(batch, 2, 3)["b"]["c"].tolist() == [
        [8, 9],
        [10, 11],
    ]
    nan = float("nan")
    assert is_better(1.0, None, "min") and is_better(1.0, 2.0, "min") and not is_better(1.0, 2.0, "max")
    assert not is_better(nan, 2.0, "min") and not is_better(nan, 2.0, "max") and is_better(3.0, nan, "min")
    one, two = Meter(), Meter()
    one.add({"a": 1.0, "b": 4.0})
    two.add({"a": 2.0})
    two.add({"a": 3.0})
    assert Meter.mean([one.state(), two.state()]) == {"a": 2.0, "b": 4.0}


# -------------------------------------------------------------------------------------------------------------- scripts


def test_commands_train_and_judge(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "build", ToyTask)
    cfg = toy_config("OUTPUT_DIR", tmp_path)
    with pytest.raises(WeightsError, match="train first"):
        commands.validate(cfg)
    trained = commands.train(cfg)
    best = toy_folder(tmp_path) / run_dir.BEST
    before = hashes(tmp_path)
    judged = commands.validate(cfg)
    assert judged["facts"] == trained["facts"]
    assert judged["metrics"] == trained["metrics"] and judged["weights_sha256"] == trained["weights_sha256"]
    assert before.items() <= hashes(tmp_path).items()
    folder = toy_folder(tmp_path) / "valid-model_best"
    assert {p.name for p in folder.iterdir()} == {"results.json", "predictions.npz", "figures"}
    assert commands.validate(toy_config("OUTPUT_DIR", tmp_path, "MODEL.RESUME", best))["metrics"] == trained["metrics"]
    gone = toy_config("OUTPUT_DIR", tmp_path, "MODEL.PRETRAINED", tmp_path / "gone.pth.tar", "EPIPOLAR.TEACHER", "gone.pth.tar")
    assert commands.validate(gone)["metrics"] == trained["metrics"]  # what training starts from is not needed
    frozen = commands.validate(toy_config("OUTPUT_DIR", tmp_path, "TEST.FREEZE", True))
    assert frozen["metrics"] == pytest.approx(trained["metrics"], rel=1e-4)
    table = "mpjpe_mm"
    assert capsys.readouterr().out.count(table) >= 3
    assert commands.train(cfg, dry_run=True)["metrics"]
    with pytest.raises(RunError, match="holds a run already"):
        commands.train(cfg)


def test_results_of_other_weights_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "build", ToyTask)
    commands.train(toy_config("OUTPUT_DIR", tmp_path))
    best, other = toy_folder(tmp_path) / run_dir.BEST, tmp_path / "other" / run_dir.BEST
    state = torch.load(best, weights_only=True)
    other.parent.mkdir()
    torch.save(state | {"model": {name: value + 1 for name, value in state["model"].items()}}, other)
    first = commands.validate(toy_config("OUTPUT_DIR", tmp_path))
    kept = hashes(toy_folder(tmp_path))
    second = commands.validate(toy_config("OUTPUT_DIR", tmp_path, "MODEL.RESUME", other))
    assert second["weights_sha256"] != first["weights_sha256"] and kept.items() <= hashes(toy_folder(tmp_path)).items()
    folder = toy_folder(tmp_path) / f"valid-model_best-{second['weights_sha256'][:8]}"
    assert json.loads((folder / "results.json").read_text())["metrics"] == second["metrics"] != first["metrics"]
    (toy_folder(tmp_path) / "valid-model_best" / "results.json").write_text("{")  # damaged: nobody can tell whose it was
    judged = commands.validate(toy_config("OUTPUT_DIR", tmp_path))
    assert (toy_folder(tmp_path) / f"valid-model_best-{judged['weights_sha256'][:8]}" / "results.json").exists()


def test_errors_and_stops_have_their_status(capsys):
    def fail(error):
        raise error

    for error, status in ((RunError("told"), 2), (Interrupted("saved"), 130), (KeyboardInterrupt(), 130)):
        with pytest.raises(SystemExit) as end:
            commands.run(lambda error=error: fail(error))
        assert end.value.code == status
    captured = capsys.readouterr()
    assert captured.err == "error: told\n" and "saved" in captured.out
    with pytest.raises(ZeroDivisionError):  # a bug of ours keeps its traceback
        commands.run(lambda: 1 / 0)


def test_a_process_says_what_it_alone_has_met(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    common = RunError("of all")
    common.shared = True
    for error, said in ((common, ""), (RunError("of this one"), "error: rank 3: of this one\n")):

        def fail(error=error):
            raise error

        with pytest.raises(SystemExit):
            commands.run(fail)
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("script", ["train.py", "valid.py"])
def test_help_shows_examples(script):
    words = [sys.executable, str(ROOT / "scripts" / script), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT / "tests")
    assert done.returncode == 0 and f"python scripts/{script} --cfg experiments/" in done.stdout


def test_toy_inputs_fit_the_toy_network():
    cfg = toy_config()
    assert ToyTask(cfg).model(torch.zeros(2, INPUTS)).shape == (2, 3, 3)
