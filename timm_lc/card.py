"""The model card: what is frozen, what was measured, how to load it, as a README.md whose metadata the Hub reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from timm.models import is_model
from torch import nn

from .counting import count_parameters
from .filters import RECORD_BITS
from .frozen import is_frozen
from .layers import LCConv2d

__all__ = ['MARKER', 'Facts', 'model_card']

# A card that has lost this line is somebody's own text.
MARKER = '<!-- Written by timm_lc. Delete this line to keep your own text: this file is then left alone. -->'

PAPER = 'https://arxiv.org/abs/2301.11360'
CITATION = f"""@article{{gavrikov2023rethinking,
  title   = {{Rethinking 1x1 Convolutions: Can we train {{CNNs}} with Frozen Random Filters?}},
  author  = {{Gavrikov, Paul and Keuper, Janis}},
  journal = {{arXiv preprint arXiv:2301.11360}},
  year    = {{2023}},
  url     = {{{PAPER}}}
}}"""

# What of train.py's arguments decides the outcome: no paths, and nothing of the machine
RECIPE = """
    model_kwargs pretrained num_classes in_chans img_size input_size crop_pct mean std interpolation epochs batch_size
    grad_accum_steps opt opt_kwargs opt_eps opt_betas momentum weight_decay clip_grad clip_mode layer_decay lr sched
    warmup_epochs warmup_lr warmup_prefix min_lr cooldown_epochs decay_epochs decay_milestones decay_rate no_aug
    train_crop_mode scale ratio hflip vflip color_jitter aa aug_repeats aug_splits jsd_loss reprob remode mixup cutmix
    mixup_off_epoch smoothing bce_loss bce_sum bce_target_thresh train_interpolation drop drop_path drop_block
    bn_momentum bn_eps sync_bn split_bn model_ema model_ema_decay model_ema_warmup amp amp_dtype model_dtype seed
""".split()  # noqa: SIM905  # a list of sixty quoted words reads worse
# of those, what is worth a line only where it is not train.py's default
DEFAULTS = {
    'clip_mode': 'norm', 'warmup_lr': 1e-5, 'min_lr': 0, 'cooldown_epochs': 0, 'decay_epochs': 90, 'decay_rate': 0.1,
    'decay_milestones': [90, 180, 270], 'aug_repeats': 0, 'aug_splits': 0, 'vflip': 0.0, 'remode': 'pixel', 'drop': 0.0,
    'mixup_off_epoch': 0, 'train_interpolation': 'random', 'model_ema_decay': 0.9998, 'amp_dtype': 'float16',
    'grad_accum_steps': 1,
}  # fmt: skip

_ACCURACY = {'eval_top1': 'Top-1 accuracy', 'eval_top5': 'Top-5 accuracy'}  # percent in summary.csv


@dataclass(frozen=True)
class Facts:
    """What a card says that the network itself does not tell.

    Args:
        arguments: train.py's arguments, by their names in args.yaml.
        metrics: The epoch's row of summary.csv: `eval_top1` and `eval_top5` in percent, `eval_loss`, `epoch`.
        dataset: Id of the dataset on the Hub; None for what train.py's `--dataset hfds/ID` says.
        license: Identifier of a licence as the Hub spells it.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    dataset: str | None = None
    license: str = 'apache-2.0'

    @property
    def dataset_id(self) -> str | None:
        """Id of the dataset on the Hub, if known."""
        scheme, _, name = (self.arguments.get('dataset') or '').partition('/')
        return self.dataset or (name if scheme in ('hfds', 'hfids') else None)


