"""Weights of shared layers in the hands of other code: what is written into them computes and is saved."""

import copy
import gc
import io
import pickle
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from test_state import load, outputs, spatial
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx, prepare_qat_fx
from torch.nn import functional as F

from timm_lc import LCConv2d, add_linear_combinations, fold, freeze_spatial, share_weights, to_implicit, verify

OVERWRITTEN = 'frozen filters were overwritten since they were drawn'


def blocks(model, seed=0):
    torch.manual_seed(0)
    return add_linear_combinations(model, 2, seed)


BUILDS = {
    'frozen': freeze_spatial,
    'shared': share_weights,
    'recycled': lambda model, seed=0: share_weights(model, seed, recycle=4),
    'expanded': blocks,
    'expanded, recycled': lambda model, seed=0: share_weights(blocks(model), seed, recycle=4),
}
every_build = pytest.mark.parametrize('build', BUILDS.values(), ids=BUILDS)
shared_builds = pytest.mark.parametrize('build', [BUILDS['shared'], BUILDS['expanded, recycled']], ids=['plain', 'LC'])


def merge(conv):
    conv.weight.data += 0.1


def merge_safely(conv):
    """Merge as PEFT does where it checks for nan first."""
    merged = conv.weight.data.clone()
    merged += 0.1
    conv.weight.data = merged


def write_in_place(conv):
    with torch.no_grad():
        conv.weight.add_(0.1)


def copy_into(conv):
    with torch.no_grad():
        conv.weight.copy_(torch.full(conv.weight.shape, 0.1))


def initialise(conv):
    nn.init.constant_(conv.weight, 0.1)


def write_by_numpy(conv):
    conv.weight.detach().numpy()[:] += 0.1


def write_one_value(conv):
    conv.weight.data[0, 0, 0, 0] = 3.0


def step(conv):
    weight = conv.weight.requires_grad_()
    conv(torch.ones(1, conv.in_channels, 5, 5)).square().sum().backward()
    torch.optim.Adam([weight], lr=0.1).step()
    weight.requires_grad_(False)
    weight.grad = None


WAYS = [merge, merge_safely, write_in_place, copy_into, initialise, write_by_numpy, write_one_value, step]


