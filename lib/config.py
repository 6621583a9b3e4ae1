"""The configuration: one typed tree of defaults, YAML files and command-line overrides on top, then frozen.

    cfg = load("experiments/h36m/train.yaml", ["TRAIN.LR", "1e-4", "MODEL.IMAGE_SIZE=[256,192]"])
    cfg.TRAIN.LR                                   # attributes, as with any EasyDict; lists are tuples
    raise cfg.error("TRAIN.LR", "too large")       # experiments/h36m/train.yaml:12: TRAIN.LR: too large

`TREE` is the one place that knows a key: its default gives the type, its text the documentation (docs/config.md
is `python -m lib.config`), its check the range. lib/schema.py reads the files.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from easydict import EasyDict

from lib.errors import ConfigError
from lib.registry import nearest
from lib.schema import Check, Group, Key, Schema, Setting, fit, fit_below, read_arguments, read_file, shown

log = logging.getLogger("parallax")


def at_least(low: float) -> Check:
    return Check(lambda v: v >= low, f"at least {low}")


def between(low: float, high: float) -> Check:
    return Check(lambda v: low <= v <= high, f"{low} to {high}")


def each(holds: Callable[[Any], bool], words: str, length: int | None = None) -> Check:
    return Check(lambda v: (length is None or len(v) == length) and all(holds(e) for e in v), words)


POSITIVE = Check(lambda v: v > 0, "more than 0")
MACHINE_PARTS = ("trunk", "head2d", "lifter", "regressor", "projector")
FRACTION = Check(lambda v: 0 <= v <= 1, "between 0 and 1")
CROP_SIZE = each(lambda e: e > 0 and e % 16 == 0, "[width, height], both positive multiples of 16", 2)
PICTURE_SIZE = each(lambda e: e > 0, "[width, height], both positive", 2)
WIDTHS = each(lambda e: e > 0, "positive whole numbers")
FROM_TO = Check(lambda v: len(v) == 2 and 0 < v[0] <= v[1], "two positive numbers, the smaller one first")
CAMERAS = Check(lambda v: all(e >= 0 for e in v) and len(set(v)) == len(v), "different camera indices, counted from 0")
EPOCHS = Check(lambda v: all(a < b for a, b in zip((0, *v), v, strict=False)), "increasing epochs, the first after 0")
DEVICE = Check(lambda v: re.fullmatch(r"[a-z]+(:\d+)?", v) is not None, "auto, or the name of a torch device")

WEIGHTS_HELP = "train what makes it first (OUTPUT_DIR/<dataset>/<model>/<name of its YAML>/), or see models/README.md for the download"

# ---------------------------------------------------------------------------------------------------------- the tree

TREE = Group("", {
    "TASK": Key("integral", "What is trained and how it is judged: a network on annotated joints (integral), or on "
                "joints that are triangulated from a frozen 2D network in several views (epipolar), a small "
                "network that cleans the 3D poses of another one (refine), a network that lifts 2D keypoints over time "
                "(temporal), a network on crops with and without 3D labels (fusion), one on clips of pictures whose poses are corrected by "
                "what is seen (machine), or networks that find several people in the space "
                "before several cameras, from 3D labels (voxelpose) or without any (selfpose3d), or from 2D detections and scenes that are "
                "made up (scenes).",
                choices=(
                    "integral", "epipolar", "refine", "temporal", "fusion", "machine", "voxelpose", "selfpose3d", "scenes")),
    "EXP_NAME": Key("", "Last folder of the run directory; empty = the name of the YAML file."),
    "OUTPUT_DIR": Key("output", "Folder that holds all runs: OUTPUT_DIR/dataset/model/EXP_NAME."),
    "SEED": Key(0, "Seed of the weights, the order of the samples and their augmentation.", between(0, 2**32 - 1)),
    "DEVICE": Key("auto", "Where to compute; auto = a GPU if there is one, else the CPU.", DEVICE),
    "WORKERS": Key(4, "Processes that prepare samples, per training process; 0 = none.", at_least(0)),
    "PRINT_FREQ": Key(20, "Steps between two lines of the log.", at_least(1)),
    "AMP": Key("off", "Mixed precision; auto = bf16 where the device computes it fast, else off.",
               choices=("off", "bf16", "fp16", "auto"), alias={False: "off"}),  # YAML reads a bare `off` as false
    "CHANNELS_LAST": Key(True, "Keep images and feature maps in channels-last memory order (faster convolutions)."),
    "COMPILE": Key(False, "Compile the networks with torch.compile; slower start, faster steps."),
    "DETERMINISTIC": Key(False, "Use deterministic algorithms only, so that runs on a GPU repeat bit by bit."),
    "THREADS": Key(0, "Threads of torch per process; 0 = torch's own choice.", between(0, 4096)),
    "DATASET": Group("What is learned from, how a person is cropped, and how samples are varied.", {
        "DATASET": Key("synthetic", "Name of the data format, a file of lib/dataset/formats."),
        "ROOT": Key("data/synthetic", "Folder of the data; the embedded world is generated into it when missing."),
        "TRAIN_SET": Key("train", "Split that is trained on."),
        "TEST_SET": Key("valid", "Split that is evaluated."),
        "SKELETON": Key("", "Joint set that the annotations are converted to; empty = that of the files."),
        "MPII_ORDER": Key(False, "Learn and judge the 16 joints of MPII, whatever the files hold; short for SKELETON mpii16."),
        "SUBJECTS": Key([], "Names of the subjects that are trained on; empty = all of TRAIN_SET.", of=str),
        "VIEWS": Key([], "Indices of the cameras that are used; empty = all.", CAMERAS),
        "ALLOW_MISSING": Key(False, "Keep instants of whole frames that lack a view, which is then black and shows nobody (TASK voxelpose, "
                             "selfpose3d); false = leave them out, and count them in the report."),
        "OPTIONS": Key({}, "Further arguments of the format's `read` function, by name; unknown ones are an error."),
        "DEPTH_RANGE": Key(2000.0, "Millimetres that the depth bins span, centred on the root joint.", POSITIVE),
        "BOX_SCALE": Key(1.0, "Factor on each person's box, widened to the shape of MODEL.IMAGE_SIZE, before it is cropped.", POSITIVE),
        "BOX_FIT": Key("around", "How boxes get that shape: the smallest around them, or the largest within (TASK integral, epipolar, "
                       "fusion and machine).",
                       choices=("around", "within")),
        "TRAIN_FRAME": Key(1, "Keep every n-th frame of the training split.", at_least(1)),
        "VAL_FRAME": Key(1, "Keep every n-th frame of the evaluated split.", at_least(1)),
        "FLIP": Key(True, "Mirror training samples at random."),
        "FLIP_PROB": Key(0.5, "Probability of the mirror.", FRACTION),
        "SCALE_FACTOR": Key(0.25, "Spread of the random crop scale, as a fraction of the box; 0 = off.", FRACTION),
        "ROT_FACTOR": Key(30.0, "Spread of the random crop rotation, in degrees; 0 = off.", at_least(0)),
        "ROT_PROB": Key(0.6, "Probability of the rotation.", FRACTION),
        "COLOR_FACTOR": Key(0.2, "Spread of the random factor on each colour channel; 0 = off.", FRACTION),
        "OCCLUSION": Key(False, "Paste objects over training samples."),
        "VOC": Key("", "Folder of Pascal VOC 2012, whose objects are pasted; empty or missing = made-up objects."),
        "CACHE": Key("", "Folder of a cache of person crops, which training then reads in place of whole images; auto = .crops in "
                     "ROOT, empty = none. It follows changed boxes and images by itself; evaluation never reads it."),
        "CACHE_SIZE": Key(384, "Longer side of a cached crop, in pixels; smaller ones are kept as they are.", at_least(32)),
        "CACHE_MARGIN": Key(1.5, "Side of a cached crop, as a factor on the box; what augmentation shows beyond comes from a second crop, "
                            "1.2 times as wide, or from the whole image.", at_least(1)),
        "Z_WEIGHT": Key(1.0, "Weight of the depth coordinate in the loss.", at_least(0)),
    }),
    "MODEL": Group("The network, and the weights it starts from.", {
        "NAME": Key("pose3d_resnet", "Name of the network, an entry of lib.models.MODELS."),
        "NUM_JOINTS": Key(17, "Joints that the network predicts; must fit the skeleton of the data.", at_least(1)),
        "IMAGE_SIZE": Key([256, 256], "Width and height of the crop, in pixels; for a ResNet of four stages multiples of 32.", CROP_SIZE),
        "DEPTH_RES": Key(64, "Depth bins of the volume or of the depth vector.", at_least(1)),
        "HEAD": Key("auto", "Output per joint: a volume, a heatmap, or a heatmap and a depth vector; "
                    "auto = volume if VOLUME, else heatmap_depth.",
                    choices=("auto", "volume", "heatmap", "heatmap_depth")),
        "VOLUME": Key(True, "Predict a volume rather than a heatmap and a depth vector; read when HEAD is auto."),
        "PRETRAINED": Key("", "Weights that the model starts from, in any published form.", path=WEIGHTS_HELP),
        "RESUME": Key("", "Checkpoint that training continues, or that is evaluated.", path=WEIGHTS_HELP),
        "INIT_WEIGHTS": Key(True, "Start the backbone from ImageNet weights when PRETRAINED is empty."),
        "INIT_FILE": Key("", "Local file of those ImageNet weights (torchvision's ResNet), used without network.",
                         path=WEIGHTS_HELP),
        "INFLATE": Key(0.0, "More than 0: a 2D heatmap head found in PRETRAINED is repeated over the depth bins, times "
                       "this gain; 0 = such a head is left out, and the model's own starts fresh.", at_least(0)),
        "EXTRA": Group("The ResNet and its deconvolution head.", {
            "NUM_LAYERS": Key(50, "Depth of the ResNet.", choices=(18, 34, 50, 101, 152)),
            "NUM_STAGES": Key(4, "Stages of the ResNet, each but the first halving the resolution; 4 as published, 3 for small "
                              "crops.", choices=(1, 2, 3, 4)),
            "NUM_DECONV_LAYERS": Key(3, "Deconvolutions; each doubles the resolution.", at_least(0)),
            "NUM_DECONV_FILTERS": Key([256, 256, 256], "Channels of each deconvolution.", WIDTHS),
            "NUM_DECONV_KERNELS": Key([4, 4, 4], "Kernel side of each deconvolution.",
                                      each(lambda e: e in (2, 3, 4), "kernel sides 2, 3 or 4")),
            "FINAL_CONV_KERNEL": Key(1, "Kernel side of the last convolution.", choices=(1, 3)),
            "DECONV_WITH_BIAS": Key(False, "Give the deconvolutions a bias."),
            "NUM_STACKS": Key(2, "Hourglasses one after the other (NAME hourglass).", at_least(1)),
            "NUM_MODULES": Key(2, "Residual modules at each of their levels.", at_least(1)),
            "NUM_FEATURES": Key(256, "Their channels.", at_least(4)),
            "DEPTH_MODULES": Key(2, "Residual modules at each level of their depth regression, where HEAD has depth.", at_least(1)),
        }),
    }),
    "LOSS": Group("What is minimised.", {
        "FN": Key("L1JointLocationLoss", "Loss on joint coordinates, or on heatmaps (HeatmapMSELoss).", choices=(
            "L1JointLocationLoss", "SmoothL1JointLocationLoss", "L2JointLocationLoss", "HeatmapMSELoss")),
        "NORM": Key(False, "Divide prediction and label by their L1 norm over the batch first, as the reference may."),
        "BETA": Key(1.0, "Knee of SmoothL1JointLocationLoss, in crop sides (labels lie in -0.5 .. 0.5).", POSITIVE),
        "SIZE_AVERAGE": Key(True, "Divide the sum over the batch by the number of samples."),
        "SIGMA": Key(2.0, "Standard deviation of a heatmap target, in heatmap cells.", POSITIVE),
        "SNAP": Key(False, "Centre heatmap targets on whole cells, int(x + 0.5), as Simple Baselines does, instead of on the joint."),
    }),
    "TRAIN": Group("The optimiser and the length of training.", {
        "BATCH_SIZE": Key(32, "Samples per step and process.", at_least(1)),
        "ACCUMULATE": Key(1, "Batches whose gradients are summed into one step of the optimiser.", at_least(1)),
        "BEGIN_EPOCH": Key(0, "First epoch, counted from 0.", at_least(0)),
        "END_EPOCH": Key(140, "Epoch before which training ends.", at_least(0)),
        "MAX_STEPS": Key(0, "Steps after which training ends even within an epoch; 0 = no limit.", at_least(0)),
        "OPTIMIZER": Key("adam", "Optimiser.", choices=("adam", "adamw", "sgd", "rmsprop")),
        "LR": Key(0.001, "Learning rate at the start (after the warm-up).", POSITIVE),
        "SCHEDULE": Key("multistep", "Course of the learning rate.",
                        choices=("multistep", "cosine", "exponential", "staircase", "constant")),
        "LR_STEP": Key([90, 120], "Epochs at which the multistep schedule multiplies the rate by LR_FACTOR.", EPOCHS),
        "LR_EVERY": Key(100000, "Steps after which the staircase schedule multiplies the rate by LR_FACTOR again.", at_least(1)),
        "LR_FACTOR": Key(0.1, "Factor of the multistep (per entry of LR_STEP), exponential (per epoch) or staircase (per LR_EVERY "
                         "steps) schedule.",
                         Check(lambda v: 0 < v <= 1, "more than 0, at most 1")),
        "WARMUP_STEPS": Key(0, "Steps over which the rate rises linearly from 0.", at_least(0)),
        "WD": Key(0.0, "Weight decay (coupled in adam, sgd and rmsprop, decoupled in adamw).", at_least(0)),
        "AMSGRAD": Key(False, "AMSGrad in adam and adamw: steps never grow back after a large gradient."),
        "MOMENTUM": Key(0.9, "Momentum of sgd.", Check(lambda v: 0 <= v < 1, "at least 0 and less than 1")),
        "NESTEROV": Key(False, "Nesterov momentum in sgd."),
        "CLIP": Key(0.0, "Largest norm of the gradient; 0 = not clipped.", at_least(0)),
        "RESUME": Key(False, "Continue the newest checkpoint of the run directory."),
        "SAVE_STEPS": Key(0, "Steps between checkpoints within an epoch; 0 = at the end of each only.", at_least(0)),
        "EVAL_EVERY": Key(1, "Epochs between evaluations; 0 = only after the last.", at_least(0)),
        "SHUFFLE": Key(True, "Draw the samples of an epoch in random order."),
    }),
    "TEST": Group("Evaluation.", {
        "BATCH_SIZE": Key(32, "Samples per batch and process.", at_least(1)),
        "FLIP_TEST": Key(False, "Average the predictions of an image and of its mirror image; TASK machine does not, nor do networks "
                         "whose heatmaps are drawn from keypoints."),
        "FREEZE": Key(False, "scripts/valid.py: batch norms become part of the convolutions, which are kept in the format of AMP and, with "
                      "COMPILE, are constants to the compiler: the same scores to rounding, in less time."),
        "CORRECTION": Key("off", "Correct 3D poses by the 2D pose that is seen, as the CORRECTION section says: through a projection that "
                          "was learned (TASK machine, from its stage projector on), or through the camera (TASK temporal and integral).",
                          choices=("off", "projector", "camera"), alias={False: "off"}),
        "SUBJECTS": Key([], "Names of the subjects that are evaluated; empty = all of TEST_SET.", of=str),
        "PROTOCOL": Key("", "Free name of the protocol, printed and stored with the results."),
        "BY_SUBJECT": Key(False, "Tables of lifting by subject and action, instead of by action alone."),
        "JOINTS": Key("", "Joint set of the metrics: empty = all joints, 14 = the common fourteen, 3dhp14 = the fourteen of "
                      "MPI-INF-3DHP (head and neck, no pelvis), threedpw14 and lsp14 of 3DPW.",
                      choices=("", "14", "3dhp14", "threedpw14", "lsp14"), alias={14: "14"}),
        "PCP": Key("off", "Percentage of correct parts beside the other numbers, by group of limbs, camera and action, strict and loose, "
                   "as KTH Football II is judged: of poses centred on the root joint (rooted), or where they are (absolute).",
                   choices=("off", "rooted", "absolute"), alias={False: "off"}),
        "HEAD_RULE": Key("plain", "How PCP finds the ends of a predicted head; published for VoxelPose: blended on Shelf, plain on Campus.",
                         choices=("plain", "blended")),
        "KEY": Key("auto", "Metric in 3D that says which weights of TASK integral, epipolar, fusion and machine are best; auto = mpjpe_mm, "
                   "or n_mpjpe_mm where EPIPOLAR.EXTRINSICS estimated leaves the true scale unseen.",
                   choices=("auto", "mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm")),
        "VARIANTS": Key(["standard"], "Definitions of the metrics: standard, and reference for those of EpipolarPose's release "
                        "beside them.", each(lambda e: e in ("standard", "reference"), "standard, reference or both"), of=str),
        "PSS": Key("auto", "Pose Structure Score, where its clusters (pss-<skeleton>-<K>.npz) lie in DATASET.ROOT: "
                   "scripts/prepare.py pss makes them, and the embedded world makes its own. TASK integral, epipolar, fusion and "
                   "refine have it, but not on 3DPW.", choices=("auto", "off"),
                   alias={False: "off"}),
        "DECODE": Key("auto", "How joints are read from heatmaps: soft-argmax, or maximum, refined by Taylor (dark) or "
                      "by a quarter of a cell; auto = soft, but for LOSS.FN HeatmapMSELoss quarter or argmax as "
                      "POST_PROCESS says. A volume is read softly alone, and losses on joints read softly whatever is set here.",
                      choices=("auto", "soft", "dark", "quarter", "argmax")),
        "POST_PROCESS": Key(True, "Refine the maximum of a heatmap by a quarter of a cell; read when DECODE is auto."),
    }),
    "DEBUG": Group("Pictures of what the network does.", {
        "FIGURES": Key(8, "Evaluation samples drawn per epoch, into figures/ and TensorBoard; 0 = none.", at_least(0)),
    }),
    "EPIPOLAR": Group("Labels that are triangulated from the predictions of a frozen 2D network in several views.", {
        "TEACHER": Key("", "Checkpoint of the frozen 2D network; annotation = the 2D ground truth in its place.",
                       path=WEIGHTS_HELP, path_except=("annotation",)),
        "LABELS": Key("cached", "Triangulate once before training (cached), or in each step (online).",
                      choices=("cached", "online")),
        "CACHE": Key("", "File name of the cached labels, in the folder of the split; empty = a name made of the "
                     "options."),
        "PAIRS": Key("all", "Views that are triangulated together: all at once, each pair of neighbouring cameras, "
                     "each pair of consecutive ones, or per sample one random pair of neighbours.",
                     choices=("all", "neighbours", "consecutive", "random_neighbours")),
        "METHOD": Key("reweighted", "Triangulation (lib/geometry/triangulation.py); median = vector median over pairs.",
                      choices=("dlt", "weighted", "reweighted", "optimal2", "ransac", "midpoint", "median")),
        "THRESHOLD_PX": Key(15.0, "Reprojection error, in pixels of the full image, above which a joint gets no label; "
                            "0 = off, which METHOD ransac cannot do.", at_least(0)),
        "MIN_CONF": Key(0.0, "Confidence of the teacher below which a view does not take part.", FRACTION),
        "EXTRINSICS": Key("known", "Rotation and translation of the training cameras: as annotated, or estimated from the teacher's "
                          "joints alone (without R/t); intrinsics are always known.", choices=("known", "estimated")),
        "SCALE": Key("body", "What sets the unit of an estimated rig: the length of the body, the distance of its first two cameras, "
                     "or nothing (none: people's boxes are taken to be DEPTH_RANGE mm wide).", choices=("body", "baseline", "none")),
        "BODY_MM": Key(0.0, "Sum of the bone lengths for SCALE body, in mm; 0 = an average adult (4150 in h36m17).", at_least(0)),
        "BASELINE_MM": Key(0.0, "Distance of the first two cameras of each rig for SCALE baseline, in mm.", at_least(0)),
        "RIG_FRAMES": Key(500, "Instants, drawn at random, that each rig is estimated from.", at_least(2)),
        "RIG_METHOD": Key("lmeds", "Search for the relative pose of two cameras: least medians (no threshold, up to half of the matches "
                          "wrong), RANSAC or MAGSAC++.", choices=("lmeds", "ransac", "magsac")),
        "RIG_LIMIT_PX": Key(5.0, "Median distance from the epipolar lines, in px of the full image, above which two cameras are not "
                            "joined; raise it for images far larger than 1000 px or a poor teacher.", POSITIVE),
    }),
    "REFINE": Group("The network of refiner/ that cleans predicted 3D poses, and the pairs of poses it learns from.", {
        "TRAIN": Key("", "Pairs to train on: predictions.npz of a run, or a published train.pkl."),
        "VALID": Key("", "Pairs to judge on, in either form; empty = those of HOLDOUT."),
        "HOLDOUT": Key([], "Subjects of TRAIN that are not trained on.", of=str),
        "NORM": Key("", "Published norm.pkl, for weights that come without means and deviations.",
                    path="it comes with the published pairs; leave REFINE.NORM empty to compute it from REFINE.TRAIN"),
        "WIDTH": Key(1024, "Width of the hidden layers.", at_least(1)),
        "STAGES": Key(2, "Residual blocks, the first of them before the first prediction.", at_least(1)),
        "DROPOUT": Key(0.5, "Probability of dropout.", Check(lambda v: 0 <= v < 1, "at least 0 and less than 1")),
        "LEAKY": Key(False, "Leaky ReLU, as in the paper's text, instead of ReLU, as in its code."),
        "RESIDUAL": Key(False, "Predict a correction of the input instead of the pose itself."),
        "NOISE_MM": Key(0.0, "Standard deviation of the noise added to each training input coordinate.", at_least(0)),
        "JOINT_DROP": Key(0.0, "Probability that a joint of a training input is hidden from the network.", FRACTION),
    }),
    "TEMPORAL": Group("Lifting of 2D keypoints over time: temporal convolutions, what they are trained on, and learning without labels.", {
        "WIDTHS": Key([3, 3, 3], "Filter widths, all odd; their product is the number of frames that one pose is computed from.",
                      each(lambda e: e > 0 and e % 2 == 1, "odd widths, such as [3, 3, 3]")),
        "CAUSAL": Key(False, "See past frames only, for streams; weights do not tell which they are, so this must fit them."),
        "DENSE": Key(False, "Full filters in place of dilated ones; more weights, same frames."),
        "CHANNELS": Key(1024, "Channels of the convolutions.", at_least(1)),
        "DROPOUT": Key(0.25, "Probability of dropout.", Check(lambda v: 0 <= v < 1, "at least 0 and less than 1")),
        "FEATURES": Key(2, "Numbers per keypoint that the network sees: 2 = x and y, 3 = also the score.", choices=(2, 3)),
        "LAYOUT": Key("", "Skeleton of the keypoints; empty = that of the 3D poses."),
        "CHUNK": Key(1, "Frames that a training sample predicts; TRAIN.BATCH_SIZE counts samples.", at_least(1)),
        "OPTIMIZED": Key(True, "With CHUNK 1, compute in training only what the one frame needs (strided convolutions)."),
        "TRAJECTORY": Key("auto", "Train a second network for the place of the root joint; auto = when UNLABELED names subjects.",
                          choices=("auto", "true", "false"), alias={True: "true", False: "false"}),
        "BN_MOMENTUM": Key([0.1, 0.001], "Momentum of the batch norms in the first epoch, and after the last; exponential between.",
                           Check(lambda v: len(v) == 2 and all(0 < e <= 1 for e in v), "two numbers above 0 and up to 1"), of=float),
        "ACTIONS": Key([], "Actions that are trained and judged on, all trials of each; Walk* means all that begin so; empty = all.",
                       of=str),
        "SUBSET": Key(1.0, "Share of the labelled frames that is used.", Check(lambda v: 0 < v <= 1, "more than 0, at most 1")),
        "SUBSET_OF": Key("sequences", "What SUBSET is a share of: each sequence, in one piece (VideoPose3D), or a subject's recordings.",
                         choices=("sequences", "recordings")),
        "UNLABELED": Key([], "Subjects whose 2D keypoints are learned from without their 3D poses.", of=str),
        "WARMUP_EPOCHS": Key(1, "Epochs on labelled subjects alone, before UNLABELED ones join.", at_least(0)),
        "PROJECTION": Key("full", "Camera of the reprojection loss: with the lens, as a pinhole, or no such loss.",
                          choices=("full", "linear", "none")),
        "WEIGHT_TRAJECTORY": Key(1.0, "Weight of the trajectory's loss.", at_least(0)),
        "WEIGHT_PROJECTION": Key(1.0, "Weight of the reprojection loss.", at_least(0)),
        "WEIGHT_BONES": Key(1.0, "Weight of the difference of mean bone lengths between labelled and unlabelled subjects.", at_least(0)),
        "NEAR_MM": Key(100.0, "Depth at which points nearer to the camera, or behind it, are projected; 0 = as they are, as published.",
                       at_least(0)),
        "CAUSAL_TARGET": Key("current", "Frame that a causal network's reprojection is compared with: the predicted one, or as published "
                             "(reference) the middle one of its window.", choices=("current", "reference")),
        "ORDER": Key("seeded", "Order of the training samples: a function of SEED and step, or that of VideoPose3D (reference), whose last "
                     "batch of an epoch is smaller; one process only.", choices=("seeded", "reference")),
        "TABLES": Key("auto", "Where keypoints and poses lie: in the memory of the host, or of the device that computes; auto = there, if "
                      "they are small.", choices=("auto", "host", "device")),
    }),
    "VOXEL": Group("Several people in the volume that several cameras see (VoxelPose): where they are, then how each one stands.", {
        "SPACE_SIZE": Key([], "Sides of the space in mm, x, y, z; empty = found from what the cameras see.",
                          Check(lambda v: len(v) in (0, 3) and all(e > 0 for e in v), "three lengths above 0 mm, or []"), of=float),
        "SPACE_CENTER": Key([], "Its middle in mm of the world; empty = found with the size.",
                            Check(lambda v: len(v) in (0, 3), "three coordinates in mm, or []"), of=float),
        "CUBES": Key([80, 80, 20], "Voxels of the space along x, y, z; multiples of 4.",
                     Check(lambda v: len(v) == 3 and all(e > 0 and e % 4 == 0 for e in v), "three multiples of 4")),
        "PERSON_SIZE": Key([2000.0, 2000.0, 2000.0], "Sides in mm of the cube around a person.",
                           Check(lambda v: len(v) == 3 and all(e > 0 for e in v), "three lengths above 0 mm"), of=float),
        "PERSON_CUBES": Key([64, 64, 64], "Voxels of the cube around a person; multiples of 4.",
                            Check(lambda v: len(v) == 3 and all(e > 0 and e % 4 == 0 for e in v), "three multiples of 4")),
        "ROOT_JOINTS": Key([], "Joints whose mean is a person's place; empty = the skeleton's root, else the middle of the hips.", of=str),
        "ROOT_HEATMAP": Key(False, "Find people in the root's heatmap alone (SelfPose3d) instead of those of all joints."),
        "MAX_PEOPLE": Key(10, "People that are looked for at an instant.", at_least(1)),
        "THRESHOLD": Key(0.3, "Score below which a proposal is nobody.", FRACTION),
        "NMS_RADIUS_MM": Key(0.0, "Proposals nearer to a better one are dropped; 0 = neighbouring voxels only, as published.", at_least(0)),
        "MATCH_MM": Key(500.0, "Distance up to which a proposal stands for a labelled person in training.", at_least(0)),
        "BETA": Key(100.0, "Sharpness of the soft maximum that reads a joint from its volume.", POSITIVE),
        "ROOT_SIGMA_MM": Key(200.0, "Standard deviation of the blobs that teach where people are.",
                             Check(lambda v: v > 0, "more than 0")),
        "RULE": Key("exact", "Which views count for a voxel: those that really see it, or as VoxelPose has it (reference).",
                    choices=("exact", "reference")),
        "HEATMAPS": Key("network", "Where 2D heatmaps come from: the backbone, or 2D keypoints that are drawn as blobs.",
                        choices=("network", "keypoints")),
        "PEAKS": Key("scores", "Height of the blobs of detected keypoints: how sure the detector is, or 1 (Campus, as published).",
                     choices=("scores", "ones")),
        "SCENES": Key(3000, "Scenes of an epoch, where they are made up from poses (TASK scenes).", at_least(1)),
        "START": Key("random", "Weights that the 3D networks start from: small and random as in VoxelPose, or such that their scores are "
                     "the volume they are given (that of poses, and that of roots with VOXEL.ROOT_HEATMAP).", choices=("random", "input")),
        "NEW_JOINTS": Key("mean", "Heatmaps of joints that those of MODEL.PRETRAINED lack, such as the neck in COCO's: the mean of the "
                          "joints that it lies between, or one of them, as SelfPose3d's release starts from COCO (reference).",
                          choices=("mean", "reference")),
        "SCALED_SIGMA": Key(False, "Draw the blobs of large people larger, as VoxelPose does."),
        "PARTS": Key(["root_net", "pose_net"], "Networks that are trained: backbone, root_net, pose_net; the others stay as they are, and "
                     "where nothing needs them they are not run. In selfpose3d SSL.STAGE says it.",
                     each(lambda e: e in ("backbone", "root_net", "pose_net"), "backbone, root_net or pose_net"), of=str),
        "WEIGHT_2D": Key(1.0, "Weight of the heatmaps' loss, where the 2D network is trained.", at_least(0)),
        "WEIGHT_ROOT": Key(1.0, "Weight of the loss of people's places.", at_least(0)),
        "WEIGHT_POSE": Key(1.0, "Weight of the loss of poses.", at_least(0)),
        "CHUNK": Key(0, "People that go through the pose network at once; 0 = all.", at_least(0)),
    }),
    "SSL": Group("Several people without 3D labels (SelfPose3d): 2D labels in which nobody is known to be the same person in two views.", {
        "STAGE": Key("backbone", "What is trained: the 2D network, the network of people's places from places drawn at random, the "
                     "network of poses from 2D labels, or the same again on better labels.",
                     choices=("backbone", "root", "pose", "finetune")),
        "LABELS": Key("", "File of 2D pseudo labels to train on, in DATASET.ROOT, named without its ending (see "
                      "lib/dataset/formats/pseudo_labels.py); empty = the 2D side of DATASET.TRAIN_SET."),
        "VALID_LABELS": Key("", "File of 2D pseudo labels of DATASET.TEST_SET, named likewise, by which models are judged and chosen; "
                            "empty = the 2D side of DATASET.TEST_SET, which where 3D is annotated is that, projected."),
        "TRAIN_BACKBONE": Key(True, "Train the 2D network along with that of poses."),
        "FULL_VIEWS": Key(1, "Views, the fullest, in which an augmentation must keep everybody in sight, or another frame is drawn; 0 = "
                          "take every frame as it comes.", at_least(0)),
        "DRAWN_WITHIN": Key([], "How far within the space places are drawn: mm added to its lower and upper limits along x, y and z; empty "
                            "= the shares of its sides that 2500 -2000 1500 -1500 250 -300 are of the published 8 x 8 x 2 m.",
                            Check(lambda v: len(v) in (0, 6), "six lengths in mm, or []"), of=float),
        "COLORS": Key(2, "Colour operations drawn for each augmented view, each done every second time; 0 = none.", at_least(0)),
        "CUTS": Key([2, 16], "Fewest rectangles cut out of an augmented view, and the first number that is too large; 0 0 = none.",
                    Check(lambda v: len(v) == 2 and (0 <= v[0] < v[1] or v == [0, 0]), "two rising numbers, or 0 0")),
        "ATTENTION": Key(True, "Train a network that says where 2D labels are to be trusted."),
        "ATTENTION_LAYERS": Key(18, "Depth of its ResNet.", choices=(18, 34, 50, 101, 152)),
        "WEIGHT_ATTENTION": Key(0.1, "Weight of its distance from trusting everything.", at_least(0)),
        "WEIGHT_L1": Key(0.01, "Weight of the distance of projected joints to those of the people they are matched with; 0 = off.",
                         at_least(0)),
        "L1_EPOCH": Key(5, "Epoch from which on that distance counts.", at_least(0)),
        "DROP_WORST": Key(True, "Leave the view out that fits worst (hard attention)."),
        "WEIGHT_DRAWN": Key(100.0, "Weight of the places that were drawn at random.", at_least(0)),
        "WEIGHT_CONSISTENCY": Key(1.0, "Weight of what augmented views say of people's places other than the plain ones do.", at_least(0)),
    }),
    "FUSION": Group("Crops with 3D labels and crops with 2D labels alone (Zhou et al., ICCV 2017).", {
        "WEAK": Key({}, "Sets of 2D labels beside DATASET.TRAIN_SET: name of the format -> {ROOT, SPLIT} and, where they differ from "
                    "DATASET's, OPTIONS and BOX_SCALE; 3D labels in them are not looked at."),
        "SUBJECTS": Key([], "Subjects of DATASET.TRAIN_SET whose 3D labels are used; of the others, only the 2D ones; empty = all.",
                        of=str),
        "VIEWS": Key([], "Cameras of DATASET.TRAIN_SET whose 3D labels are used, likewise.", CAMERAS),
        "RATIO_3D": Key(1.0, "Crops with 3D labels for each crop with 2D labels alone; where there are too few, they come several times.",
                        at_least(0)),
        "ROT_FACTOR": Key(30.0, "As DATASET.ROT_FACTOR, for crops with 2D labels alone.", at_least(0)),
        "WEIGHT_DEPTH": Key(0.1, "Weight of the depth at the joints.", at_least(0)),
        "WEIGHT_VARIANCE": Key(0.0, "Weight of how much the lengths of like bones differ, where there are 2D labels alone.", at_least(0)),
        "GROUPS": Key({}, "Those bones: name -> list of [joint, joint] or [joint, joint, factor on its length]; empty = legs, arms, hips, "
                      "shoulders, with the published factors."),
        "BONE_SUM_MM": Key(0.0, "Sum of the lengths of a predicted person's bones, which sets its size; 0 = the mean of the training poses "
                           "(4000 as published).", at_least(0)),
        "RULE": Key("names", "What the network's joints mean: what they are called, or as published, where MPII's upper neck is the "
                    "thorax, labels are cut off to whole cells and missing joints count as visible. Published networks are also tested so: "
                    "plain mirror images, and the highest cell counts even where it is not above zero.", choices=("names", "published")),
    }),
    "MACHINE": Group("Clips of pictures to poses, which are corrected by their own projection (Wang et al., TPAMI 2019).", {
        "STAGE": Key("joint", "What is trained: the 2D pose of each picture (2d), the network over time that lifts it (lift), the "
                     "regression and the projection behind that (projector), or everything (joint).",
                     choices=("2d", "lift", "projector", "joint")),
        "FROZEN": Key([], "Parts that stay as they are although the stage would train them.",
                      each(lambda e: e in MACHINE_PARTS, f"of {', '.join(MACHINE_PARTS)}"), of=str),
        "CLIP": Key(5, "Frames of a clip.", at_least(1)),
        "STRIDE": Key(1, "Frames of the table from one frame of a clip to the next.", at_least(1)),
        "TRUNK": Key("cpm", "What sees the pictures: the published convolutional pose machine, or the ResNet of MODEL.EXTRA.",
                     choices=("cpm", "resnet")),
        "CHANNELS": Key(128, "Channels of its features.", at_least(1)),
        "HIDDEN": Key(1024, "Width of all layers behind it.", at_least(1)),
        "TEMPORAL": Key("stack", "Direction of the second LSTM layer: backwards over the whole clip, as published (stack), or like the "
                        "first one, so that a pose needs no later frame (causal).", choices=("stack", "causal")),
        "FLAGS": Key("exact", "How the layer that runs backwards is reset; published = where the release does it. Both are the "
                     "same here, where every clip is a row of its own; they differ where clips share one.", choices=("exact", "published")),
        "NUM_STAGES": Key(1, "Recurrent stages, each of which refines the pose of the one before.", at_least(1)),
        "HEAD2D": Key("fc", "What tells the 2D pose that corrections go by: two layers on the features, stages of heatmaps, a network over "
                      "time, or nothing.", choices=("none", "fc", "maps", "lstm")),
        "MAP_STAGES": Key(2, "Stages of those heatmaps.", at_least(1)),
        "NORM": Key("none", "In the projector: nothing, as the release trains it; batch norm, as the paper says; or the untrained one "
                    "that the release's correction has (inert).", choices=("none", "batch", "inert")),
        "JOINT_MASK": Key({}, "Joint -> probability, 0 to 1, that it is left out of what the regression takes in training.",
                          each=Key(0.0, "", FRACTION)),
        "MASK_TO": Key("root", "Where a joint that is left out goes; zero = the end of its range, as published.", choices=("root", "zero")),
        "MASK_2D": Key(0.0, "Probability that a joint is left out of the 2D pose that the projection learns from.", FRACTION),
        "START": Key("he", "New weights: of He et al. (ICCV 2015), or all with a deviation of 0.01, as published.",
                     choices=("he", "published")),
        "RANGES": Key("fit", "Ranges that poses are shares of: those of the training poses, found in stage lift, or the release's table.",
                      choices=("fit", "published")),
        "RETARGET": Key(False, "Give all poses the mean limbs of the training set, as the published truth has them."),
        "PROTOCOL": Key("", "Selection of Human3.6M that the paper trains and judges on; empty = all.",
                        choices=("", "machine1", "machine2", "machine3")),
        "FRAMES": Key(0, "Every how many frames of a sequence that selection takes; 0 = as the paper.", at_least(0)),
        "STILLS": Key({}, "Sets of single pictures with 2D labels beside DATASET.TRAIN_SET, as FUSION.WEAK."),
        "RATIO_CLIPS": Key(1.0, "Clips for each of those pictures.", at_least(0)),
        "SELF": Key(False, "Let the projection learn from the 2D pose that is seen rather than from labels."),
        "WEIGHT_2D": Key(1.0, "Weight of the projection.", at_least(0)),
        "WEIGHT_BONES": Key(1.0, "Weight of the bones of 3D poses.", at_least(0)),
        "WEIGHT_BONES2D": Key(0.0, "Weight of the bones of the projection.", at_least(0)),
        "LR_BIAS": Key(2.0, "Factor on TRAIN.LR for biases.", POSITIVE),
        "LR_LAST": Key(10.0, "Factor on TRAIN.LR for the layer that gives the lifted pose, in stage lift.", POSITIVE),
        "LR_OF": Key({}, "Layer or part -> [factor of its weights, of its biases] on TRAIN.LR, in place of LR_BIAS and LR_LAST; such as "
                     "{trunk: [1, 1], project_2d: [5, 5]}.",
                     each=Key([], "", each(lambda e: e > 0, "two factors above 0, of weights and biases", 2), of=float)),
    }),
    "CORRECTION": Group("Correction of 3D poses at test time by the 2D pose that is seen; TEST.CORRECTION turns it on.", {
        "EVIDENCE": Key("network", "The 2D pose that is gone by: what the network sees, or the 2D labels of the data.",
                        choices=("network", "labels")),
        "NETWORK": Key("", "Checkpoint of a 2D network for the same crops, whose joints EVIDENCE network means in TASK integral."),
        "RULE": Key("paper", "When it ends: as the paper says, by CORRECTION.EPS_MM and TAU_MM, or after the release's one update.",
                    choices=("paper", "published")),
        "STEPS": Key(2, "Most updates of a pose.", at_least(1)),
        "LR": Key(1.5e-4, "Step of Adam.", POSITIVE),
        "PARAMS": Key("CP", "What is moved, of copies for each pose: the regression (C), it and the projection (CP), or the pose itself.",
                      choices=("C", "CP", "pose")),
        "BONES": Key("auto", "Whether bones count beside joints; auto = as the rule has it.", choices=("auto", "on", "off"),
                     alias={True: "on", False: "off"}),
        "EPS_MM": Key(5.0, "A pose whose hips and shoulders move less in an update is finished.", at_least(0)),
        "TAU_MM": Key(20.0, "A pose whose hips and shoulders move more in all is taken back; 0 = never.", at_least(0)),
        "CARRY": Key(False, "Keep the optimizer from one pose to the next, as the release does by accident."),
        "CAMERA": Group("Through the camera: standard deviations of what must agree.", {
            "STEPS": Key(6, "Most steps of a pose.", at_least(1)),
            "EPS_MM": Key(1.0, "As CORRECTION.EPS_MM.", at_least(0)),
            "TAU_MM": Key(100.0, "As CORRECTION.TAU_MM.", at_least(0)),
            "NOISE": Key(0.01, "Of keypoints, in focal lengths: 0.01 is 10 px where the focal length is 1000 px.", POSITIVE),
            "PRIOR_MM": Key([30.0, 60.0], "Of lifted joints, across the line of sight and along it.",
                            each(lambda e: e > 0, "two positive numbers", 2), of=float),
            "BONE_MM": Key(10.0, "Of the lengths of bones; 0 = they are free.", at_least(0)),
            "ROOT_MM": Key(200.0, "Of the root's place, where the network tells one; 0 = it stays.", at_least(0)),
        }),
    }),
    "SYNTH": Group("The embedded world that is generated into DATASET.ROOT when that folder is missing.", {
        "PRETRAIN": Key(4000, "Instants of the 2D pretraining split.", at_least(0)),
        "TRAIN": Key(1000, "Instants of the training split; each is seen by all cameras.", at_least(0)),
        "VALID": Key(200, "Instants of the evaluated split, of other subjects.", at_least(0)),
        "SIZE": Key([256, 256], "Width and height of the images, in pixels.", PICTURE_SIZE),
        "RIG": Key("h36m", "Arrangement of the cameras: h36m, panoptic5, ring, or ring and their number."),
        "ZOOM": Key(1.0, "Focal lengths of that arrangement, times this.", Check(lambda v: v > 0, "more than 0")),
        "PEOPLE": Key([1, 1], "Fewest and most persons in a scene; boxes and pillars stand about a single one only.", FROM_TO),
        "OBJECTS": Key(True, "Put boxes and pillars into the rooms, which hide parts of the people now and then."),
        "LENGTH": Key(0, "Instants of a sequence; 0 = chosen so that all actions of all subjects come.", at_least(0)),
        "STRANGERS": Key(False, "Every sequence has people of its own; else the named subjects come back in all of theirs."),
        "SEED": Key(0, "Seed of the world.", at_least(0)),
        "NATIVE": Key(False, "Make the embedded world in the layout that DATASET.DATASET names, as if it were that data set."),
        "MOTION_SECONDS": Key(240.0, "Motions without images (DATASET.DATASET keypoints_npz), in seconds per subject.", at_least(1)),
    }),
})

# Keys of the reference implementation's YAML files that load with a warning, and why nothing reads them here. A section
# stands for all keys below it.
LEGACY = {
    "GPUS": "`torchrun --nproc_per_node` decides",
    "LOG_DIR": "logs lie in the run directory under OUTPUT_DIR",
    "DATA_DIR": "DATASET.ROOT is the whole path",
    "CUDNN": "see DETERMINISTIC",
    "DATASET.NUM_CAMS": "the cameras are counted in the annotations; see DATASET.VIEWS",
    "DATASET.TRI": "TASK epipolar triangulates",
    "DATASET.BG_AUG": "never did anything",
    "DATASET.SELECT_DATA": "never did anything",
    "DATASET.DATA_FORMAT": "images are read by their path",
    "DATASET.HYBRID_JOINTS_TYPE": "never did anything",
    "DATASET.TEST_FLIP": "see TEST.FLIP_TEST",
    "LOSS.USE_TARGET_WEIGHT": "a joint without label never counts",
    "LOSS.USE_SOFT": "never did anything",
    "LOSS.DEPTH_LAMBDA": "never did anything; see DATASET.Z_WEIGHT",
    "MODEL.STYLE": "torchvision's ResNet is the only style",
    "MODEL.EXTRA.TARGET_TYPE": "MODEL.HEAD decides",
    "MODEL.EXTRA.HEATMAP_SIZE": "follows from MODEL.IMAGE_SIZE and the deconvolutions",
    "MODEL.EXTRA.SIGMA": "see LOSS.SIGMA",
    "TRAIN.GAMMA1": "no optimiser here has such a factor",
    "TRAIN.GAMMA2": "no optimiser here has such a factor",
    "TEST.USE_GT_BBOX": "boxes come with the annotations",
    "TEST.BBOX_THRE": "boxes come with the annotations",
    "TEST.COCO_BBOX_FILE": "boxes come with the annotations",
    "TEST.IMAGE_THRE": "belongs to COCO evaluation",
    "TEST.IN_VIS_THRE": "belongs to COCO evaluation",
    "TEST.NMS_THRE": "belongs to COCO evaluation",
    "TEST.OKS_THRE": "belongs to COCO evaluation",
    "TEST.MODEL_FILE": "see MODEL.RESUME",
    "DEBUG.DEBUG": "see DEBUG.FIGURES",
    "DEBUG.SAVE_BATCH_IMAGES_GT": "see DEBUG.FIGURES",
    "DEBUG.SAVE_BATCH_IMAGES_PRED": "see DEBUG.FIGURES",
    "DEBUG.SAVE_HEATMAPS_GT": "see DEBUG.FIGURES",
    "DEBUG.SAVE_HEATMAPS_PRED": "see DEBUG.FIGURES",
}

# Combinations of keys: (keys, the last of which is named, holds(*values), what is expected).
RULES = (
    (("TRAIN.BEGIN_EPOCH", "TRAIN.END_EPOCH"), lambda begin, end: end >= begin, "END_EPOCH not before BEGIN_EPOCH"),
    (("MODEL.EXTRA.NUM_DECONV_LAYERS", "MODEL.EXTRA.NUM_DECONV_FILTERS"), lambda n, v: len(v) == n,
     "one entry of NUM_DECONV_FILTERS for each of NUM_DECONV_LAYERS"),
    (("MODEL.EXTRA.NUM_DECONV_LAYERS", "MODEL.EXTRA.NUM_DECONV_KERNELS"), lambda n, v: len(v) == n,
     "one entry of NUM_DECONV_KERNELS for each of NUM_DECONV_LAYERS"),
    (("TRAIN.OPTIMIZER", "TRAIN.MOMENTUM", "TRAIN.NESTEROV"), lambda o, m, n: not n or o != "sgd" or m > 0,
     "MOMENTUM more than 0 where NESTEROV is true"),
)

SCHEMA = Schema(TREE, LEGACY)

# ------------------------------------------------------------------------------------------------- the frozen result


class Frozen(EasyDict):
    """A section of the configuration: keys as attributes, none of which can be set, added or removed."""

    def __init__(self, values: Mapping, path: str = ""):
        dict.__init__(self, values)  # EasyDict's own would set attributes one by one
        object.__setattr__(self, "_path", path)

    def __getattr__(self, name: str) -> Any:  # called for what is not an ordinary attribute
        if name in self:
            return self[name]
        guess = nearest(name, map(str, self)) if not name.startswith("_") else None
        where = f"configuration section {self._path}" if self.__dict__.get("_path") else "configuration"
        raise AttributeError(f"the {where} has no key {name}" + (f"; did you mean {guess}?" if guess else ""))

    def __dir__(self):
        return [*super().__dir__(), *map(str, self)]

    def __reduce__(self):
        return type(self), (dict(self), self._path)

    def _refuse(self, *args, **kwargs):
        name = f"{self._path}.{args[0]}".strip(".") if args and isinstance(args[0], str) else self._path or "it"
        raise ConfigError(f"the configuration is frozen: {name} cannot be changed in place; use "
                          "cfg.with_values({'SECTION.KEY': value}), or SECTION.KEY VALUE on the command line")

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = __ior__ = _refuse
    update = pop = popitem = setdefault = clear = _refuse


class Config(Frozen):
    """The whole configuration, frozen; made by `load` or `defaults`. It knows where each value was set."""

    def __init__(self, values: Mapping, sources: Mapping[str, str], own: Sequence[str], file: str):
        super().__init__(values)
        object.__setattr__(self, "_sources", dict(sources))
        object.__setattr__(self, "_own", tuple(own))  # set in the leaf file or on the command line
        object.__setattr__(self, "file", file)  # the YAML file given to `load`, or ''

    def __reduce__(self):
        return type(self), (dict(self), self._sources, self._own, self.file)

    def source(self, dotted: str) -> str:
        """Where the value of a key was set: "file:line", "command line", "with_values" or "default"."""
        if SCHEMA.owner(dotted) is None and dotted not in SCHEMA.groups:
            raise KeyError(dotted)
        return self._sources.get(dotted) or self._sources.get(SCHEMA.owner(dotted)) or "default"

    def error(self, dotted: str, message: str) -> ConfigError:
        """The error "file:line: DOTTED: message" for a key whose value turned out wrong, to be raised by the caller."""
        source = self.source(dotted)
        place = self.file if source == "default" else source
        return ConfigError(f"{place}: {dotted}: {message}" if place else f"{dotted}: {message}")

    def flat(self) -> dict[str, Any]:
        """All values by dotted name; a free mapping such as DATASET.OPTIONS is one value."""
        return {dotted: _get(self, dotted) for dotted in SCHEMA.keys}

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, lists and scalars, for a checkpoint or JSON."""
        return _thaw(self)

    def to_yaml(self) -> str:
        """A YAML text that `load` reads back to an equal configuration."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)

    def hash(self) -> str:
        """SHA-256 of the resolved values, wherever they were set."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def with_values(self, values: Mapping[str, Any]) -> "Config":
        """A copy with the given {dotted: value} set, checked as if a file had set them.

        Raises:
            ConfigError: unknown key, wrong type or range.
        """
        settings = [Setting(dotted, value, "with_values", own=False) for dotted, value in values.items()]
        return _build(self.flat(), self._sources, self._own, settings, self.file)

    def check_sections(self, sections: Sequence[str], task: str) -> None:
        """Refuse keys set in a section that the task does not read; only BASE files, which tasks share, may set such, and the complete
        configuration that a run keeps.

        Raises:
            ConfigError: naming the key, its file and line, and the task.
        """
        if {dotted for dotted, key in SCHEMA.keys.items() if not isinstance(key.default, Mapping)} <= set(self._own):
            return
        for dotted in self._own:
            section, dot, _ = dotted.partition(".")
            if dot and section not in sections:
                raise ConfigError(f"{self.source(dotted)}: {dotted} is set, but TASK {task} does not read {section}")

    def check_paths(self, unless: Sequence[str] = ()) -> None:
        """Refuse input files that do not exist, before any work is done.

        Args:
            unless: keys whose files are not needed.

        Raises:
            ConfigError: naming the key, the missing path and what to do.
        """
        for dotted, key in SCHEMA.keys.items():
            value = _get(self, dotted)
            if key.path and dotted not in unless and value and value not in key.path_except and not os.path.exists(value):
                raise self.error(dotted, f"no file {value!r}; {key.path}")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


