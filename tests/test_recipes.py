"""The YAMLs of train_configs. train.py takes a misspelt key in silence, so each is held against its arguments.

`train_arguments.txt` lists them: destination, kind, `...` for a list, `?` where None is allowed.
"""

import importlib.util
import os
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_transform
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2

import timm_lc  # noqa: F401  # registers the names

FOLDER = Path(__file__).parents[1] / 'train_configs'
RECIPES = sorted(path.stem for path in FOLDER.glob('*.yaml'))
LIST = Path(__file__).with_name('train_arguments.txt').read_text().splitlines()
VERSION = LIST[0].split()[-1]
ARGUMENTS = dict(line.split() for line in LIST[1:])
SCRIPTS = os.environ.get('TIMM_SCRIPTS')
needs_script = pytest.mark.skipif(
    not (SCRIPTS and Path(SCRIPTS, 'train.py').is_file()),
    reason='set TIMM_SCRIPTS to a checkout of https://github.com/huggingface/pytorch-image-models',
)
KINDS = {'flag': bool, 'int': int, 'float': (int, float), 'str': str, 'mapping': dict}

every_recipe = pytest.mark.parametrize('name', RECIPES)


def load(name):
    return yaml.safe_load((FOLDER / f'{name}.yaml').read_text())


def header(name):
    lines = (FOLDER / f'{name}.yaml').read_text().splitlines()
    return '\n'.join(line[2:] for line in lines[: lines.index('')])


def commands(name):
    """Return the arguments of each command of train.py in a header."""
    text = header(name).replace('\\\n', '')
    found = re.findall(r'^ +(?:python|torchrun --nproc-per-node \d+) train\.py (.*)$', text, re.MULTILINE)
    return [shlex.split(command.replace('--num-classes N', '--num-classes 10')) for command in found]


def fits(value, kind):
    """Return whether train.py takes `value` for an argument of `kind`."""
    if value is None:
        return kind.endswith('?')
    kind = kind.rstrip('?')
    if kind.endswith('...'):
        return isinstance(value, list) and all(fits(item, kind[:-3]) for item in value)
    if kind in KINDS:
        return isinstance(value, KINDS[kind]) and (kind == 'flag' or not isinstance(value, bool))
    return value in kind.split('|')


def misfits(recipe):
    return [key for key, value in recipe.items() if key not in ARGUMENTS or not fits(value, ARGUMENTS[key])]


def kind(action):
    """Return the kind of an argparse action as the list writes it."""
    if action.nargs == 0:
        return 'flag'
    if type(action).__name__ == 'ParseKwargs':
        return 'mapping'
    one = '|'.join(action.choices) if action.choices else (action.type or str).__name__
    return one + '...' * (action.nargs in ('+', 3)) + '?' * (action.default is None)


@pytest.fixture
def train_script():
    """Return the module of timm's train.py, fresh: reading a YAML changes its parser."""
    spec = importlib.util.spec_from_file_location('train', Path(SCRIPTS, 'train.py'))
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        spec.loader.exec_module(module)
    return module


def test_these_are_the_recipes():
    assert RECIPES == ['cifar10', 'finetune', 'rsb_a1', 'rsb_a2', 'rsb_a3']


@every_recipe
def test_every_key_and_value_is_one_that_train_takes(name):
    assert misfits(load(name)) == []


def test_misspelt_keys_and_wrong_kinds_are_noticed():
    text = 'smothing: 0.1\nlr: 5e-3\namp: 1\nepochs: true\nscale: 0.08\nkd_distill_type: x\nopt: null\naa: null'
    assert misfits(yaml.safe_load(text)) == [
        'smothing', 'lr', 'amp', 'epochs', 'scale', 'kd_distill_type', 'opt'
    ]  # fmt: skip


@every_recipe
def test_every_recipe_loads_the_plugin_and_fixes_what_has_other_defaults(name):
    recipe = load(name)
    assert recipe['device_modules'] == ['timm_lc']
    assert recipe['no_ddp_bb'] is True
    fixed = {'lr', 'smoothing', 'opt', 'weight_decay', 'epochs', 'sched', 'warmup_epochs', 'warmup_lr', 'min_lr'}
    fixed |= {'batch_size', 'img_size', 'crop_pct', 'interpolation', 'train_interpolation', 'scale', 'ratio', 'hflip'}
    fixed |= {'color_jitter', 'aa', 'aug_repeats', 'reprob', 'mixup', 'cutmix', 'bce_loss', 'drop', 'drop_path'}
    fixed |= {'clip_grad', 'amp', 'channels_last', 'model_ema'}
    assert fixed - recipe.keys() == set()
    assert 'model' not in recipe


@pytest.mark.parametrize(
    ('key', 'values'),
    {
        'epochs': (600, 300, 100),
        'warmup_epochs': (5, 5, 5),
        'img_size': (224, 224, 160),
        'opt': ('lamb', 'lamb', 'lamb'),
        'lr': (5e-3, 5e-3, 8e-3),
        'weight_decay': (0.01, 0.02, 0.02),
        'bce_loss': (True, True, True),
        'smoothing': (0.1, 0, 0),
        'mixup': (0.2, 0.1, 0.1),
        'cutmix': (1, 1, 1),
        'aa': ('rand-m7-mstd0.5-inc1', 'rand-m7-mstd0.5-inc1', 'rand-m6-mstd0.5-inc1'),
        'aug_repeats': (3, 3, 0),
        'drop_path': (0.05, 0.05, 0),
        'crop_pct': (0.95, 0.95, 0.95),
        'model_ema': (False, False, False),
        'reprob': (0, 0, 0),
        'clip_grad': (None, None, None),
    }.items(),
)
def test_resnet_strikes_back(key, values):
    assert tuple(load(f'rsb_a{procedure}')[key] for procedure in (1, 2, 3)) == values


