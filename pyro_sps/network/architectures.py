"""Networks that are often met, small enough to look at their symmetries. No trained weights come with them.

They are built to be read: each is a few lines of ordinary PyTorch, traceable by `torch.fx`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


def _norm(name: str, groups: int = 8) -> Norm:
    norms: dict[str, Norm] = {
        "batch": nn.BatchNorm2d,
        "group": lambda channels: nn.GroupNorm(math.gcd(groups, channels), channels),
        "none": lambda channels: nn.Identity(),
    }
    if name not in norms:
        raise ValueError(f"norm must be one of {sorted(norms)}, got {name!r}")
    return norms[name]


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, **options)


def lenet5(
    classes: int = 10, channels: int = 1, size: int = 28, activation: Callable[[], nn.Module] = nn.Tanh
) -> nn.Module:
    """LeNet-5: two convolutions with average pooling, then three fully connected layers.

    Args:
        classes: Number of outputs.
        channels: Channels of an image.
        size: Its height and width, a multiple of 4 and at least 20.
        activation: Makes the activations.

    Source: LeCun et al. (1998), Gradient-based learning applied to document recognition.

    Example:
        >>> import torch, pyro_sps as sps
        >>> sps.networks.lenet5()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    side = (size // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        activation(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        activation(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        activation(),
        nn.Linear(120, 84),
        activation(),
        nn.Linear(84, classes),
    )


class _Residual(nn.Module):
    """Two convolutions beside the identity, or beside a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, stride=stride, bias=False), norm(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs, bias=False), norm(outputs)
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(_conv(inputs, outputs, 1, stride, bias=False), norm(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class _ResNet(nn.Module):
    def __init__(self, classes: int, channels: int, width: int, blocks: int, norm: Norm) -> None:
        super().__init__()
        self.conv, self.norm = _conv(channels, width, bias=False), norm(width)
        widths = [width, 2 * width, 4 * width]
        layers = [
            _Residual(
                widths[max(0, stage - 1)] if block == 0 else outputs, outputs, 2 if stage and not block else 1, norm
            )
            for stage, outputs in enumerate(widths)
            for block in range(blocks)
        ]
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.blocks(F.relu(self.norm(self.conv(x))))
        return self.head(hidden.mean((2, 3)))


def resnet20(classes: int = 10, channels: int = 3, width: int = 16, norm: str = "batch", blocks: int = 3) -> nn.Module:
    """The residual network with 20 layers for CIFAR-10, shortcuts by 1 x 1 convolutions where the width changes.

    Args:
        classes: Number of outputs.
        channels: Channels of an image.
        width: Channels of the first of three stages; each next one has twice as many.
        norm: `"batch"`, `"group"` (of 8) or `"none"`.
        blocks: Residual blocks a stage: 3 for ResNet-20, 5 for ResNet-32, ...

    Raises:
        ValueError: If `norm` is not known.

    Source: He et al. (2016), Deep residual learning for image recognition, section 4.2.

    Example:
        >>> import torch, pyro_sps as sps
        >>> net = sps.networks.resnet20(norm="group")
        >>> net(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in net.parameters())
        (torch.Size([2, 10]), 272474)
    """
    return _ResNet(classes, channels, width, blocks, _norm(norm))


def vgg11(classes: int = 10, channels: int = 3, width: int = 64, norm: str = "batch") -> nn.Module:
    """VGG-11 for images of 32 x 32: eight convolutions, five poolings, one linear layer.

    Args:
        classes: Number of outputs.
        channels: Channels of an image.
        width: Channels of the first convolution; 64 in the original.
        norm: `"batch"`, `"group"` or `"none"`.

    Source: Simonyan and Zisserman (2015), Very deep convolutional networks, column A.

    Example:
        >>> import torch, pyro_sps as sps
        >>> sps.networks.vgg11(width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    before = channels
    for stage in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        for factor in stage:
            layers += [_conv(before, factor * width), _norm(norm)(factor * width), nn.ReLU()]
            before = factor * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, classes))


