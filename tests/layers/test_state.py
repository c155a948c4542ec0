"""State dicts: what they hold, and that loading adopts and verifies the filters that they record."""

import copy
import gc
import io
import pickle
import struct
import zlib

import pytest
import safetensors.torch
import timm
import torch
from timm.models import adapt_input_conv
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn

from timm_lc import LCConv2d, add_linear_combinations, count_parameters, fold, freeze_spatial, share_weights
from timm_lc.layers.shared import SharedFilters
from timm_lc.transforms.freeze import seed_spatial

VARIANTS = {
    'frozen': freeze_spatial,
    'shared': share_weights,
    'recycled': lambda model, seed=0: share_weights(model, seed, recycle=4),
    'expanded': lambda model, seed=0: add_linear_combinations(model, 2, seed),
    'expanded, recycled': lambda model, seed=0: share_weights(add_linear_combinations(model, 2), seed, recycle=4),
    'gain': lambda model, seed=0: freeze_spatial(model, seed, gain=2.0),
}
KEPT = {'kept': lambda model: freeze_spatial(model, seed=None)}
every_variant = pytest.mark.parametrize('build', [pytest.param(b, id=n) for n, b in (VARIANTS | KEPT).items()])
seeded_variants = pytest.mark.parametrize('build', VARIANTS.values(), ids=VARIANTS)


def spatial(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}


def outputs(model, images):
    return model.eval()(images)


def load(model, state_dict, **kwargs):
    """Load a copy of the state dict, as from a file."""
    result = model.load_state_dict({name: tensor.clone() for name, tensor in state_dict.items()}, **kwargs)
    assert not result.missing_keys
    assert not result.unexpected_keys
    return model


def packed_digits(packed):
    """Return bytes as hexadecimal digits, the form of a record."""
    return torch.tensor([float(int(digit, 16)) for digit in packed.hex()])


def repack(digits, **changes):
    """Return a record with fields changed and a valid checksum: the layout of version 1 spelt out."""
    layout = '<BBHIIIIIHHdI'
    names = [
        'version',
        'filter_set',
        'reserved',
        'seed',
        'stream',
        'period',
        'rows',
        'fan',
        'k_h',
        'k_w',
        'gain',
        'crc',
    ]
    packed = bytes.fromhex(''.join(f'{int(digit):x}' for digit in digits))
    fields = dict(zip(names, struct.unpack(layout, packed[:-4]), strict=True)) | changes
    packed = struct.pack(layout, *fields.values())
    packed += struct.pack('<I', zlib.crc32(packed))
    return packed_digits(packed)


@seeded_variants
def test_state_dict_holds_learned_tensors_and_a_record_a_layer(build, stock):
    model = build(stock())
    state = model.state_dict()
    learned = {name for name, _ in model.named_parameters()}
    statistics = {name for name, _ in stock().named_buffers()}
    assert set(state) - learned - statistics == {f'{name}.record' for name in spatial(model)}
    assert {state[f'{name}.record'].dtype for name in spatial(model)} == {torch.float32}
    assert all(isinstance(value, torch.Tensor) for value in state.values())


@every_variant
def test_state_dict_has_no_two_entries_of_one_storage(build, stock):
    state = build(stock()).state_dict()
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)


def test_state_dict_holds_filters_frozen_as_they_are(stock):
    plain = stock()
    filters = {f'{name}.weight': conv.weight.detach().clone() for name, conv in spatial(plain).items()}
    state = freeze_spatial(plain, seed=None).state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in filters.items())


def through_torch_save(state_dict, tmp_path):
    torch.save(state_dict, tmp_path / 'model.pth')
    return torch.load(tmp_path / 'model.pth', weights_only=True)


def through_safetensors(state_dict, tmp_path):
    safetensors.torch.save_file(state_dict, tmp_path / 'model.safetensors')
    return safetensors.torch.load_file(tmp_path / 'model.safetensors')


def through_float32(state_dict, tmp_path):
    """As timm's avg_checkpoints.py does with the mean of several files."""
    return {name: (tensor.float() + tensor.float()) / 2 for name, tensor in state_dict.items()}


FILES = [through_torch_save, through_safetensors, through_float32]


@every_variant
@pytest.mark.parametrize('through', FILES)
def test_a_file_gives_the_network_back(through, build, stock, images, tmp_path):
    model = build(stock())
    twin = load(build(timm.create_model('test_resnet', num_classes=4)), through(model.state_dict(), tmp_path))
    assert torch.equal(outputs(twin, images), outputs(model, images))


