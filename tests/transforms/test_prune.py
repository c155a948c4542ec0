"""Pruning zeroes the smallest magnitudes of all pointwise weights, as sorted by numpy, and nothing else."""

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from timm_lc import (
    add_adapters,
    add_linear_combinations,
    count_parameters,
    fold,
    load_adapter,
    prune_pointwise,
    remove_adapters,
    save_adapter,
    save_pretrained,
    share_weights,
)
from timm_lc.transforms.prune import LayerSparsity, pointwise_sparsity

# bottlenecks; depthwise with biases, squeeze and excite; grouped; LayerScale and conv MLPs
NETS = {'test_resnet': {}, 'test_efficientnet': {}, 'test_byobnet': {}, 'test_convnext': {'conv_mlp': True}}
LC_NETS = {
    'frozen': lambda: timm.create_model('lc_resnet20_16x2'),
    'recycled': lambda: timm.create_model('lc_resnet20_16x2', share_weights=True, recycle=4),
    'learnable': lambda: timm.create_model('lc_resnet20_16x2', freeze_spatial=False),
}


def pointwise(model):
    return {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)}


def magnitudes(model):
    return np.concatenate([np.abs(weight.detach().numpy()).ravel() for weight in pointwise(model).values()])


def assert_pruned(model, before, amount):
    """Hold the state dict of `model` against `before` with its smallest pointwise weights set to zero by numpy."""
    expected = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    sorted_magnitudes = np.sort(magnitudes(before))
    threshold = sorted_magnitudes[round(amount * len(sorted_magnitudes))]
    for name in pointwise(before):
        values = expected[f'{name}.weight'].numpy()
        values[np.abs(values) < threshold] = 0
    state = model.state_dict()
    assert list(state) == list(expected)
    assert all(state[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize('amount', [0.3, 0.7, 0.95])
@pytest.mark.parametrize('name', NETS)
def test_the_smallest_magnitudes_of_all_layers_become_zero(name, amount, stock):
    model = stock(name, **NETS[name])
    assert prune_pointwise(model, amount) is model
    assert_pruned(model, stock(name, **NETS[name]), amount)


@pytest.mark.parametrize('build', LC_NETS.values(), ids=LC_NETS)
def test_linear_combinations_are_pruned_and_filters_stay(build):
    model = build()
    before = copy.deepcopy(model)
    assert_pruned(prune_pointwise(model, 0.6), before, 0.6)
    spatial = [module for module in before.modules() if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)]
    present = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)]
    assert all(one.weight.equal(other.weight) for one, other in zip(spatial, present, strict=True))


@pytest.mark.parametrize('layers', ['spatial', 'pointwise', 'all'])
def test_of_an_adapted_network_learned_coefficients_are_pruned_and_the_base_stays(stock, tmp_path, layers):
    model = add_adapters(stock('test_efficientnet'), 4, layers=layers)
    coefficients = {n: p for n, p in model.named_parameters() if n.endswith('.pointwise.weight')}
    for weight in coefficients.values():
        nn.init.normal_(weight)
    before = {name: weight.detach().clone() for name, weight in coefficients.items()}
    prune_pointwise(model, 0.6)
    threshold = np.quantile(np.concatenate([w.abs().numpy().ravel() for w in before.values()]), 0.6)
    present = dict(model.named_parameters())
    for name, weight in before.items():
        assert present[name].equal(weight * (weight.abs() > threshold))
    assert {f'{layer.name}.weight' for layer in pointwise_sparsity(model)} == set(before)
    path = save_adapter(model, tmp_path / 'task.safetensors', sparse=True)  # refuses a base that changed
    images = torch.randn(2, 3, 32, 32)
    assert load_adapter(stock('test_efficientnet'), path)(images).equal(model(images))
    assert remove_adapters(model)(images).equal(stock('test_efficientnet')(images))


