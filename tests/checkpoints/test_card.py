"""Model cards: metadata that huggingface_hub parses, and a text that says what is frozen."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open

import timm_lc
from timm_lc.checkpoints.card import MARKER, PAPER, model_card
from timm_lc.checkpoints.facts import DEFAULTS, RECIPE, Facts
from timm_lc.checkpoints.train_run import read_facts
from timm_lc.checkpoints.usage import PlainForm
from timm_lc.naming import class_names, name_classes

ROOT = Path(__file__).parents[2]
TRAIN_ARGUMENTS = {line.split()[0] for line in (ROOT / 'tests/train_arguments.txt').read_text().splitlines()}
ARGUMENTS = {
    'model': 'lc_resnet18', 'model_kwargs': {'share_weights': True}, 'opt': 'lamb', 'opt_kwargs': {}, 'lr': 5e-3,
    'aa': 'rand-m7-mstd0.5-inc1', 'smoothing': 0.0, 'mixup': 0.1, 'scale': [0.08, 1.0], 'amp': False, 'remode': 'pixel',
    'decay_epochs': 90, 'val_split': 'validation', 'data_dir': '/secret', 'output': '/secret', 'resume': '/secret',
    'initial_checkpoint': '/secret', 'wandb_project': 'secret', 'device': 'cuda:3', 'workers': 8, 'world_size': 8,
}  # fmt: skip
METRICS = {'epoch': 99, 'train_loss': 1.0, 'eval_loss': 0.9876543, 'eval_top1': 76.1234567, 'eval_top5': 93.5}


@pytest.fixture(scope='module')
def model():
    return timm.create_model('lc_resnet18', share_weights=True)


def card(model, *args, **kwargs):
    return ModelCard(model_card(model, *args, **kwargs))


def recipe(text):
    return yaml.safe_load(re.search('```yaml\n(.*?)```', text, re.DOTALL).group(1))


def test_metadata_is_what_the_hub_reads(model):
    data = card(model, 'user/name').data
    assert data.to_dict() == {
        'library_name': 'timm',
        'pipeline_tag': 'image-classification',
        'tags': ['image-classification', 'timm', 'timm_lc'],
    }


def test_metrics_are_a_model_index_in_fractions(model):
    data = card(model, 'user/name', facts=Facts(ARGUMENTS, METRICS, 'ILSVRC/imagenet-1k')).data
    assert data.datasets == ['ILSVRC/imagenet-1k']
    assert data.metrics == ['accuracy']
    assert data.to_dict()['model-index'] == [
        {
            'name': 'name',
            'results': [
                {
                    'task': {'type': 'image-classification'},
                    'dataset': {'type': 'ILSVRC/imagenet-1k', 'name': 'ILSVRC/imagenet-1k', 'split': 'validation'},
                    'metrics': [
                        {'type': 'accuracy', 'value': 0.761235, 'name': 'Top-1 accuracy'},
                        {'type': 'accuracy', 'value': 0.935, 'name': 'Top-5 accuracy'},
                    ],
                }
            ],
        }
    ]


def test_results_are_a_table(model):
    text = model_card(model, facts=Facts(ARGUMENTS, METRICS))
    assert 'On an image folder, split validation, after 100 epochs:' in text
    for row in ('| Top-1 accuracy | 76.12 % |', '| Top-5 accuracy | 93.50 % |', '| Loss | 0.9877 |'):
        assert row in text
    assert 'Results' not in model_card(model, facts=Facts(ARGUMENTS, {'epoch': 1, 'train_loss': 1.0}))


@pytest.mark.parametrize(
    ('dataset', 'datasets', 'kind'),
    [
        ('hfds/user/images', ['user/images'], 'user/images'),
        ('torch/cifar10', None, 'torch/cifar10'),
        ('', None, 'imagefolder'),
    ],
)
def test_dataset_is_known_where_train_py_read_it_from_the_hub(model, dataset, datasets, kind):
    data = card(model, facts=Facts({'dataset': dataset}, METRICS)).data
    assert data.datasets == datasets
    assert data.eval_results[0].dataset_type == kind


def test_licence_can_be_another(model):
    made = card(model, facts=Facts(license='cc-by-4.0'))
    assert made.data.license == 'cc-by-4.0'
    assert 'Licence: cc-by-4.0.' in made.text


def test_no_licence_is_claimed_unasked(model):
    text = model_card(model, 'user/name')
    assert 'icence' not in text
    assert 'license' not in text
    assert '## Citation' in text


def test_recipe_is_a_file_for_train_py_without_paths(model):
    text = model_card(model, facts=Facts(ARGUMENTS))
    assert recipe(text) == {
        'model': 'lc_resnet18', 'device_modules': ['timm_lc'], 'model_kwargs': {'share_weights': True}, 'opt': 'lamb',
        'lr': 5e-3, 'scale': [0.08, 1.0], 'aa': 'rand-m7-mstd0.5-inc1', 'mixup': 0.1, 'smoothing': 0.0,
    }  # fmt: skip
    assert '`python train.py -c recipe.yaml --data-dir DIR` in 8 processes, each of this batch size' in text
    assert 'from the weights of another network' in text  # --initial-checkpoint
    assert 'secret' not in text
    assert 'cuda' not in text


def test_recipe_names_arguments_of_train_py():
    assert set(RECIPE) <= TRAIN_ARGUMENTS
    assert set(DEFAULTS) <= set(RECIPE)


@pytest.mark.parametrize(
    ('given', 'written', 'is_told'),
    [
        ({'model': 'local-dir:/secret/run', 'pretrained': True}, {'model': 'lc_resnet18'}, True),
        ({'model': 'local-dir:/secret/run'}, {'model': 'lc_resnet18'}, False),
        (
            {'model': 'lc_resnet18', 'pretrained': True, 'pretrained_path': '/secret/file'},
            {'model': 'lc_resnet18'},
            True,
        ),
        ({'model': 'lc_resnet18', 'initial_checkpoint': '/secret/file'}, {'model': 'lc_resnet18'}, True),
        (
            {'model': 'hf-hub:user/name', 'pretrained': True},
            {'model': 'hf-hub:user/name', 'pretrained': True},
            False,
        ),
    ],
)
def test_recipe_of_a_network_from_elsewhere(model, given, written, is_told):
    text = model_card(model, facts=Facts({**given, 'epochs': 5}))
    assert recipe(text) == {**written, 'device_modules': ['timm_lc'], 'epochs': 5}
    assert ('Training began from the weights of another network' in text) == is_told
    assert 'secret' not in text


def test_top_5_of_five_classes_is_not_told():
    model = timm.create_model('lc_test_resnet', num_classes=5)
    made = card(model, facts=Facts(ARGUMENTS, METRICS))
    assert [result.metric_name for result in made.data.eval_results] == ['Top-1 accuracy']
    assert 'Top-5' not in made.text


@pytest.mark.parametrize(('in_chans', 'mode'), [(3, 'RGB'), (1, 'L'), (4, None)])
def test_code_classifies_a_picture(in_chans, mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = timm.create_model('lc_test_resnet', in_chans=in_chans, num_classes=4).eval()
    text = (timm_lc.save_pretrained(model, tmp_path) / 'README.md').read_text()
    build, *classify = re.findall('```python\n(.*?)```', text, re.DOTALL)
    assert f'images of {in_chans} x 160 x 160.' in text
    if mode is None:
        assert not classify
        assert 'It takes images as `timm.data.resolve_model_data_config(model)` says.' in text
        return
    Image.new(mode, (40, 30), 'gray').save('picture.jpg', quality=100)
    names = {}
    exec(build.replace('PATH_OF_THIS_FOLDER', str(tmp_path)) + classify[0], names)
    image = torch.full((1, in_chans, 160, 160), (128 / 255 - 0.5) / 0.5)  # one grey, which resizing keeps
    torch.testing.assert_close(names['probabilities'], model(image).softmax(1))


@pytest.mark.parametrize('has_onnx', [True, False])
def test_onnx_is_named_if_it_is_there(has_onnx):
    model = timm.create_model('lc_resnet20_16x1')
    text = model_card(model, 'user/name', plain=PlainForm('user/name', has_onnx=has_onnx))
    assert ('`plain/model.onnx` is the same for ONNX runtimes: input `images`, output `logits`.' in text) == has_onnx


def test_counts_are_the_paper_s(model):
    counts = timm_lc.count_parameters(model)
    text = model_card(model)
    assert f'| learned | {counts.learnable:,} |' in text
    assert f'| all, the shared vector counted once | {counts.total:,} |' in text
    assert f'| in the file | {counts.stored:,} |' in text
    assert 'zeros' not in text
    assert '| all | 11,689,512 |' in model_card(timm.create_model('lc_resnet18'))


def test_pruned_weights_are_counted():
    model = timm.create_model('lc_resnet18')
    torch.nn.init.zeros_(model.layer2[0].downsample[0].weight)
    nonzero = timm_lc.count_parameters(model).nonzero
    assert f'| all but the zeros of pruned 1x1 convolutions | {nonzero:,} |' in model_card(model)


@pytest.mark.parametrize(
    ('name', 'kwargs', 'said', 'unsaid'),
    [
        (
            'lc_resnet18',
            {'seed': 3},
            ['The 17 convolutions', 'not in the file', 'from seed 3 and a record of 88 hexadecimal digits a layer'],
            ['LC-Block', 'one random vector'],
        ),
        ('lc_resnet18', {'share_weights': True}, ['are slices of one random vector'], ['LC-Block']),
        ('lc_resnet20_16x2', {}, ['Each spatial convolution is an LC-Block'], ['one random']),
        (
            'lc_resnet20_16x2',
            {'implicit': True, 'seed': 5},
            ['The 19 convolutions', 'are implicit LC-Blocks', 'random filters W that seed 5 gives'],
            ['Nothing.', 'ordinary parameter', 'keep the filters'],
        ),
        ('lc_resnet18', {'filters': 'orthogonal'}, ['were made orthonormal'], ['LC-Block']),
        ('lc_resnet18', {'freeze_spatial': False}, ['Every weight is an ordinary parameter', 'Nothing.'], ['seed']),
    ],
)
def test_what_is_frozen_is_said_in_words(name, kwargs, said, unsaid):
    text = model_card(timm.create_model(name, **kwargs))
    assert all(words in text for words in said)
    assert not any(words in text for words in unsaid)


def test_filters_frozen_as_they_were_are_in_the_file():
    model = timm_lc.freeze_spatial(timm.create_model('test_resnet'), seed=None)
    text = model_card(model)
    assert 'keep the filters that they began with' in text
    assert 'not in the file' not in text


def test_stock_networks_need_no_package():
    text = model_card(timm_lc.fold(timm.create_model('lc_resnet18')), 'user/name')
    assert 'import timm_lc' not in text
    assert "timm.create_model('hf-hub:user/name', pretrained=True)" in text


def test_citation_is_that_of_the_repository(model):
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text())['preferred-citation']
    entry = re.search('```bibtex\n(.*?)```', model_card(model), re.DOTALL).group(1)
    assert cited['title'] in entry.replace('{', '').replace('}', '')
    assert ' and '.join(f'{author["family-names"]}, {author["given-names"]}' for author in cited['authors']) in entry
    assert str(cited['year']) in entry
    assert cited['url'] == PAPER
    assert PAPER in entry


def test_a_card_depends_on_its_arguments_alone(model):
    facts = Facts(ARGUMENTS, METRICS)
    assert model_card(model, 'user/name', facts=facts) == model_card(model, 'user/name', facts=facts)


def test_save_pretrained_writes_a_card(model, tmp_path):
    timm_lc.save_pretrained(model, tmp_path)
    made = ModelCard.load(tmp_path / 'README.md')
    assert made.content == model_card(model)
    assert 'local-dir:PATH_OF_THIS_FOLDER' in made.text
    made.save(tmp_path / 'README.md')  # as people edit it, ours still
    timm_lc.save_pretrained(model, tmp_path, card='other')
    assert (tmp_path / 'README.md').read_text() == 'other'
    timm_lc.save_pretrained(model, tmp_path)
    assert (tmp_path / 'README.md').read_text() == 'other'  # without the marker it is somebody else's


def test_save_pretrained_can_leave_the_card_out(model, tmp_path):
    timm_lc.save_pretrained(model, tmp_path, card='')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.json', 'model.safetensors']
    assert MARKER in model_card(model)


def test_another_form_tells_what_was_frozen_in_training():
    source = timm.create_model('lc_resnet18', num_classes=10, seed=4)
    folded = timm_lc.fold(source)
    text = model_card(folded, trained=source)
    learned, total = (timm_lc.count_parameters(network).learnable for network in (source, folded))
    assert f'| learned | {learned:,} |' in text
    assert f'| in the file | {total:,} |' in text
    assert 'The 17 convolutions with kernels larger than 1x1 keep the filters that they began with' in text
    assert 'in this form every filter is an ordinary weight of the file' in text
    assert 'seed 4' not in text


def test_a_packed_file_counts_what_it_stores(tmp_path):
    model = timm.create_model('lc_resnet20_16x1')
    timm_lc.prune_pointwise(model, 0.9)
    text = (timm_lc.save_pretrained(model, tmp_path, sparse=True) / 'README.md').read_text()
    with safe_open(tmp_path / 'model.safetensors', 'pt') as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = [t.numel() for name, t in tensors.items() if name.endswith(('weight', 'bias', 'values'))]
    assert f'| in the file | {sum(weights):,} |' in text
    assert sum(weights) < timm_lc.count_parameters(model).stored


def test_classes_travel_from_network_to_config_card_and_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ['cat', 'dog', 'a frog', 'owl']
    model = timm.create_model('lc_test_resnet', num_classes=4).eval()
    name_classes(model, names)
    text = (timm_lc.save_pretrained(model, tmp_path) / 'README.md').read_text()
    assert 'The classes: cat, dog, a frog, owl.' in text
    assert json.loads((tmp_path / 'config.json').read_text())['label_names'] == names
    build, classify = re.findall('```python\n(.*?)```', text, re.DOTALL)
    Image.new('RGB', (200, 160), 'gray').save('picture.jpg')
    found = {}
    exec(build.replace('PATH_OF_THIS_FOLDER', str(tmp_path)) + classify, found)
    assert found['name'] == names[found['probabilities'].argmax()]
    assert class_names(found['model']) == names
    found['model'].reset_classifier(3)
    assert class_names(found['model']) == []


def test_facts_travel_with_a_folder(tmp_path, model):
    facts = Facts({**ARGUMENTS, 'dataset': 'hfds/user/images'}, METRICS, license='mit')
    first = timm_lc.save_pretrained(model, tmp_path / 'first', facts=facts)
    read = read_facts(first)
    assert model_card(model, facts=read) == model_card(model, facts=facts) == (first / 'README.md').read_text()
    assert 'secret' not in (first / 'config.json').read_text()
    assert read_facts(first, dataset='a/b', license='cc0-1.0').license == 'cc0-1.0'
    assert read_facts(timm_lc.save_pretrained(model, tmp_path / 'none')) == Facts()


def test_damaged_facts_are_an_error_that_names_the_file(tmp_path, model):
    timm_lc.save_pretrained(model, tmp_path, facts=Facts(command='x'))
    config = tmp_path / 'config.json'
    config.write_text(config.read_text().replace('"command"', '"comand"'))
    with pytest.raises(ValueError, match=r'cannot read .*config\.json: .*comand'):
        read_facts(tmp_path)


def test_a_command_is_told_in_place_of_a_recipe(model):
    text = model_card(model, facts=Facts({'dataset': 'digits'}, {'eval_top1': 99.5}, command='timm-lc cifar --seed 3'))
    assert '## Recipe\n\nTrained by:\n\n```bash\ntimm-lc cifar --seed 3\n```' in text
    assert 'On digits:' in text


def test_cards_say_how_to_install_what_they_need():
    assert '`timm_lc`, which `pip install PATH` installs' in model_card(timm.create_model('lc_resnet18'))
    assert 'It needs timm alone:' in model_card(timm_lc.fold(timm.create_model('lc_resnet18')))


def test_adapters_are_told_from_their_base(tmp_path):
    base = timm_lc.save_pretrained(timm.create_model('test_resnet', num_classes=4), tmp_path / 'secret')
    model = timm.create_model('lc_test_resnet', adapter=4, base=f'local-dir:{base}', num_classes=4, seed=2)
    text = model_card(model)
    assert 'To each of 10 of its convolutions a learned combination of random filters was added (seed 2)' in text
    assert 'loading needs the base' in text
    assert 'zeros' not in text
    assert 'secret' not in text
    assert 'In this form the sums are ordinary weights' in model_card(timm_lc.fold(model), trained=model)