_Dumper.add_representer(list, lambda dumper, v: dumper.represent_sequence("tag:yaml.org,2002:seq", v, flow_style=True))


def _get(tree: Mapping, dotted: str) -> Any:
    for name in dotted.split("."):
        tree = tree[name]
    return tree


def _freeze(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return Frozen({k: _freeze(v, f"{path}.{k}") for k, v in value.items()}, path)
    return tuple(_freeze(v, path) for v in value) if isinstance(value, list | tuple) else value


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _thaw(v) for k, v in value.items()}
    return [_thaw(v) for v in value] if isinstance(value, list | tuple) else value


# -------------------------------------------------------------------------------------------------------- loading


def _build(values: Mapping[str, Any], sources: Mapping[str, str], own: Sequence[str], settings: Sequence[Setting],
           file: str) -> Config:
    """The configuration after `settings` are applied to flat `values`, in their order."""
    values, sources, legacy = {k: _thaw(v) for k, v in values.items()}, dict(sources), []
    for setting in settings:
        if SCHEMA.is_legacy(setting.key):
            legacy.append(setting.key)
            continue
        owner = SCHEMA.owner(setting.key)
        if owner is None:
            raise SCHEMA.unknown_key(setting.place, setting.key)
        if setting.key == owner:
            values[owner] = fit(setting, SCHEMA.keys[owner])
        else:  # one name below a free key
            name = setting.key.removeprefix(owner + ".")
            values[owner] = {**values[owner], name: fit_below(setting, SCHEMA.keys[owner])}
        sources[setting.key] = sources[owner] = setting.place
    if legacy:
        names = ", ".join(dict.fromkeys(legacy))
        log.warning("%s: ignored: nothing reads %s (docs/config.md says why)", file or settings[0].place, names)

    tree: dict[str, Any] = {}
    for dotted, value in values.items():
        node, (*sections, leaf) = tree, dotted.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    own = dict.fromkeys([*own, *(s.key for s in settings if s.own and not SCHEMA.is_legacy(s.key))])
    frozen = {name: _freeze(value, name) for name, value in tree.items()}
    cfg = Config(frozen, sources, tuple(own), file)
    for names, holds, expected in RULES:
        found = [values[name] for name in names]
        if not holds(*found):
            blamed = next((name for name in reversed(names) if name in sources), names[-1])
            told = ", ".join(f"{n.rpartition('.')[2]} {shown(v)}" for n, v in zip(names, found, strict=True))
            raise cfg.error(blamed, f"expected {expected}, got {told}")
    return cfg


