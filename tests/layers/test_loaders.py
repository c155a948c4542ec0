"""Loaders of other packages: tensors assigned one by one, partial states, averages and differences of whole states."""

import copy

import pytest
import timm
import torch
from test_state import KEPT, VARIANTS, load, outputs, spatial
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models.feature_extraction import create_feature_extractor

from timm_lc import freeze_spatial, share_weights, verify

every_variant = pytest.mark.parametrize('build', (VARIANTS | KEPT).values(), ids=VARIANTS | KEPT)
seeded_variants = pytest.mark.parametrize('build', VARIANTS.values(), ids=VARIANTS)


def assign(model, state_dict):
    """Put tensors where the parameters and buffers are, as loaders do that run no hook of any module."""
    for name, tensor in state_dict.items():
        parent, _, leaf = name.rpartition('.')
        module = model.get_submodule(parent)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor.clone())
        else:
            module._buffers[leaf] = tensor.clone()


def on_meta(build):
    with torch.device('meta'):
        return build(timm.create_model('test_resnet', num_classes=4))


def fill_by_method(model):
    for module in model.modules():
        if hasattr(module, 'init_non_persistent_buffers'):
            module.init_non_persistent_buffers()


def fill_by_moving(model):
    model.to('cpu')


def fill_by_a_forward(model):
    outputs(model, torch.zeros(1, 3, 32, 32))


@seeded_variants
@pytest.mark.parametrize('fill', [fill_by_method, fill_by_moving, fill_by_a_forward])
def test_an_assigned_record_is_adopted(fill, build, stock, images):
    source, model = build(stock(), 7), on_meta(build)
    assign(model, source.state_dict())
    fill(model)
    assert torch.equal(outputs(model, images), outputs(source, images))
    assert set(verify(model).values()) == {'drawn'}
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in source.state_dict().items())


@seeded_variants
def test_an_assigned_record_is_adopted_by_a_network_that_has_filters(build, stock, images):
    source, model = build(stock(), 7), build(stock())
    assign(model, source.state_dict())
    fill_by_moving(model)
    assert torch.equal(outputs(model, images), outputs(source, images))


def test_an_assigned_record_of_bits_is_adopted(stock, images):
    source, model = freeze_spatial(stock(), 7), on_meta(freeze_spatial)
    state = source.state_dict()
    for name in [name for name in state if name.endswith('.record')]:
        state[name] = bits_of(state[name])
    assign(model, state)
    fill_by_method(model)
    assert torch.equal(outputs(model, images), outputs(source, images))
    assert torch.equal(model.state_dict()['conv1.0.record'], source.state_dict()['conv1.0.record'])


def bits_of(record):
    """Return a record as files held it before: a bool for each bit, the highest of a digit first."""
    return torch.tensor([bool(int(digit) >> place & 1) for digit in record for place in (3, 2, 1, 0)])


@every_variant
def test_a_state_of_bits_loads_for_ever(build, stock, images):
    model = build(stock())
    state = {n: bits_of(t) if n.endswith('.record') else t for n, t in model.state_dict().items()}
    twin = load(build(stock()), state)
    assert torch.equal(outputs(twin, images), outputs(model, images))
    assert {tensor.dtype for name, tensor in twin.state_dict().items() if name.endswith('.record')} == {torch.float32}


@pytest.mark.parametrize('build', [freeze_spatial, share_weights])
def test_an_assigned_record_with_another_fingerprint_is_refused(build, stock):
    from test_state import STEM, repack

    model, state = on_meta(build), build(stock()).state_dict()
    assign(model, state | {f'{STEM}.record': repack(state[f'{STEM}.record'], crc=1)})
    with pytest.raises(ValueError, match='do not match the fingerprint in it'):
        fill_by_method(model)


def test_assigned_kept_filters_need_load_state_dict(stock):
    model = on_meta(freeze_spatial)
    source = freeze_spatial(stock(), seed=None).state_dict()
    assign(model, {name: tensor for name, tensor in source.items() if name in model.state_dict()})
    with pytest.raises(RuntimeError, match='filters that were kept as they were are loaded by `load_state_dict` alone'):
        fill_by_method(model)


