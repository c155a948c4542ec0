"""A guard: ratios that a change must not spoil, with margins that noise does not trip.

Times are of the process's own CPU, interleaved, medians of a few: what else the machine does hardly moves their ratio.
What is measured and aimed at stands in results/speed.md.
"""

import statistics
import time

import pytest
import timm
import torch
from torch.nn.functional import cross_entropy

from timm_lc import fold
from timm_lc.analysis.floors import count_work
from timm_lc.analysis.timing import interleave, timed_inference, timed_step
from timm_lc.paper.bench_cases import ONE, TWO, expanded
from timm_lc.training.data import Images
from timm_lc.training.trainer import Recipe, Run, train

ROUNDS = 3
CLOCK = time.process_time


def medians(calls, part, rounds=ROUNDS):
    values = interleave(calls, rounds, max_seconds=300.0)
    return {name: statistics.median(parts[part]) for name, parts in values.items()}


def steps(models, shape):
    images = torch.rand(shape)
    return medians({name: timed_step(model, images, clock=CLOCK) for name, model in models.items()}, 'step')


def created(name, **kwargs):
    def create():
        begun = CLOCK()
        timm.create_model(name, **kwargs)
        return {'create': CLOCK() - begun}

    return create


def test_blocks_take_little_more_than_the_plain_network():
    found = steps(
        {
            'plain': timm.create_model('lc_lowres_resnet20', freeze_spatial=False),
            'explicit': timm.create_model('lc_resnet20_16x128'),
            'implicit': timm.create_model('lc_resnet20_16x128', implicit=True),
            'recycled': timm.create_model('lc_resnet20_16x128', share_weights=True, recycle=16),
        },
        (64, 3, 32, 32),
    )
    assert found['explicit'] < 2.2 * found['plain'], found  # aimed at: 1.55
    assert found['implicit'] < 1.4 * found['plain'], found  # 1.05
    assert found['recycled'] < 1.5 * found['plain'], found  # 1.15


def test_one_convolution_takes_a_fraction_of_two():
    found = steps({form: expanded('lc_resnet20_16x32', form, 32).build() for form in (ONE, TWO)}, (8, 3, 32, 32))
    assert found[ONE] < found[TWO] / 2, found  # a seventh


def test_frozen_filters_save_the_gradient_of_their_weights():
    models = {freeze: timm.create_model('lc_resnet50', freeze_spatial=freeze) for freeze in (True, False)}
    shape = (2, 3, 96, 96)
    frozen, learnable = (count_work(models[freeze], shape) for freeze in (True, False))
    assert frozen.both < 0.85 * learnable.both  # a count: no noise
    found = steps(models, shape)
    assert found[True] < found[False], found  # aimed at: 0.88


def test_folded_network_is_as_fast_as_the_plain_one():
    models = {'plain': timm.create_model('lc_lowres_resnet20', freeze_spatial=False)}
    models['folded'] = fold(timm.create_model('lc_resnet20_16x8'))
    images = torch.rand(32, 3, 32, 32)
    calls = {name: timed_inference(model, images, clock=CLOCK) for name, model in models.items()}
    found = medians(calls, 'inference', 9)
    assert found['folded'] < 1.3 * found['plain'], found  # 1.02


@pytest.mark.parametrize(('share', 'bound'), [(False, 1.8), (True, 1.7)])
def test_filters_are_drawn_in_little_time(share, bound):
    calls = {'plain': created('resnet50'), 'ours': created('lc_resnet50', share_weights=share)}
    found = medians(calls, 'create', 3)
    assert found['ours'] < bound * found['plain'], found  # aimed at: 1.2


def test_trainer_does_little_but_forward_and_backward(tmp_path):
    classes = [str(label) for label in range(10)]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (600, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(600) % 10
    images = Images('random', classes, pixels[:500], labels[:500], pixels[500:], labels[500:])
    small = {'depth': 8, 'freeze_spatial': False}
    run = Run('lc_resnet_cifar', small, recipe=Recipe(epochs=2, batch_size=250))
    model = timm.create_model('lc_resnet_cifar', **small).to(memory_format=torch.channels_last).train()
    batch = images.normalize(images.train[:250]).contiguous(memory_format=torch.channels_last)

    def trained():
        begun = CLOCK()
        train(run, images, tmp_path / str(begun), torch.device('cpu'))
        return {'all': CLOCK() - begun}

    def bare():
        begun = CLOCK()
        for _ in range(run.recipe.epochs * run.recipe.steps(500)):
            model.zero_grad()
            cross_entropy(model(batch), labels[:250]).backward()
        return {'all': CLOCK() - begun}

    found = medians({'trainer': trained, 'bare': bare}, 'all', 3)
    assert found['trainer'] < 1.6 * found['bare'], found  # aimed at: 1.15, of longer runs
