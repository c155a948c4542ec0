"""Keyword arguments of every `lc_` model, and the transforms they stand for."""

import dataclasses
import math

from torch import nn

from timm_lc.arguments import check_count
from timm_lc.filters import EXPECTED, KEPT, UNIFORM, FilterRecord, check_filters
from timm_lc.layers.frozen import filter_shape, freeze_convolution, is_frozen
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.layers.lc_pair import LCPair
from timm_lc.spatial import is_flat
from timm_lc.transforms.adapt import ADAPTER_GAIN, add_adapters
from timm_lc.transforms.combine import add_linear_combinations, replace_modules
from timm_lc.transforms.convert import to_implicit
from timm_lc.transforms.freeze import freeze_spatial, seed_spatial, settle
from timm_lc.transforms.share import share_weights

__all__ = ['LC_ARGUMENTS', 'LCOptions']


@dataclasses.dataclass(frozen=True)
class LCOptions:
    """Keyword arguments of every `lc_` model.

    Args:
        freeze_spatial: Whether the spatial filters keep their random values; False is the learnable baseline.
        share_weights: Whether all layers slice one random vector (section 4.3).
        recycle: r; the shared vector is r times shorter and repeats.
        shared_length: Length of the shared vector, in place of `recycle` (figure 10).
        expansion: E turns each spatial convolution into an LC-Block; None leaves combining to the architecture.
        between: 'relu', 'bn' or 'bn_relu' between the two convolutions of each LC-Block (second version, table 3),
            which then are computed one after the other and do not fold; None is nothing, as the paper's LC-Block has.
        implicit: Whether LC-Blocks learn P W itself, at the plain network's cost; they train alike under SGD.
        seed: Filter seed in [0, 2**32), independent of the training seed.
        gain: Filters are uniform in +-gain / sqrt(C_in/groups * k_h * k_w); None is 1,
            or sqrt(6) (He) for a network without norms (timm's norm-free ones standardise weights, at any scale).
        filters: Filter set, 'uniform' as in the paper or 'orthogonal' (see `freeze_spatial`);
            with `implicit=True` also 'expected', the limit of many filters.
        kept: Names of layers, separated by spaces, whose filters no seed gives: they are in the checkpoint. A saved
            config says so, for loaders that assign tensors one by one to what the network is built to hold.
        adapter: Rank of adapters to a trained network, `base`, in place of all that is above but `seed` and `gain`.
        base: What `timm.create_model` builds that network from: a name with its tag, 'hf-hub:user/name',
            'local-dir:path', or the file of a checkpoint.
        adapter_layers: As `layers` in `add_adapters`.
        adapter_norms: As `norms` in `add_adapters`.
    """

    freeze_spatial: bool = True
    share_weights: bool = False
    recycle: int = 1
    shared_length: int | None = None
    expansion: int | None = None
    between: str | None = None
    implicit: bool = False
    seed: int = 0
    gain: float | None = None
    filters: str = 'uniform'
    kept: str | None = None
    adapter: int | None = None
    base: str | None = None
    adapter_layers: str = 'spatial'
    adapter_norms: bool = True

    def __post_init__(self) -> None:
        for name in ('freeze_spatial', 'share_weights', 'implicit', 'adapter_norms'):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f'`{name}` must be True or False, got {getattr(self, name)!r}')
        if self.share_weights and not self.freeze_spatial:
            raise ValueError(
                '`share_weights=True` needs `freeze_spatial=True`: shared filters are random and never learn'
            )
        if not self.share_weights and (self.recycle != 1 or self.shared_length is not None):
            raise ValueError('`recycle` and `shared_length` need `share_weights=True`')
        if self.share_weights and check_filters(self.filters) != UNIFORM:
            raise ValueError(f"`share_weights=True` needs `filters='uniform'`, got {self.filters!r}")
        if self.between is not None and self.expansion is None:
            raise ValueError(f'`between` needs `expansion`, the LC-Blocks that it is in; got {self.between!r} alone')
        check_filters(self.filters)
        if self.adapter is not None:
            self._check_adapter()
        elif self.base is not None:
            raise ValueError(f'`base` needs `adapter`, the rank of adapters to it; got base={self.base!r} alone')
        elif (self.adapter_layers, self.adapter_norms) != ('spatial', True):
            raise ValueError(
                f'`adapter_layers` and `adapter_norms` need `adapter`, the rank of adapters; got '
                f'{self.adapter_layers!r} and {self.adapter_norms!r} alone'
            )
        if not isinstance(self.kept, str | None):
            raise ValueError(f'`kept` must be names of layers separated by spaces, got {self.kept!r}')
        if self.implicit:
            self._check_implicit()
        elif check_filters(self.filters) == EXPECTED:
            raise ValueError("`filters='expected'` has no filters: it needs `implicit=True`")

    def _check_implicit(self) -> None:
        if self.expansion is None:
            raise ValueError('`implicit=True` needs `expansion`, the LC-Blocks that it is about')
        if not self.freeze_spatial:
            raise ValueError('`implicit=True` needs `freeze_spatial=True`: where filters learn, G is not fixed')
        if self.between is not None:
            raise ValueError(f'`implicit=True` has nothing between the two convolutions, got {self.between!r}')

    def _check_adapter(self) -> None:
        check_count('adapter', self.adapter or 0)
        if not isinstance(self.base, str) or not self.base:
            raise ValueError(f'`adapter` needs `base`, the trained network that it adapts; got base={self.base!r}')
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in _WITH_ADAPTER and value != field.default:
                raise ValueError(f'`adapter` leaves the base as it is: it cannot go with {field.name}={value!r}')

    def adapt(self, model: nn.Module) -> nn.Module:
        """Add adapters to a trained network, in place."""
        assert self.adapter is not None
        gain = ADAPTER_GAIN if self.gain is None else self.gain
        return add_adapters(model, self.adapter, self.seed, self.adapter_layers, self.adapter_norms, gain=gain)

    def keep(self, model: nn.Module) -> nn.Module:
        """Keep, in place, the present filters of the layers in `kept`, for those of a checkpoint to come."""
        if not self.kept or not self.freeze_spatial:  # learnable filters are in every checkpoint
            return model
        frozen = {name: module for name, module in model.named_modules() if is_frozen(module)}
        for name in self.kept.split():
            if name not in frozen:
                raise ValueError(f'`kept` must name layers with frozen filters, got {name!r}')
            freeze_convolution(frozen[name], FilterRecord(filter_shape(frozen[name]), filter_set=KEPT))
        settle(model)
        return model

    def apply(self, model: nn.Module) -> nn.Module:
        """Transform a stock network in place."""
        gain = self.gain if self.gain is not None else 1.0 if _has_norm(model) else math.sqrt(6)
        if self.expansion is not None:
            is_implicit = self.implicit and not self.share_weights  # slices of one vector need all layers first
            add_linear_combinations(
                model,
                self.expansion,
                self.seed,
                self.freeze_spatial,
                is_flat,
                gain=gain,
                implicit=is_implicit,
                filters=self.filters,
            )
        elif self.freeze_spatial and not self.share_weights:  # which freezes: drawing filters twice takes twice as long
            freeze_spatial(model, self.seed, is_flat, gain=gain, filters=self.filters)
        elif not self.freeze_spatial:
            seed_spatial(model, self.seed, gain=gain, filters=self.filters)
        if self.between is not None:
            _separate(model, self.between)
        if self.share_weights:
            share_weights(model, self.seed, self.recycle, is_flat, shared_length=self.shared_length, gain=gain)
            if self.implicit:
                to_implicit(model)
        return model


_WITH_ADAPTER = ('adapter', 'base', 'adapter_layers', 'adapter_norms', 'seed', 'gain')

# Keyword arguments that `lc_` models have and stock ones lack
LC_ARGUMENTS = tuple(field.name for field in dataclasses.fields(LCOptions))


def _separate(model: nn.Module, between: str) -> nn.Module:
    """Replace, in place, each LC-Block by its two convolutions with an operation between them; return `model`."""
    blocks = [module for module in model.modules() if isinstance(module, LCConv2d)]
    replace_modules(model, {block: LCPair(block, between) for block in blocks})
    return model


def _has_norm(model: nn.Module) -> bool:
    return any('Norm' in type(module).__name__ for module in model.modules())