@every_variant
@pytest.mark.parametrize('ema_class', [ModelEmaV2, ModelEmaV3])
def test_averaging_keeps_filters_and_records(ema_class, build, stock, images):
    model = build(stock())
    filters = {name: conv.weight.detach().clone() for name, conv in spatial(model).items()}
    ema = ema_class(model, decay=0.7)
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        ema.update(model)
    averaged = ema.module
    assert not torch.equal(averaged.fc.bias, model.fc.bias)
    for name, conv in spatial(averaged).items():  # what the checkpoint holds is averaged, and so rounded
        tolerance = 1e-6 if build is KEPT['kept'] else 0
        torch.testing.assert_close(conv.weight, filters[name], rtol=tolerance, atol=0)
    twin = load(build(stock()), averaged.state_dict())
    assert torch.equal(outputs(twin, images), outputs(averaged, images))


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize('through', [copy.deepcopy, through_pickle])
@every_variant
def test_loading_into_a_copy_leaves_the_original_alone(through, build, stock, images):
    model = build(stock())
    expected = outputs(model, images)
    twin = through(model)
    assert torch.equal(outputs(twin, images), expected)
    if build is not KEPT['kept']:
        load(twin, build(stock(), 9).state_dict())
        assert not torch.allclose(outputs(twin, images), expected)
    assert torch.equal(outputs(model, images), expected)


@seeded_variants
def test_loading_adopts_the_seed_of_the_checkpoint(build, stock, images):
    model, twin = build(stock(), 7), build(stock(), 0)
    expected = outputs(model, images)
    assert not torch.allclose(outputs(twin, images), expected)
    load(twin, model.state_dict())
    assert torch.equal(outputs(twin, images), expected)
    assert all(torch.equal(t, twin.state_dict()[name]) for name, t in model.state_dict().items())


@seeded_variants
def test_an_adopted_record_lasts(build, stock, images):
    model = build(stock(), 7)
    twin = load(build(stock(), 0), model.state_dict())
    for module in twin.modules():
        if hasattr(module, 'init_non_persistent_buffers'):
            module.init_non_persistent_buffers()
    assert torch.equal(outputs(twin, images), outputs(model, images))
    assert all(torch.equal(t, twin.state_dict()[name]) for name, t in model.state_dict().items())


ALIKE = ['frozen', 'shared', 'recycled', 'gain', 'kept']  # of one architecture


@pytest.mark.parametrize('source', ALIKE)
@pytest.mark.parametrize('target', ALIKE)
def test_loading_adopts_the_kind_of_filters(source, target, stock, images):
    model, twin = (VARIANTS | KEPT)[source](stock()), (VARIANTS | KEPT)[target](stock())
    load(twin, model.state_dict())
    torch.testing.assert_close(outputs(twin, images), outputs(model, images), rtol=1e-5, atol=1e-6)
    assert twin.state_dict().keys() == model.state_dict().keys()
    load((VARIANTS | KEPT)[source](stock()), twin.state_dict())


