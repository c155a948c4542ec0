"""Floors: multiply-adds by the definition of a convolution, bytes by the shapes."""

import pytest
import torch
from torch import nn

from timm_lc import LCConv2d, freeze_spatial
from timm_lc.analysis.floors import Rates, Work, count_work, floors, measure_rates

N, C_IN, C_OUT, K, H = 2, 3, 8, 3, 10
CONVOLUTION = N * C_OUT * H * H * C_IN * K * K


def test_count_work_of_a_convolution():
    conv = nn.Conv2d(C_IN, C_OUT, K, padding=1, bias=False)
    work = count_work(conv, (N, C_IN, H, H))
    # images need no gradient, so the backward pass computes that of the weight alone
    assert work[:2] == (CONVOLUTION, 2 * CONVOLUTION)
    assert work[2:] == (4 * C_OUT * C_IN * K * K,) * 2


def test_count_work_of_a_frozen_convolution_has_no_gradient_of_its_filters():
    convs = nn.Sequential(nn.Conv2d(C_IN, C_IN, 1, bias=False), nn.Conv2d(C_IN, C_OUT, K, padding=1, bias=False))
    work = count_work(freeze_spatial(convs), (N, C_IN, H, H))
    first = N * H * H * C_IN**2
    assert work[:2] == (first + CONVOLUTION, 2 * first + 2 * CONVOLUTION)  # of the filters, the images' gradient alone
    assert work.learnable_bytes == 4 * C_IN**2


@pytest.mark.parametrize('freeze', [True, False])
def test_count_work_of_an_lc_block(freeze):
    block = LCConv2d(C_IN, C_OUT, K, padding=1, expansion=4, freeze_spatial=freeze)
    product = C_OUT * 4 * C_OUT * C_IN * K * K
    work = count_work(block, (N, C_IN, H, H))
    assert work.forward == CONVOLUTION + product
    assert work.both == 2 * CONVOLUTION + (2 if freeze else 3) * product  # P W, and the gradient of each that learns


def test_count_work_leaves_the_network_as_it_is():
    conv = nn.Conv2d(C_IN, C_OUT, K)
    count_work(conv, (N, C_IN, H, H))
    assert conv.weight.device.type == 'cpu'
    assert conv.weight.grad is None


def test_floors_take_the_slower_of_computing_and_reading():
    rates = Rates(multiply_adds=100.0, bytes=10.0)
    computing = floors(Work(1000, 3000, 20, 40), rates)
    assert computing == {'forward': 10.0, 'both': 30.0, 'optimizer': 10.0}
    reading = floors(Work(10, 30, 20, 40), rates)
    assert reading == {'forward': 4.0, 'both': 10.0, 'optimizer': 10.0}


def test_measure_rates_are_those_of_a_machine():
    rates = measure_rates(torch.device('cpu'))
    assert 1e8 < rates.multiply_adds < 1e16
    assert 1e8 < rates.bytes < 1e14
