"""The generator, version 1: random values and fingerprints, the same bits whatever computes them.

Values come from Philox4x64-10 (Salmon et al., 2011), whose 64-bit words numpy guarantees, turned into float32 by
integer arithmetic alone: the same on every machine, thread count and library version. Philox counts, so that any
range of a stream can be drawn on its own, and threads share the work; numpy and zlib release the interpreter's lock.
"""

import functools
import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

__all__ = ['check_seed', 'draw_into', 'fingerprint', 'random_values']

T = TypeVar('T')

_BLOCK = 1 << 16  # values drawn at a time: 256 KiB, which stays in the second-level cache
_PER_COUNT = 8  # values of one count of Philox: four words of 64 bits
_SHARE = 1 << 18  # values that are worth a thread
_POLYNOMIAL = 0xEDB88320  # CRC-32's, its lowest power in the highest bit


def check_seed(seed: int) -> int:
    """Return `seed` if it is an integer in [0, 2**32), else raise `ValueError`."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f'`seed` must be an integer in [0, 2**32), got {seed!r}')
    return seed


def random_values(seed: int, stream: int, length: int, scale: float = 1.0, start: int = 0) -> np.ndarray:
    """Draw `length` values of a stream, the first ones or from `start`, independent of how many are asked for.

    Args:
        seed: Filter seed in [0, 2**32).
        stream: Stream in [0, 2**24); 0 is the vector that all shared layers slice.
        length: Number of values.
        scale: Factor of all values, rounded to float32.
        start: Number of values of the stream before them.

    Returns:
        float32 (length,), odd multiples of 2**-24 in (-1, 1), uniform and symmetric, times `scale`.

    Example:
        >>> random_values(0, 0, 4).round(6).tolist() == np.float32([-0.930516, -0.976906, 0.2239, -0.516902]).tolist()
        True
    """
    check_seed(seed)
    skipped = start % _PER_COUNT
    values = np.empty(skipped + length, np.float32)

    def draw(begin: int, stop: int) -> None:
        for _ in _drawn(values, seed, stream, scale, start - skipped, begin, stop):
            pass

    _in_threads(draw, len(values))
    return values[skipped:]


def draw_into(values: np.ndarray, seed: int, stream: int, scale: float = 1.0, *, fingerprinted: bool = True) -> int:
    """Write the first values of a stream, as `random_values` draws them, into a float32 array; return its fingerprint.

    Args:
        values: (length,), without gaps.
        seed: As in `random_values`, like the rest.
        stream: Stream.
        scale: Factor.
        fingerprinted: Whether to compute the fingerprint, a quarter of the time; 0 is returned if not.
    """
    check_seed(seed)

    def draw(start: int, stop: int) -> int:
        crc = 0
        for block in _drawn(values, seed, stream, scale, 0, start, stop):
            crc = _checksum(block, crc) if fingerprinted else 0  # while a cache holds it
        return crc

    return _join(draw, len(values))


def fingerprint(filters: np.ndarray) -> int:
    """Return the CRC-32 of the filters' little-endian float32 bytes in C order."""
    values = filters.reshape(-1)
    return _join(lambda start, stop: _checksum(values[start:stop]), len(values))


def _drawn(
    values: np.ndarray, seed: int, stream: int, scale: float, offset: int, start: int, stop: int
) -> Iterator[np.ndarray]:
    """Write numbers `start` to `stop` of the values that follow `offset` in a stream; yield each block of `values`."""
    generator = np.random.Philox(key=[seed, stream]).advance((offset + start) // _PER_COUNT)
    factor = np.float32(scale) * np.float32(2.0**-24)  # a power of two: one product rounds as two would
    for first in range(start, stop, _BLOCK):
        block = values[first : min(first + _BLOCK, stop)]
        words = generator.random_raw(-(-len(block) // 2)).astype('<u8', copy=False).view('<u4')[: len(block)]
        words >>= 8  # the upper 24 bits, v
        integers = words.view('<i4')
        integers *= 2
        integers += 1 - 2**24  # 2v + 1 - 2**24: odd, below 2**24 in magnitude, exact in float32
        np.multiply(integers, factor, out=block, dtype=np.float32, casting='unsafe')
        yield block


def _checksum(values: np.ndarray, crc: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(values, '<f4').data, crc)


def _join(checksum: Callable[[int, int], int], length: int) -> int:
    """Return the CRC-32 of [0, length), of which `checksum(start, stop)` returns that of a range."""
    crc = 0
    for part, count in _in_threads(lambda start, stop: (checksum(start, stop), stop - start), length):
        crc = _product(crc, _power(32 * count)) ^ part if crc else part
    return crc


def _in_threads(function: Callable[[int, int], T], length: int) -> list[T]:
    """Call `function(start, stop)` on ranges that make up [0, length), each in a thread; return what they return."""
    threads = max(1, min(os.cpu_count() or 1, length // _SHARE))
    share = max(1, -(-length // (threads * _BLOCK))) * _BLOCK
    ranges = [(start, min(start + share, length)) for start in range(0, length, share)]
    if len(ranges) < 2:
        return list(itertools.starmap(function, ranges))
    own, *others = ranges  # to start a thread takes as long as to draw a hundred thousand values
    with ThreadPoolExecutor(len(others)) as pool:
        futures = [pool.submit(function, *each) for each in others]
        return [function(*own), *(future.result() for future in futures)]


def _product(a: int, b: int) -> int:
    """Multiply two polynomials modulo CRC-32's; the highest bit is the power 0."""
    product = 0
    for _ in range(32):
        product ^= b if a & 1 << 31 else 0
        a, b = a << 1 & 0xFFFFFFFF, b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.cache
def _power(bits: int) -> int:
    """Return x to the power `bits` modulo CRC-32's polynomial: what as many more bits multiply a CRC by."""
    result, square = 1 << 31, 1 << 30
    while bits:
        result = _product(result, square) if bits & 1 else result
        square, bits = _product(square, square), bits >> 1
    return result