@seeded_variants
def test_a_record_that_empty_memory_happens_to_hold_is_not_adopted(build, stock, images):
    """Memory of a network that is gone holds its records; `to_empty` may get it."""
    stale = {tensor.numel(): tensor for name, tensor in build(stock(), 9).state_dict().items() if 'record' in name}
    model, expected = on_meta(build), build(stock())
    model._apply(lambda tensor: stale.get(tensor.numel(), torch.zeros(tensor.shape)).clone().view(tensor.shape))
    fill_by_method(model)
    assert all(torch.equal(conv.weight, expected.get_submodule(name).weight) for name, conv in spatial(model).items())


@every_variant
def test_partial_states_load(build, stock, images):
    model, source = build(stock()), build(stock())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 0.1
    parts = [
        {name: tensor for name, tensor in source.named_parameters() if name.startswith('fc.')},
        dict(source.named_parameters()),
    ]
    for part in parts:
        assert not model.load_state_dict(part, strict=False).unexpected_keys
        assert all(torch.equal(tensor, part[name]) for name, tensor in model.named_parameters() if name in part)
    load(source, model.state_dict())
    assert torch.equal(outputs(model, images), outputs(source, images))


@every_variant
@pytest.mark.parametrize('shards', [2, 5])
def test_shards_load_one_after_the_other(shards, build, stock, images):
    source, model = build(stock()), build(stock())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 0.1
    state = source.state_dict()
    names = list(state)
    layers = list(dict.fromkeys(name.rpartition('.')[0] for name in names))
    for index in range(shards):
        mine = set(layers[index::shards])
        model.load_state_dict({n: t for n, t in state.items() if n.rpartition('.')[0] in mine}, strict=False)
    assert torch.equal(outputs(model, images), outputs(source, images))


@pytest.mark.parametrize('build', [freeze_spatial, share_weights])
def test_a_prefix_is_named_as_such(build, stock):
    state = {f'module.{name}': tensor for name, tensor in build(stock()).state_dict().items()}
    with pytest.raises(RuntimeError, match=r'(?s)Missing key.*conv1.0.record.*Unexpected key.*module.conv1.0.record'):
        build(stock()).load_state_dict(state)


@pytest.mark.parametrize('strict', [True, False])
def test_a_stock_state_is_refused_by_lc_blocks(strict, stock):
    with pytest.raises(RuntimeError, match=r'layer `conv1\.0`: the checkpoint has one convolution here'):
        VARIANTS['expanded'](stock()).load_state_dict(stock().state_dict(), strict=strict)


FORMS = {
    'frozen': {}, 'learnable': {'freeze_spatial': False}, 'LC-Blocks': {'expansion': 2},
    'implicit': {'expansion': 2, 'implicit': True}, 'between': {'expansion': 2, 'between': 'bn'},
}  # fmt: skip
CONVERTED = [('frozen', 'learnable'), ('LC-Blocks', 'implicit'), ('implicit', 'learnable')]  # the same function


