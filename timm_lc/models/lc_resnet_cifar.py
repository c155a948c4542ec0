"""LCResNet-D-WxE for 32x32 images: the CIFAR ResNet of He et al. with LC-Blocks (section 4.2, figure 5).

Against He et al.: shortcuts are a 1x1 convolution and batch norm where the shape changes (as in the authors' code), and
all layers start from PyTorch's default initialisation (equation 3).
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, create_classifier
from timm.models import PretrainedCfg, build_model_with_cfg, checkpoint_seq
from torch import Tensor, nn

from timm_lc._timm import feature_take_indices
from timm_lc.arguments import check_count
from timm_lc.models._build import register
from timm_lc.models.lc_shipped import shipped_cfg

__all__ = ['BasicBlock', 'CifarResNet']

CIFAR_CFG = PretrainedCfg(
    input_size=(3, 32, 32), pool_size=(8, 8), num_classes=10, crop_pct=1.0, interpolation='bilinear',
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), classifier='fc', first_conv=(),
)  # fmt: skip

DEPTHS, WIDTHS, EXPANSIONS = (20, 32, 44, 56, 110, 260), (16, 32, 64, 128), (1, 2, 4, 8, 16, 32, 64, 128)


class BasicBlock(nn.Module):
    """Two k x k convolutions with batch norm and a shortcut (figure 5).

    Shape:
        (N, C_in, H, W) -> (N, C_out, H/stride, W/stride).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, kernel_size: int, drop_path: float, **factory: Any
    ) -> None:
        super().__init__()
        conv = functools.partial(nn.Conv2d, kernel_size=kernel_size, padding=kernel_size // 2, bias=False, **factory)
        self.conv1 = conv(in_channels, out_channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(out_channels, **factory)
        self.conv2 = conv(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels, **factory)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False, **factory)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return F.relu(self.drop_path(residual) + self.downsample(x))


class CifarResNet(nn.Module):
    """Plain ResNet-D of width W for small images: a k x k stem and three stages of W, 2W, 4W channels.

    Args:
        depth: D = 6n + 2, spatial convolutions and the classifier.
        width: W, channels of the first stage.
        kernel_size: k, odd.
        num_classes: As in timm, like the rest.

    Raises:
        ValueError: If `depth` is not 6n + 2, `kernel_size` is even or `width` not positive.
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        kernel_size: int = 3,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_geometry(depth, width, kernel_size)
        factory = {'device': device, 'dtype': dtype}
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = 4 * width
        self.grad_checkpointing = False
        # what `fold` saves: a registered name and the arguments that give this network without LC-Blocks
        self.plain_form = 'lc_resnet_cifar', {'depth': depth, 'width': width, 'kernel_size': kernel_size}
        self.conv1 = nn.Conv2d(in_chans, width, kernel_size, padding=kernel_size // 2, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(width, **factory)
        self.act1 = nn.ReLU()
        self.feature_info = [{'num_chs': width, 'reduction': 1, 'module': 'act1'}]
        blocks = (depth - 2) // 6
        rates = torch.linspace(0, drop_path_rate, 3 * blocks, device='cpu').tolist()
        for stage in range(3):
            own = rates[stage * blocks : (stage + 1) * blocks]
            self.add_module(f'layer{stage + 1}', _make_stage(stage, width, kernel_size, own, factory))
            num_chs = width << stage
            self.feature_info.append({'num_chs': num_chs, 'reduction': 1 << stage, 'module': f'layer{stage + 1}'})
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool, **factory)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns of timm's layer groups."""
        return {'stem': r'^conv1|bn1', 'blocks': r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)'}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in the stages."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """Return the classifier or its name."""
        return 'fc' if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, on the network's device and in its type."""
        like = next(self.parameters())
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        head = create_classifier(self.num_features, num_classes, pool_type=pool, device=like.device, dtype=like.dtype)
        self.global_pool, self.fc = (module.train(self.training) for module in head)

    def _stem(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(self.conv1(x)))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Any:
        """Return the last features and those after the stem and each stage, as timm's networks do."""
        if output_fmt != 'NCHW':
            raise ValueError(f'`output_fmt` must be NCHW, got {output_fmt}')
        taken, last = feature_take_indices(4, indices)
        features = [x := self._stem(x)]
        for layer in (self.layer1, self.layer2, self.layer3)[: last if stop_early else 3]:
            x = checkpoint_seq(layer, x) if self.grad_checkpointing else layer(x)
            features.append(x)
        intermediates = [features[index] for index in taken]
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and the classifier; return the indices."""
        taken, last = feature_take_indices(4, indices)
        for index in range(last + 1, 4):
            setattr(self, f'layer{index}', nn.Sequential())
        if last < 3:
            self.num_features = self.head_hidden_size = self.feature_info[last]['num_chs']
        if prune_head or last < 3:
            self.reset_classifier(0, '')
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4W, H/4, W/4)."""
        x = self._stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify."""
        x = F.dropout(self.global_pool(x), p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _make_stage(
    stage: int, width: int, kernel_size: int, drop_paths: list[float], factory: dict[str, Any]
) -> nn.Sequential:
    """Return the blocks of a stage, one for each rate of stochastic depth; from the second on it halves the size."""
    out_channels, blocks = width << stage, nn.Sequential()
    in_channels, stride = (out_channels // 2, 2) if stage else (width, 1)
    for drop_path in drop_paths:
        blocks.append(BasicBlock(in_channels, out_channels, stride, kernel_size, drop_path, **factory))
        in_channels, stride = out_channels, 1
    return blocks


def _check_geometry(depth: int, width: int, kernel_size: int) -> None:
    if not isinstance(depth, int) or depth < 8 or depth % 6 != 2:
        raise ValueError(f'`depth` must be 6n + 2 for a positive n (8, 14, 20, ...), got {depth!r}')
    check_count('width', width)
    if not isinstance(kernel_size, int) or kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(
            f'`kernel_size` must be an odd integer from 3 on, so that padding keeps the size, got {kernel_size!r}'
        )


def create_cifar_resnet(name: str, defaults: dict[str, Any], **kwargs: Any) -> Any:
    """Create the stock `CifarResNet` of a registered name; `kwargs` win over its defaults."""
    feature_cfg = {'out_indices': (0, 1, 2, 3)}
    return build_model_with_cfg(CifarResNet, name, False, feature_cfg=feature_cfg, **{**defaults, **kwargs})


def _register_all() -> None:
    doc = (
        'LCResNet with `depth`, `width`, `kernel_size`, and `expansion` (None: plain); also `timm_lc.models.LCOptions`.'
    )
    create = functools.partial(create_cifar_resnet, 'lc_resnet_cifar', {})
    register(globals(), 'lc_resnet_cifar', create, CIFAR_CFG, ('conv1',), {}, doc)
    for depth in DEPTHS:
        for width in WIDTHS:
            create = functools.partial(create_cifar_resnet, f'lc_resnet{depth}', {'depth': depth, 'width': width})
            for expansion in EXPANSIONS:
                name = f'lc_resnet{depth}_{width}x{expansion}'
                doc = (
                    f'LCResNet-{depth}-{width}x{expansion} (section 4.2); keyword arguments: `timm_lc.models.LCOptions`'
                )
                cfg = shipped_cfg(name, CIFAR_CFG)
                register(globals(), name, create, cfg, ('conv1',), {'expansion': expansion}, doc)


_register_all()