def test_counts_of_the_paper():
    model = timm.create_model('lc_resnet20_16x128', share_weights=True, recycle=16, num_classes=10)
    counts = count_parameters(prune_pointwise(model, 0.7))
    assert (counts.learnable, counts.total, counts.nonzero) == (4_166_314, 4_461_226, 1_546_359)


def test_twice_is_once_and_more_goes_on(stock):
    model = prune_pointwise(stock(), 0.5)
    once = copy.deepcopy(model)
    prune_pointwise(model, 0.5)
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), once.state_dict().values(), strict=True))
    prune_pointwise(model, 0.25)
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), once.state_dict().values(), strict=True))
    assert_pruned(prune_pointwise(model, 0.8), stock(), 0.8)


@pytest.mark.parametrize('amount', [0, 0.0])
def test_nothing_is_pruned_at_zero(amount, stock):
    assert_pruned(prune_pointwise(stock(), amount), stock(), 0)


def test_exact_number_of_zeros_among_equal_magnitudes():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1))
    for conv in model:
        nn.init.ones_(conv.weight)
    prune_pointwise(model, 0.75)
    assert sum(layer.zeros for layer in pointwise_sparsity(model)) == 48


def test_parameters_stay_the_same_objects_in_the_same_order(stock):
    model = stock('test_efficientnet')
    before = list(model.named_parameters())
    after = list(prune_pointwise(model, 0.5).named_parameters())
    assert all(name == other and p is q for (name, p), (other, q) in zip(before, after, strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_optimizers_state_still_fits(stock, images):
    """States are saved by the parameters' order, which torch's own pruning changes where there is a bias."""
    model = stock('test_efficientnet')
    optimizer = timm.optim.create_optimizer_v2(model, 'adamw')
    model(images).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    resumed = timm.optim.create_optimizer_v2(prune_pointwise(model, 0.5), 'adamw')
    resumed.load_state_dict(state)
    shapes = [(p.shape, resumed.state[p]['exp_avg'].shape) for p in model.parameters() if p in resumed.state]
    assert shapes
    assert all(shape == moment for shape, moment in shapes)


def test_copies_step_and_save_as_before(images):
    model = prune_pointwise(timm.create_model('lc_resnet20_16x2', num_classes=4), 0.7)
    twin = copy.deepcopy(model)
    assert twin.eval()(images).equal(model.eval()(images))
    twin(images).sum().backward()
    assert all(p.grad is not None for p in twin.parameters())
    assert not any('mask' in name or 'orig' in name for name in model.state_dict())
    assert not any(module._forward_pre_hooks for module in model.modules() if type(module) is nn.Conv2d)


@pytest.mark.parametrize('arguments', [{}, {'share_weights': True, 'recycle': 16}], ids=['frozen', 'recycled'])
def test_sparse_file_gives_the_same_logits_to_the_bit(arguments, images, tmp_path):
    model = prune_pointwise(timm.create_model('lc_resnet20_16x4', num_classes=4, **arguments), 0.7).eval()
    save_pretrained(model, tmp_path / 'sparse', sparse=True)
    save_pretrained(model, tmp_path / 'dense')
    loaded = timm.create_model(f'local-dir:{tmp_path / "sparse"}', pretrained=True).eval()
    for weight, other in zip(pointwise(loaded).values(), pointwise(model).values(), strict=True):
        assert weight.view(torch.int32).equal(other.view(torch.int32))  # the sign of zeros, too
    assert all(a.equal(b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True))
    assert loaded(images).equal(model(images))
    sizes = [(tmp_path / form / 'model.safetensors').stat().st_size for form in ('sparse', 'dense')]
    size = sum(weight.numel() for weight in pointwise(model).values())
    assert sizes[1] - sizes[0] == pytest.approx(size * (0.7 * 4 - 1 / 8), rel=0.1)


def test_pruned_blocks_fold(images):
    model = prune_pointwise(timm.create_model('lc_resnet20_16x4', num_classes=4), 0.7).eval()
    torch.testing.assert_close(fold(model)(images), model(images), rtol=1e-4, atol=1e-5)


def test_pruning_works_on_blocks_put_into_any_network(stock, images):
    model = share_weights(add_linear_combinations(stock(), 2), recycle=4).eval()
    before = copy.deepcopy(model)
    assert_pruned(prune_pointwise(model, 0.5), before, 0.5)
    torch.testing.assert_close(fold(model)(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_classifier_that_is_a_convolution_stays():
    model = timm.create_model('dla46x_c', num_classes=4)
    assert model.fc.kernel_size == (1, 1)
    prune_pointwise(model, 0.9)
    assert model.fc.weight.count_nonzero() == model.fc.weight.numel()
    assert 'fc' not in {layer.name for layer in pointwise_sparsity(model)}


def test_fully_connected_layers_written_as_convolutions_stay():
    model = nn.ModuleDict({'features': nn.Conv2d(8, 8, 1), 'pre_logits': nn.Sequential(nn.Conv2d(8, 8, 1))})  # as VGG
    assert [layer.name for layer in pointwise_sparsity(prune_pointwise(model, 0.9))] == ['features']


def test_a_weight_used_twice_is_counted_once():
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    model[2].weight = model[0].weight
    before = np.sort(np.abs(np.concatenate([conv.weight.detach().numpy().ravel() for conv in model[:2]])))
    prune_pointwise(model, 0.5)
    assert model[2].weight is model[0].weight
    kept = np.abs(np.concatenate([conv.weight.detach().numpy().ravel() for conv in model[:2]]))
    np.testing.assert_array_equal(np.sort(kept[kept > 0]), before[64:])


def test_channels_last_and_half_precision(stock):
    model = stock().to(memory_format=torch.channels_last)
    assert_pruned(prune_pointwise(model, 0.5), stock(), 0.5)
    half = prune_pointwise(stock().bfloat16(), 0.5)
    assert sum(layer.zeros for layer in pointwise_sparsity(half)) == round(0.5 * len(magnitudes(stock())))


def test_report_lists_each_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[1].weight[:3] = 0
    assert pointwise_sparsity(model) == [LayerSparsity('1', 32, 24, 0.75), LayerSparsity('2', 8, 0, 0.0)]


@pytest.mark.parametrize(
    ('amount', 'error', 'text'),
    [
        (1, ValueError, r'`amount` must be in \[0, 1\), got 1'),
        (1.0, ValueError, r'got 1\.0'),
        (-0.1, ValueError, r'got -0\.1'),
        (float('nan'), ValueError, 'got nan'),
        ('0.7', TypeError, "`amount` must be a number, got '0.7'"),
        (True, TypeError, 'got True'),
        (None, TypeError, 'got None'),
    ],
)
def test_bad_amounts_are_named_and_change_nothing(amount, error, text, stock):
    model = stock()
    with pytest.raises(error, match=text):
        prune_pointwise(model, amount)
    assert_pruned(model, stock(), 0)


@pytest.mark.parametrize('function', [lambda model: prune_pointwise(model, 0.5), pointwise_sparsity])
def test_nothing_to_prune_is_an_error(function):
    with pytest.raises(ValueError, match='Sequential has no pointwise convolution to prune'):
        function(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)))


def test_the_classifier_of_a_wrapped_network_stays_whole():
    model = timm.create_model('lc_dla46_c')  # whose classifier is a 1x1 convolution
    prune_pointwise(nn.DataParallel(model), 0.9)
    assert pointwise_sparsity(nn.DataParallel(model)) == pointwise_sparsity(model)
    assert model.fc.weight.count_nonzero() == model.fc.weight.numel()


def test_weights_that_another_tool_computes_are_refused_before_anything_changes():
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 1))
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), normed)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match='layer `2` has a weight that another tool computes'):
        prune_pointwise(model, 0.5)
    assert list(model.state_dict()) == before
