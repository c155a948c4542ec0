"""The model card: what is frozen, what was measured, how to load it, as a README.md whose metadata the Hub reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from timm_lc.analysis.counting import count_parameters
from timm_lc.checkpoints.usage import usage
from timm_lc.filters import RECORD_BITS
from timm_lc.inputs import input_size
from timm_lc.layers.frozen import is_frozen
from timm_lc.layers.lc_conv import LCConv2d
from timm_lc.naming import architecture_of

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
    is_program: bool = False,
    has_onnx: bool = False,
    facts: Facts | None = None,
) -> str:
    """Return the text of README.md: metadata as YAML, then Markdown. It depends on nothing but its arguments.

    Args:
        model: A network from `timm.create_model`, or what `fold` made of one.
        repo_id: Where it will be on the Hub, `user/name`; None for a folder.
        plain_repo: Repository of the form that needs no `timm_lc`; `repo_id` itself means its folder plain/.
        plain_of: Repository of which this is that form.
        is_program: Whether this is that form as a `torch.export` program.
        has_onnx: Whether that form has `model.onnx` beside the program.
        facts: What to say of its training.

    Raises:
        ValueError: If `model` is not timm's: it has no architecture to name.

    Example:
        >>> import timm, timm_lc
        >>> print(model_card(timm.create_model('lc_resnet18'), 'user/name').splitlines()[1])
        library_name: timm
    """
    architecture = architecture_of(model)
    facts = facts or Facts()
    name = repo_id.rpartition('/')[2] if repo_id else architecture
    metadata = _metadata(model, name, facts, is_timm=not is_program)
    used = usage(model, repo_id, plain_repo, plain_of, is_program=is_program, has_onnx=has_onnx)
    sections = [
        f'---\n{metadata.to_yaml()}\n---\n{MARKER}',
        f'# {name}\n\n{_summary(model, architecture, plain_of)}',
        f'## What is frozen\n\n{_frozen(model)}\n\n{_counts(model)}',
        _results(model, facts),
        f'## Use\n\n{used}',
        _recipe(architecture, facts.arguments),
        f'## Licence and citation\n\nLicence: {facts.license}. Please cite:\n\n```bibtex\n{CITATION}\n```',
    ]
    return '\n\n'.join(filter(None, sections)) + '\n'


def _metadata(model: nn.Module, name: str, facts: Facts, *, is_timm: bool) -> ModelCardData:
    dataset = facts.dataset_id or facts.arguments.get('dataset')
    results = [
        EvalResult(
            task_type='image-classification',
            dataset_type=dataset or 'imagefolder',
            dataset_name=dataset or 'an image folder',
            dataset_split=facts.arguments.get('val_split'),
            metric_type='accuracy',  # a fraction, as the Hub's metric of that name
            metric_name=label,
            metric_value=round(percent / 100, 6),
        )
        for label, percent in _accuracies(model, facts).items()
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


def _accuracies(model: nn.Module, facts: Facts) -> dict[str, float]:
    """Return what was measured, in percent; no top-5 where five classes are all."""
    found = {label: facts.metrics[key] for key, label in _ACCURACY.items() if key in facts.metrics}
    if model.num_classes <= 5:
        found.pop(_ACCURACY['eval_top5'], None)
    return found


def _summary(model: nn.Module, architecture: str, plain_of: str | None) -> str:
    size = ' x '.join(map(str, input_size(model)))
    what = f'An image classifier: `{architecture}`, {model.num_classes} classes, images of {size}.'
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
        text += (
            ' Each spatial convolution is an LC-Block (section 4.2 of the paper): random filters, of which a 1x1 '
            'convolution learned the linear combinations (LC) that act as filters.'
        )
    if any(record.is_shared for record in records):
        text += ' The filters of all layers are slices of one random vector (section 4.3 of the paper).'
    seeds = sorted({record.seed for record in records if not record.is_kept})
    if seeds:
        text += (
            f' The filters are not in the file: loading draws them again, from seed {", ".join(map(str, seeds))} and a '
            f'record of {RECORD_BITS} bits a layer, and verifies their checksum.'
        )
    return text


def _counts(model: nn.Module) -> str:
    counts = count_parameters(model)
    once = ', the shared vector counted once' if _shares(model) else ''
    rows = [
        f'| learned | {counts.learnable:,} |',
        f'| all{once} | {counts.total:,} |',
        f'| in the file | {counts.stored:,} |',
    ]
    if counts.nonzero < counts.total:
        rows.append(f'| all but the zeros of pruned 1x1 convolutions | {counts.nonzero:,} |')
    return '\n'.join(['| weights | number |\n|---|---|', *rows])


def _shares(model: nn.Module) -> bool:
    return any(module.filter_record.is_shared for module in model.modules() if is_frozen(module))


def _results(model: nn.Module, facts: Facts) -> str:
    rows = [f'| {label} | {percent:.2f} % |' for label, percent in _accuracies(model, facts).items()]
    if 'eval_loss' in facts.metrics:
        rows.append(f'| Loss | {facts.metrics["eval_loss"]:.4f} |')
    if not rows:
        return ''
    dataset = facts.dataset_id or facts.arguments.get('dataset') or 'an image folder'
    split = f', split {facts.arguments["val_split"]}' if facts.arguments.get('val_split') else ''
    epoch = f', after {facts.metrics["epoch"] + 1:.0f} epochs' if 'epoch' in facts.metrics else ''
    return '\n'.join([f'## Results\n\nOn {dataset}{split}{epoch}:\n', '| metric | value |\n|---|---|', *rows])


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
    began = arguments.get('initial_checkpoint')
    is_local = name.startswith('local-dir:')  # a path of the machine that trained it
    name = architecture if is_local else name
    if is_local or arguments.get('pretrained_path'):
        began = began or chosen.pop('pretrained', None)
    plugin = {'device_modules': ['timm_lc']} if 'lc_' in (name[:3], architecture[:3]) else {}
    text = yaml.safe_dump({'model': name, **plugin, **chosen}, sort_keys=False, default_flow_style=None)
    processes = arguments.get('world_size', 1)
    about = "Arguments of timm's `train.py`, for `python train.py -c recipe.yaml --data-dir DIR`"
    about += f' in {processes} processes, each of this batch size' if processes > 1 else ''
    about += '. Training began from the weights of another network, not from new ones' if began else ''
    return f'## Recipe\n\n{about}:\n\n```yaml\n{text}```'


def _is_off(value: object) -> bool:
    return value is None or value is False or value in ('', [], {})
