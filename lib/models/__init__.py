"""Whole networks by name (MODEL.NAME): those for crops, which take the arguments of PoseResNet, and those that belong to some tasks."""

MODELS = {
    "fusion": "lib.models.fusion:FusionNet",
    "hourglass": "lib.models.hourglass:Hourglass",
    "pose3d_resnet": "lib.models.pose_resnet:PoseResNet",
    "pose_machine": "lib.models.pose_machine:PoseMachine",
    "temporal": "lib.models.temporal:TemporalModel",
    "voxelpose": "lib.models.voxelpose:VoxelPose",
}
# Those with arguments and outputs of their own: only the tasks that name them (Task.models) can train them.
OF_TASKS = ("fusion", "hourglass", "pose_machine", "temporal", "voxelpose")
