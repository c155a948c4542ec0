"""The networks under what PyTorch and timm do to modules: compile, export, FX, script, checkpointing, wrappers."""

import copy

import pytest
import timm
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import timm_lc

NETS = {
    'cifar': ('lc_resnet20_16x2', {}),
    'cifar shared': ('lc_resnet20_16x2', {'share_weights': True}),
    'cifar recycled': ('lc_resnet20_16x2', {'share_weights': True, 'recycle': 4}),
    'imagenet': ('lc_resnet18', {}),
    'imagenet shared': ('lc_resnet18', {'share_weights': True}),
    'imagenet expanded': ('lc_resnet18', {'expansion': 2}),
    'depthwise expanded': ('lc_mobilenetv3_small_050', {'expansion': 2, 'share_weights': True}),
}


@pytest.fixture(params=NETS, ids=str)
def model(request):
    name, kwargs = NETS[request.param]
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **kwargs).eval()


@pytest.fixture
def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def stock_output(model, image):
    """The oracle: a stock network with every filter written out as an ordinary weight."""
    stock = timm_lc.fold(model)
    assert not any(type(module).__module__.startswith('timm_lc.layers') for module in stock.modules())
    return stock(image)


def test_fold_equals_the_network(model, image):
    close(model(image), stock_output(model, image))


def test_script(model, image):
    close(torch.jit.script(model)(image), stock_output(model, image))


def test_symbolic_trace(model, image):
    close(torch.fx.symbolic_trace(model)(image), stock_output(model, image))


def test_feature_extractor_of_torchvision(model, image):
    leaves = list(timm.models.get_notrace_modules())
    layer = 'layer2' if hasattr(model, 'layer2') else 'blocks.2'
    options = {'tracer_kwargs': {'leaf_modules': leaves}}
    extracted = create_feature_extractor(model, [layer], **options)(image)[layer]
    stock = create_feature_extractor(timm_lc.fold(model), [layer], **options)(image)[layer]
    close(extracted, stock)


def test_export(model, image):
    close(torch.export.export(model, (image,)).module()(image), stock_output(model, image))


@pytest.mark.parametrize('net', ['cifar recycled', 'imagenet', 'imagenet shared'])
def test_compile_fullgraph_forward_and_backward(net, image):
    name, kwargs = NETS[net]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs).train()
    twin = copy.deepcopy(model)
    torch.compile(model, fullgraph=True, backend='aot_eager')(image).square().mean().backward()
    twin(image).square().mean().backward()
    for (key, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, other.grad, rtol=1e-3, atol=1e-5, msg=lambda text, k=key: f'{k}: {text}'
        )


def test_gradient_checkpointing_gives_the_same_gradients(model, image):
    model.train()
    grads, calls = [], []
    for enable in (False, True):
        twin = copy.deepcopy(model)
        twin.set_grad_checkpointing(enable)
        calls.append([])
        for norm in twin.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.momentum = 0.0
                norm.register_forward_hook(lambda module, *_, into=calls[-1]: into.append(module))
        torch.manual_seed(0)
        twin(image).square().mean().backward()
        grads.append([p.grad for p in twin.parameters()])
    assert len(calls[1]) > len(calls[0])  # layers compute again in the backward
    assert all(grad is not None for grad in grads[0])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize('feature_cls', [None, 'getter', 'fx'])
@pytest.mark.parametrize('net', ['cifar recycled', 'imagenet shared', 'depthwise expanded'])
def test_features_only_has_the_whole_networks_filters(net, feature_cls, image):
    name, kwargs = NETS[net]
    wrapper = {'feature_cls': feature_cls} if feature_cls else {}
    torch.manual_seed(0)
    features = timm.create_model(name, features_only=True, **kwargs, **wrapper).eval()
    torch.manual_seed(0)
    whole = timm.create_model(name, **kwargs).eval()
    expected = whole.forward_intermediates(image, intermediates_only=True)
    outputs = features(image)
    assert len(outputs) == len(expected)
    for output, reference in zip(outputs, expected, strict=True):
        close(output, reference)


def test_forward_intermediates_end_in_the_features(model, image):
    final, intermediates = model.forward_intermediates(image)
    close(final, timm_lc.fold(model).forward_features(image))
    assert len(intermediates) == len(model.feature_info)


def test_no_classes_and_one_channel(model):
    assert model.num_classes == 10
    name = model.pretrained_cfg['architecture']
    headless = timm.create_model(name, num_classes=0, in_chans=1).eval()
    output = headless(torch.randn(1, 1, 64, 64))
    assert output.shape == (1, headless.head_hidden_size)


def test_reset_classifier(model, image):
    model.reset_classifier(3)
    assert model(image).shape == (2, 3)


def test_reparameterize_gives_stock_convolutions(image):
    model = timm.create_model('lc_resnet20_16x2', share_weights=True).eval()
    fused = timm.utils.reparameterize_model(model)
    assert not any(isinstance(module, timm_lc.LCConv2d) for module in fused.modules())
    close(fused(image), model(image))


def test_split_batch_norm(image):
    model = timm.layers.convert_splitbn_model(timm.create_model('lc_test_resnet'), 2).train()
    assert model(image).isfinite().all()


def test_onnx_program_equals_the_network(model, image, tmp_path):
    pytest.importorskip('onnxscript', reason='needs onnx, onnxscript and onnxruntime: pip install them')
    onnxruntime = pytest.importorskip('onnxruntime', reason='needs onnxruntime: pip install onnxruntime')
    torch.onnx.export(model, (image,), tmp_path / 'model.onnx', dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    (output,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    close(torch.from_numpy(output), stock_output(model, image))


@pytest.mark.parametrize(
    ('name', 'arguments'),
    [
        ('mobilenetv3_small_050', {'output_stride': 16}),
        ('mobilenetv2_035', {'feature_location': 'expansion'}),
        ('resnet18', {'output_stride': 8}),
        ('gernet_m', {'output_stride': 8}),  # of this stride it has other layers
    ],
)
def test_features_of_other_places_and_strides_are_those_of_the_stock_network(name, arguments, image):
    features = timm.create_model(f'lc_{name}', features_only=True, **arguments).eval()
    expected = timm.create_model(name, features_only=True, **arguments).eval()
    expected.load_state_dict(timm_lc.fold(features).state_dict())
    assert features.feature_info.channels() == expected.feature_info.channels()
    for output, reference in zip(features(image), expected(image), strict=True):
        close(output, reference)


def test_hooked_features_have_the_whole_networks_filters():
    features = timm.create_model('lc_legacy_xception', features_only=True, seed=3)
    whole = timm.create_model('lc_legacy_xception', seed=3)
    assert torch.equal(features.body.conv1.weight, whole.conv1.weight)


def test_features_of_a_network_that_has_a_body_of_its_own_have_the_whole_networks_filters():
    features = timm.create_model('lc_tresnet_m', features_only=True, seed=3)
    whole = timm.create_model('lc_tresnet_m', seed=3)
    assert torch.equal(features.body_conv1.conv.weight, whole.body.conv1.conv.weight)
