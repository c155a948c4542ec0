"""Memory: what a fresh process holds at once, and which bytes are in no file."""

import functools
import platform
import sys

import pytest
import timm
import torch
from torch import nn

from timm_lc.analysis.memory import fixed_bytes, measure_memory

MEBI = 2**20
CPU = torch.device('cpu')
needs_linux = pytest.mark.skipif(sys.platform != 'linux', reason="needs Linux, whose kernel tells a process's peak")


def wide():
    """Return a network of 64 MiB, whose output for a batch of 16 takes 64 MiB again."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2**20, bias=False))


@needs_linux
def test_measure_memory_finds_the_bytes_of_a_network_and_of_its_passes():
    found = measure_memory(wide, (16, 1, 4, 4), CPU)
    assert 64 <= found['model_memory'] / MEBI < 80
    assert 128 <= found['forward_peak'] / MEBI < 150  # weights and outputs
    assert 256 <= found['both_peak'] / MEBI < 360  # and the gradients of both, and some of the loss's own


@needs_linux
@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc, which gives back what is freed if told to')
def test_measure_memory_counts_nothing_that_was_freed():
    found = measure_memory(littered, (1, 16), CPU)
    assert max(found.values()) / MEBI < 16


def littered():
    """Return a small network, each layer made between temporary tensors of 64 MiB in all."""
    torch.ones(2**22)  # from then on glibc keeps what is smaller
    made = [(torch.ones(2**18), nn.Linear(16, 16)) for _ in range(64)]
    return nn.Sequential(*[layer for _, layer in made])


@needs_linux
def test_measure_memory_of_two_convolutions_is_larger():
    one, two = (functools.partial(expanded, two) for two in (False, True))
    shape = (32, 16, 32, 32)
    peaks = [measure_memory(build, shape, CPU)['both_peak'] for build in (one, two)]
    assert peaks[1] - peaks[0] > 32 * 16 * 32 * 1024 * 4  # the activation of E*C_out channels


def expanded(two):
    from timm_lc import LCConv2d

    block = LCConv2d(16, 16, 3, padding=1, expansion=32)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(block.spatial, block.pointwise, *head) if two else nn.Sequential(block, *head)


def test_measure_memory_tells_nothing_where_nothing_is_known():
    assert measure_memory(wide, (1, 1, 4, 4), torch.device('meta')) == {}


def test_fixed_bytes_are_those_of_random_filters():
    spatial = 3 * 16 + 7 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64  # weights of 1x1 filters, E = 1
    assert fixed_bytes(timm.create_model('lc_resnet20_16x2')) == 4 * 2 * 9 * (spatial - 16 * 16)
    assert fixed_bytes(timm.create_model('lc_resnet20_16x2', freeze_spatial=False)) == 0


def test_fixed_bytes_count_a_shared_vector_once():
    assert fixed_bytes(timm.create_model('lc_resnet20_16x2', share_weights=True)) == 4 * 2 * 9 * 64 * 64
