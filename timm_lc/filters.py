"""Random filters as a function of (seed, stream), and the record that names them; their scale is appendix D's."""

import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from timm_lc.generator import check_seed, draw_into, fingerprint, random_values
from timm_lc.orthogonal import orthonormal_rows

__all__ = [
    'EXPECTED',
    'FILTER_SETS',
    'KEPT',
    'ORTHOGONAL',
    'UNIFORM',
    'VERSION',
    'FilterRecord',
    'check_filters',
    'check_gain',
    'check_seed',
    'fingerprint',
    'layer_stream',
    'random_values',
]

VERSION = 1
SHARED_STREAM = 0
# KEPT filters were frozen as they were and live in the checkpoint; UNIFORM ones come from the generator; ORTHOGONAL
# ones are those, made orthonormal per group; EXPECTED has no filters: it stands for the limit of W^T W for many.
KEPT, UNIFORM, ORTHOGONAL, EXPECTED = 0, 1, 2, 3
FILTER_SETS = {'uniform': UNIFORM, 'orthogonal': ORTHOGONAL, 'expected': EXPECTED}

_BLOCK_VALUES = 1 << 20  # filter values that are in memory at a time where a sum over all filters is wanted
# version, filter set, groups - 1, seed, stream, period, shape, gain, CRC-32 of the filters; then the CRC-32 of these
_LAYOUT = struct.Struct('<BBHIIIIIHHdI')
_CHECKSUM = struct.Struct('<I')
_ROUNDING = 0.25


def check_gain(gain: float) -> float:
    """Return `gain` if it is a positive number, else raise `ValueError`."""
    if isinstance(gain, bool) or not isinstance(gain, int | float) or not 0 < gain < float('inf'):
        raise ValueError(f'`gain` must be a positive number, got {gain!r}')
    return gain


def check_filters(filters: str) -> int:
    """Return the filter set of that name, else raise `ValueError`."""
    if not isinstance(filters, str) or filters not in FILTER_SETS:
        raise ValueError(f'`filters` must be one of {", ".join(map(repr, FILTER_SETS))}, got {filters!r}')
    return FILTER_SETS[filters]


def layer_stream(name: str) -> int:
    """Return the stream of the unshared layer with qualified name `name`: the upper 24 bits of its CRC-32."""
    return zlib.crc32(name.encode()) >> 8