@pytest.mark.parametrize('kind', FORMS)
@pytest.mark.parametrize('source', FORMS)
def test_a_checkpoint_of_another_form_is_refused_by_layer_whatever_strict_says(source, kind):
    """As `--pretrained-path` with another number of classes loads it."""
    other = timm.create_model('lc_test_resnet', seed=7, **FORMS[source]).eval()
    model = timm.create_model('lc_test_resnet', **FORMS[kind]).eval()
    if source == kind or (source, kind) in CONVERTED:
        model.load_state_dict(other.state_dict(), strict=False)
        images = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(model(images), other(images), rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(RuntimeError, match=r'layer `(conv1|stages\.0\.0\.conv1)'):
        model.load_state_dict(other.state_dict(), strict=False)


def test_an_lc_block_where_there_is_none_is_named():
    blocks = timm.create_model('lc_test_resnet', expansion=2).state_dict()
    with pytest.raises(RuntimeError, match=r'layer `conv1.*`: the checkpoint has an LC-Block or an adapter here'):
        timm.create_model('lc_test_resnet').load_state_dict(blocks, strict=False)


@every_variant
def test_averages_of_buffers_keep_records(build, stock, images):
    model = build(stock())
    average = AveragedModel(model, use_buffers=True)
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        average.update_parameters(model)
    twin = load(build(stock()), average.module.state_dict())
    torch.testing.assert_close(outputs(twin, images), outputs(average.module, images), rtol=1e-5, atol=1e-6)
    assert set(verify(average.module).values()) <= {'drawn', 'kept'}


@every_variant
def test_task_vectors_move_what_is_learned(build, stock, images):
    base, tuned = build(stock()), build(stock())
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.01)
    start, end = base.state_dict(), tuned.state_dict()
    vector = {name: end[name] - start[name] for name in end}
    moved = {name: start[name] + 1.0 * vector[name] for name in start}
    twin = load(build(stock()), moved)
    torch.testing.assert_close(outputs(twin, images), outputs(tuned, images), rtol=1e-4, atol=1e-4)


@every_variant
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_soups_of_ten_networks_load(dtype, build, stock, images):
    model = build(stock())
    soup = {name: torch.zeros(tensor.shape, dtype=dtype) for name, tensor in model.state_dict().items()}
    for _ in range(10):
        for name, tensor in model.state_dict().items():
            soup[name] += tensor.to(dtype) * 0.1
    twin = load(build(stock()), soup)
    tolerance = {torch.float16: 0.05, torch.bfloat16: 0.5}.get(dtype, 1e-4)
    torch.testing.assert_close(outputs(twin, images), outputs(model, images), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('dtype', [torch.float64, torch.complex64])
def test_kept_filters_of_wide_types_load_to_the_bit(dtype):
    torch.manual_seed(0)
    model = freeze_spatial(nn.Sequential(nn.Conv2d(3, 4, 3, dtype=dtype)), seed=None)
    twin = freeze_spatial(nn.Sequential(nn.Conv2d(3, 4, 3, dtype=dtype)))
    load(twin, model.state_dict())
    assert torch.equal(twin[0].weight, model[0].weight)
    assert twin[0].weight.dtype == dtype


def test_a_hook_registered_later_runs_while_records_are_adopted(stock):
    """torch iterates over a module's load hooks: one that registers itself again would break the iteration."""
    model, seen = freeze_spatial(stock()), []
    conv = next(iter(spatial(model).values()))
    conv.register_load_state_dict_pre_hook(lambda *args: seen.append(args))
    for source in (share_weights(stock(), 7), freeze_spatial(stock(), seed=None), freeze_spatial(stock(), 3)):
        load(model, source.state_dict())
    assert len(seen) == 3
    assert len(conv._load_state_dict_pre_hooks) == 2


def test_states_compare(stock):
    one, two = freeze_spatial(stock()).state_dict(), freeze_spatial(stock()).state_dict()
    assert all(torch.allclose(one[name], two[name]) for name in one)
    assert copy.deepcopy(one).keys() == two.keys()


@every_variant
@pytest.mark.parametrize('trace', [torch.fx.symbolic_trace, lambda model: create_feature_extractor(model, ['fc'])])
def test_traced_networks_adopt_and_verify_as_those_they_are_of(trace, build, stock, images):
    source = build(stock()) if build is KEPT['kept'] else build(stock(), 7)
    for state in (source.state_dict(), trace(source).state_dict()):
        traced = load(trace(build(stock())), state)
        actual = traced.eval()(images)
        assert torch.equal(actual['fc'] if isinstance(actual, dict) else actual, outputs(source, images))


@seeded_variants
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_an_assigned_state_in_half_precision_computes(build, device, stock, images):
    """As in a stock network, whose tensors all become those of the state."""
    source = build(stock()).to(torch.bfloat16)
    model = on_meta(build) if device == 'meta' else build(stock())
    model.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(outputs(model, images.bfloat16()), outputs(source, images.bfloat16()))
