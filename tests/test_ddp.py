"""Two processes under DistributedDataParallel hold the same filters and follow one process with accumulated halves."""

import copy
import itertools

import pytest
import timm
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from timm_lc import add_adapters, add_linear_combinations, freeze_spatial, share_weights

STEPS, LR = 3, 0.1
BUILDS = {
    'frozen': lambda: freeze_spatial(timm.create_model('test_resnet', num_classes=4), seed=3),
    'shared': lambda: share_weights(timm.create_model('test_resnet', num_classes=4), seed=3, recycle=2),
    'expanded, shared': lambda: share_weights(add_linear_combinations(plain(), 2, seed=3), seed=3, recycle=2),
    'kept': lambda: freeze_spatial(plain(), seed=None),
    'implicit': lambda: add_linear_combinations(plain(), 30, seed=3, implicit=True),
    'adapted': lambda: add_adapters(trained(), 2, seed=3),
}
CASES = list(itertools.product(BUILDS, (True, False)))
# The same networks, with filters of another seed or kind
OTHER = {
    'frozen': lambda: freeze_spatial(timm.create_model('test_resnet', num_classes=4), seed=7),
    'shared': lambda: share_weights(timm.create_model('test_resnet', num_classes=4), seed=7),
    'expanded, shared': lambda: share_weights(add_linear_combinations(plain(), 2), seed=7, recycle=2),
    'implicit': lambda: add_linear_combinations(plain(), 30, seed=7, implicit=True),
    'overwritten': lambda: freeze_spatial(plain(), seed=3),
    'drawn, kept': lambda: freeze_spatial(plain(), seed=None),
}
BUILDS |= {name: lambda: freeze_spatial(plain(), seed=3) for name in ('overwritten', 'drawn, kept')}
LOADED = list(itertools.product([*OTHER, 'kept'], (True, False)))


def plain():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 28 * 28, 4))


