"""Adapters in timm's own networks, against those networks unmodified."""

import copy
import pickle
from importlib.util import find_spec

import pytest
import timm
import torch
import torchvision
from timm.utils import reparameterize_model
from torch import nn

import timm_lc
from timm_lc import add_adapters, fold, remove_adapters
from timm_lc.layers.adapter import AdaptedConv2d

# With a deep stem, with depthwise convolutions, with Conv2dSame, with layer norm and layer scale
NETWORKS = ['test_resnet', 'test_efficientnet', 'tf_efficientnet_lite0', 'test_convnext']


def train_a_little(model, images, lr=0.01):
    """Take one large step of SGD, so that everything that learns moves, and statistics too."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    model(images).square().mean().backward()
    optimizer.step()
    return model.eval()


def owner(model, name):
    return model.get_submodule(name.rpartition('.')[0])


def same_state(model, expected):
    state = model.state_dict()
    return list(state) == list(expected) and all(torch.equal(state[key], expected[key]) for key in expected)


def state_of(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('layers', ['spatial', 'all'])
@pytest.mark.parametrize('norms', [True, False])
def test_outputs_are_the_bases_at_first_and_after_removal(stock, images, name, layers, norms):
    model = stock(name)
    before, parameters = state_of(model), [n for n, _ in model.named_parameters()]
    expected = model(images)
    assert add_adapters(model, 4, layers=layers, norms=norms) is model
    assert torch.equal(model(images), expected)
    train_a_little(model, images)
    assert not torch.allclose(model(images), expected)
    assert remove_adapters(model) is model
    assert same_state(model, before)
    assert [n for n, _ in model.named_parameters()] == parameters
    assert torch.equal(model(images), expected)


def test_coefficients_norms_and_classifier_learn_and_nothing_else(stock):
    model = add_adapters(stock(), 4)
    kinds = {type(owner(model, name)) for name, _ in model.named_parameters()}
    assert kinds == {nn.BatchNorm2d, nn.Linear, nn.Conv2d}
    learning = {name for name, p in model.named_parameters() if isinstance(owner(model, name), nn.Conv2d)}
    assert learning == {f'{name}.pointwise.weight' for name, m in model.named_modules() if isinstance(m, AdaptedConv2d)}
    without = add_adapters(stock(), 4, norms=False)
    assert {n for n, _ in without.named_parameters() if 'pointwise' not in n} == {'fc.weight', 'fc.bias'}


def test_the_state_dict_holds_what_learns_changed_statistics_and_records(stock):
    plain = stock()
    norms = {n for n, m in plain.named_modules() if isinstance(m, nn.BatchNorm2d)}
    adapted = {n for n, m in plain.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}
    tensors = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    expected = {'base_fingerprint', 'fc.weight', 'fc.bias'} | {f'{n}.{t}' for n in norms for t in tensors}
    expected |= {f'{n}.{t}' for n in adapted for t in ('spatial.record', 'pointwise.weight')}
    assert set(add_adapters(plain).state_dict()) == expected


def test_without_norms_training_keeps_their_statistics(stock, images):
    model = add_adapters(stock(), norms=False)
    bn = {key: tensor.clone() for key, tensor in model.named_buffers() if 'running' in key}
    assert bn
    expected = model(images)
    assert torch.equal(model.train()(images), expected)
    train_a_little(model, images)
    assert all(torch.equal(tensor, bn[key]) for key, tensor in model.named_buffers() if key in bn)


def test_orthogonal_rows_move_the_weight_as_a_projected_step_of_full_fine_tuning(stock, images):
    lr = 0.1
    full = stock().double()
    model = add_adapters(copy.deepcopy(full), 4, gain=3**0.5)  # rows of length 1
    images = images.double()
    gradients = torch.autograd.grad(full(images).square().sum(), full.layer1[0].conv1.weight)[0].flatten(1)
    layer = model.layer1[0].conv1
    layer.spatial.weight.copy_(layer.spatial.weight.double())
    (gradient,) = torch.autograd.grad(model(images).square().sum(), layer.pointwise.weight)
    step = (-lr * gradient.flatten(1)) @ layer.spatial.weight.flatten(1)
    rows = torch.linalg.qr(layer.spatial.weight.flatten(1).T).Q.T  # of the span of the filters, (rank, fan)
    torch.testing.assert_close(step, -lr * gradients @ rows.T @ rows, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet', 'regnetx_002'])
def test_rows_are_orthogonal_and_of_length_2_in_each_group(name):
    model = add_adapters(timm.create_model(name), 4, layers='all')
    layers = [module for module in model.modules() if isinstance(module, AdaptedConv2d)]
    assert max(layer.groups for layer in layers) > 1 or name == 'test_resnet'
    for layer in layers:
        rows = layer.spatial.weight.double().view(layer.groups, layer.rank, -1)
        expected = 4 * torch.eye(layer.rank, dtype=torch.double).expand(layer.groups, -1, -1)
        torch.testing.assert_close(rows @ rows.mT, expected, rtol=0, atol=1e-5)


def test_filters_of_another_seed_are_others_and_of_the_same_the_same(stock):
    first, again, other = (add_adapters(stock(), 4, seed=seed).layer1[0].conv1 for seed in (1, 1, 2))
    assert torch.equal(first.spatial.weight, again.spatial.weight)
    assert not torch.equal(first.spatial.weight, other.spatial.weight)


def test_uniform_filters_are_those_of_the_generator(stock, filters_of):
    model = add_adapters(stock(), 4, seed=3, filters='uniform', gain=2.0)
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, AdaptedConv2d))
    shape = tuple(layer.spatial.weight.shape)
    assert torch.equal(layer.spatial.weight, filters_of(shape, seed=3, name=f'{name}.spatial', gain=2.0))


@pytest.mark.parametrize('name', NETWORKS)
def test_fold_is_the_stock_network_with_the_same_outputs(stock, images, name):
    plain = stock(name)
    keys = list(plain.state_dict())
    model = train_a_little(add_adapters(plain, 4), images)
    folded = fold(model)
    assert list(folded.state_dict()) == keys
    assert {type(m) for m in folded.modules()} == {type(m) for m in stock(name).modules()}
    torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-4)
    stock(name).load_state_dict(folded.state_dict())
    assert isinstance(
        model.get_submodule(next(n for n, _ in model.named_modules() if n.endswith('.spatial'))), nn.Conv2d
    )


def test_fold_of_a_network_without_norms_gives_statistics_back(stock, images):
    plain = stock()
    keys, kinds = list(plain.state_dict()), {type(m) for m in plain.modules()}
    folded = fold(add_adapters(plain, norms=False))
    assert list(folded.state_dict()) == keys
    assert {type(m) for m in folded.modules()} == kinds
    assert all(p.requires_grad for p in folded.parameters())


def test_reparameterize_merges_adapters(stock, images):
    model = train_a_little(add_adapters(stock(), 4), images)
    merged = reparameterize_model(model)
    assert not any(isinstance(m, AdaptedConv2d) for m in merged.modules())
    torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('norms', [True, False])
def test_networks_survive_deepcopy_and_pickle(stock, images, norms):
    model = train_a_little(add_adapters(stock(), 4, norms=norms), images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), model(images))
        twin.load_state_dict(model.state_dict())
        remove_adapters(twin)
        assert torch.equal(twin(images), remove_adapters(copy.deepcopy(model))(images))


def test_networks_script_and_export(stock, images):
    model = train_a_little(add_adapters(stock(), 4, norms=False), images)
    expected = model(images)
    torch.testing.assert_close(torch.jit.script(model)(images), expected)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)


@pytest.mark.skipif(
    any(not find_spec(name) for name in ('onnxruntime', 'onnxscript')),
    reason="needs onnxruntime and onnxscript: pip install 'timm_lc[onnx]'",
)
def test_networks_export_to_onnx_without_being_folded(stock, images, tmp_path):
    from onnxruntime import InferenceSession

    model = train_a_little(add_adapters(stock(), 4, layers='all', norms=False), images)
    path = tmp_path / 'model.onnx'
    torch.onnx.export(model, (images,), path, dynamo=True, input_names=['images'], external_data=False, verbose=False)
    (logits,) = InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'images': images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('norms', [True, False])
@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet'])
def test_compiled_networks_train_and_evaluate_alike_in_one_graph(stock, images, name, norms):
    model = add_adapters(stock(name), 4, layers='all', norms=norms)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(images), model(images))
    for network in (model, compiled):
        network.train()
        network(images).square().mean().backward()
    gradients = dict(twin.named_parameters())
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[key].grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_compiled_network_computes_with_the_adapter_that_was_loaded_last(stock, images):
    model = add_adapters(stock(), 4)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    first = compiled(images)
    trained = train_a_little(add_adapters(stock(), 4, seed=1), images)
    model.load_state_dict(trained.state_dict())
    torch.testing.assert_close(compiled(images), trained(images))
    assert not torch.allclose(first, trained(images))


def test_a_state_dict_loads_into_the_same_base_only(stock, images):
    trained = train_a_little(add_adapters(stock(), 4, seed=1), images)
    loaded = add_adapters(stock(), 4, seed=2)
    loaded.load_state_dict(trained.state_dict())
    assert torch.equal(loaded(images), trained(images))
    other = stock()
    with torch.no_grad():
        other.layer2[0].conv1.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(
        RuntimeError,
        match=r'of another base than test_resnet.r160_in1k: 1 of \d+ layers differ, `layer2.0.conv1` first',
    ):
        add_adapters(other, 4).load_state_dict(trained.state_dict())
    with pytest.raises(RuntimeError, match=r'adapters of another base than .*: it has \d+ layers, not \d+'):
        add_adapters(stock('tf_efficientnet_lite0'), 4).load_state_dict(trained.state_dict(), strict=False)


def test_the_fingerprint_survives_casts_and_averages(stock, images):
    model = add_adapters(stock(), 4)
    state = {key: tensor.float() for key, tensor in model.state_dict().items()}
    averaged = {key: sum(tensor / 3 for _ in range(3)) for key, tensor in state.items() if key == 'base_fingerprint'}
    add_adapters(stock(), 4).load_state_dict({**state, **averaged})
    half = copy.deepcopy(model).half().state_dict()['base_fingerprint']
    add_adapters(stock(), 4).load_state_dict({**state, 'base_fingerprint': half})


def test_removal_brings_a_replaced_classifier_back(stock, images):
    model = stock()
    expected, before = model(images), state_of(model)
    add_adapters(model, 4).reset_classifier(9)
    assert model(images).shape == (2, 9)
    remove_adapters(model)
    assert model.num_classes == 4
    assert same_state(model, before)
    assert torch.equal(model(images), expected)


def test_a_classifier_comes_back_in_the_type_of_the_network(stock, images):
    model = stock()
    expected = model(images)
    add_adapters(model, 4).reset_classifier(9)
    output = remove_adapters(model.double())(images.double())
    assert output.dtype == torch.float64
    torch.testing.assert_close(output.float(), expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_tied_convolutions_of_the_base_are_tied_again(images, dtype):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(3 * 28 * 28, 4))
    model[2].weight = model[0].weight
    before, expected = state_of(model), model(images)
    add_adapters(model, 2).to(dtype)
    remove_adapters(model)
    assert model[2].weight is model[0].weight
    assert same_state(model.float(), before)
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize(
    'transform',
    [timm_lc.freeze_spatial, timm_lc.share_weights, lambda model: timm_lc.add_linear_combinations(model, 2)],
)
def test_a_base_with_adapters_gets_no_random_filters(stock, images, transform):
    model = stock()
    before, expected = state_of(model), model(images)
    add_adapters(model, 4)
    with pytest.raises(ValueError, match='has adapters: change its base before'):
        transform(model)
    assert torch.equal(model(images), expected)
    assert same_state(remove_adapters(model), before)


def test_filter_fn_narrows_what_is_adapted(stock):
    model = add_adapters(stock(), 4, filter_fn=lambda module, name: name.startswith('layer3'))
    names = [name for name, module in model.named_modules() if isinstance(module, AdaptedConv2d)]
    assert names
    assert all(name.startswith('layer3') for name in names)


def test_a_network_that_is_not_timms_keeps_its_last_linear_layer_learnable():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2))
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    add_adapters(model, 2)
    assert torch.equal(model(x), expected)
    assert [name for name, _ in model.named_parameters()] == ['0.pointwise.weight', '4.weight', '4.bias']


def test_adding_twice_is_adding_once(stock):
    model = add_adapters(stock(), 4)
    layers = [module for module in model.modules() if isinstance(module, AdaptedConv2d)]
    add_adapters(model, 4)
    assert [module for module in model.modules() if isinstance(module, AdaptedConv2d)] == layers


def test_the_meta_device_and_ddp_lists(stock):
    with torch.device('meta'):
        model = add_adapters(timm.create_model('test_resnet'), 4)
    assert model(torch.zeros(2, 3, 32, 32, device='meta')).shape == (2, 1000)
    named = dict(add_adapters(stock(), 4).named_buffers(remove_duplicate=False))
    ignored = add_adapters(stock(), 4)._ddp_params_and_buffers_to_ignore
    assert 'layer1.0.conv1.base.weight' in ignored
    assert set(ignored) <= set(named)
    assert not any('running' in name for name in ignored)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'rank': 0}, '`rank` must be a positive integer, got 0'),
        ({'seed': -1}, '`seed` must be an integer'),
        ({'gain': 0}, '`gain` must be a positive number'),
        ({'layers': 'spatail'}, "`layers` must be one of 'spatial', 'pointwise', 'all', got 'spatail'"),
        ({'filters': 'expected'}, "`filters` must be one of 'uniform', 'orthogonal', got 'expected'"),
        ({'filter_fn': lambda module, name: False}, 'has no spatial convolution that `filter_fn` accepts'),
    ],
)
def test_wrong_arguments_are_refused_and_change_nothing(stock, arguments, message):
    model = stock()
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        add_adapters(model, **arguments)
    assert same_state(model, before)
    assert all(p.requires_grad for p in model.parameters())


def test_networks_that_cannot_be_adapted_are_refused(stock):
    with pytest.raises(ValueError, match=r'layer `stem\.conv` is a StdConv2d, which has no adapter'):
        add_adapters(timm.create_model('resnetv2_50x1_bit'))
    with pytest.raises(ValueError, match=r'frozen random filters: adapt what `timm_lc\.fold` makes of it'):
        add_adapters(timm.create_model('lc_resnet20_16x1'))
    with pytest.raises(ValueError, match='itself a convolution'):
        add_adapters(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match='has adapters already: call remove_adapters first'):
        add_adapters(add_adapters(stock(), 4), 8)
    with pytest.raises(ValueError, match='has no adapters'):
        remove_adapters(stock())


def test_describe_tells_what_an_adapter_is_made_of(stock):
    plain = stock()
    total = sum(p.numel() for p in plain.parameters())
    described = timm_lc.describe(add_adapters(plain, 4, seed=7))
    layers = {layer.name: (layer.role, layer.state) for layer in described.layers}
    assert layers['layer1.0.conv1.base'] == ('base spatial', 'not learnable')
    assert layers['layer1.0.conv1.spatial'] == ('adapter filters', 'frozen, seed=7, filters=orthogonal')
    assert layers['layer1.0.conv1.pointwise'] == ('adapter P', 'learnable')
    drawn = sum(m.spatial.weight.numel() for m in plain.modules() if isinstance(m, AdaptedConv2d))
    coefficients = sum(m.pointwise.weight.numel() for m in plain.modules() if isinstance(m, AdaptedConv2d))
    assert described.parameters.total == total + drawn + coefficients


def test_a_convolution_that_classifies_learns_as_a_linear_head_does():
    model = add_adapters(torchvision.models.squeezenet1_1(num_classes=10), 4)
    assert {'classifier.1.weight', 'classifier.1.bias'} <= {n for n, p in model.named_parameters() if p.requires_grad}


def test_held_norms_keep_their_statistics_where_an_average_measures_its_own(stock, images):
    model = stock()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
    add_adapters(model.eval(), norms=False)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.optim.swa_utils.update_bn([images], averaged)
    assert torch.equal(averaged.eval()(images), model(images))


@pytest.mark.parametrize('strict', [True, False])
def test_a_state_without_adapters_is_refused(strict, stock):
    with pytest.raises(RuntimeError, match=r'a state without adapters, whose `conv1\.0` is held here: load it before'):
        add_adapters(stock()).load_state_dict(stock().state_dict(), strict=strict)


def test_norms_and_classifier_learn_in_a_base_that_did_not(stock, images):
    model = add_adapters(stock().requires_grad_(False))
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learned == {name for name, _ in add_adapters(stock()).named_parameters()}
    train_a_little(model, images)
    assert not any(parameter.requires_grad for parameter in remove_adapters(model).parameters())


def test_an_attribute_named_held_holds_nothing(stock, images):
    model = stock()
    model.bn1.held = True
    expected = model(images)
    assert torch.equal(add_adapters(model)(images), expected)
