"""Loading: the batch of a step depends on (seed, step) alone; ranks share a global batch; errors of workers stay
readable.
"""

import numpy as np
import pytest
import torch

from lib.dataset.augment import Augment
from lib.dataset.image import ImageSpec
from lib.dataset.loader import Key, StepSampler, collate, eval_loader, make_loader, steps_per_epoch, to_device
from lib.dataset.occluders import procedural_occluders
from lib.dataset.samples import CropSamples, ViewSamples
from lib.errors import DataError
from lib.geometry.camera import Cameras
from tests.tiny_dataset import make, rig, write_images

SPEC = ImageSpec(size=(32, 32))
WILD = Augment(scale=0.25, rot_deg=30, rot_prob=0.6, color=0.2, flip_prob=0.5, occluders=procedural_occluders(0, 4))


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    ann = make(sequences=2, frames=3)
    write_images(ann, root)
    return CropSamples(ann, root, SPEC, WILD, seed=7)


def steps(sampler: StepSampler) -> list[list[Key]]:
    return list(sampler)


def same(a: dict, b: dict) -> bool:
    def equal(x, y):
        return equal(x.K, y.K) and equal(x.t, y.t) if isinstance(x, Cameras) else torch.equal(x, y)

    return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)


def test_every_epoch_shows_every_sample_and_wraps_to_fill_its_last_batch():
    n, batch = 10, 4
    per_epoch = steps_per_epoch(n, batch)
    assert per_epoch == 3
    keys = steps(StepSampler(n, batch, seed=1, num_steps=2 * per_epoch))
    for epoch in (0, 1):
        part = [k for step in keys[epoch * per_epoch : (epoch + 1) * per_epoch] for k in step]
        assert all(k.epoch == epoch for k in part) and len(part) == 12
        indices = [k.index for k in part]
        assert sorted(indices[:n]) == list(range(n)) and indices[n:] == indices[:2]
    assert keys[0] != [Key(k.index, 0) for k in keys[per_epoch]]  # another order in the next epoch
    plain = steps(StepSampler(n, batch, num_steps=3, shuffle=False))
    assert [k.index for step in plain for k in step] == [*range(10), 0, 1]


def test_a_later_start_continues_the_same_sequence():
    whole = steps(StepSampler(10, 4, seed=1, num_steps=9))
    for start in (0, 2, 3, 7):
        assert steps(StepSampler(10, 4, seed=1, start_step=start, num_steps=9 - start)) == whole[start:]
    endless = iter(StepSampler(10, 4, seed=1))
    assert [next(endless) for _ in range(9)] == whole
    assert steps(StepSampler(10, 4, seed=2, num_steps=9)) != whole


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_partition_the_global_batch(world):
    whole = steps(StepSampler(20, 2 * world, seed=3, num_steps=7))
    ranks = [steps(StepSampler(20, 2, seed=3, num_steps=7, rank=r, world=world)) for r in range(world)]
    for step, keys in enumerate(whole):
        assert [k for r in range(world) for k in ranks[r][step]] == keys


@pytest.mark.parametrize("views", [False, True], ids=["crops", "views"])
def test_worker_processes_change_nothing(crops, views):
    data = ViewSamples(crops.ann, crops.root, SPEC, pairs="random_neighbours", augment=WILD, seed=7) if views else crops
    batches = [list(make_loader(data, 3, seed=1, workers=workers, num_steps=9)) for workers in (0, 2)]
    assert len(batches[0]) == 9 and all(same(a, b) for a, b in zip(*batches, strict=True))


def test_a_loader_resumed_in_mid_epoch_gives_the_same_batches(crops):
    whole = list(make_loader(crops, 5, seed=1, num_steps=8))  # 5 steps per epoch
    resumed = list(make_loader(crops, 5, seed=1, start_step=3, num_steps=5, workers=1))
    assert all(same(a, b) for a, b in zip(whole[3:], resumed, strict=True))
    assert not torch.equal(whole[0]["image"], whole[5]["image"])


def test_starting_a_loader_leaves_the_random_state_of_training_alone(crops):
    before = torch.get_rng_state()
    next(iter(make_loader(crops, 2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_sees_every_sample_once_whatever_the_ranks(crops):
    ids = [[b["id"].tolist() for b in eval_loader(crops, 5, rank=r, world=3)] for r in range(3)]
    assert [len(b) for b in ids[0]] == [5, 3] and ids[1][0] == [1, 4, 7, 10, 13]
    assert sorted(i for rank in ids for batch in rank for i in batch) == list(range(24))
    assert [b["id"].tolist() for b in eval_loader(crops, 30, workers=1)] == [list(range(24))]
    assert list(eval_loader(crops, 5, rank=24, world=25)) == []


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: StepSampler(0, 4), "training set is empty"),
        (lambda: StepSampler(20, 32), "20 samples, fewer than one batch of 32.*TRAIN.BATCH_SIZE to 20"),
        (lambda: StepSampler(20, 16, world=2), "batch of 32 \\(16 on each of 2 processes\\).*TRAIN.BATCH_SIZE to 10"),
        (lambda: StepSampler(20, 0), "batch size 0"),
        (lambda: StepSampler(20, 4, rank=2, world=2), "rank 2 of 2"),
        (lambda: eval_loader([], 4), "evaluation set is empty"),
    ],
)
def test_sizes_that_cannot_work_are_refused(build, message):
    with pytest.raises(DataError, match=message):
        build()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_image_is_told_in_one_clear_message(crops, workers, tmp_path):
    data = CropSamples(crops.ann, tmp_path, SPEC)
    with pytest.raises(DataError) as caught:
        next(iter(make_loader(data, 2, workers=workers)))
    text = str(caught.value)
    assert text.startswith(str(tmp_path)) and "no such image" in text and "Traceback" not in text and "\n" not in text


def test_collate_stacks_samples_of_any_dataset():
    samples = [
        {"a": 1.5, "n": 3, "ok": True, "x": torch.ones(2), "y": np.zeros(3, np.float32), "c": rig()[i]}
        for i in range(2)
    ]
    batch = collate([{**s, "inner": {"z": torch.zeros(())}} for s in samples])
    assert batch["a"].dtype == torch.float32 and batch["n"].dtype == torch.int64 and batch["ok"].dtype == torch.bool
    assert batch["x"].shape == (2, 2) and batch["y"].shape == (2, 3) and batch["c"].shape == (2,)
    assert batch["inner"]["z"].shape == (2,) and collate(batch) is batch
    moved = to_device(batch, torch.device("cpu"))
    assert moved["inner"]["z"].device == moved["c"].device == torch.device("cpu") and moved.keys() == batch.keys()
    with pytest.raises(DataError, match="holds str"):
        collate(["text"])


def test_len_of_a_training_loader_is_its_number_of_steps(crops):
    assert len(make_loader(crops, 4, num_steps=11)) == 11
    with pytest.raises(TypeError, match="endless"):
        len(StepSampler(24, 4))