@dataclass(frozen=True)
class FilterRecord:
    """What is needed to draw a layer's filters again.

    Args:
        shape: (C_out, C_in/groups, k_h, k_w), as drawn: adapting to other input channels leaves it.
        seed: Filter seed in [0, 2**32).
        stream: `layer_stream` of the layer's name, 0 if it slices the shared vector.
        period: Values after which the stream repeats (recycled sharing, section 4.3); 0 if it never does.
        gain: Filters are uniform in +-gain / sqrt(C_in/groups * k_h * k_w); orthogonal ones have their mean square.
        filter_set: `UNIFORM`, `ORTHOGONAL`, `EXPECTED`, or `KEPT` for filters that no seed gives.
        groups: In each of how many groups rows are orthonormal; 1 for the other sets, which do not depend on it.
    """

    shape: tuple[int, int, int, int]
    seed: int = 0
    stream: int = SHARED_STREAM
    period: int = 0
    gain: float = 1.0
    filter_set: int = UNIFORM
    groups: int = 1

    @property
    def numel(self) -> int:
        """Number of filter values."""
        return math.prod(self.shape)

    @property
    def set_name(self) -> str:
        """The name of the filter set, 'kept' for filters of no seed."""
        return next((name for name, number in FILTER_SETS.items() if number == self.filter_set), 'kept')

    @property
    def is_kept(self) -> bool:
        """Whether the filters are stored because no seed gives them."""
        return self.filter_set == KEPT

    @property
    def is_shared(self) -> bool:
        """Whether the filters are a slice of the shared vector."""
        return self.filter_set == UNIFORM and self.stream == SHARED_STREAM

    @property
    def is_recycled(self) -> bool:
        """Whether values of the stream stand in the filters more than once."""
        return 0 < self.period < self.numel

    @property
    def scale(self) -> float:
        """Return the factor s of equation 8, rounded to float32."""
        return float(np.float32(self.gain / math.sqrt(math.prod(self.shape[1:]))))

    def unit_values(self) -> np.ndarray:
        """Return the filters before scaling, flat: float32 (numel,) in (-1, 1)."""
        return self._values(1.0)

    def filters(self) -> np.ndarray:
        """Return the filters, float32 (C_out, C_in/groups, k_h, k_w).

        Raises:
            ValueError: If the set is `EXPECTED`, which has none.
        """
        if self.filter_set == EXPECTED:
            raise ValueError("`filters='expected'` has no filters: it needs `implicit=True`")
        if self.filter_set == ORTHOGONAL:
            return self._orthogonalised(self.unit_values()).reshape(self.shape)
        return self._values(self.scale).reshape(self.shape)

    def draw_into(self, filters: np.ndarray, *, fingerprinted: bool = True) -> int:
        """Write the filters into a float32 array of their shape, without gaps; return their fingerprint, or 0."""
        if self.filter_set == UNIFORM and not self.is_recycled:
            return draw_into(filters.reshape(-1), self.seed, self.stream, self.scale, fingerprinted=fingerprinted)
        filters[...] = self.filters()
        return fingerprint(filters) if fingerprinted else 0

    def fingerprint_of(self, units: np.ndarray) -> int:
        """Return the fingerprint of filters of which `units` are the values before scaling, or those that repeat."""
        values = units[: self.numel] if len(units) >= self.numel else np.resize(units, self.numel)
        return fingerprint(values * np.float32(self.scale))

    def _values(self, scale: float) -> np.ndarray:
        """Return the values of the stream, repeated if need be, times `scale`."""
        drawn = min(self.numel, self.period or self.numel)
        values = random_values(self.seed, self.stream, drawn, scale)
        return values if drawn == self.numel else np.resize(values, self.numel)

    def blocks(self, groups: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the filters in order, (rows, C_in/groups, k_h, k_w): whole groups, or a part of one.

        Each block is in float32, and in float64 as layers in double precision compute: they scale a shared vector
        without rounding to float32.
        """
        rows, fan = self.shape[0] // groups, math.prod(self.shape[1:])
        step = max(1, _BLOCK_VALUES // fan)
        if rows <= step:
            starts = list(range(0, self.shape[0], step // rows * rows))
        else:
            starts = [group * rows + row for group in range(groups) for row in range(0, rows, step)]
        whole = self.filters() if self.filter_set != UNIFORM else None
        vector = random_values(self.seed, self.stream, self.period) if self.period else None
        for start, stop in itertools.pairwise([*starts, self.shape[0]]):
            units = self._units(start * fan, stop * fan, vector) if whole is None else whole[start:stop]
            units = units.reshape(-1, *self.shape[1:])
            filters = units if whole is not None else units * np.float32(self.scale)
            yield filters, units * np.float64(self.scale) if self.is_shared else np.float64(filters)

    def _units(self, start: int, stop: int, vector: np.ndarray | None) -> np.ndarray:
        """Return values number `start` to `stop` before scaling, of a stream that repeats `vector` if it is given."""
        if vector is None:
            return random_values(self.seed, self.stream, stop - start, start=start)
        return vector.take(np.arange(start, stop), mode='wrap')

    def _orthogonalised(self, values: np.ndarray) -> np.ndarray:
        """Make (R/groups, fan) orthogonal in each group: its rows, or its columns where there are fewer of them.

        The squares of all values sum to what is expected of uniform ones, R * gain^2 / 3: W^T W becomes gain^2 / 3
        times a projector, or, with more rows than columns, the expected W^T W itself.
        """
        rows, fan = self.shape[0] // self.groups, math.prod(self.shape[1:])
        matrix = values.reshape(self.groups, rows, fan)
        if rows <= fan:
            return np.float32(orthonormal_rows(matrix) * (self.gain / math.sqrt(3)))
        columns = orthonormal_rows(np.swapaxes(matrix, 1, 2))
        return np.swapaxes(np.float32(columns * (self.gain * math.sqrt(rows / (3 * fan)))), 1, 2)

    def encode(self, filters: np.ndarray | int | None) -> np.ndarray:
        """Return the record as digits, float32 (RECORD_DIGITS,), with the fingerprint of `filters`, or that itself.

        Each is an integer in [0, 15]: half precision holds it, and averages, moving averages and differences of whole
        state dicts leave at most rounding, which `decode` takes away.
        """
        crc = fingerprint(filters) if isinstance(filters, np.ndarray) else filters or 0
        packed = _LAYOUT.pack(
            VERSION, self.filter_set, self.groups - 1, self.seed, self.stream, self.period, *self.shape, self.gain, crc
        )
        packed += _CHECKSUM.pack(zlib.crc32(packed))
        values = np.frombuffer(packed, np.uint8)
        return np.stack([values >> 4, values & 15], 1).reshape(-1).astype(np.float32)

    @classmethod
    def decode(cls, digits: np.ndarray) -> tuple['FilterRecord', int]:
        """Read a record and its fingerprint back from digits, or from the bits that files held before them.

        They may have been cast to another number type, and rounded: the checksum tells whether the record is whole.

        Raises:
            ValueError: If the record is damaged or a newer generator wrote it.
        """
        packed = _packed(digits)
        body, (checksum,) = packed[: _LAYOUT.size], _CHECKSUM.unpack(packed[_LAYOUT.size :])
        if zlib.crc32(body) != checksum:
            raise ValueError('damaged filter record: its checksum does not match')
        version, filter_set, others, seed, stream, period, *shape, gain, crc = _LAYOUT.unpack(body)
        is_known = filter_set == ORTHOGONAL or (filter_set in (KEPT, UNIFORM, EXPECTED) and not others)
        if version != VERSION or not is_known:
            raise ValueError(
                f'filter record of unknown version {version} (this release reads {VERSION}): upgrade timm_lc'
            )
        if min(shape) < 1 or not 0 < gain < math.inf or shape[0] % (others + 1):
            raise ValueError(f'damaged filter record: no filters have shape {tuple(shape)} and gain {gain}')
        return cls(tuple(shape), seed, stream, period, gain, filter_set, others + 1), crc


RECORD_BITS = 8 * (_LAYOUT.size + _CHECKSUM.size)
RECORD_DIGITS = RECORD_BITS // 4


def _packed(digits: np.ndarray) -> bytes:
    """Return the bytes of a record from its digits or bits."""
    largest = {(RECORD_DIGITS,): 15, (RECORD_BITS,): 1}.get(digits.shape, 0)
    given = np.nan_to_num(digits.astype(np.float64), nan=-1, posinf=-1, neginf=-1)
    values = np.rint(given)
    # what is further from an integer than rounding goes was none
    is_whole = (np.abs(given - values) < _ROUNDING) & (values >= 0) & (values <= largest)
    if not (largest and is_whole.all()):
        raise ValueError(f'damaged filter record: expected {RECORD_DIGITS} digits, got {digits.dtype} {digits.shape}')
    if largest == 1:
        return np.packbits(values.astype(bool)).tobytes()
    return (values[::2] * 16 + values[1::2]).astype(np.uint8).tobytes()
