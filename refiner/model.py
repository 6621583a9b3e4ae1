"""The refinement network: residual blocks of linear layers with a first prediction half-way.

Sources: Kocabas et al., EpipolarPose, CVPR 2019, section 3.3; Martinez et al., A Simple yet Effective Baseline for 3D Human Pose
Estimation, ICCV 2017. Names and order of the weights are those of EpipolarPose's release, so its checkpoints load as they are.
"""

from torch import Tensor, nn


class _Block(nn.Module):
    """Two pairs of layers, each with a shortcut around it.   (B,L) -> (B,L)"""

    def __init__(self, width: int, step: nn.Module):
        super().__init__()
        for i in range(1, 5):
            self.add_module(f"w{i}", nn.Linear(width, width))
        for i in range(1, 5):
            self.add_module(f"batch_norm{i}", nn.BatchNorm1d(width))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        first = x + self._pair(x, self.w1, self.batch_norm1, self.w2, self.batch_norm2)
        return first + self._pair(first, self.w3, self.batch_norm3, self.w4, self.batch_norm4)

    def _pair(self, x: Tensor, wa: nn.Module, norm_a: nn.Module, wb: nn.Module, norm_b: nn.Module) -> Tensor:
        return self.step(norm_b(wb(self.step(norm_a(wa(x))))))


class Refiner(nn.Module):
    """Normalised noisy pose -> two normalised clean poses, the first as a half-way supervision, the second as the result.

    Args:
        joints: of input and output, the root left out.
        width: of the hidden layers.
        stages: blocks, one of them before the first prediction.
        dropout: probability after each activation.
        leaky: Leaky ReLU with slope 0.01 as in the paper's text, else ReLU as in its code.
        residual: predict what is added to the input instead of the pose itself; starts as the identity.

    Shape:
        x (B, joints * 3) -> p1, p2, both (B, joints * 3)
    """

    def __init__(
        self,
        joints: int = 15,
        width: int = 1024,
        stages: int = 2,
        dropout: float = 0.5,
        leaky: bool = False,
        residual: bool = False,
    ):
        super().__init__()
        # it has no weights, so one serves all layers
        self.step = nn.Sequential(nn.LeakyReLU(0.01) if leaky else nn.ReLU(), nn.Dropout(dropout))
        self.residual = residual
        self.linear_stages = nn.ModuleList(_Block(width, self.step) for _ in range(stages))
        self.w1, self.w2 = nn.Linear(joints * 3, width), nn.Linear(width, joints * 3)
        self.w3, self.w4 = nn.Linear(joints * 3, width), nn.Linear(width, joints * 3)
        self.batch_norm1, self.batch_norm3 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        if residual:
            for head in (self.w2, self.w4):
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = self.step(self.batch_norm1(self.w1(x)))
        stage, *others = self.linear_stages
        middle = stage(inner)
        p1 = self.w2(middle)
        if self.residual:
            p1 = x + p1
        y = middle + self.step(self.batch_norm3(self.w3(p1))) + inner
        for stage in others:
            y = stage(y)
        p2 = self.w4(inner + y)
        return p1, x + p2 if self.residual else p2
