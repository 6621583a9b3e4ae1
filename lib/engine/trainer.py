"""Trainer: how any task is trained and judged. Read `fit`, `train_epoch`, `train_step` and `evaluate`, in this order.

Data order, augmentation and learning rate are pure functions of (seed, step). Together with the saved random state that
makes a run that was stopped anywhere end with the weights of one that was not.
"""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import repeat
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from lib.dataset.loader import check_batch, steps_per_epoch, to_device
from lib.engine import checkpoint, distributed, optim, run_dir
from lib.engine.batches import not_finite, part_of, training_batches
from lib.engine.distributed import HOST, World
from lib.engine.evaluation import Evaluation, evaluate_set, is_better
from lib.engine.logger import Meter, RunLogger
from lib.engine.signals import Interrupted, StopSignals
from lib.errors import DataError, RunError
from lib.models.freeze import freeze
from lib.tasks.base import Step, Task

OVERFIT_STEPS = 200  # of --overfit, where TRAIN.MAX_STEPS is 0
SMALLEST_SCALE = 1e-3  # the fp16 scaler starts at 65536 and halves at each overflow: below this no scale will help


class Trainer:
    """Trains and evaluates `task` as `cfg` says.

    Args:
        cfg: the whole configuration; the engine reads TRAIN, TEST, DEBUG and the top-level keys.
        task: built after `distributed.start(cfg)`, whose seed decides the initial weights.
        folder: the run directory, see `run_dir.run_path`; None writes nothing.
        world: what `distributed.start` returned; None calls it.
        overfit: repeat the first batch for training, judge on the first evaluation batch, write nothing.
        dry_run: one step and one evaluation batch, write nothing.
        frozen: the weights are final, nothing will be trained: see `lib.models.freeze.freeze`.
    """

    def __init__(
        self,
        cfg,
        task: Task,
        folder: str | Path | None = None,
        world: World | None = None,
        overfit: bool = False,
        dry_run: bool = False,
        frozen: bool = False,
    ) -> None:
        self.cfg, self.world = cfg, world or distributed.start(cfg)
        self.device = self.world.device
        self.task = task.to(self.device)
        self.amp_dtype = distributed.autocast_dtype(cfg.AMP, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype is torch.float16)
        self.overfit, self.dry_run = overfit, dry_run
        self.folder = None if folder is None or overfit or dry_run else Path(folder)
        self.log, self.signals = RunLogger(self.world.is_main), StopSignals()
        self.eval_sets: dict | None = None
        self.step, self.evaluated_step = 0, -1  # optimizer steps done; the step whose weights were judged last
        self.saved = False  # has this process written a checkpoint?
        self.best: dict | None = None  # {"metric", "value", "step", "epoch"}
        self.results: dict = {}  # of the best weights, as in results.json
        if frozen:
            freeze(self.task.model, self.amp_dtype, cfg.COMPILE, self.task.called())
        elif cfg.COMPILE:
            for module in self.task.called():
                module.compile()

    @property
    def epoch(self) -> int:
        """Epoch of the next step, from 0."""
        return self.step // self.steps_per_epoch

    def autocast(self) -> torch.autocast:
        """The number format of the forward pass."""
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    @property
    def number_format(self) -> str:
        """Name of that format."""
        return str(self.amp_dtype or torch.float32).removeprefix("torch.")

    # ---------------------------------------------------------------- training

    def fit(self) -> dict:
        """Trains to the end of the schedule; returns what results.json holds: the scores of the best weights.

        Raises:
            RunError: the run directory cannot be used, the state to resume does not fit, or the loss is not finite.
            Interrupted: a signal asked to stop; the state is saved.
        """
        with self._together():
            state = self._open_run()
            finished = state is not None and self._is_finished(state)
            if not finished:
                self._open_training(state)
            if self.folder is not None:  # now that nothing is missing
                self.world.on_main(lambda: run_dir.create(self.folder, self.cfg))
            if finished:
                return self._finish(state["model"], trained=False)
            seconds = state["seconds"] if state else 0.0
            with self.log.opened(self.folder, self.step, seconds), StopSignals() as self.signals:
                return self._train()

    def _train(self) -> dict:
        """The epochs that are left, and the end."""
        self._announce()
        if self.evaluation_due():  # stopped between the last step of an epoch and its evaluation
            self.end_epoch()
        batches = self._batches()
        while self.step < self.total_steps:
            with distributed.kept_rng(self.device):  # a resumed run may call it twice for an epoch
                self.task.on_epoch(self.epoch)
            self.train_epoch(batches)
            self.end_epoch()
        return self._finish(self.task.model.state_dict(), trained=True)

    def train_epoch(self, batches: Iterator[dict]) -> None:
        """Steps to the end of the current epoch, or of training."""
        cfg, epoch, meter = self.cfg, self.epoch, Meter()
        first = epoch * self.steps_per_epoch
        end = min(first + self.steps_per_epoch, self.total_steps)
        self.task.train()
        with self.log.bar(self.steps_per_epoch, f"epoch {epoch}", initial=self.step - first) as bar:
            start = time.perf_counter()
            while self.step < end:
                batch = self._next(batches)
                fetched = time.perf_counter()
                values = self.train_step(batch)
                now = time.perf_counter()
                meter.add({"data": fetched - start, "time": now - start, **values})
                start = now
                bar.update()
                if self.step % cfg.PRINT_FREQ == 0 or self.step == end:
                    self._log_steps(meter, epoch, self.step - first, bar)
                    meter = Meter()
                if self.stopping:
                    self.interrupt()
                if cfg.TRAIN.SAVE_STEPS and self.step % cfg.TRAIN.SAVE_STEPS == 0 and self.step < end:
                    self.save()

    def train_step(self, batch: dict[str, dict]) -> dict[str, float]:
        """One step of the optimizer; returns the losses, the gradient norm before clipping and the learning rate.

        Raises:
            RunError: loss or gradient is not finite; raised on every rank, before the optimizer moves.
        """
        cfg = self.cfg.TRAIN
        lr = optim.set_lr(self.optimizer, optim.lr_factor(self.step, cfg, self.steps_per_epoch, self.total_steps))
        moment = Step(self.step, self.epoch, self.step / max(1, self.total_steps - 1))
        sums: dict[str, torch.Tensor] = {}
        for i in range(cfg.ACCUMULATE):
            part = to_device(part_of(batch, i, cfg.ACCUMULATE), self.device)
            with self._exchanging(i == cfg.ACCUMULATE - 1):
                with self.autocast():
                    losses = self.network(part, moment)
                self.scaler.scale(losses["total"] / cfg.ACCUMULATE).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() / cfg.ACCUMULATE
        self.scaler.unscale_(self.optimizer)
        sums["grad_norm"] = optim.gradient_norm(self.parameters, cfg.CLIP).float()
        numbers = torch.stack(list(sums.values())).tolist()  # the one wait for the device in a step
        values = dict(zip(sums, numbers, strict=True))
        self._check_finite(values, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {**values, "lr": lr}

    def end_epoch(self) -> None:
        """Evaluates when it is due, keeps the best weights and their scores, saves the last state."""
        if self.evaluation_due():
            if not self.saved:  # best weights without a checkpoint could not be gone on from
                self.save()
            evaluation = self.evaluate(self.cfg.DEBUG.FIGURES if self.folder else 0)
            self.evaluated_step = self.step
            self._judge(evaluation)
        self.save()

    def evaluation_due(self) -> bool:
        """True at the end of training and of every EVAL_EVERY-th epoch, until the weights of that step were judged."""
        every = self.cfg.TRAIN.EVAL_EVERY * self.steps_per_epoch
        in_between = every > 0 and self.step % every == 0
        return self.step != self.evaluated_step and (self.step >= self.total_steps or in_between)

    def _exchanging(self, last: bool):
        """Ranks exchange gradients once a step, with its last part."""
        return nullcontext() if last or self.world.size == 1 else self.network.no_sync()

    def _check_finite(self, values: dict[str, float], batch: dict[str, dict]) -> None:
        # fp16 gradients overflow now and then: the scaler skips such a step by itself
        checked = ("total",) if self.scaler.is_enabled() else ("total", "grad_norm")
        bad = any(not math.isfinite(values[name]) for name in checked)
        any_bad, self.stopping = self.world.any(bad, self.signals.requested)
        if any_bad:
            ids = {name: part["id"].tolist() for name, part in batch.items()} if bad else {}
            raise not_finite(self.step, self.epoch, self.world.gather(values), self.world.gather(ids))

    # ---------------------------------------------------------------- evaluation

    def evaluate(self, figures: int = 0) -> Evaluation:
        """Judges the current weights on every evaluation set; the scores are the same on every rank.

        Pictures of up to `figures` samples are drawn on the main one.
        """
        limit = 1 if self.overfit or self.dry_run else None
        self.world.share_buffers(self.task)
        was_training = self.task.training
        self.task.eval()
        try:
            with distributed.kept_rng(self.device), torch.no_grad():
                if self.eval_sets is None:
                    self.eval_sets = self.task.eval_data()
                sets = self.eval_sets.items()
                return Evaluation({name: evaluate_set(self, name, data, limit, figures) for name, data in sets})
        finally:
            self.task.train(was_training)

    def _judge(self, evaluation: Evaluation) -> None:
        """Logs the scores and, when they are the best so far, writes weights, results.json and predictions.npz."""
        epoch = max(0, self.step - 1) // self.steps_per_epoch
        metric, direction = self.task.key_metric
        self.log.event("eval", self.step, epoch, evaluation.flat())
        self.log.pictures(evaluation.pictures(), self.step)
        value = evaluation.value(metric)
        if is_better(value, self.best["value"] if self.best else None, direction):
            self.best = {"metric": metric, "value": value, "step": self.step, "epoch": epoch}
            self.results = self.result_dict(evaluation)
            if self.folder is not None and self.world.is_main:
                best = self.folder / run_dir.BEST
                checkpoint.save(best, checkpoint.weights_of(checkpoint.state_of(self)))
                run_dir.write_scores(self.folder, self.results, best, evaluation.predictions())
        best = f"best {metric} {self.best['value']:.4g} of epoch {self.best['epoch']}"
        self.log.info(f"Epoch: [{epoch}]\t{evaluation.line()}\t{best}")

    def result_dict(self, evaluation: Evaluation) -> dict:
        """What results.json holds, but for name and hash of the weights' file."""
        return {
            **run_dir.results(self.cfg, evaluation.results(), self.number_format, self.task.protocol()),
            "step": self.step,
            "seconds": round(self.log.seconds, 1),
            "skeleton": self.task.pose_skeleton,
            "facts": self.task.facts(),
        }

    # ---------------------------------------------------------------- opening, saving, resuming, ending

    def _open_run(self) -> dict | None:
        """Checks the run directory; the state to go on from, or None."""
        folder, self.source = self.folder, None
        if folder is not None:
            self.source = self.world.on_main(lambda: run_dir.check(folder, self.cfg))
        elif self.cfg.MODEL.RESUME and not self.overfit:
            self.source = Path(self.cfg.MODEL.RESUME)
        state = checkpoint.load(self.source) if self.source else None
        if state is not None:
            run_dir.check_state(state, self.cfg, self.world.size, self.source)
            if folder is not None and self.source.resolve().parent != folder.resolve():
                state["best"] = None  # its best weights are in its own folder
        return state

    def _last_step(self) -> int:
        if self.overfit:
            return self.cfg.TRAIN.MAX_STEPS or OVERFIT_STEPS
        return min(self.cfg.TRAIN.END_EPOCH * self.steps_per_epoch, self.cfg.TRAIN.MAX_STEPS or sys.maxsize)

    def _is_finished(self, state: dict) -> bool:
        """Was this run trained to its end? Told before any data is read."""
        self.steps_per_epoch, self.best = state["steps_per_epoch"], state["best"]
        self.step, self.total_steps = state["step"], self._last_step()
        return not self.dry_run and self.step >= self.total_steps and self.step == state["evaluated_step"]

    def _open_training(self, state: dict | None) -> None:
        """Data, optimizer, and the state they had."""
        cfg = self.cfg
        self.train_sets, self.eval_sets = self.task.train_data(), self.task.eval_data()
        for name, dataset in {**self.eval_sets, **self.train_sets}.items():
            if len(dataset) == 0:
                raise DataError(f"set {name!r} holds no samples; check DATASET.ROOT, its split, VIEWS and frame step")
        for dataset in self.eval_sets.values():  # what cannot be judged is told now, not after the training
            self.task.judge(dataset)
        per_process = cfg.TRAIN.BATCH_SIZE * cfg.TRAIN.ACCUMULATE
        for dataset in self.train_sets.values():  # now, not when the loader starts: a run that cannot begin leaves no folder
            check_batch(len(dataset), per_process, self.world.size)
        self.global_batch = per_process * self.world.size
        first = next(iter(self.train_sets.values()))
        self.steps_per_epoch = steps_per_epoch(len(first), self.global_batch, getattr(first, "least", 1))
        self.step, self.total_steps = cfg.TRAIN.BEGIN_EPOCH * self.steps_per_epoch, self._last_step()
        if self.step < self.total_steps:
            self.evaluated_step = self.step  # the first weights need no judgement
        groups = self.task.param_groups()
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = optim.build_optimizer(groups, cfg.TRAIN)
        distributed.seed_all(cfg.SEED, self.world.rank)  # from here on each rank draws its own
        if state is not None:
            checkpoint.restore(self, state)
        if self.dry_run:
            self.total_steps = self.step + 1
        self.network = self.task
        if self.world.size > 1:
            devices = None if self.device.type == HOST.type else [self.device]
            # a rank may have nothing to do in a branch of the task, so unused parameters are looked for
            self.network = DistributedDataParallel(self.task, device_ids=devices, find_unused_parameters=True)

    def save(self) -> None:
        """Writes checkpoint.pth.tar: everything that an exact resume needs."""
        if self.folder is None:
            return
        rng = self.world.gather(distributed.rng_state(self.device))
        if self.world.is_main:
            checkpoint.save(self.folder / run_dir.LAST, {**checkpoint.state_of(self), "rng": rng})
        self.saved = True

    def _batches(self) -> Iterator[dict[str, dict]]:
        steps, pin = 1 if self.overfit else self.total_steps - self.step, self.device.type != HOST.type
        batches = training_batches(self.cfg, self.train_sets, self.step, steps, self.world.rank, self.world.size, pin)
        return repeat(next(batches)) if self.overfit else batches

    def _next(self, batches: Iterator[dict[str, dict]]) -> dict[str, dict]:
        try:
            return next(batches)
        except RuntimeError as error:  # the signal may have gone to the data workers as well, which end at once
            if not self.signals.requested:
                raise
            if self.world.size > 1:  # the others may be in the middle of a step
                raise RunError(f"stopped by a signal, together with the data workers; {self._how_to_go_on()}") from error
            self.interrupt()

    def interrupt(self) -> None:
        """Saves and ends the run by raising Interrupted."""
        self.save()
        raise Interrupted(f"stopped after step {self.step} of {self.total_steps}; {self._how_to_go_on()}")

    def _how_to_go_on(self) -> str:
        """How a run that ends here is taken up again."""
        if self.folder is None:
            return "nothing was written"
        last = self.folder / run_dir.LAST
        if last.exists():
            return f"go on from {last} with TRAIN.RESUME true"
        return "no checkpoint was written yet: the same command with TRAIN.RESUME true starts anew"

    @contextmanager
    def _together(self) -> Iterator[None]:
        """The end of another process ends this one with a message, not with the traceback of whatever waited for it."""
        try:
            yield
        except RuntimeError as error:
            if not self.world.lost(error):
                raise
            reason = str(error).strip().split("\n")[0]
            raise RunError(
                f"another process of this run has ended or cannot be reached, its own message tells why; {self._how_to_go_on()} "
                f"({reason[:200]})"
            ) from error

    def _finish(self, model: dict, trained: bool) -> dict:
        """Bare weights of the last step, the table of the best ones, and where everything is."""
        if not trained:
            ended = self.cfg.TRAIN.SCHEDULE == "cosine"  # of another number of steps it would be another curve
            longer = "train longer from MODEL.PRETRAINED, in another EXP_NAME" if ended else "raise TRAIN.END_EPOCH (or MAX_STEPS) to go on"
            self.log.info(f"finished already, at step {self.step}; {longer}")
        if self.folder is not None:
            if self.world.is_main and (trained or not (self.folder / run_dir.FINAL).exists()):
                checkpoint.save(self.folder / run_dir.FINAL, model)
            if not self.results:  # the best weights are of before the restart
                self.results = self.world.on_main(lambda: run_dir.read_results(self.folder))
        if self.results:
            self.log.info(f"scores of the best weights, step {self.results['step']}:\n{run_dir.table(self.results)}")
        if self.folder is None:
            self.log.info("nothing was written")
        else:
            written = {"results": self.folder / run_dir.RESULTS, "weights": self.folder / run_dir.BEST}
            lines = [f"{what}: {path}" for what, path in written.items() if path.exists()]
            self.log.info("\n".join(lines or [f"{self.folder}: nothing was judged"]))
        return self.results

    def _announce(self) -> None:
        """What a reader of train.log must know before the first step."""
        train, millions = self.cfg.TRAIN, sum(p.numel() for p in self.parameters) / 1e6
        sets = ", ".join(f"{name} {len(data)}" for name, data in {**self.train_sets, **self.eval_sets}.items())
        processes = f"{self.world.size} x {self.device}"
        self.log.info(f"task {self.cfg.TASK}: {millions:.2f} M trained parameters, {self.number_format}, {processes}")
        self.log.info(
            f"samples: {sets}; global batch {self.global_batch} = {train.BATCH_SIZE} x {train.ACCUMULATE} accumulated "
            f"x {self.world.size} processes; {self.steps_per_epoch} steps an epoch, {self.total_steps} in all"
        )
        if self.source is not None:
            self.log.info(f"goes on from {self.source} at step {self.step}")

    def _log_steps(self, meter: Meter, epoch: int, done: int, bar) -> None:
        mean = Meter.mean(self.world.gather(meter.state()))
        self.log.steps(mean, self.global_batch, self.step, epoch, f"{done}/{self.steps_per_epoch}", bar)
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise RunError(f"step {self.step}: fp16 gradients stay infinite at any scale; use AMP bf16 or off")