def trained():
    """Return the same network on each rank, as a base that each has read."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return plain()


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(STEPS, 4, 3, 32, 32, generator=generator), torch.randint(4, (STEPS, 4), generator=generator)


def spatial_filters(model):
    """Return the filters of all layers: LC-Blocks hold theirs in a child, implicit ones W^T W."""
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}
    return {name: getattr(conv, 'gram', conv.weight).detach().clone() for name, conv in convs.items()}


def learned(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train_rank(build, broadcast_buffers, rank):
    """Train on this rank's half of each batch; batch norm stays in eval mode, for halves to add up."""
    torch.manual_seed(rank)  # as timm's train.py
    model = BUILDS[build]().eval()
    drawn = spatial_filters(model)
    parallel = DistributedDataParallel(model, broadcast_buffers=broadcast_buffers)
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(parallel.parameters(), lr=LR)
    losses = []
    for images, labels in zip(*data(), strict=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(parallel(images.chunk(2)[rank]), labels.chunk(2)[rank])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {'drawn': drawn, 'after': spatial_filters(model), 'start': start, 'end': learned(model), 'losses': losses}


def load_on_the_first_rank(build, broadcast_buffers, rank):
    """Compute after rank 0 alone has loaded a checkpoint of other filters, or rank 1 has overwritten its own."""
    torch.manual_seed(0)
    model, source = BUILDS[build](), (freeze_spatial(plain(), seed=None) if build == 'kept' else OTHER[build]())
    if rank == 0:
        model.load_state_dict(source.state_dict())
    elif build == 'overwritten':
        nn.init.zeros_(model[0].weight)
    parallel = DistributedDataParallel(model, broadcast_buffers=broadcast_buffers)
    hooks = [len(model._forward_pre_hooks)]
    copy.deepcopy(model)
    copied = parallel(torch.ones(2, 3, 32, 32)).detach()
    hooks.append(len(model._forward_pre_hooks))
    state = model.state_dict()
    return {
        'filters': spatial_filters(model),
        'hooks': hooks,
        'logits': copied,
        'expected': spatial_filters(source),
    } | {'records': {name: tensor for name, tensor in state.items() if name.endswith('record')}}


def broadcast(model):
    """Return how many numbers DistributedDataParallel broadcasts before each forward."""
    return sum(tensor.numel() for tensor in DistributedDataParallel(model).modules_buffers)


def run_rank(rank, folder):
    """Train all cases in one process of two."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    results = {case: train_rank(*case, rank) for case in CASES}
    results |= {('loaded', *case): load_on_the_first_rank(*case, rank) for case in LOADED}
    results['broadcast'] = [broadcast(model) for model in (BUILDS['frozen'](), torch.compile(BUILDS['frozen']()))]
    torch.save(results, f'{folder}/rank{rank}.pt')
    distributed.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """Return what both ranks saw, for each case."""
    folder = tmp_path_factory.mktemp('ddp')
    multiprocessing.spawn(run_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f'rank{rank}.pt', weights_only=True) for rank in (0, 1)]


def train_alone(build, start):
    """Train one process that accumulates the two half-batches of each step; return its losses and weights."""
    model = BUILDS[build]().eval()
    model.load_state_dict(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    losses = []
    for images, labels in zip(*data(), strict=True):
        optimizer.zero_grad()
        halves = zip(images.chunk(2), labels.chunk(2), strict=True)
        half_losses = [nn.functional.cross_entropy(model(x), y) for x, y in halves]
        (sum(half_losses) / 2).backward()
        optimizer.step()
        losses.append([loss.detach() for loss in half_losses])
    return losses, learned(model)


@pytest.mark.parametrize('case', CASES)
def test_both_ranks_hold_the_same_filters(case, ranks):
    one, two = (rank[case] for rank in ranks)
    assert one['after'].keys() == two['after'].keys()
    for name, filters in one['after'].items():
        assert torch.equal(two['after'][name], filters)
        assert torch.equal(one['drawn'][name], filters)
        assert torch.equal(two['drawn'][name], filters) == (case[0] != 'kept')


@pytest.mark.parametrize('case', CASES)
def test_two_processes_follow_one_that_accumulates_the_halves(case, ranks):
    one, two = (rank[case] for rank in ranks)
    losses, end = train_alone(case[0], one['start'])
    for half, rank in enumerate((one, two)):
        torch.testing.assert_close(rank['losses'], [step[half] for step in losses], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rank['end'], end, rtol=1e-4, atol=1e-5)
    assert losses[0] != losses[-1]


@pytest.mark.parametrize('build', ['frozen', 'shared', 'expanded, shared', 'implicit'])
def test_filters_that_a_seed_gives_are_not_broadcast(build):
    model = BUILDS[build]()
    ignored = set(model._ddp_params_and_buffers_to_ignore)
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    assert ignored >= {name for name, _ in model.named_buffers() if not name.endswith(statistics)}
    assert not ignored & set(dict(model.named_parameters()))


def test_filters_of_a_compiled_network_are_not_broadcast_either(ranks):
    for rank in ranks:
        eager, compiled = rank['broadcast']
        assert eager == compiled < sum(f.numel() for f in spatial_filters(BUILDS['frozen']()).values())


@pytest.mark.parametrize('case', LOADED)
def test_a_checkpoint_that_only_rank_0_has_loaded_reaches_all_ranks(case, ranks):
    one, two = (rank[('loaded', *case)] for rank in ranks)
    for rank in (one, two):
        assert rank['hooks'] == [1, 0]  # compared in the first forward, and never again
        assert all(torch.equal(filters, one['expected'][name]) for name, filters in rank['filters'].items())
        assert rank['records'].keys() == one['records'].keys()
        assert all(torch.equal(record, one['records'][name]) for name, record in rank['records'].items())
    assert one['expected'].keys() == one['filters'].keys()


def test_a_network_outside_a_distributed_run_has_no_hook_to_compare_filters():
    model = BUILDS['frozen']()
    assert list(copy.deepcopy(model)._ddp_params_and_buffers_to_ignore) == list(model._ddp_params_and_buffers_to_ignore)
    assert not model._forward_pre_hooks