def model_card(
    model: nn.Module,
    repo_id: str | None = None,
    *,
    plain_repo: str | None = None,
    plain_of: str | None = None,
    facts: Facts | None = None,
) -> str:
    """Return the text of README.md: metadata as YAML, then Markdown. It depends on nothing but its arguments.

    Args:
        model: A network from `timm.create_model`, or what `fold` made of one.
        repo_id: Where it will be on the Hub, `user/name`; None for a folder.
        plain_repo: Repository of the form that needs no `timm_lc`; `repo_id` itself means its folder plain/.
        plain_of: Repository of which this is that form.
        facts: What to say of its training.

    Raises:
        ValueError: If `model` is not timm's: it has no architecture to name.

    Example:
        >>> import timm, timm_lc
        >>> print(model_card(timm.create_model('lc_resnet18'), 'user/name').splitlines()[1])
        library_name: timm
    """
    if not getattr(model, 'pretrained_cfg', None):
        raise ValueError(
            f'`model` must come from timm.create_model: a {type(model).__name__} has no architecture to name'
        )
    facts = facts or Facts()
    architecture = model.pretrained_cfg['architecture']
    name = repo_id.rpartition('/')[2] if repo_id else architecture
    sections = [
        f'---\n{_metadata(name, facts, is_timm=not plain_of or _is_stock(architecture)).to_yaml()}\n---\n{MARKER}',
        f'# {name}\n\n{_summary(model, architecture, plain_of)}',
        f'## What is frozen\n\n{_frozen(model)}\n\n{_counts(model)}',
        _results(facts),
        f'## Use\n\n{_usage(model, repo_id, plain_repo, plain_of)}',
        _recipe(architecture, facts.arguments),
        f'## Licence and citation\n\nLicence: {facts.license}. Please cite:\n\n```bibtex\n{CITATION}\n```',
    ]
    return '\n\n'.join(filter(None, sections)) + '\n'


