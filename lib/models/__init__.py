"""Whole networks by name (MODEL.NAME)."""

MODELS = {
    "fusion": "lib.models.fusion:FusionNet",
    "hourglass": "lib.models.hourglass:Hourglass",
    "pose3d_resnet": "lib.models.pose_resnet:PoseResNet",
    "pose_machine": "lib.models.pose_machine:PoseMachine",
    "temporal": "lib.models.temporal:TemporalModel",
    "voxelpose": "lib.models.voxelpose:VoxelPose",
}
