"""The YAML files of EpipolarPose's release load unchanged: what is known here is read, the rest is named in one warning.

Written after the keys and values that are documented of the six files; texts and order are ours.
"""

import logging

import pytest

from lib.config import load
from lib.tasks import data
from tests.conftest import ROOT

HEAD = """
GPUS: '0'
DATA_DIR: ''
OUTPUT_DIR: 'output'
LOG_DIR: 'log'
WORKERS: 8
PRINT_FREQ: 100
"""
MODEL = """
MODEL:
  NAME: pose3d_resnet
  {weights}
  IMAGE_SIZE:
  - 256
  - 256
  NUM_JOINTS: {joints}
  DEPTH_RES: 64
  VOLUME: true
  EXTRA:
    TARGET_TYPE: 'gaussian'
    HEATMAP_SIZE:
    - 64
    - 64
    SIGMA: 2
    FINAL_CONV_KERNEL: 1
    DECONV_WITH_BIAS: false
    NUM_DECONV_LAYERS: 3
    NUM_DECONV_FILTERS:
    - 256
    - 256
    - 256
    NUM_DECONV_KERNELS:
    - 4
    - 4
    - 4
    NUM_LAYERS: 50
"""
TRAIN = """
TRAIN:
  BATCH_SIZE: 32
  SHUFFLE: true
  BEGIN_EPOCH: 0
  END_EPOCH: 140
  RESUME: false
  OPTIMIZER: 'adam'
  LR: 0.001
  LR_FACTOR: 0.1
  LR_STEP:
  - 90
  - 120
  WD: 0.0001
  GAMMA1: 0.99
  GAMMA2: 0.0
  MOMENTUM: 0.9
  NESTEROV: false
TEST:
  BATCH_SIZE: 32
  COCO_BBOX_FILE: ''
  BBOX_THRE: 1.0
  FLIP_TEST: {flip}
  IMAGE_THRE: 0.0
  IN_VIS_THRE: 0.2
  MODEL_FILE: ''
  NMS_THRE: 1.0
  OKS_THRE: 0.5
  USE_GT_BBOX: true
  POST_PROCESS: true
DEBUG:
  DEBUG: false
  SAVE_BATCH_IMAGES_GT: false
  SAVE_BATCH_IMAGES_PRED: false
  SAVE_HEATMAPS_GT: false
  SAVE_HEATMAPS_PRED: false
"""
H36M = """
DATASET:
  DATASET: h36m
  ROOT: 'data/h36m/'
  TRAIN_SET: {train}
  TEST_SET: valid
  NUM_CAMS: 4
  MPII_ORDER: {order}
  OCCLUSION: true
  FLIP: false
  TRI: false
  VOC: 'data/VOC2012/'
  ROT_FACTOR: 30
  SCALE_FACTOR: 0.25
  BG_AUG: false
LOSS:
  FN: SmoothL1JointLocationLoss
  USE_TARGET_WEIGHT: true
  NORM: false
"""
MPII = """
DATASET:
  DATASET: mpii
  ROOT: 'data/mpii/'
  TRAIN_SET: train
  TEST_SET: valid
  DATA_FORMAT: jpg
  OCCLUSION: false
  FLIP: false
  ROT_FACTOR: 30
  SCALE_FACTOR: 0.25
LOSS:
  USE_TARGET_WEIGHT: true
"""
START, JUDGE = "PRETRAINED: 'models/mpii/{}.pth.tar'", "RESUME: 'models/{}.pth.tar'"
FILES = {
    "h36m/train": H36M.format(train="train-fs", order="false")
    + MODEL.format(joints=17, weights=START.format("mpii_integral")) + TRAIN.format(flip="false"),
    "h36m/train-ss": H36M.format(train="train-ss", order="true")
    + MODEL.format(joints=16, weights=START.format("mpii_integral")) + TRAIN.format(flip="false"),
    "h36m/valid": H36M.format(train="train-fs", order="false")
    + MODEL.format(joints=17, weights=JUDGE.format("h36m/fully_supervised")) + TRAIN.format(flip="false"),
    "h36m/valid-ss": H36M.format(train="train-ss", order="true")
    + MODEL.format(joints=16, weights=JUDGE.format("h36m/self_supervised_with_rt")) + TRAIN.format(flip="false"),
    "mpii/train": MPII + MODEL.format(joints=16, weights=START.format("mpii_heatmap")) + TRAIN.format(flip="false"),
    "mpii/valid": MPII + MODEL.format(joints=16, weights=JUDGE.format("mpii/mpii_integral")) + TRAIN.format(flip="true"),
}  # fmt: skip


@pytest.fixture(params=FILES)
def published(request, tmp_path, caplog):
    """(name, configuration, warnings) of one of the six."""
    path = tmp_path / (request.param.replace("/", "-") + ".yaml")
    path.write_text(HEAD + FILES[request.param])
    with caplog.at_level(logging.WARNING, "parallax"):
        cfg = load(path)
    return request.param, cfg, [r.getMessage() for r in caplog.records]


def test_a_published_file_loads_with_one_warning(published):
    name, cfg, said = published
    assert len(said) == 1 and "ignored: nothing reads GPUS, DATA_DIR, LOG_DIR" in said[0]
    for key in ("MPII_ORDER", "VOC", "OCCLUSION", "NUM_DECONV", "FLIP_TEST", "NORM"):
        assert key not in said[0], "a key with a meaning here must not be ignored"
    assert cfg.TASK == "integral" and cfg.MODEL.EXTRA.NUM_LAYERS == 50 and cfg.TRAIN.LR_STEP == (90, 120)
    assert data.skeleton_name(cfg) == ("h36m17" if name in ("h36m/train", "h36m/valid") else "mpii16")
    assert cfg.TEST.FLIP_TEST is (name == "mpii/valid")


def test_ours_of_the_same_name_mean_the_same(published):
    name, cfg, _ = published
    ours = load(ROOT / "experiments" / f"{name}.yaml")
    same = ("DATASET.DATASET", "DATASET.TEST_SET", "DATASET.MPII_ORDER", "DATASET.OCCLUSION", "DATASET.FLIP", "MODEL.NUM_JOINTS",
            "MODEL.IMAGE_SIZE", "MODEL.DEPTH_RES", "MODEL.VOLUME", "MODEL.RESUME", "LOSS.FN", "LOSS.NORM", "TRAIN.BATCH_SIZE", "TRAIN.LR",
            "TRAIN.LR_STEP", "TRAIN.LR_FACTOR", "TRAIN.END_EPOCH", "TRAIN.OPTIMIZER", "TEST.FLIP_TEST", "WORKERS")  # fmt: skip
    flat, other = ours.flat(), cfg.flat()
    assert {k: flat[k] for k in same} == {k: other[k] for k in same}
    assert ours.MODEL.EXTRA == cfg.MODEL.EXTRA
    if not cfg.MODEL.RESUME:
        assert ours.MODEL.PRETRAINED == cfg.MODEL.PRETRAINED and ours.DATASET.TRAIN_SET == cfg.DATASET.TRAIN_SET
