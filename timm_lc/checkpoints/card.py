"""The model card: what is frozen, what was measured, how to load it, as a README.md whose metadata the Hub reads."""

import yaml
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from timm_lc.analysis.counting import count_parameters
from timm_lc.checkpoints.facts import Facts
from timm_lc.checkpoints.origin import base_repository, origin
from timm_lc.checkpoints.usage import PlainForm, usage
from timm_lc.inputs import input_size
from timm_lc.layers.frozen import is_frozen
from timm_lc.layers.implicit import ImplicitLCConv2d
from timm_lc.naming import architecture_of, class_names
from timm_lc.transforms.adapt import is_adapted

__all__ = ['MARKER', 'model_card']

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

SHOWN_CLASSES = 20
_ACCURACY = {'eval_top1': 'Top-1 accuracy', 'eval_top5': 'Top-5 accuracy'}  # percent in summary.csv


def model_card(
    model: nn.Module,
    repo_id: str | None = None,
    *,
    plain: PlainForm | None = None,
    facts: Facts | None = None,
    trained: nn.Module | None = None,
    stored: int | None = None,
) -> str:
    """Return the text of README.md: metadata as YAML, then Markdown. It depends on nothing but its arguments.

    Args:
        model: A network from `timm.create_model`, or what `fold` made of one.
        repo_id: Where it will be on the Hub, `user/name`; None for a folder.
        plain: The form that needs no `timm_lc`, if there is one, or `model` is one.
        facts: What to say of its training.
        trained: The network as it was trained, if `model` is another form of it: which weights were frozen, and how
            many learned, is told of that.
        stored: Weights in the file, if not all that `model` cannot draw from seeds.

    Raises:
        ValueError: If `model` is not timm's: it has no architecture to name.

    Example:
        >>> import timm, timm_lc
        >>> print(model_card(timm.create_model('lc_resnet18'), 'user/name').splitlines()[1])
        library_name: timm
    """
    architecture = architecture_of(model)
    facts, plain = facts or Facts(), plain or PlainForm()
    name = repo_id.rpartition('/')[2] if repo_id else architecture
    metadata = _metadata(model, name, facts, is_timm=not plain.is_program)
    frozen = origin(trained or model, is_written_out=trained is not None)
    sections = [
        f'---\n{metadata.to_yaml()}\n---\n{MARKER}',
        f'# {name}\n\n{_summary(model, architecture, plain.of)}',
        f'## What is frozen\n\n{frozen}\n\n{_counts(model, trained, stored)}',
        _results(model, facts),
        f'## Use\n\n{usage(model, repo_id, plain)}',
        _recipe(architecture, facts),
        _citation(facts.license),
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
        base_model=base_repository(model),
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
    names = class_names(model)
    if names:
        what += f' The classes: {", ".join(names)}.' if len(names) <= SHOWN_CLASSES else ' `config.json` names them.'
    if plain_of:
        link = f'[{plain_of}](https://huggingface.co/{plain_of})'
        return f'{what} The same function as {link}, whose spatial filters are random: here all are ordinary weights.'
    if any(isinstance(module, ImplicitLCConv2d) for module in model.modules()):
        return (
            f'{what} Its filters learned as linear combinations of random ones ([Gavrikov and Keuper, 2023]({PAPER})).'
        )
    if not any(is_frozen(module) for module in model.modules()):
        return f'{what} Every weight is an ordinary parameter.'
    return f'{what} Its spatial filters are random and never learned ([Gavrikov and Keuper, 2023]({PAPER})).'


def _counts(model: nn.Module, trained: nn.Module | None, stored: int | None) -> str:
    counts, learned = count_parameters(model), count_parameters(trained or model).learnable
    once = ', the shared vector counted once' if _shares(model) else ''
    rows = [
        f'| learned | {learned:,} |',
        f'| all{once} | {counts.total:,} |',
        f'| in the file | {counts.stored if stored is None else stored:,} |',
    ]
    if counts.nonzero < counts.total and not is_adapted(model):  # whose P begins at zero
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


def _recipe(architecture: str, facts: Facts) -> str:
    """Return the command that trained it, or the arguments that decided the outcome, as a file for train.py's `-c`."""
    if facts.command:
        return f'## Recipe\n\nTrained by:\n\n```bash\n{facts.command}\n```'
    chosen = facts.recipe()
    if not chosen:
        return ''
    name = facts.arguments.get('model') or architecture
    name = architecture if name.startswith('local-dir:') else name
    plugin = {'device_modules': ['timm_lc']} if 'lc_' in (name[:3], architecture[:3]) else {}
    text = yaml.safe_dump({'model': name, **plugin, **chosen}, sort_keys=False, default_flow_style=None)
    processes = facts.arguments.get('world_size', 1)
    about = "Arguments of timm's `train.py`, for `python train.py -c recipe.yaml --data-dir DIR`"
    about += f' in {processes} processes, each of this batch size' if processes > 1 else ''
    about += '. Training began from the weights of another network, not from new ones' if facts.began_elsewhere else ''
    return f'## Recipe\n\n{about}:\n\n```yaml\n{text}```'


def _citation(license: str | None) -> str:
    title, terms = ('Licence and citation', f'Licence: {license}. ') if license else ('Citation', '')
    return f'## {title}\n\n{terms}Please cite:\n\n```bibtex\n{CITATION}\n```'