@pytest.mark.parametrize(
    ('key', 'value'),
    {
        'epochs': 75,
        'opt': 'sgd',
        'momentum': 0.9,
        'lr': 1e-2,
        'sched': 'cosine',
        'weight_decay': 1e-2,
        'batch_size': 256,
        'smoothing': 0.1,
        'hflip': 0.5,
        'img_size': 32,
        'warmup_epochs': 0,
    }.items(),
)
def test_appendix_c(key, value):
    assert load('cifar10')[key] == value


def test_rsb_has_2048_images_a_step():
    for name in ('rsb_a1', 'rsb_a2', 'rsb_a3'):
        assert 8 * load(name)['batch_size'] == 2048
        one = next(command for command in commands(name) if '--grad-accum-steps' in command)
        assert one[one.index('--grad-accum-steps') + 1] == '8'
        assert 'torchrun --nproc-per-node 8' in header(name)


@every_recipe
def test_optimizer_and_schedule_are_timms(name):
    recipe = load(name)
    assert recipe['opt'] in list_optimizers()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    optimizer = create_optimizer_v2(
        model,
        opt=recipe['opt'],
        lr=recipe['lr'],
        weight_decay=recipe['weight_decay'],
        momentum=recipe.get('momentum', 0.9),
        **recipe.get('opt_kwargs', {}),
    )
    keys = ('sched', 'warmup_epochs', 'warmup_lr', 'min_lr', 'warmup_prefix', 'cooldown_epochs')
    options = {key: recipe[key] for key in keys}
    scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=recipe['epochs'], **options)
    assert epochs == recipe['epochs']
    first = optimizer.param_groups[0]['lr']
    assert first == (recipe['warmup_lr'] if recipe['warmup_epochs'] else recipe['lr'])
    scheduler.step(epochs - 1)
    assert optimizer.param_groups[0]['lr'] < 0.02 * recipe['lr']


def test_weight_decay_on_cifar_is_on_every_tensor():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    recipe = load('cifar10')
    optimizer = create_optimizer_v2(model, 'sgd', lr=0.01, weight_decay=recipe['weight_decay'], **recipe['opt_kwargs'])
    assert [(group['weight_decay'], len(group['params'])) for group in optimizer.param_groups] == [(0.01, 4)]
    assert optimizer.defaults['nesterov']


@every_recipe
def test_augmentation_makes_images_of_the_size(name):
    recipe = load(name)
    keys = ('train_crop_mode', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter')
    options = {key: recipe[key] for key in keys}
    options |= {
        'auto_augment': recipe['aa'],
        'interpolation': recipe['train_interpolation'],
        're_prob': recipe['reprob'],
    }
    transform = create_transform(recipe['img_size'], is_training=True, **options)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8))
    assert transform(image).shape == (3, recipe['img_size'], recipe['img_size'])


def test_cifar_validates_images_as_they_are():
    recipe = load('cifar10')
    options = {key: recipe[key] for key in ('interpolation', 'crop_pct', 'mean', 'std')}
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    expected = (pixels / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]
    shown = create_transform(recipe['img_size'], **options)(Image.fromarray(pixels)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(shown, expected, atol=1e-5)


@every_recipe
def test_header_says_what_the_recipe_is_and_how_to_run_it(name):
    lines = header(name).splitlines()
    assert lines[0].endswith('.')
    starts = ('Paper: ', 'One GPU', 'Eight GPUs', 'CPU try-out', 'Expected: ')
    assert [sum(line.startswith(start) for line in lines) for start in starts] == [1] * len(starts)
    assert max(map(len, (FOLDER / f'{name}.yaml').read_text().splitlines())) <= 120


@every_recipe
def test_commands_name_this_file_known_options_and_registered_models(name):
    found = commands(name)
    assert len(found) == 3
    for command in found:
        assert command[command.index('-c') + 1] == f'train_configs/{name}.yaml'
        options = {word[2:].replace('-', '_') for word in command if word.startswith('--')}
        assert options - ARGUMENTS.keys() == set()
    models = set(re.findall(r'(?<!timm_)\blc_\w+', header(name)))
    assert models
    assert {model for model in models if not timm.is_model(model)} == set()


@pytest.mark.parametrize('name', ['rsb_a1', 'rsb_a2'])
def test_one_process_has_no_repeated_augmentation(name):
    # timm's loader refuses it there
    assert [('--aug-repeats' in command) for command in commands(name)] == [True, False, True]


@needs_script
def test_list_is_that_of_train(train_script):
    version = re.search(r"'(.*)'", Path(SCRIPTS, 'timm', 'version.py').read_text())[1]
    if version != VERSION:
        pytest.skip(f'the list is of timm {VERSION}, TIMM_SCRIPTS has {version}')
    actions = {action.dest: kind(action) for action in train_script.parser._actions if action.dest != 'help'}
    assert actions == ARGUMENTS


@needs_script
@every_recipe
def test_train_reads_every_recipe(name, train_script, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    for command in commands(name):
        monkeypatch.setattr('sys.argv', ['train.py', *command])
        args, _ = train_script._parse_args()
        given = {word[2:].replace('-', '_') for word in command if word.startswith('--')}
        given |= {'batch_size'} if '-b' in command else set()
        for key, value in load(name).items():
            assert key in given or getattr(args, key) == value
