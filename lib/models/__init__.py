"""Whole networks by name (MODEL.NAME)."""

MODELS = {
    "fusion": "lib.models.fusion:FusionNet",
    "hourglass": "lib.models.hourglass:Hourglass",
    "pose3d_resnet": "lib.models.pose_resnet:PoseResNet",
    "temporal": "lib.models.temporal:TemporalModel",
    "voxelpose": "lib.models.voxelpose:VoxelPose",
}