def defaults() -> Config:
    """The configuration when nothing is set."""
    return load(None)


def load(file: str | os.PathLike | None, overrides: Sequence[str] = ()) -> Config:
    """The frozen configuration of a YAML file and command-line overrides on top of the defaults.

    Args:
        file: YAML file, or None for the defaults alone. `BASE: other.yaml` in it (relative to it) is read first.
        overrides: `KEY VALUE` pairs and `KEY=VALUE` texts, mixed, such as ["TRAIN.LR", "1e-4", "TRAIN.LR_STEP=[20]"].

    Raises:
        ConfigError: "file:line: KEY: ..." or "command line: KEY ...: ..." for whatever is wrong.
    """
    settings = read_file(SCHEMA, os.fspath(file)) if file is not None else []
    settings += read_arguments(SCHEMA, overrides)
    start = {dotted: key.default for dotted, key in SCHEMA.keys.items()}
    return _build(start, {}, (), settings, os.fspath(file) if file is not None else "")


def from_dict(tree: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration that `Config.to_dict` gave, as a checkpoint stores it, with {dotted: value} changes.

    Raises:
        ConfigError: a key that this version does not know, or a value it does not take.
    """
    def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in node.items():
            if isinstance(value, Mapping) and f"{prefix}{name}" not in SCHEMA.keys:  # the value of a free key is a leaf
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    return defaults().with_values({**dict(leaves(tree)), **(changes or {})})


# ------------------------------------------------------------------------------------------------- the written form

_INTRODUCTION = """# Configuration

Every key, its default and its meaning. Written by `python -m lib.config > docs/config.md`; a test keeps it true.

- A YAML file sets keys by section; what it does not set keeps its default. `BASE: other.yaml` (relative to the file) is
  read first, and may have a BASE of its own. Sections merge key by key, lists are replaced.
- The command line comes last: `python scripts/train.py --cfg file.yaml TRAIN.LR 1e-4 MODEL.IMAGE_SIZE=[256,192]`.
- Values are typed by their default: a whole number also fits where a number is expected, `1e-3` is a number, lists are
  written `[90, 110]`, texts that look like numbers need quotes in a file. Nothing else is converted, nothing evaluated.
- A wrong key, type or value stops the program before any work, with file, line and what was probably meant. So does a
  key in a section that the TASK does not read, unless it comes from a BASE file.
"""


def _table(group: Group, prefix: str) -> str:
    lines = ["| Key | Default | Meaning |", "|---|---|---|"]
    for name, entry in group.keys.items():
        if isinstance(entry, Key):
            default = json.dumps(entry.default) if not isinstance(entry.default, str) else entry.default or "''"
            allowed = f" One of: {', '.join(str(c) or repr(c) for c in entry.choices)}." if entry.choices else ""
            allowed += f" Range: {entry.check.words}." if entry.check else ""
            lines.append(f"| `{prefix}{name}` | `{default}` | {entry.doc}{allowed} |")
    return "\n".join(lines)


def reference() -> str:
    """The text of docs/config.md."""
    parts = [_INTRODUCTION, "## Top level\n", _table(TREE, ""), ""]
    for dotted, group in SCHEMA.groups.items():
        parts += [f"## {dotted}\n", group.doc, "", _table(group, dotted + "."), ""]
    parts += ["## Accepted and ignored\n", "Keys of the published YAML files that load with a warning.", ""]
    parts += ["| Key | Why nothing reads it |", "|---|---|"]
    parts += [f"| `{key}` | {why} |" for key, why in LEGACY.items()]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
