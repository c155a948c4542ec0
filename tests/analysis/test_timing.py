"""Timing: what is timed, in which order, and what is left out."""

import copy

import numpy as np
import pytest
import timm
import torch

from timm_lc.analysis.timing import interleave, quartiles, timed_inference, timed_step


def ticking():
    """Return a clock that goes on by one second each time it is read."""
    moments = iter(range(10**6))
    return lambda: float(next(moments))


def recorded(name, calls, parts=('only',)):
    def call():
        calls.append(name)
        return {part: float(len(calls)) for part in parts}

    return call


def test_quartiles_are_numpys():
    values = np.random.default_rng(0).random(10).tolist()
    found = quartiles(values)
    np.testing.assert_allclose(found[:3], np.percentile(values, [50, 25, 75]))
    assert found.runs == 10


def test_interleave_calls_each_function_once_a_round_and_drops_the_warm_up():
    calls = []
    values = interleave({'a': recorded('a', calls), 'b': recorded('b', calls, ('x', 'y'))}, 3, warmups=2)
    assert calls == ['a', 'b'] * 5
    assert values == {'a': {'only': [5.0, 7.0, 9.0]}, 'b': {'x': [6.0, 8.0, 10.0], 'y': [6.0, 8.0, 10.0]}}


def test_interleave_measures_a_slow_function_once():
    calls = []
    values = interleave({'slow': recorded('slow', calls)}, 5, max_seconds=0.0)
    assert calls == ['slow', 'slow']  # a warm-up, and the round that counts
    assert values == {'slow': {'only': [2.0]}}


def test_timed_step_tells_the_seconds_of_its_parts():
    step = timed_step(timm.create_model('lc_lowres_resnet20'), torch.rand(2, 3, 8, 8), clock=ticking())
    assert step() == {'forward': 1.0, 'both': 2.0, 'optimizer': 1.0, 'step': 3.0}


def test_timed_step_trains_as_sgd_with_momentum_does(images):
    model = timm.create_model('lc_resnet20_16x1')
    expected = copy.deepcopy(model).train()
    step = timed_step(model, images)
    optimizer = torch.optim.SGD(expected.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(2):
        step()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(expected(images), torch.zeros(2, dtype=torch.long)).backward()
        optimizer.step()
    for (name, value), wanted in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, wanted), name


@pytest.mark.parametrize('amp', [None, torch.bfloat16])
def test_timed_inference_leaves_the_network_as_it_is(images, amp):
    model = timm.create_model('lc_resnet20_16x1')
    before = copy.deepcopy(model.state_dict())
    kinds = []
    model.fc.register_forward_hook(lambda module, args, logits: kinds.append((logits.dtype, logits.requires_grad)))
    assert timed_inference(model, images, amp=amp, clock=ticking())() == {'inference': 1.0}
    assert kinds == [(amp or torch.float32, False)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