def assert_same(actual, expected):
    """Recycled blocks sum the coefficients of equal filters, unless others hold the filters: in another order."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def lender_count(model):
    return sum(getattr(conv, 'lent', None) is not None for conv in spatial(model).values())


@pytest.mark.parametrize('way', WAYS)
def test_what_is_written_computes_in_this_layer_alone(way):
    torch.manual_seed(0)
    ordinary = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False))
    model = share_weights(copy.deepcopy(ordinary))
    drawn = [conv.weight.clone() for conv in model]
    for conv, filters in zip(ordinary, drawn, strict=True):
        conv.weight.data.copy_(filters)
    images = torch.randn(2, 4, 9, 9)
    assert torch.equal(model(images), ordinary(images))
    way(ordinary[0])
    way(model[0])
    torch.testing.assert_close(model(images), ordinary(images))
    assert not torch.allclose(model[0].weight, drawn[0])
    assert torch.equal(model[1].weight, drawn[1])
    assert verify(model) == {'0': 'changed', '1': 'drawn'}


@every_build
@pytest.mark.parametrize('way', [merge, merge_safely, initialise, write_by_numpy])
@pytest.mark.parametrize('runs', [0, 1], ids=['saved at once', 'saved after a forward'])
def test_what_is_written_is_saved(runs, way, build, stock, images):
    model = build(stock())
    before = outputs(model, images)
    conv = list(spatial(model).values())[1]
    way(conv)
    for _ in range(runs):
        outputs(model, images)
    if build is freeze_spatial or build is BUILDS['expanded']:
        verify(model)  # of an ordinary buffer, a state dict itself sees only what moves the version counter
    with pytest.warns(UserWarning, match=OVERWRITTEN):
        state = model.state_dict()
    expected = outputs(model, images)
    assert not torch.allclose(expected, before)
    twin = load(build(stock()), state)
    torch.testing.assert_close(outputs(twin, images), expected, rtol=1e-5, atol=1e-6)
    assert list(verify(twin).values()).count('kept') == 1
    torch.testing.assert_close(outputs(fold(model), images), expected, rtol=1e-4, atol=1e-5)
    restored = verify(model, remedy='restore')
    assert list(restored.values()).count('changed') == 1
    assert_same(outputs(model, images), before)
    assert set(verify(model).values()) == {'drawn'}


@shared_builds
def test_a_merged_adapter_can_be_unmerged(build, stock, images):
    model = build(stock())
    before = outputs(model, images)
    delta = {name: torch.randn_like(conv.weight) * 0.1 for name, conv in spatial(model).items()}
    for name, conv in spatial(model).items():
        conv.weight.data += delta[name]
    assert not torch.allclose(outputs(model, images), before, atol=1e-3)
    for name, conv in spatial(model).items():
        conv.weight.data -= delta[name]
    torch.testing.assert_close(outputs(model, images), before, rtol=1e-4, atol=1e-4)


@shared_builds
@pytest.mark.parametrize('hold', [lambda w: w, lambda w: w.data, lambda w: w.detach()[1:], lambda w: w.data.numpy()])
def test_a_weight_that_somebody_holds_can_be_written_at_any_time(hold, build, stock, images):
    model = build(stock())
    before = outputs(model, images)
    held = hold(next(iter(spatial(model).values())).weight)
    assert_same(outputs(model, images), before)
    gc.collect()
    model.to('cpu')
    model.state_dict(), verify(model), copy.deepcopy(model)
    assert_same(outputs(model, images), before)
    held[:] = 0.25
    after = outputs(model, images)
    assert not torch.allclose(after, before)
    del held
    assert_same(outputs(model, images), after)
    assert list(verify(model).values()).count('changed') == 1


@shared_builds
def test_reading_costs_no_memory_for_long(build, stock, images):
    """A loop over all weights leaves one slice at most, and the next forward none."""
    model = build(stock())
    before = outputs(model, images)
    for conv in spatial(model).values():
        conv.weight.abs().max()
    assert lender_count(model) <= 1
    assert_same(outputs(model, images), before)
    assert lender_count(model) == 0
    held = [conv.weight for conv in spatial(model).values()]
    assert lender_count(model) == len(held)
    assert_same(outputs(model, images), before)
    del held
    outputs(model, images)
    assert lender_count(model) == 0
    model.train()(images).sum().backward()
    assert lender_count(model) == 0
    assert set(verify(model).values()) == {'drawn'}


MOVES = {
    'half and back': lambda tensor: tensor.half().float(),
    'channels last': lambda tensor: tensor.to(memory_format=torch.channels_last),
    'nowhere': lambda tensor: tensor.to('cpu'),
}


@shared_builds
@pytest.mark.parametrize('move', MOVES.values(), ids=MOVES)
def test_a_held_weight_moves_with_its_layer(move, build, stock, images):
    model, twin = build(stock()), build(stock())
    first, second = list(spatial(model).values())[:2]
    held, merely_read = first.weight, second.weight
    held += 0.5
    expected = move(held)
    assert torch.equal(outputs(move(twin), images), outputs(move(build(stock())), images))
    move(model)
    assert torch.equal(first.weight, expected)
    assert torch.equal(second.weight, list(spatial(twin).values())[1].weight)
    assert merely_read is not None


@shared_builds
def test_copies_take_what_is_written_and_nothing_more(build, stock, images):
    model = build(stock())
    held = next(iter(spatial(model).values())).weight
    held += 0.5
    expected = outputs(model, images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(outputs(twin, images), expected)
        assert list(verify(twin).values()).count('changed') == 1
        held += 0.5
        assert_same(outputs(twin, images), expected)
        held -= 0.5
    alone = copy.deepcopy(list(spatial(model).values())[1])
    assert torch.equal(alone.weight, list(spatial(model).values())[1].weight)


@shared_builds
def test_a_held_weight_takes_what_is_loaded_and_restored(build, stock, images):
    model, source = build(stock()), build(stock(), 7)
    held = next(iter(spatial(model).values())).weight
    load(model, source.state_dict())
    assert torch.equal(held, next(iter(spatial(source).values())).weight)
    held += 0.5
    assert not torch.allclose(outputs(model, images), outputs(source, images))
    verify(model, remedy='restore')
    assert torch.equal(held, next(iter(spatial(source).values())).weight)
    assert_same(outputs(model, images), outputs(source, images))


@pytest.mark.parametrize('recycle', [1, 4])
@pytest.mark.parametrize('is_held', [False, True])
def test_a_block_with_written_filters_is_two_convolutions(is_held, recycle):
    torch.manual_seed(0)
    block = share_weights(nn.Sequential(LCConv2d(3, 4, 3, padding=1, expansion=8)), recycle=recycle)[0]
    filters = block.spatial.weight
    filters += torch.randn_like(filters)
    images, expected = torch.randn(2, 3, 6, 6), filters.clone()
    if not is_held:
        del filters
    between = F.conv2d(images, expected, padding=1)
    torch.testing.assert_close(block(images), F.conv2d(between, block.pointwise.weight), rtol=1e-4, atol=1e-5)


@shared_builds
def test_a_weight_read_in_inference_mode_can_be_trained_through(build, stock, images):
    model = build(stock()).train()
    with torch.inference_mode():
        held = [conv.weight for conv in spatial(model).values()]
    model(images).sum().backward()
    assert not any(weight.is_inference() for weight in held)


@shared_builds
def test_autocast_and_ranks_take_what_is_written_as_other_filters(build, stock, images):
    model = build(stock()).eval()
    merge(list(spatial(model).values())[1])
    expected = outputs(model, images)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(model(images), expected, rtol=0.1, atol=0.1, check_dtype=False)
    filters = {name for name, _ in model.named_buffers() if 'running' not in name and 'batches' not in name}
    assert filters <= set(model._ddp_params_and_buffers_to_ignore)


@shared_builds
def test_compiled_networks_compute_with_what_is_written(build, stock, images):
    model = build(stock()).eval()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(images), model(images))
    convs = list(spatial(model).values())
    for write in (lambda: merge(convs[1]), lambda: merge(convs[2])):
        before = compiled(images)
        write()
        torch.testing.assert_close(compiled(images), model(images))
        assert not torch.allclose(compiled(images), before)


@shared_builds
@pytest.mark.parametrize('after', ['a read', 'a write', 'a forward'])
def test_exported_and_scripted_networks_compute_with_what_is_written(after, build, stock, images):
    model = build(stock()).eval()
    conv = list(spatial(model).values())[1]
    merge(conv) if after != 'a read' else conv.weight.sum()
    if after == 'a forward':
        model(images)
    exported = torch.export.export(copy.deepcopy(model), (images,), strict=False).module()
    scripted = torch.jit.script(copy.deepcopy(model))
    torch.testing.assert_close(exported(images), model(images))
    torch.testing.assert_close(scripted(images), model(images))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(images), model(images))


def test_a_layer_whose_forward_reads_elsewhere_computes_too():
    class Elsewhere(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.doubled(), self.bias)

        def doubled(self):
            return 2 * self.weight

    model = share_weights(nn.Sequential(Elsewhere(3, 4, 3, bias=False), Elsewhere(4, 4, 3, bias=False)))
    images = torch.randn(2, 3, 8, 8)
    first, second = (conv.weight.clone() for conv in model)
    expected = F.conv2d(F.conv2d(images, 2 * first), 2 * second)
    for _ in range(3):
        torch.testing.assert_close(model(images), expected)
    merge(model[0])
    torch.testing.assert_close(model(images), F.conv2d(F.conv2d(images, 2 * first + 0.2), 2 * second))
    assert verify(model) == {'0': 'changed', '1': 'drawn'}


@pytest.mark.parametrize('build', [BUILDS['expanded'], BUILDS['expanded, recycled']], ids=['drawn', 'recycled'])
def test_overwritten_filters_have_no_implicit_form(build, stock):
    model = build(stock())
    name, conv = next(iter(spatial(model).items()))
    merge(conv)
    layer = name.rpartition('.')[0]
    with pytest.raises(ValueError, match=rf'layer `{layer}` has filters that were overwritten since they were drawn'):
        to_implicit(model)
    verify(model, remedy='restore')
    to_implicit(model)


def test_a_weight_stays_lent_where_torch_does_not_count_users(monkeypatch):
    monkeypatch.delattr(torch._C, '_storage_Use_Count', raising=False)
    model = share_weights(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)))
    images, before = torch.randn(1, 3, 5, 5), model[0].weight.clone()
    held = model[0].weight.data
    assert torch.equal(model(images), F.conv2d(images, before))
    held += 1.0
    torch.testing.assert_close(model(images), F.conv2d(images, before + 1.0))


def test_a_layer_built_by_the_class_of_a_shared_one_is_ordinary():
    """As PEFT builds the factors of LoRA."""
    shared = share_weights(nn.Sequential(nn.Conv2d(3, 4, 3)))[0]
    built = type(shared)(3, 4, kernel_size=3)
    assert type(built) is nn.Conv2d
    assert isinstance(copy.deepcopy(built).weight, nn.Parameter)


@pytest.mark.parametrize('prepare', [prepare_qat_fx, prepare_fx])
def test_quantisers_of_classes_refuse_shared_layers(prepare, stock, images):
    mapping = get_default_qat_qconfig_mapping('x86')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(RuntimeError, match=r'shares its filters cannot be quantised: quantise `timm_lc.fold'):
            prepare(share_weights(stock()), mapping, (images,))
        prepare(fold(share_weights(stock())).train(prepare is prepare_qat_fx), mapping, (images,))
        model = share_weights(stock())
        prepare(model, mapping.set_object_type(type(next(iter(spatial(model).values()))), None), (images,))


@pytest.mark.parametrize('kind', [nn.Parameter, torch.Tensor.clone])
def test_a_weight_of_its_own_is_refused(kind, stock):
    conv = next(iter(spatial(share_weights(stock())).values()))
    with pytest.raises(AttributeError, match='shares its filters has no weight to replace'):
        conv.weight = kind(torch.zeros_like(conv.weight))


def test_filters_that_are_not_there_are_not_lent():
    with torch.device('meta'):
        model = timm.create_model('lc_test_resnet', share_weights=True)
    assert all(conv.weight.is_meta for conv in spatial(model).values())
    assert lender_count(model) == 0


@shared_builds
def test_threads_read_and_run_one_network(build):
    model = build(timm.create_model('test_resnet')).eval()
    conv, x = next(iter(spatial(model).values())), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)

    def run(_):
        x.to(conv.weight.dtype)  # as forwards of others do
        with torch.no_grad():
            return model(x)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(run, range(60)))
    finally:
        sys.setswitchinterval(interval)
    # an LC-Block scales a lent weight before the product with P, its slice after it
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-7)
