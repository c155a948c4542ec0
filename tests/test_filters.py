"""The generator, version 1, and the record."""

import itertools
import math
import random
import zlib

import numpy as np
import pytest
import torch

from timm_lc.filters import (
    KEPT,
    ORTHOGONAL,
    RECORD_BITS,
    RECORD_DIGITS,
    FilterRecord,
    check_seed,
    draw_into,
    fingerprint,
    layer_stream,
    random_values,
)

KNOWN = [
    (0, 0, (-0.930516, -0.976906, 0.223900, -0.516902), 0xBADCCB),
    (0, 1, (0.950251, 0.626708, -0.405242, 0.502663), 0x0B5387),
    (7, 12345, (0.671237, 0.670559, -0.772173, -0.360025), 0x9DCEBA),
]
BLOCK = 1 << 16  # values drawn at a time
SHARE = 1 << 18  # values that are worth a thread

RECORDS = [
    FilterRecord((64, 3, 7, 7)),
    FilterRecord((8, 1, 1, 5), seed=2**32 - 1, stream=2**24 - 1, period=27, gain=6**0.5),
    FilterRecord((70000, 4096, 65535, 3), seed=7, filter_set=KEPT),
]


@pytest.mark.parametrize(('seed', 'stream', 'first', 'crc'), KNOWN)
def test_random_values_gives_the_known_answers(seed, stream, first, crc):
    values = random_values(seed, stream, 1001)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[:4], first, atol=5e-7)
    assert zlib.crc32(values.astype('<f4').tobytes()) & 0xFFFFFF == crc


@pytest.mark.parametrize(
    'length', [0, 1, 2, 3, 1001, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3, 2 * SHARE, 3 * SHARE + 5]
)
def test_random_values_follows_the_definition_at_any_length(length, draw):
    np.testing.assert_array_equal(random_values(3, 5, length), draw(3, 5, length))


@pytest.mark.parametrize('length', [1, 7, BLOCK - 1, BLOCK, BLOCK + 1])
def test_random_values_does_not_depend_on_how_many_are_asked_for(length):
    np.testing.assert_array_equal(random_values(1, 2, length), random_values(1, 2, 2 * BLOCK + 5)[:length])


@pytest.mark.parametrize('processors', [1, 2, 3, 7, None])
def test_threads_change_neither_values_nor_fingerprints(processors, draw, monkeypatch):
    monkeypatch.setattr('os.cpu_count', lambda: processors)
    for length in (2 * SHARE, 5 * SHARE + BLOCK + 3):
        expected = draw(3, 5, length)
        values = random_values(3, 5, length)
        np.testing.assert_array_equal(values, expected)
        assert fingerprint(values) == zlib.crc32(expected.tobytes())
        target = np.zeros(length, np.float32)
        assert draw_into(target, 3, 5) == zlib.crc32(expected.tobytes())
        np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize('length', [0, 1, 1001, 2 * BLOCK + 3])
def test_draw_into_writes_scaled_values_and_leaves_out_a_fingerprint_that_nobody_wants(length, draw):
    target, expected = np.zeros(length, np.float32), draw(3, 5, length) * np.float32(0.3)
    assert draw_into(target, 3, 5, 0.3, fingerprinted=False) == 0
    np.testing.assert_array_equal(target, expected)
    assert draw_into(target, 3, 5, 0.3) == zlib.crc32(expected.tobytes())


@pytest.mark.parametrize(
    'record',
    [
        FilterRecord((12, 2, 3, 3), 4, 9),
        FilterRecord((12, 2, 3, 3), 4, period=40, gain=2.0),
        FilterRecord((12, 2, 3, 3), 4, period=400),
        FilterRecord((12, 2, 3, 3), 4, 9, filter_set=ORTHOGONAL),
    ],
)
def test_record_draws_into_an_array_what_it_returns(record):
    target = np.zeros(record.shape, np.float32)
    expected = record.filters()
    assert record.draw_into(target) == zlib.crc32(expected.tobytes())
    np.testing.assert_array_equal(target, expected)
    if record.is_shared:
        units = random_values(4, 0, record.period)  # what repeats, or more than is needed
        assert record.fingerprint_of(units) == zlib.crc32(expected.tobytes())


