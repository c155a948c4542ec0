"""Adapter files: what they hold, that they give the trained network back, and that they refuse any other base."""

import copy
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import timm_lc
from timm_lc import add_adapters, load_adapter, remove_adapters, save_adapter
from timm_lc.checkpoints.adapters import load_adapted, read_adapter
from timm_lc.checkpoints.card import model_card
from timm_lc.checkpoints.hub import write_repositories
from timm_lc.cli import main
from timm_lc.filters import ORTHOGONAL, FilterRecord
from timm_lc.layers.adapter import AdaptedConv2d, adapter_shape
from timm_lc.transforms.adapt import adapt

ROOT = Path(__file__).resolve().parents[2]


def learned(model, seed=0):
    """Move all that learns, and the statistics of norms that do, by numbers of the seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and 'running_mean' in module.state_dict():
                module.running_mean += 0.1 * torch.rand(module.num_features, generator=generator)
                module.running_var *= 1.1
    return model


def flipped(path):
    """Change one bit of the last tensor of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path


def test_a_loaded_adapter_is_not_taken_for_one_of_another_seed(stock, tmp_path):
    path = save_adapter(add_adapters(stock(), 4, seed=5), tmp_path / 'task.safetensors')
    model = load_adapter(add_adapters(stock(), 4, seed=0), path)
    with pytest.raises(ValueError, match='has adapters already: call remove_adapters first'):
        add_adapters(model, 4, seed=0)


@pytest.mark.parametrize('norms', [True, False])
@pytest.mark.parametrize('layers', ['spatial', 'all'])
def test_a_loaded_network_is_the_trained_one_to_the_bit(stock, images, tmp_path, norms, layers):
    model = learned(add_adapters(stock(), 4, seed=3, norms=norms, layers=layers))
    path = save_adapter(model, tmp_path / 'new' / 'task.safetensors')
    assert path == tmp_path / 'new' / 'task.safetensors'
    assert [p.name for p in path.parent.iterdir()] == ['task.safetensors']
    base = stock()
    assert load_adapter(base, path) is base
    assert torch.equal(base(images), model(images))
    assert base.adaptation.norms == norms


def test_a_fresh_process_loads_the_same_network(stock, images, tmp_path):
    model = learned(add_adapters(stock(), 4))
    torch.save((stock().state_dict(), images), tmp_path / 'base.pt')
    save_adapter(model, tmp_path / 'task.safetensors')
    code = (
        'import timm, timm_lc, torch; torch.set_num_threads(1); state, images = torch.load("base.pt");'
        'base = timm.create_model("test_resnet", num_classes=4).eval(); base.load_state_dict(state);'
        'torch.save(timm_lc.load_adapter(base, "task.safetensors")(images), "logits.pt")'
    )
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=environment, check=True)
    assert torch.equal(torch.load(tmp_path / 'logits.pt'), model(images))


def test_the_file_holds_neither_base_nor_filters_and_names_the_base(stock, tmp_path):
    model = learned(add_adapters(stock(), 4))
    path = save_adapter(model, tmp_path / 'task.safetensors')
    names = set(load_file(path))
    assert not any('.base.' in name or name.endswith('.spatial.weight') for name in names)
    norms = {name for name, m in stock().named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {name for name in names if name.endswith('.norm')} == {f'{name}.norm' for name in norms}
    with safe_open(path, 'pt') as file:
        about = json.loads(file.metadata()['adapter'])
    assert about['base'] == 'test_resnet.r160_in1k'
    assert (about['architecture'], about['norms'], about['num_classes']) == ('test_resnet', True, 4)
    assert set(about['crc32']) == names


@pytest.mark.parametrize(('norms', 'limit'), [(False, 120_000), (True, 550_000)])
def test_bytes_of_a_resnet50s_adapter(tmp_path, norms, limit):
    model = timm.create_model('resnet50', num_classes=10)
    rows = sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1)
    channels = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    values = 2 * (8 * rows + 10 * 2048) + 4 * 10 + (16 * channels if norms else 0)  # bytes of bf16 and float32
    path = save_adapter(add_adapters(model, 8, norms=norms), tmp_path / 'task.safetensors', dtype=torch.bfloat16)
    assert values < path.stat().st_size < limit


def test_files_whose_rows_are_orthogonal_over_all_groups_load_as_they_were_written(stock, images, tmp_path):
    records = {  # as they were drawn before rows were orthogonal within each group
        name: FilterRecord(adapter_shape(m, 4), stream=7, gain=2.0, filter_set=ORTHOGONAL)
        for name, m in stock('test_efficientnet').named_modules()
        if isinstance(m, nn.Conv2d) and m.groups > 1
    }
    model = learned(adapt(stock('test_efficientnet'), records, norms=True))
    path = save_adapter(model, tmp_path / 'task.safetensors')
    for base in (stock('test_efficientnet'), add_adapters(stock('test_efficientnet'), 4)):
        assert torch.equal(load_adapter(base, path)(images), model(images))