def test_loading_a_shared_checkpoint_into_a_shared_network_keeps_one_vector(stock):
    model = share_weights(stock(), seed=0)
    longest = max(conv.weight.numel() for conv in spatial(model).values())
    load(model, share_weights(stock(), seed=7, recycle=4).state_dict())
    vectors = {m for m in model.modules() if isinstance(m, SharedFilters)}
    assert [(vector.seed, len(vector.vector)) for vector in vectors] == [(7, longest // 4)]
    assert count_parameters(model) == count_parameters(share_weights(stock(), seed=7, recycle=4))


def test_loading_in_half_precision_rounds_the_filters(stock, filters_of):
    model = load(freeze_spatial(stock()).half(), freeze_spatial(stock(), 3).state_dict())
    for name, conv in spatial(model).items():
        assert torch.equal(conv.weight, filters_of(conv.weight.shape, seed=3, name=name).half())


@pytest.mark.parametrize('build', [freeze_spatial, share_weights, KEPT['kept']])
def test_loading_into_one_input_channel_adapts_the_recorded_filters(build, stock):
    source = build(stock())
    name, stem = next(iter(spatial(source).items()))
    state = source.state_dict()
    model = build(stock(in_chans=1))
    result = model.load_state_dict(copy.deepcopy(state))
    assert not result.missing_keys
    expected = adapt_input_conv(1, stem.weight.detach().clone())
    torch.testing.assert_close(model.get_submodule(name).weight, expected, rtol=1e-6, atol=1e-8)
    others = list(spatial(model).items())[1:]
    for other, conv in others:
        torch.testing.assert_close(conv.weight, source.get_submodule(other).weight, rtol=1e-6, atol=0)
    again = load(build(stock(in_chans=1)), model.state_dict())
    assert torch.equal(again.get_submodule(name).weight, model.get_submodule(name).weight)


@every_variant
@pytest.mark.parametrize('fill', ['load', 'init'])
def test_meta_network_is_filled_after_to_empty(fill, build, stock, images):
    source = build(stock())
    with torch.device('meta'):
        model = build(timm.create_model('test_resnet', num_classes=4))
    assert all(p.is_meta for p in [*model.parameters(), *model.buffers()])
    model.to_empty(device='cpu')
    with pytest.raises(RuntimeError, match='built on the meta device are not there yet: after `to_empty` call'):
        outputs(model, images)
    with pytest.raises(RuntimeError, match='built on the meta device are not there yet: after `to_empty` call'):
        fold(model)
    if fill == 'init':
        for module in model.modules():
            if hasattr(module, 'init_non_persistent_buffers'):
                module.init_non_persistent_buffers()
        if build is not KEPT['kept']:
            for name, conv in spatial(model).items():
                assert torch.equal(conv.weight, source.get_submodule(name).weight)
    load(model, source.state_dict())
    assert torch.equal(outputs(model, images), outputs(source, images))
    torch.jit.script(model)  # which refuses what a hook would leave behind


@every_variant
def test_meta_network_takes_the_tensors_of_the_state_dict(build, stock, images):
    source = build(stock())
    with torch.device('meta'):
        model = build(timm.create_model('test_resnet', num_classes=4))
    load(model, source.state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert torch.equal(outputs(model, images), outputs(source, images))
    vectors = {m for m in model.modules() if isinstance(m, SharedFilters)}
    assert len(vectors) == len({m for m in source.modules() if isinstance(m, SharedFilters)})


def test_meta_block_runs_on_meta():
    with torch.device('meta'):
        assert LCConv2d(3, 4, 3, expansion=2)(torch.empty(1, 3, 8, 8)).shape == (1, 4, 6, 6)


STEM = 'conv1.0'


def without(state_dict, name):
    return {key: tensor for key, tensor in state_dict.items() if key != name}


def with_record(**changes):
    def tamper(state_dict):
        return state_dict | {f'{STEM}.record': repack(state_dict[f'{STEM}.record'], **changes)}

    return tamper


def flip(state_dict):
    digits = state_dict[f'{STEM}.record'].clone()
    digits[10] = 15 - digits[10]
    return state_dict | {f'{STEM}.record': digits}


BAD = {
    'a stock checkpoint': (
        lambda state: timm.create_model('test_resnet', num_classes=4).state_dict(),
        'has no filter record: it is of a network that learns its filters',
    ),
    'wrong fingerprint': (with_record(crc=1), 'do not match the fingerprint in it'),
    'another seed': (with_record(seed=1), 'do not match the fingerprint in it'),
    'unknown version': (with_record(version=2), r'filter record of unknown version 2 \(this release reads 1\)'),
    'unknown filter set': (with_record(filter_set=7), 'filter record of unknown version'),
    'flipped bit': (flip, 'damaged filter record: its checksum does not match'),
    'cut record': (
        lambda state: state | {f'{STEM}.record': state[f'{STEM}.record'][:50]},
        r'damaged filter record: expected \d+ digits',
    ),
    'averaged record': (
        lambda state: state | {f'{STEM}.record': state[f'{STEM}.record'] * 0.5},
        r'damaged filter record: expected \d+ digits',
    ),
    "another layer's record": (
        lambda state: state | {f'{STEM}.record': state['layer2.0.conv2.record']},
        r'its filters have shape \(.*\), the model needs \(16, 3, 3, 3\): another architecture\?',
    ),
    'tampered filters': (
        lambda state: state | {f'{STEM}.weight': torch.zeros(16, 3, 3, 3)},
        'the filters stored in the checkpoint are not those of its record',
    ),
}


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('build', [freeze_spatial, share_weights])
@pytest.mark.parametrize(('tamper', 'message'), BAD.values(), ids=BAD)
def test_loading_refuses_what_it_cannot_verify(tamper, message, build, strict, stock):
    state, model = tamper(build(stock()).state_dict()), build(stock())
    before = model.state_dict()
    with pytest.raises(RuntimeError, match=rf'layer `{STEM}`: .*{message}'):
        model.load_state_dict(state, strict=strict)
    assert torch.equal(model.state_dict()[f'{STEM}.record'], before[f'{STEM}.record'])


@every_variant
def test_a_state_without_a_layer_misses_its_record(build, stock, images):
    model = build(stock())
    expected = outputs(model, images)
    result = model.load_state_dict({}, strict=False)
    counters = {name for name in model.state_dict() if name.endswith('num_batches_tracked')}  # torch lets them be away
    assert set(result.missing_keys) == set(model.state_dict()) - counters
    assert torch.equal(outputs(model, images), expected)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(STEM)}
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: .*{STEM}.*record'):
        model.load_state_dict(state)


def test_loading_refuses_kept_filters_that_are_not_there(stock):
    model = freeze_spatial(stock(), seed=None)
    state = without(model.state_dict(), f'{STEM}.weight')
    with pytest.raises(RuntimeError, match=f'layer `{STEM}`: its filters were kept as they were, but'):
        model.load_state_dict(state, strict=False)


def test_loading_refuses_another_architecture(stock):
    state = freeze_spatial(stock('test_byobnet')).state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: .*record'):
        freeze_spatial(stock()).load_state_dict(state)


def test_loading_a_refused_checkpoint_names_every_layer(stock):
    model = freeze_spatial(stock())
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(stock().state_dict())
    assert all(f'layer `{name}`: the checkpoint has no filter record' in str(error.value) for name in spatial(model))


@pytest.fixture
def script():
    def script(model):
        return torch.jit.script(model.eval())

    return script


@seeded_variants
def test_scripted_networks_state_dict_loads(build, script, stock, images):
    model = build(stock(), 7)
    state = script(model).state_dict()
    assert any('vector' in name or name.endswith('.weight') for name in set(state) - set(model.state_dict()))
    twin = load(build(stock()), state)
    del state  # shared layers have lent it their weights, and P W of a lent one is summed in another order
    gc.collect()  # TorchScript has cycles
    assert torch.equal(outputs(twin, images), outputs(model, images))


@seeded_variants
def test_scripted_networks_tampered_state_dict_is_refused(build, script, stock):
    model = build(stock())
    state = {name: tensor.clone() for name, tensor in script(model).state_dict().items()}
    for name in set(state) - set(model.state_dict()):
        state[name][0] += 1
    with pytest.raises(RuntimeError, match=r'layer `.*`: the (filters|shared vector) stored in the checkpoint'):
        build(stock()).load_state_dict(state)


@pytest.mark.parametrize('build', [freeze_spatial, share_weights, KEPT['kept']])
def test_frozen_checkpoint_loads_into_the_learnable_network(build, stock, images):
    source = build(stock())
    model = load(seed_spatial(stock(), 3), source.state_dict())
    torch.testing.assert_close(outputs(model, images), outputs(source, images), rtol=1e-5, atol=1e-6)
    assert all(conv.weight.requires_grad for conv in spatial(model).values())
    assert not any(name.endswith('record') for name in model.state_dict())


def test_frozen_lc_block_loads_into_the_learnable_one():
    source = LCConv2d(3, 4, 3, expansion=2, seed=5)
    model = load(LCConv2d(3, 4, 3, expansion=2, freeze_spatial=False), source.state_dict())
    assert torch.equal(model.spatial.weight, source.spatial.weight)


def test_learnable_network_refuses_a_damaged_record(stock):
    state = flip(freeze_spatial(stock()).state_dict())
    with pytest.raises(RuntimeError, match=f'layer `{STEM}`: damaged filter record'):
        seed_spatial(stock(), 0).load_state_dict(state)


def test_learnable_network_loads_its_own_checkpoint(stock, images):
    model = seed_spatial(stock(), 3)
    assert torch.equal(outputs(load(seed_spatial(stock(), 0), model.state_dict()), images), outputs(model, images))


@seeded_variants
def test_loading_leaves_the_state_dict_as_it_was(build, script, stock):
    state = script(build(stock())).state_dict()
    before = dict(state)
    build(stock()).load_state_dict(state)
    assert state.keys() == before.keys()
    assert all(state[name] is tensor for name, tensor in before.items())


@every_variant
def test_loading_draws_nothing_from_the_global_generator(build, stock):
    model, other = build(stock()), build(stock())
    before = torch.get_rng_state()
    load(model, other.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_features_only_network_loads_the_full_networks_filters(stock, images):
    full = freeze_spatial(stock(), 7)
    features = freeze_spatial(stock(features_only=True), 0)
    prefixed = {name: tensor for name, tensor in full.state_dict().items() if name in features.state_dict()}
    load(features, prefixed)
    buffer = io.BytesIO()
    torch.save(features.state_dict(), buffer)
    expected = full.forward_intermediates(images, intermediates_only=True)
    for actual, wanted in zip(features.eval()(images), expected, strict=True):
        assert torch.equal(actual, wanted)