@pytest.mark.parametrize('scale', [6**0.5 / 24, 1 / 3, 1e-3, 7.0])
def test_random_values_are_scaled_by_one_rounded_product(scale, draw):
    np.testing.assert_array_equal(random_values(3, 5, 9999, scale), draw(3, 5, 9999) * np.float32(scale))


def test_random_values_is_uniform_and_symmetric():
    values = random_values(11, 13, 400_000).astype(np.float64)
    assert np.abs(values).max() < 1
    assert abs(values.mean()) < 5 / np.sqrt(3 * len(values))  # five standard errors
    assert abs(values.var() - 1 / 3) < 5 * np.sqrt(4 / 45 / len(values))


def test_random_values_leaves_the_global_random_states_alone():
    def states():
        name, keys, *rest = np.random.get_state()
        return random.getstate(), (name, keys.tolist(), *rest), torch.get_rng_state().tolist()

    before = states()
    random_values(0, 0, 100)
    FilterRecord((4, 4, 3, 3)).filters()
    assert states() == before


@pytest.mark.parametrize('seed', [-1, 2**32, 1.0, True, '0', None])
def test_check_seed_refuses_what_is_no_seed(seed):
    with pytest.raises(ValueError, match=r'`seed` must be an integer in \[0, 2\*\*32\), got ') as error:
        check_seed(seed)
    assert repr(seed) in str(error.value)


@pytest.mark.parametrize('seed', [0, 2**32 - 1])
def test_check_seed_accepts_both_ends(seed):
    assert check_seed(seed) == seed


def test_layer_stream_is_the_upper_24_bits_of_the_crc():
    assert layer_stream('123456789') == 0xCBF439  # the CRC-32 check value is CBF43926


@pytest.mark.parametrize('gain', [1.0, 6**0.5])
@pytest.mark.parametrize('period', [0, 20, 7 * 9, 10**6])
def test_record_filters_are_the_scaled_and_repeated_stream(gain, period, draw):
    filters = FilterRecord((12, 2, 3, 3), seed=4, stream=9, period=period, gain=gain).filters()
    drawn = draw(4, 9, 12 * 18)
    expected = [drawn[i % period if period else i] * np.float32(gain / 18**0.5) for i in range(12 * 18)]
    np.testing.assert_array_equal(filters, np.float32(expected).reshape(12, 2, 3, 3))