def mobilenet(classes: int = 10, channels: int = 3, width: int = 32, norm: str = "batch") -> nn.Module:
    """MobileNet: depthwise convolutions, each followed by a 1 x 1 convolution; for images of 32 x 32.

    Args:
        classes: Number of outputs.
        channels: Channels of an image.
        width: Channels of the first convolution; 32 in the original.
        norm: `"batch"`, `"group"` or `"none"`.

    Source: Howard et al. (2017), MobileNets, table 1, with strides for small images.

    Example:
        >>> import torch, pyro_sps as sps
        >>> sps.networks.mobilenet(width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    make = _norm(norm)
    layers: list[nn.Module] = [_conv(channels, width, bias=False), make(width), nn.ReLU()]
    before = width
    for factor, stride in ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1)):
        outputs = factor * width
        layers += [_conv(before, before, stride=stride, groups=before, bias=False), make(before), nn.ReLU()]
        layers += [_conv(before, outputs, 1, bias=False), make(outputs), nn.ReLU()]
        before = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class _UNet(nn.Module):
    def __init__(self, outputs: int, channels: int, width: int) -> None:
        super().__init__()

        def twice(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(_conv(inputs, outputs), nn.ReLU(), _conv(outputs, outputs), nn.ReLU())

        self.down1, self.down2 = twice(channels, width), twice(width, 2 * width)
        self.bottom = twice(2 * width, 4 * width)
        self.up2, self.merge2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), twice(4 * width, 2 * width)
        self.up1, self.merge1 = nn.ConvTranspose2d(2 * width, width, 2, 2), twice(2 * width, width)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        deep = self.bottom(F.max_pool2d(second, 2))
        second = self.merge2(torch.cat([self.up2(deep), second], 1))
        first = self.merge1(torch.cat([self.up1(second), first], 1))
        return self.head(first)


def unet(outputs: int = 1, channels: int = 3, width: int = 16) -> nn.Module:
    """A U-Net of three levels, whose levels on the way up see those on the way down by concatenation.

    Args:
        outputs: Channels of the result, which has the image's height and width.
        channels: Channels of an image, whose height and width are multiples of 4.
        width: Channels of the first level.

    Source: Ronneberger et al. (2015), U-Net, with padding and fewer levels.

    Example:
        >>> import torch, pyro_sps as sps
        >>> sps.networks.unet(width=4)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """
    return _UNet(outputs, channels, width)


class _Recurrent(nn.Module):
    def __init__(self, cells: nn.LSTM | nn.GRU, outputs: int) -> None:
        super().__init__()
        self.cells = cells
        self.head = nn.Linear(cells.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cells(x)
        return self.head(states[:, -1])


def lstm(inputs: int = 1, hidden: int = 32, layers: int = 2, outputs: int = 1) -> nn.Module:
    """An LSTM that reads a sequence, and a linear layer on its last state.

    Args:
        inputs: Numbers a time step.
        hidden: Units of each layer.
        layers: Number of layers.
        outputs: Number of outputs.

    Source: Hochreiter and Schmidhuber (1997), Long short-term memory.

    Example:
        >>> import torch, pyro_sps as sps
        >>> sps.networks.lstm()(torch.zeros(2, 7, 1)).shape
        torch.Size([2, 1])
    """
    return _Recurrent(nn.LSTM(inputs, hidden, layers, batch_first=True), outputs)


def gru(inputs: int = 1, hidden: int = 32, layers: int = 2, outputs: int = 1) -> nn.Module:
    """A GRU that reads a sequence, and a linear layer on its last state; arguments as of `lstm`.

    Args:
        inputs: Numbers a time step.
        hidden: Units of each layer.
        layers: Number of layers.
        outputs: Number of outputs.

    Source: Cho et al. (2014), Learning phrase representations using RNN encoder-decoder.

    Example:
        >>> import torch, pyro_sps as sps
        >>> sps.networks.gru()(torch.zeros(2, 7, 1)).shape
        torch.Size([2, 1])
    """
    return _Recurrent(nn.GRU(inputs, hidden, layers, batch_first=True), outputs)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        read = self.read(x).unflatten(-1, (3, self.heads, -1))  # rows, positions, q k v, heads, dimensions
        q, k, v = (read[:, :, part].transpose(1, 2) for part in range(3))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.write(mixed.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """A transformer block that normalises before attention and before the perceptron."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), _Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.perceptron(self.norm2(x))


class _ViT(nn.Module):
    def __init__(self, classes: int, channels: int, size: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(_Block(width, heads, False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(stream)).mean(1))


def vit_tiny(
    classes: int = 1000,
    channels: int = 3,
    size: int = 224,
    patch: int = 16,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
) -> nn.Module:
    """A vision transformer of 5.7 million weights that averages its positions at the end.

    Args:
        classes: Number of outputs.
        channels: Channels of an image.
        size: Its height and width.
        patch: Height and width of a patch.
        width: Width of the stream.
        depth: Number of blocks.
        heads: Attention heads a block.

    Source: Dosovitskiy et al. (2021), An image is worth 16 x 16 words; Touvron et al. (2021) for the size; a mean in
    place of a class token as in Beyer et al. (2022).

    Example:
        >>> import torch, pyro_sps as sps
        >>> net = sps.networks.vit_tiny(classes=10, size=32, patch=8, width=24, depth=2)
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return _ViT(classes, channels, size, patch, width, depth, heads)


class _GPT(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int, tied: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(_Block(width, heads, True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x) + self.positions)))


def nanogpt(
    vocabulary: int = 65, length: int = 64, width: int = 128, depth: int = 4, heads: int = 4, tied: bool = True
) -> nn.Module:
    """A small decoder: token ids of a fixed length to logits of the next token at every position.

    Args:
        vocabulary: Number of tokens.
        length: Length of a sequence.
        width: Width of the stream.
        depth: Number of blocks.
        heads: Attention heads a block.
        tied: Whether the embedding of tokens is the output layer too.

    Source: Radford et al. (2019), Language models are unsupervised multitask learners, at a small size.

    Example:
        >>> import torch, pyro_sps as sps
        >>> net = sps.networks.nanogpt(length=8, width=16, depth=1, heads=2)
        >>> net(torch.zeros(2, 8, dtype=torch.int64)).shape
        torch.Size([2, 8, 65])
    """
    return _GPT(vocabulary, length, width, depth, heads, tied)


#: What `pyro-sps symmetry --network NAME` knows. `example_of` makes inputs for them.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "lenet5": lenet5,
    "vgg11": vgg11,
    "mobilenet": mobilenet,
    "unet": unet,
    "lstm": lstm,
    "gru": gru,
    "vit-tiny": vit_tiny,
    "nanogpt": nanogpt,
}


def example_of(name: str) -> Tensor:
    """Two rows of inputs of a network with its default options.

    Args:
        name: A key of `NETWORKS`.

    Example:
        >>> from pyro_sps.network.architectures import example_of
        >>> example_of("lenet5").shape
        torch.Size([2, 1, 28, 28])
    """
    if name == "nanogpt":
        return torch.zeros(2, 64, dtype=torch.int64)
    shapes = {"lenet5": (1, 28, 28), "unet": (3, 16, 16), "lstm": (6, 1), "gru": (6, 1), "vit-tiny": (3, 224, 224)}
    return torch.zeros(2, *shapes.get(name, (3, 32, 32)))