def _metadata(name: str, facts: Facts, *, is_timm: bool) -> ModelCardData:
    dataset = facts.dataset_id or facts.arguments.get('dataset')
    results = [
        EvalResult(
            task_type='image-classification',
            dataset_type=dataset or 'imagefolder',
            dataset_name=dataset or 'an image folder',
            dataset_split=facts.arguments.get('val_split'),
            metric_type='accuracy',  # a fraction, as the Hub's metric of that name
            metric_name=label,
            metric_value=round(facts.metrics[key] / 100, 6),
        )
        for key, label in _ACCURACY.items()
        if key in facts.metrics
    ]
    return ModelCardData(
        license=facts.license,
        library_name='timm' if is_timm else None,
        pipeline_tag='image-classification',
        tags=['image-classification', *(['timm'] if is_timm else []), 'timm_lc'],
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        metrics=['accuracy'] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _summary(model: nn.Module, architecture: str, plain_of: str | None) -> str:
    size = ' x '.join(map(str, model.pretrained_cfg['input_size']))
    what = f'`{architecture}`, {model.num_classes} classes, images of {size}.'
    if plain_of:
        link = f'[{plain_of}](https://huggingface.co/{plain_of})'
        return f'{what} The same function as {link}, whose spatial filters are random: here all are ordinary weights.'
    if not any(is_frozen(module) for module in model.modules()):
        return f'{what} Every weight is an ordinary parameter.'
    return f'{what} Its spatial filters are random and never learned ([Gavrikov and Keuper, 2023]({PAPER})).'


def _frozen(model: nn.Module) -> str:
    """Say in plain words which weights never learned, and where they come from."""
    records = [module.filter_record for module in model.modules() if is_frozen(module)]
    if not records:
        return 'Nothing.'
    text = (
        f'The {len(records)} convolutions with kernels larger than 1x1 keep the filters that they began with. '
        '1x1 convolutions, norms, biases and the classifier learned.'
    )
    if any(isinstance(module, LCConv2d) for module in model.modules()):
        text += ' In each LC-Block (section 4.2) a 1x1 convolution combines the filters linearly into those that act.'
    if any(record.is_shared for record in records):
        text += ' All layers slice one random vector (section 4.3).'
    seeds = sorted({record.seed for record in records if not record.is_kept})
    if seeds:
        text += (
            f' The filters are random values of seed {", ".join(map(str, seeds))} and not in the file: '
            f'loading draws them again from records of {RECORD_BITS} bits a layer, and verifies their CRC-32.'
        )
    return text


def _counts(model: nn.Module) -> str:
    counts = count_parameters(model)
    rows = [
        f'| learnable | {counts.learnable:,} |',
        f'| total, a shared vector counted once | {counts.total:,} |',
        f'| stored in the file | {counts.stored:,} |',
    ]
    if counts.nonzero < counts.total:
        rows.append(f'| total, less the zeros of 1x1 convolutions | {counts.nonzero:,} |')
    return '\n'.join(['| weights | number |\n|---|---|', *rows])


def _results(facts: Facts) -> str:
    rows = [f'| {label} | {facts.metrics[key]:.2f} % |' for key, label in _ACCURACY.items() if key in facts.metrics]
    if 'eval_loss' in facts.metrics:
        rows.append(f'| Loss | {facts.metrics["eval_loss"]:.4f} |')
    if not rows:
        return ''
    dataset = facts.dataset_id or facts.arguments.get('dataset') or 'an image folder'
    split = f', split {facts.arguments["val_split"]}' if facts.arguments.get('val_split') else ''
    epoch = f', after {facts.metrics["epoch"] + 1:.0f} epochs' if 'epoch' in facts.metrics else ''
    return '\n'.join([f'## Results\n\nOn {dataset}{split}{epoch}:\n', '| metric | value |\n|---|---|', *rows])


def _is_stock(architecture: str) -> bool:
    """Return whether stock timm has the network, folded."""
    return is_model(architecture.removeprefix('lc_'))


def _usage(model: nn.Module, repo_id: str | None, plain_repo: str | None, plain_of: str | None) -> str:
    if plain_of and repo_id:
        return _plain_usage(model, repo_id, '')
    package = (
        ['import timm_lc  # registers the lc_ models'] if 'lc_' in model.pretrained_cfg['architecture'][:3] else []
    )
    source = f'hf-hub:{repo_id}' if repo_id else 'local-dir:PATH_OF_THIS_FOLDER'
    text = _python('import timm', *package, '', f"model = timm.create_model('{source}', pretrained=True).eval()")
    if not plain_repo:
        return text
    plain = _plain_usage(model, plain_repo, 'plain/' if plain_repo == repo_id else '')
    return f'{text}\n\nThe same function without `timm_lc`, every filter written out:\n\n{plain}'


def _plain_usage(model: nn.Module, repo_id: str, folder: str) -> str:
    """Return code that builds the plain form: timm's, or a program where stock timm has no such network."""
    cfg = model.pretrained_cfg
    if not _is_stock(cfg['architecture']):
        code = _python(
            'import torch',
            'from huggingface_hub import hf_hub_download',
            '',
            f"model = torch.export.load(hf_hub_download('{repo_id}', '{folder}model.pt2')).module()",
        )
        shape = ', '.join(map(str, cfg['input_size']))
        mean, std = list(cfg['mean']), list(cfg['std'])
        return f'{code}\n\nIt takes images (N, {shape}) in [0, 1], less mean {mean}, over std {std}.'
    if not folder:
        return _python('import timm', '', f"model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()")
    return _python(
        'import timm',
        'from huggingface_hub import snapshot_download',
        '',
        f"folder = snapshot_download('{repo_id}', allow_patterns='{folder}*')",
        f"model = timm.create_model(f'local-dir:{{folder}}/{folder.rstrip('/')}', pretrained=True).eval()",
    )


def _python(*lines: str) -> str:
    return '\n'.join(['```python', *lines, '```'])


def _recipe(architecture: str, arguments: Mapping[str, Any]) -> str:
    """Return the arguments that decided the outcome, as a file for train.py's `-c`."""
    chosen = {
        key: arguments[key]
        for key in RECIPE
        if key in arguments and not _is_off(arguments[key]) and arguments[key] != DEFAULTS.get(key)
    }
    if not chosen:
        return ''
    name = arguments.get('model') or architecture
    name = architecture if name.startswith('local-dir:') else name  # a path of the machine that trained it
    plugin = {'device_modules': ['timm_lc']} if 'lc_' in (name[:3], architecture[:3]) else {}
    text = yaml.safe_dump({'model': name, **plugin, **chosen}, sort_keys=False, default_flow_style=None)
    processes = arguments.get('world_size', 1)
    batch = f', in {processes} processes of this batch size' if processes > 1 else ''
    return f"## Recipe\n\nFor timm's stock `train.py -c recipe.yaml`{batch}:\n\n```yaml\n{text}```"


def _is_off(value: object) -> bool:
    return value is None or value is False or value in ('', [], {})