@pytest.mark.parametrize('fan', [9, 27, 64 * 9])
def test_record_gain_one_has_the_standard_deviation_of_pytorchs_default(fan):
    filters = FilterRecord((200_000 // fan, fan // 9, 3, 3)).filters()
    assert filters.std() == pytest.approx(1 / np.sqrt(3 * fan), rel=0.01)


def test_fingerprint_is_the_crc_of_the_bytes_in_c_order():
    filters = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert fingerprint(filters) == zlib.crc32(b''.join(np.float32(i).tobytes() for i in range(24)))
    assert fingerprint(np.asfortranarray(filters)) == fingerprint(filters)


@pytest.mark.parametrize('record', RECORDS)
@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_record_survives_the_round_trip(record, dtype):
    decoded, crc = FilterRecord.decode(record.encode(None).astype(dtype))
    assert (decoded, crc) == (record, 0)


def test_record_holds_the_fingerprint_of_its_filters():
    record = FilterRecord((4, 3, 3, 3), seed=5)
    filters = record.filters()
    assert FilterRecord.decode(record.encode(filters)) == (record, zlib.crc32(filters.tobytes()))


def bits_of(record):
    """Return the record as files held it before: a number in {0, 1} for each bit, the highest of a byte first."""
    packed = bytes.fromhex(''.join(f'{int(digit):x}' for digit in record.encode(None)))
    return np.array([byte >> place & 1 for byte in packed for place in range(7, -1, -1)])


@pytest.mark.parametrize('record', RECORDS)
@pytest.mark.parametrize('dtype', [bool, np.float32, np.int64])
def test_record_is_read_from_bits_for_ever(record, dtype):
    assert bits_of(record).shape == (RECORD_BITS,) == (352,)
    assert FilterRecord.decode(bits_of(record).astype(dtype)) == (record, 0)


def test_record_of_digits_is_as_large_as_that_of_bits():
    digits = FilterRecord((4, 3, 3, 3)).encode(None)
    assert (digits.dtype, digits.nbytes) == (np.float32, bits_of(FilterRecord((4, 3, 3, 3))).astype(bool).nbytes)


@pytest.mark.parametrize('noise', [1e-7, 1e-3, 0.01])
def test_record_survives_rounding(noise):
    record = FilterRecord((4, 3, 3, 3), seed=2**32 - 1, stream=6, gain=2.0)
    for sign in (1, -1):
        assert FilterRecord.decode(record.encode(None) * np.float32(1 + sign * noise)) == (record, 0)


def test_every_other_digit_of_a_record_raises():
    record = FilterRecord((4, 3, 3, 3), seed=5, stream=6, gain=2.0)
    digits, bits = record.encode(None), bits_of(record)
    for position, other in itertools.product(range(RECORD_DIGITS), range(1, 16)):
        damaged = digits.copy()
        damaged[position] = (damaged[position] + other) % 16
        with pytest.raises(ValueError, match='damaged filter record: its checksum does not match'):
            FilterRecord.decode(damaged)
    for position in range(RECORD_BITS):
        damaged = bits.copy()
        damaged[position] ^= 1
        with pytest.raises(ValueError, match='damaged filter record: its checksum does not match'):
            FilterRecord.decode(damaged)


@pytest.mark.parametrize(
    'digits',
    [
        *(np.zeros(shape) for shape in (0, 3, (2, 2), 384)),
        *(np.full(RECORD_BITS, value) for value in (0.5, 2, -1)),
        *(np.full(RECORD_DIGITS, value) for value in (0.5, 16, -1, math.nan, math.inf)),
    ],
)
def test_record_refuses_what_are_not_its_digits(digits):
    with pytest.raises(ValueError, match=r'damaged filter record: expected 88 digits'):
        FilterRecord.decode(digits)


@pytest.mark.parametrize(('byte', 'value'), [(0, 0), (0, 2), (1, 9), (2, 1)])
def test_record_of_an_unknown_generator_raises(byte, value):
    packed = bytearray(np.packbits(bits_of(FilterRecord((4, 3, 3, 3)))).tobytes())
    packed[byte] = value
    packed[-4:] = zlib.crc32(packed[:-4]).to_bytes(4, 'little')
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    with pytest.raises(ValueError, match=r'filter record of unknown version \d+ \(this release reads 1\)'):
        FilterRecord.decode(bits)


@pytest.mark.parametrize(
    ('record', 'words'),
    [
        (FilterRecord((4, 0, 3, 3)), r'\(4, 0, 3, 3\) and gain 1\.0'),
        (FilterRecord((4, 3, 3, 3), gain=math.nan), 'gain nan'),
        (FilterRecord((4, 3, 3, 3), gain=math.inf), 'gain inf'),
        (FilterRecord((4, 3, 3, 3), gain=-1.0), r'gain -1\.0'),
    ],
)
def test_record_of_impossible_filters_raises(record, words):
    with pytest.raises(ValueError, match=f'damaged filter record: no filters have shape .*{words}'):
        FilterRecord.decode(record.encode(None))


@pytest.mark.parametrize('start', [0, 1, 8, 1003, BLOCK + 5])
@pytest.mark.parametrize('length', [1, 9, BLOCK + 1])
def test_random_values_draws_any_range_of_a_stream(start, length, draw):
    np.testing.assert_array_equal(random_values(3, 5, length, start=start), draw(3, 5, start + length)[start:])
