"""A training step in plain PyTorch, for comparison: ResNet, projector, loss and LARS of the paper.

It follows the paper and torchvision's definition of ResNet, and uses no code of bt_jax. It uses channels_last and, if
asked, bfloat16 autocast. The views are ready on the device: the step has no augmentations.
"""

import torch
from torch import nn
from torch.nn import functional

EXPANSION = {"resnet18": 1, "resnet34": 1, "resnet50": 4, "resnet101": 4}
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """A basic or bottleneck block, with the stride on the first 3x3 convolution."""

    def __init__(self, inputs: int, channels: int, stride: int, expansion: int):
        super().__init__()
        outputs = channels * expansion
        if expansion == 1:
            convs = [conv(inputs, channels, 3, stride), conv(channels, outputs, 3)]
        else:
            convs = [conv(inputs, channels, 1), conv(channels, channels, 3, stride), conv(channels, outputs, 1)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(layer.out_channels) for layer in convs)
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for index, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(layer(functional.relu(y) if index else y))
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class BarlowTwins(nn.Module):
    """The whole model: loss = module(view1, view2), for images (n, c, h, w)."""

    def __init__(
        self,
        arch: str,
        *,
        small_images: bool,
        width: float,
        channels: int,
        projector,
        lambd: float,
        stem_padding: int = 1,
    ):
        super().__init__()
        base, expansion = round(64 * width), EXPANSION[arch]
        small = nn.Conv2d(channels, base, 3, padding=stem_padding, bias=False)
        stem = small if small_images else conv(channels, base, 7, 2)
        layers = [stem, nn.BatchNorm2d(base), nn.ReLU()]
        layers += [] if small_images else [nn.MaxPool2d(3, 2, 1)]
        inputs = base
        for stage, depth in enumerate(DEPTHS[arch]):
            for index in range(depth):
                outputs = base * 2**stage
                layers.append(Block(inputs, outputs, 2 if stage and not index else 1, expansion))
                inputs = outputs * expansion
        self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        layers = []
        for hidden in projector[:-1]:
            layers += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
            inputs = hidden
        self.projector = nn.Sequential(*layers, nn.Linear(inputs, projector[-1], bias=False))
        self.normalise = nn.BatchNorm1d(projector[-1], affine=False)
        self.lambd = lambd

    def forward(self, view1, view2):
        z1, z2 = (self.projector(self.backbone(view)) for view in (view1, view2))
        with torch.autocast(view1.device.type, enabled=False):
            c = self.normalise(z1.float()).T @ self.normalise(z2.float()) / len(z1)
            diagonal = torch.diagonal(c)
            on_diag = (diagonal - 1).square().sum()
            return on_diag + self.lambd * (c.square().sum() - diagonal.square().sum())


class Lars(torch.optim.Optimizer):
    """LARS: weight decay, trust ratio, momentum, rate. One-dimensional parameters skip the first two."""

    def __init__(self, parameters, *, rate: float, decay: float, momentum: float = 0.9, trust: float = 0.001):
        super().__init__(parameters, {"rate": rate, "decay": decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = []
            for p in parameters:
                update = p.grad
                if p.ndim > 1:
                    update = update + group["decay"] * p
                    norm, size = p.norm(), update.norm()
                    ratio = torch.where((norm > 0) & (size > 0), group["trust"] * norm / size, 1.0)
                    update = update * ratio
                updates.append(update)
            if not self.state:
                for p in parameters:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in parameters]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, updates)
            torch._foreach_add_(parameters, momenta, alpha=-group["rate"])


class Step:
    """A training step: step() starts it, and wait() returns at its end."""

    def __init__(self, options: dict, *, batch: int, size: int, compiled: bool, bfloat16: bool):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = BarlowTwins(**options).to(self.device, memory_format=torch.channels_last).train()
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (batch, options["channels"], size, size)
        self.views = [torch.randn(shape, generator=generator, device=self.device) for _ in range(2)]
        self.views = [view.to(memory_format=torch.channels_last) for view in self.views]
        self.optimizer = Lars(model.parameters(), rate=0.2, decay=1.5e-6)
        self.model = torch.compile(model) if compiled else model
        self.bfloat16 = bfloat16
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            self.loss = self.model(*self.views)
        self.loss.backward()
        self.optimizer.step()

    def wait(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return float(self.loss.detach())
