"""Networks of other people: what is not frozen is named, heads are left out, tied convolutions stay tied."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from timm_lc import add_linear_combinations, count_parameters, freeze_spatial, prune_pointwise, share_weights, verify
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.spatial import spatial_convolutions
from timm_lc.transforms.freeze import seed_spatial

TRANSFORMS = {
    'frozen': freeze_spatial,
    'shared': share_weights,
    'expanded': lambda model, **kwargs: add_linear_combinations(model, 2, **kwargs),
}
every_transform = pytest.mark.parametrize('transform', TRANSFORMS.values(), ids=TRANSFORMS)


def flat(module, name):
    return isinstance(module, nn.Conv2d)


@every_transform
@pytest.mark.parametrize(
    'other',
    [nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d],
    ids=lambda c: c.__name__,
)
def test_filters_that_go_on_learning_are_named_unless_they_are_left_out(other, transform):
    model = nn.ModuleDict({'flat': nn.Conv2d(3, 4, 3), 'other': other(3, 4, 3), 'pointwise': other(3, 4, 1)})
    with pytest.warns(UserWarning, match=rf'go on learning in `other` \({other.__name__}\): only those of nn.Conv2d'):
        transform(model)
    assert model['other'].weight.requires_grad
    model = nn.ModuleDict({'flat': nn.Conv2d(3, 4, 3), 'other': other(3, 4, 3)})
    transform(model, filter_fn=flat)


@every_transform
def test_deformable_convolutions_are_named(transform):
    ops = pytest.importorskip('torchvision.ops')
    model = nn.ModuleDict({'flat': nn.Conv2d(3, 4, 3), 'bent': ops.DeformConv2d(3, 4, 3)})
    with pytest.warns(UserWarning, match=r'go on learning in `bent` \(DeformConv2d\)'):
        transform(model)


class Segmenter(nn.Module):
    def __init__(self, num_classes=5, channels=4):
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(3, channels, 3)
        self.head = nn.Conv2d(channels, num_classes, 3)


@every_transform
def test_a_last_convolution_with_as_many_outputs_as_classes_goes_on_learning(transform):
    model = transform(Segmenter())
    assert isinstance(model.head.weight, nn.Parameter)
    assert list(verify(model)) == ['stem.spatial' if isinstance(model.stem, LCConv2d) else 'stem']


def test_a_convolution_that_is_not_the_last_is_no_head():
    model = Segmenter(channels=5)
    assert [name for name, _ in spatial_convolutions(model)] == ['stem']
    model.last = nn.Linear(5, 5)
    assert [name for name, _ in spatial_convolutions(model)] == ['stem', 'head']


def test_a_convolution_that_timm_calls_the_classifier_goes_on_learning():
    model = nn.ModuleDict({'head': nn.Conv2d(3, 4, 3), 'stem': nn.Conv2d(3, 4, 3)})
    model.pretrained_cfg = {'classifier': 'head'}
    assert list(verify(freeze_spatial(model))) == ['stem']


def tied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    model[1].weight = model[0].weight
    return model


TIES = TRANSFORMS | {
    'learnable': lambda model: seed_spatial(model, 7),
    'kept': lambda model: freeze_spatial(model, seed=None),
    'expanded, learnable': lambda model: add_linear_combinations(model, 2, freeze_spatial=False),
    'expanded, shared': lambda model: share_weights(add_linear_combinations(model, 2)),
}


@pytest.mark.parametrize('transform', TIES.values(), ids=TIES)
def test_tied_convolutions_stay_tied(transform):
    model = transform(tied())
    alone = transform(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)))
    counts, biases = count_parameters(model), 8
    assert counts.total == count_parameters(alone).total + biases
    assert counts.learnable == count_parameters(alone).learnable + biases
    if isinstance(model[0], LCConv2d):
        assert model[0].pointwise.weight is model[1].pointwise.weight
        assert torch.equal(model[0].spatial.weight, model[1].spatial.weight)
    else:
        assert torch.equal(model[0].weight, model[1].weight)
    twin = transform(tied())
    twin.load_state_dict(model.state_dict())
    assert count_parameters(twin).total == counts.total


def test_tied_convolutions_have_the_filters_of_the_first(filters_of):
    model = freeze_spatial(tied(), 7)
    assert count_parameters(model).total == 8 * 8 * 9 + 2 * 8 == 592
    assert all(torch.equal(conv.weight, filters_of((8, 8, 3, 3), seed=7, name='0')) for conv in model)


@every_transform
def test_a_lazy_convolution_is_refused_by_its_name(transform):
    with pytest.raises(ValueError, match='layer `1` is lazy: pass an image through the network first'):
        transform(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 3)))


@pytest.mark.parametrize('freeze', [True, False])
def test_pruning_a_block_of_1x1_filters_prunes_what_it_learns(freeze):
    block = LCConv2d(8, 8, 1, freeze_spatial=freeze)
    before = block.spatial.weight.detach().clone()
    prune_pointwise(nn.Sequential(block), 0.5)
    if freeze:
        assert torch.equal(block.spatial.weight, before)
        assert (block.pointwise.weight == 0).sum() == 32
    else:
        assert (block.spatial.weight == 0).sum() + (block.pointwise.weight == 0).sum() == 64


def test_networks_by_their_lc_name_leave_channel_attention_in_silence():
    model = timm.create_model('lc_ecaresnet26t')  # whose convolutions over channels have one dimension
    assert any(isinstance(module, nn.Conv1d) for module in model.modules())


@every_transform
@pytest.mark.parametrize(
    'tool', [parametrizations.weight_norm, lambda conv: prune.l1_unstructured(conv, 'weight', amount=0.5)]
)
def test_a_weight_that_another_tool_computes_is_refused_by_its_layers_name(tool, transform):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    tool(model[1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match='layer `1` has a weight that another tool computes'):
        transform(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('record', [None, torch.zeros(3)])
def test_a_foreign_buffer_named_record_is_no_frozen_layer(record):
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer('record', record)

    model = freeze_spatial(Recorder())
    assert verify(model) == {'conv': 'drawn'}
    assert count_parameters(model).total == 3 * 4 * 9 + 4


def test_blocks_of_one_record_that_are_no_network_count_each():
    blocks = nn.Sequential(LCConv2d(4, 4, 3), LCConv2d(4, 4, 3))
    assert count_parameters(blocks).total == 2 * (4 * 4 * 9 + 4 * 4)