def test_half_precision_rounds_matrices_only(stock, images, tmp_path):
    model = learned(add_adapters(stock(), 4))
    path = save_adapter(model, tmp_path / 'task.safetensors', dtype=torch.bfloat16)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in expected.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.bfloat16())
    assert torch.equal(load_adapter(stock(), path)(images), expected(images))


def test_sparse_coefficients(stock, images, tmp_path):
    model = learned(add_adapters(stock(), 8))
    for module in model.modules():
        if isinstance(module, AdaptedConv2d):
            nn.init.zeros_(module.pointwise.weight[:, :7])
    whole, sparse = (
        save_adapter(model, tmp_path / f'{flag}.safetensors', sparse=flag).stat().st_size for flag in (False, True)
    )
    assert sparse < whole
    base = stock()
    for _ in range(2):
        assert torch.equal(load_adapter(base, tmp_path / 'True.safetensors')(images), model(images))


def test_a_second_adapter_replaces_the_first_without_building_anything(stock, images, tmp_path):
    models = [learned(add_adapters(stock(), 4, seed=seed), seed) for seed in (0, 1)]
    paths = [save_adapter(model, tmp_path / f'{seed}.safetensors') for seed, model in enumerate(models)]
    served = load_adapter(stock(), paths[0])
    modules = list(served.modules())
    for _ in range(2):
        for model, path in zip(models, paths, strict=True):
            assert torch.equal(load_adapter(served, path)(images), model(images))
    assert list(served.modules()) == modules


def test_adapters_of_other_ranks_norms_and_classes_replace_one_another(stock, images, tmp_path):
    kinds = [{'rank': 4}, {'rank': 2, 'norms': False}, {'rank': 4, 'layers': 'all'}]
    models = [learned(add_adapters(stock(), **kind)) for kind in kinds]
    other_classes = add_adapters(stock(), 4)
    other_classes.reset_classifier(7)
    models.append(learned(other_classes))
    paths = [save_adapter(model, tmp_path / f'{index}.safetensors') for index, model in enumerate(models)]
    served, before = stock(), stock().state_dict()
    for index in (0, 1, 2, 3, 1, 0, 3, 2):
        assert torch.equal(load_adapter(served, paths[index])(images), models[index](images))
    state = remove_adapters(served).state_dict()
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_a_hundred_adapters_of_one_base_are_switched_and_memory_does_not_grow(stock, images, tmp_path):
    model = add_adapters(stock(), 2, norms=False)
    logits = []
    for seed in range(100):
        learned(model, seed)
        logits.append(model(images))
        save_adapter(model, tmp_path / f'{seed}.safetensors')
    served = load_adapter(stock(), tmp_path / '0.safetensors')

    def tensors():
        gc.collect()
        return sum(type(found) in (torch.Tensor, nn.Parameter) for found in gc.get_objects())

    with torch.inference_mode():
        before = tensors()
        for seed in range(100):
            assert torch.equal(load_adapter(served, tmp_path / f'{seed}.safetensors')(images), logits[seed])
        assert tensors() <= before


def test_another_base_is_refused_and_left_alone(stock, images, tmp_path):
    path = save_adapter(learned(add_adapters(stock(), 4)), tmp_path / 'task.safetensors')
    revised = stock()
    with torch.no_grad():
        revised.layer2[0].conv1.weight[0, 0, 0, 0] += 1e-3
    expected = revised(images)
    message = (
        r'task\.safetensors is an adapter of another base, test_resnet\.r160_in1k: 1 of \d+ layers differ, `layer2'
    )
    with pytest.raises(ValueError, match=message):
        load_adapter(revised, path)
    assert torch.equal(revised(images), expected)
    add_adapters(revised, 4)
    with pytest.raises(ValueError, match=message):
        load_adapter(revised, path)
    with pytest.raises(ValueError, match=r'another base, .*: it has \d+ layers, not \d+'):
        load_adapter(stock('test_convnext'), path)


def test_a_classifier_that_cannot_be_replaced_leaves_the_base_alone(images, tmp_path):
    def network(classes):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
        )

    path = save_adapter(learned(add_adapters(network(2), 4)), tmp_path / 'task.safetensors')
    base = network(4)
    before, outputs = list(base.state_dict()), base(images)
    with pytest.raises(ValueError, match=r'`4.weight` is \(2, 8\), that of the base \(4, 8\): give it a classifier'):
        load_adapter(base, path)
    assert list(base.state_dict()) == before
    assert torch.equal(base(images), outputs)


def test_an_adapter_of_a_network_in_half_precision_is_that_of_its_base(stock, images, tmp_path):
    model = add_adapters(stock(), 4).to(torch.bfloat16)
    path = save_adapter(learned(model), tmp_path / 'task.safetensors')
    twin = load_adapter(stock(), path).to(torch.bfloat16)
    assert torch.equal(twin(images.bfloat16()), model.eval()(images.bfloat16()))
    with pytest.raises(ValueError, match=r'another base.*load it before the base is cast'):
        load_adapter(stock().to(torch.bfloat16), path)


