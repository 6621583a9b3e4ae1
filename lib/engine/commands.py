"""What scripts/train.py and scripts/valid.py do once their arguments are read, and how every script ends."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from lib.dataset import write_predictions
from lib.engine import run_dir
from lib.engine.batches import overfit_config
from lib.engine.distributed import start
from lib.engine.logger import log, open_console
from lib.engine.signals import Interrupted
from lib.engine.trainer import Trainer
from lib.errors import INTERRUPTED, ParallaxError, WeightsError
from lib.registry import resolve
from lib.report import try_report
from lib.tasks import TASKS, build
from lib.tasks.restore import adopt
from lib.weights.load import read


def train(cfg, overfit: bool = False, dry_run: bool = False) -> dict:
    """Trains the experiment of a configuration in its run directory; returns what results.json holds.

    Whatever can be told from configuration and files is checked before data is read.
    """
    if overfit:
        cfg = overfit_config(cfg, resolve(TASKS, cfg.TASK, key="TASK").overfit(cfg))
    cfg.check_paths()
    folder = run_dir.run_path(cfg)
    world = start(cfg)
    try:
        if not (overfit or dry_run):
            world.on_main(lambda: run_dir.check(folder, cfg))
        results = Trainer(cfg, build(cfg), folder, world, overfit, dry_run).fit()
        if world.is_main and not (overfit or dry_run):
            report = try_report(folder)
            if report is not None:
                log.info(f"report:  {report}")
        return results
    finally:
        world.close()


def validate(cfg) -> dict:
    """Judges MODEL.RESUME, or the best weights of the run of this configuration; returns what results.json holds.

    Writes results.json, predictions.npz, figures/ and the file that the data set's own evaluation reads, where it has one, into
    `valid-<name of the weights>/` inside the run directory, so that nothing of a training is overwritten. A second call for the same
    weights replaces the first one's files; other weights of that name get a folder of their own, which also names the beginning of
    their hash.
    """
    cfg.check_paths(unless=("MODEL.PRETRAINED", "MODEL.INIT_FILE", "EPIPOLAR.TEACHER"))  # training alone needs them
    run = run_dir.run_path(cfg)
    weights = Path(cfg.MODEL.RESUME) if cfg.MODEL.RESUME else run / run_dir.BEST
    if not weights.is_file():
        raise WeightsError(f"{weights}: no such file; train first, or give the weights to judge as MODEL.RESUME FILE")
    world = start(cfg)
    try:
        folder = world.on_main(lambda: run_dir.validation_path(run, weights))
        world.on_main(lambda: run_dir.check_writable(folder))
        task = build(cfg.with_values({"MODEL.PRETRAINED": "", "MODEL.INIT_FILE": "", "MODEL.INIT_WEIGHTS": False}))
        adopt(task, read(weights))
        trainer = Trainer(cfg, task, world=world, frozen=cfg.TEST.FREEZE)
        evaluation = trainer.evaluate(cfg.DEBUG.FIGURES)
        results = trainer.result_dict(evaluation)
        log.info(run_dir.table(results))
        if world.is_main:
            run_dir.write_scores(folder, results, weights, evaluation.predictions())
            run_dir.write_pictures(folder, evaluation.pictures())
            extra = write_predictions(cfg.DATASET.DATASET, folder, evaluation.predictions())
            if extra is not None:
                log.info(f"for the data set's own evaluation: {extra}")
        log.info(f"results: {folder / run_dir.RESULTS}")
        return results
    finally:
        world.close()


def run(main: Callable[[], object]) -> None:
    """Ends the process as `main` ends: status 2 and one message for errors a user can mend, 130 after Ctrl-C."""
    open_console(os.environ.get("RANK", "0") == "0")
    try:
        main()
    except Interrupted as stop:
        log.info(str(stop))
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        log.info("stopped")
        sys.exit(INTERRUPTED)
    except ParallaxError as error:
        rank = int(os.environ.get("RANK", 0))
        if rank == 0 or not error.shared:  # what only this process has met nobody else can say
            print(f"error: {f'rank {rank}: ' if rank else ''}{error}", file=sys.stderr)
        sys.exit(2)
