"""Published weights by name: where they are, where they belong, what they need, and what was said of them.

Scores are quotations of those who published the weights (the READMEs of EpipolarPose, VideoPose3D and pytorch-pose-hg-3d); nothing here
was measured. A file without a direct link is behind a page that wants a browser.
"""

import re
from dataclasses import dataclass

from lib.errors import WeightsError
from lib.registry import nearest

_EPIPOLAR = "https://github.com/mkocabas/EpipolarPose"
_SIMPLE = "https://github.com/microsoft/human-pose-estimation.pytorch"
_VIDEO = "https://github.com/facebookresearch/VideoPose3D"
_VIDEO_FILES = "https://dl.fbaipublicfiles.com/video-pose-3d/"
_TORCH = "https://download.pytorch.org/models/"
_VOXEL = "https://github.com/microsoft/voxelpose-pytorch"
_SELF = "https://github.com/CAMMA-public/SelfPose3d"
_H36M_TERMS = "Human3.6M allows research only"
_HG3D = "https://github.com/xingyizhou/pytorch-pose-hg-3d"
_RESEARCH = f"terms on the project page; {_H36M_TERMS}"
_MPII = "terms on the project page; MPII allows research only"


@dataclass(frozen=True)
class Entry:
    """One published file.

    path: below models/.    text: what it is.    config: experiment that judges it, with overrides, or how else it is used.
    score: quoted, "" = none.
    skeleton: joints of its output.    licence: in short.    url: direct link, "" = only the page.    page: for a browser.
    sha256: of the whole file, "" = not known.
    """

    name: str
    path: str
    text: str
    config: str = ""
    score: str = ""
    skeleton: str = ""
    licence: str = ""
    url: str = ""
    page: str = ""
    sha256: str = ""

    @property
    def hash_prefix(self) -> str:
        """First digits of the SHA-256: all of them, or those that torchvision writes into its file names."""
        match = re.search(r"-([0-9a-f]{8})\.pth$", self.url)
        return self.sha256 or (match[1] if match else "")


def _h36m(name: str, text: str, score: str, config: str, skeleton: str = "mpii16") -> Entry:
    return Entry(name, f"h36m/{name}.pth.tar", text, config, score, skeleton, _RESEARCH, page=_EPIPOLAR)


def _mpii(name: str, text: str, score: str, config: str) -> Entry:
    return Entry(name, f"mpii/{name}.pth.tar", text, config, score, "mpii16", _MPII, page=_EPIPOLAR)


def _simple(name: str, path: str, text: str, size: str, skeleton: str) -> Entry:
    use = f"python scripts/convert.py convert models/{path} OUT --color bgr{size}"
    return Entry(name, path, f"Simple Baselines, ResNet-50, {text}", use, "", skeleton, "MIT (code); terms of the data set", page=_SIMPLE)


def _video(name: str, text: str, score: str, experiment: str, skeleton: str, terms: str) -> Entry:
    path = f"videopose3d/{name}.bin"
    use = f"experiments/video/{experiment}.yaml {_RESUME}/{path}"
    return Entry(name, path, f"VideoPose3D, {text}", use, score, skeleton, f"CC BY-NC 4.0; {terms}", f"{_VIDEO_FILES}{name}.bin", _VIDEO)


def _people(name: str, path: str, text: str, config: str, key: str, licence: str, page: str) -> Entry:
    path = f"{path}.pth.tar"
    use = f"experiments/panoptic/{config}.yaml {key} models/{path}"
    return Entry(name, path, text, use, "", "panoptic15", licence, page=page)


def _selfpose(name: str, file: str, text: str, config: str, key: str = "MODEL.PRETRAINED") -> Entry:
    text = f"SelfPose3d on CMU Panoptic, {text}"
    return _people(name, f"selfpose3d/{file}", text, config, key, "CC BY-NC-SA 4.0; terms of the data set", _SELF)


def _fusion(name: str, text: str, score: str) -> Entry:
    path = f"hg3d/{name}.pth"
    text = f"2D + 3D fusion (Zhou et al.), ResNet-50, {text}"
    use = f"python scripts/convert.py convert models/{path} OUT"
    return Entry(name, path, text, use, score, "mpii16", f"GPL-3 (code); terms of MPII and Human3.6M, {_H36M_TERMS}", page=_HG3D)


def _torchvision(name: str, file: str, text: str, config: str, skeleton: str = "") -> Entry:
    text = f"torchvision's {text}"
    return Entry(name, file, text, config, "", skeleton, "BSD-3-Clause (code); terms of the data set", _TORCH + file)


