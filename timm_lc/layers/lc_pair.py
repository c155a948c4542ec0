"""The LC-Block with an operation between its two convolutions (the paper's second version, table 3)."""

from typing import Any

from torch import Tensor, nn

from timm_lc.layers.lc_conv import LCConv2d, other_forms

__all__ = ['BETWEEN', 'LCPair']

BETWEEN = ('relu', 'bn', 'bn_relu')


class LCPair(nn.Sequential):
    """Spatial convolution, an operation, pointwise convolution, one after the other.

    With a non-linearity or a batch norm between them the two are not one convolution: `fold` refuses such a network,
    and the E*C_out-channel activation exists, at the cost that LC-Blocks otherwise avoid.

    Args:
        block: The LC-Block whose two convolutions become the children `spatial` and `pointwise`.
        between: 'relu', 'bn' (batch norm) or 'bn_relu', the child `between`.

    Raises:
        ValueError: If `between` is none of these.

    Example:
        >>> import torch
        >>> LCPair(LCConv2d(3, 4, 3, expansion=2), 'bn_relu')(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 4, 6, 6])
    """

    def __init__(self, block: LCConv2d, between: str) -> None:
        if between not in BETWEEN:
            raise ValueError(f'`between` must be one of {", ".join(BETWEEN)}, got {between!r}')
        super().__init__()
        weight = block.pointwise.weight
        operation = nn.Sequential()
        if 'bn' in between:
            operation.append(nn.BatchNorm2d(block.spatial.out_channels, device=weight.device, dtype=weight.dtype))
        if 'relu' in between:
            operation.append(nn.ReLU())
        self.spatial, self.between, self.pointwise = block.spatial, operation, block.pointwise
        self.train(block.training)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse a checkpoint of a form with other tensors, which a loader that is not strict would leave out."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        args[-1].extend(other_forms(state_dict, prefix, is_normed=len(self.between.state_dict()) > 0))

    @property
    def expansion(self) -> int:
        """Return E, spatial filters for each output channel."""
        return self.spatial.out_channels // self.pointwise.out_channels
