"""What must be true of the files and the output that a stock script leaves behind, for a row to pass."""

import argparse
import csv
import functools
import json
import math
import re

import timm
import torch
from filter_probe import frozen_buffers
from timm.models import load_state_dict
from torch import nn


class Failure(Exception):
    """A check that a script's run did not meet."""


def trained(run):
    """Training ended with a finite loss, and all filters are those that a new network draws, to the bit."""
    epochs = result(run)
    require(all(math.isfinite(epoch['train']['loss']) for epoch in epochs), f'loss not finite: {epochs}')
    if '--resume' in run.case.flags:
        require([epoch['epoch'] for epoch in epochs] == [2], f'resumed elsewhere than after epoch 1: {epochs}')
    if not run.cell.is_stock:
        probed(run)
        checkpoint = load(run.folder / 'run' / 'last.pth.tar')
        for key in ('state_dict', 'state_dict_ema') if '--model-ema' in run.case.flags else ('state_dict',):
            holds_filters(run, checkpoint[key])


def probed(run):
    """The filters in the memory of each rank, after the first step and at the end, in the model and its average."""
    expected = frozen_buffers(build(run.cell, final_seed(run.case)))
    ranks = sorted(run.folder.glob('rank*.json'))
    require(len(ranks) == (2 if 'torchrun' in run.case.flags else 1), f'{len(ranks)} ranks wrote their filters')
    for rank in ranks:
        for when, models in json.loads(rank.read_text()).items():
            require(('ema' in models) == ('--model-ema' in run.case.flags), f'{rank.stem}: looked at {list(models)}')
            for name, found in models.items():
                require(found == expected, f'{rank.stem}: other filters in the {name} ({when})')


def holds_filters(run, state):
    """A network with other filters that loads `state` gets those that a new one draws, to the bit."""
    state = {key: value for key, value in state.items() if '.aux_bn.' not in key}
    model = build.__wrapped__(run.cell, 17)
    model.load_state_dict(state)
    expected = filters(build(run.cell, final_seed(run.case)))
    found = filters(model)
    require(found.keys() == expected.keys(), 'another set of spatial convolutions')
    for name, weight in expected.items():
        require(torch.equal(found[name], weight), f'other filters in `{name}` of the checkpoint')


def filters(model):
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: conv.weight.detach() for name, conv in convs.items() if max(conv.kernel_size) > 1}


def final_seed(case):
    """Return the seed of the filters that the network has in the end: a checkpoint brings its own."""
    return 0 if '{checkpoint}' in case.flags else case.seed


@functools.cache
def build(cell, seed=0):
    kwargs = {} if cell.is_stock else {'seed': seed}
    return timm.create_model(cell.name, num_classes=4, **cell.kwargs, **kwargs).eval()


def validated(run):
    """The script finds the accuracy that train.py logged for the same weights."""
    log = (run.base / 'log.txt').read_text()
    pattern = r'Test \(EMA\): .*' if '--use-ema' in run.case.flags else r'Test: .*'
    wanted = float(re.findall(pattern + r'Acc@1: .*?\( *([\d.]+)\)', log)[-1])
    found = result(run)['top1']
    require(abs(found - wanted) < 0.01, f'top-1 is {found}, train.py saw {wanted}')


def benchmarked(run):
    found = result(run)
    require('error' not in found, str(found.get('error')))
    require(any(key.endswith('samples_per_sec') for key in found), f'no speed in {list(found)}')


def inferred(run):
    with (run.folder / 'predicted.csv').open() as file:
        rows = list(csv.DictReader(file))
    images = len(list((run.data / 'validation').rglob('*.png')))
    require(len(rows) == images, f'{len(rows)} predictions of {images} images')


def exported(run):
    """onnxruntime computes what the network that loaded the checkpoint computes."""
    import onnxruntime

    model = build.__wrapped__(run.cell)
    model.load_state_dict(load_state_dict(run.base / 'run' / 'last.pth.tar'))
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(image)
    session = onnxruntime.InferenceSession(str(run.folder / 'net.onnx'))
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])
    error = (found - wanted).abs().max() / wanted.abs().max()
    require(error <= 1e-4, f'onnxruntime is off by {error:.2g}')


def rewritten(run):
    """The file that a script wrote loads, with the same filters."""
    path = next(run.folder.glob('net.*'))
    state = load_state_dict(path)
    build.__wrapped__(run.cell).load_state_dict(state)
    if not run.cell.is_stock:
        holds_filters(run, state)


def ran_in_bulk(run):
    with (run.folder / 'bulk.csv').open() as file:
        models = {row['model'] for row in csv.DictReader(file)}
    require(models == {'lc_resnet20_16x1', 'lc_resnet20_16x2'}, f'results of {sorted(models)}')


def result(run):
    """Return what the scripts print for other scripts to read."""
    _, marker, text = run.output.rpartition('--result\n')
    require(marker, 'printed no result')
    return json.JSONDecoder().raw_decode(text)[0]


def load(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location='cpu', weights_only=True)


def require(condition, message):
    if not condition:
        raise Failure(message)