_VALID, _VALID_SS, _VALID_MPII = "experiments/h36m/valid.yaml", "experiments/h36m/valid-ss.yaml", "experiments/mpii/valid.yaml"
_RESUME, _LAYERS = "MODEL.RESUME models", "MODEL.EXTRA.NUM_LAYERS"
_DETECTOR = "python scripts/predict.py --detector torchvision"
CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _h36m("fully_supervised", "EpipolarPose, ResNet-50, fully supervised", "MPJPE 51.8 mm", _VALID, "h36m17"),
        _h36m("fully_supervised_resnet34", "EpipolarPose, ResNet-34, fully supervised", "MPJPE 59.6 mm",
              f"{_VALID} {_RESUME}/h36m/fully_supervised_resnet34.pth.tar {_LAYERS} 34", "h36m17"),
        _h36m("fully_supervised_resnet18", "EpipolarPose, ResNet-18, fully supervised", "MPJPE 63.0 mm",
              f"{_VALID} {_RESUME}/h36m/fully_supervised_resnet18.pth.tar {_LAYERS} 18", "h36m17"),
        _h36m("self_supervised_with_rt", "EpipolarPose, self-supervised, known cameras", "MPJPE 76.6 mm", _VALID_SS),
        _h36m("self_supervised_wo_rt", "EpipolarPose, self-supervised, unknown cameras", "NMPJPE 78.8 mm",
              f"{_VALID_SS} {_RESUME}/h36m/self_supervised_wo_rt.pth.tar"),
        _h36m("self_supervised_2d_gt", "EpipolarPose, labels from the true 2D joints", "MPJPE 55.0 mm",
              f"{_VALID_SS} {_RESUME}/h36m/self_supervised_2d_gt.pth.tar"),
        _h36m("self_supervised_s1", "EpipolarPose, true 3D joints of subject 1", "MPJPE 65.3 mm",
              f"{_VALID_SS} {_RESUME}/h36m/self_supervised_s1.pth.tar"),
        _h36m("refiner", "EpipolarPose's refinement unit, on self_supervised_with_rt", "MPJPE 60.5 mm",
              f"experiments/refiner/train.yaml {_RESUME}/h36m/refiner.pth.tar"),
        _mpii("mpii_integral", "EpipolarPose's 2D network, ResNet-50", "PCKh@0.5 88.3", _VALID_MPII),
        _mpii("mpii_integral_r34", "EpipolarPose's 2D network, ResNet-34", "PCKh@0.5 86.3",
              f"{_VALID_MPII} {_RESUME}/mpii/mpii_integral_r34.pth.tar {_LAYERS} 34"),
        _mpii("mpii_integral_r18", "EpipolarPose's 2D network, ResNet-18", "PCKh@0.5 84.7",
              f"{_VALID_MPII} {_RESUME}/mpii/mpii_integral_r18.pth.tar {_LAYERS} 18"),
        _mpii("mpii_heatmap", "EpipolarPose's 2D heatmaps, ResNet-50", "PCKh@0.5 88.5",
              f"experiments/mpii/train-heatmap.yaml {_RESUME}/mpii/mpii_heatmap.pth.tar"),
        _simple("simple_mpii_r50", "pose_mpii/pose_resnet_50_256x256.pth.tar", "MPII, 256x256", "", "mpii16"),
        _simple("simple_coco_r50_256x192", "pose_coco/pose_resnet_50_256x192.pth.tar", "COCO, 256x192 (height x width)",
                " MODEL.IMAGE_SIZE [192,256]", "coco17"),
        _simple("simple_coco_r50_384x288", "pose_coco/pose_resnet_50_384x288.pth.tar", "COCO, 384x288 (height x width)",
                " MODEL.IMAGE_SIZE [288,384]", "coco17"),
        _video("pretrained_h36m_cpn", "243 frames, keypoints of CPN", "MPJPE 46.8 mm", "h36m/243-cpn", "h36m17", _H36M_TERMS),
        _video("pretrained_h36m_detectron_coco", "243 frames, COCO keypoints of Mask R-CNN, for videos in the wild", "",
               "h36m/243-detectron-coco", "h36m17", _H36M_TERMS),
        _video("pretrained_humaneva15_detectron", "27 frames, HumanEva-I, COCO keypoints of Mask R-CNN", "",
               "humaneva/27-detectron", "humaneva15", "terms of HumanEva"),
        _people("voxelpose_backbone", "voxelpose/pose_resnet50_panoptic", "VoxelPose's 2D network on CMU Panoptic, ResNet-50", "prn64",
                "MODEL.PRETRAINED", "MIT (code); terms of the data set", _VOXEL),
        _selfpose("selfpose3d_backbone", "backbone_epoch20", "first stage: the 2D network", "selfpose3d-root"),
        _selfpose("selfpose3d_rootnet", "cam5_rootnet_epoch2", "second stage: 2D network and places", "selfpose3d-pose"),
        _selfpose("selfpose3d", "cam5_posenet", "third stage: the whole network, five cameras", "selfpose3d-pose",
                  "VOXEL.RULE reference MODEL.RESUME"),
        _fusion("fusion_3d", "second stage: MPII and Human3.6M", ""),
        _fusion("fusion_3d_var", "third stage: with the variance of bone lengths", "MPJPE 64.55 mm"),
        *(
            _torchvision(f"resnet{layers}", f"resnet{layers}-{digits}.pth", f"ResNet-{layers}, ImageNet",
                         f"MODEL.INIT_FILE models/resnet{layers}-{digits}.pth {_LAYERS} {layers}")
            for layers, digits in ((18, "f37072fd"), (34, "b627a593"), (50, "0676ba61"), (101, "63fe2227"), (152, "394f9c45"))
        ),
        _torchvision("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth", "Faster R-CNN v2, COCO", _DETECTOR),
        _torchvision("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "Faster R-CNN, COCO", _DETECTOR),
        _torchvision("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth",
                     "Faster R-CNN with MobileNetV3, COCO, the smallest", _DETECTOR),
        _torchvision("keypointrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn_coco-fc266e95.pth", "Keypoint R-CNN, COCO",
                     "python scripts/prepare.py pseudo-labels --keypointrcnn", "coco17"),
    )
}  # fmt: skip


def find(name: str) -> Entry:
    """The entry of a name, or of a path such as models/h36m/fully_supervised.pth.tar.

    Raises:
        WeightsError: there is none; the message holds the nearest name.
    """
    for entry in CATALOGUE.values():
        if name == entry.name or name in (entry.path, f"models/{entry.path}"):
            return entry
    guess = nearest(name, CATALOGUE)
    raise WeightsError(f"{name}: no such published weights{f'; did you mean {guess}?' if guess else ''}; --list shows all names")