def test_a_damaged_file_is_refused(stock, tmp_path):
    path = save_adapter(add_adapters(stock(), 4), tmp_path / 'task.safetensors')
    with pytest.raises(ValueError, match='does not match its checksum'):
        load_adapter(stock(), flipped(path))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match='is not a readable checkpoint'):
        load_adapter(stock(), path)
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        load_adapter(stock(), tmp_path / 'none.safetensors')


def test_only_a_name_that_loading_knows_is_written(stock, tmp_path):
    with pytest.raises(ValueError, match=r'`path` must end in \.safetensors, .*, got .*task\.bin'):
        save_adapter(add_adapters(stock(), 4), tmp_path / 'new' / 'task.bin')
    assert not (tmp_path / 'new').exists()


def test_what_is_no_adapter_is_refused(stock, tmp_path):
    save_file(stock().state_dict(), tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match=r'is not an adapter: timm_lc\.save_adapter did not write it'):
        read_adapter(tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match=r'ResNet has no adapters: call timm_lc\.add_adapters'):
        save_adapter(stock(), tmp_path / 'task.safetensors')


def test_a_base_that_changed_is_not_saved_as_if_it_had_not(stock, tmp_path):
    model = add_adapters(stock(), 4)
    model.layer1[0].conv1.base.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r'the base changed since adapters were added: layer `layer1\.0\.conv1`'):
        save_adapter(model, tmp_path / 'task.safetensors')
    assert not list(tmp_path.iterdir())


def test_an_adapter_survives_training_a_copy_and_float_casts(stock, images, tmp_path):
    model = learned(add_adapters(stock(), 4))
    twin = load_adapter(copy.deepcopy(model), save_adapter(model, tmp_path / 'task.safetensors'))
    assert torch.equal(twin(images), model(images))


@pytest.fixture
def published(stock, tmp_path):
    """Return the folder of a base, and a network that adapts it, as `timm.create_model` builds it."""
    timm_lc.save_pretrained(stock(), tmp_path / 'base')
    base = f'local-dir:{tmp_path / "base"}'
    model = timm.create_model('lc_test_resnet', adapter=4, base=base, num_classes=5, seed=3, adapter_norms=False)
    return base, learned(model).eval()


def test_an_adapters_file_alone_builds_its_network(published, images, tmp_path):
    _, model = published
    path = save_adapter(model, tmp_path / 'task.safetensors')
    loaded = load_adapted(path)
    assert loaded.pretrained_cfg['architecture'] == 'lc_test_resnet'
    assert torch.equal(loaded(images), model(images))
    timm_lc.save_pretrained(loaded, tmp_path / 'again')
    again = timm.create_model(f'local-dir:{tmp_path / "again"}', pretrained=True).eval()
    assert torch.equal(again(images), model(images))


def test_a_sparse_file_alone_builds_its_network(published, images, tmp_path):
    _, model = published
    timm_lc.prune_pointwise(model, 0.5)
    path = save_adapter(model, tmp_path / 'sparse.safetensors', sparse=True)
    assert torch.equal(load_adapted(path)(images), model(images))


def test_export_writes_the_merged_stock_network(published, images, tmp_path, capsys, stock_folders):
    _, model = published
    path = save_adapter(model, tmp_path / 'task.safetensors')
    assert main(['export', str(path), '--to', 'plain', '--output', str(tmp_path / 'plain')]) == 0
    assert '100.00% of predictions the same' in capsys.readouterr().out
    merged = timm.create_model(f'local-dir:{tmp_path / "plain"}', pretrained=True).eval()
    assert merged.pretrained_cfg['architecture'] == 'test_resnet'
    torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_repository_is_small_and_its_card_names_the_base_but_no_path(published, tmp_path):
    base, model = published
    files = write_repositories(model, tmp_path / 'push', 'user/task')['user/task']
    assert sum(path.stat().st_size for path in files) < 60_000
    card = (tmp_path / 'push' / 'user' / 'task' / 'README.md').read_text()
    assert 'Neither base nor random filters are in the file' in card
    assert base not in card
    model.adaptation.base = 'test_resnet.r160_in1k'
    card = model_card(model, 'user/task')
    assert 'The base `test_resnet.r160_in1k`, a trained network' in card
    assert 'base_model: timm/test_resnet.r160_in1k' in card
    model.adaptation.base = 'hf-hub:somebody/net@main'
    assert 'base_model: somebody/net' in model_card(model, 'user/task')


def test_a_file_of_an_unknown_base_builds_nothing(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    path = save_adapter(add_adapters(model, 2), tmp_path / 'task.safetensors')
    with pytest.raises(
        ValueError, match=r'task\.safetensors does not tell its base: build it, and call timm_lc\.load_'
    ):
        load_adapted(path)
