"""What timm's stock train.py trains on ImageNet, as commands and as collected results.

It is for table 2 and figure 17, and table 2 of the second version. The recipe is train_configs/rsb_a2.yaml (section
4.5). Accuracies are those of the last epoch in `summary.csv`.
"""

import csv
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from timm_lc.checkpoints.checkpoint import train_arguments
from timm_lc.checkpoints.train_run import read_summary
from timm_lc.paper.experiment import Experiment, Variant
from timm_lc.paper.results import Line
from timm_lc.training.files import write_text
from timm_lc.transforms.options import LC_ARGUMENTS, LCOptions

__all__ = ['collect_runs', 'stock_results', 'write_commands']

SCRIPT = """\
#!/bin/sh
# {id}: {title}. Frozen random and learnable, 300 epochs each.
# sh {path} IMAGENET [OUTPUT]; GPUS is 8. An interrupted run resumes.
set -e
data=${{1:?usage: sh $0 IMAGENET [OUTPUT]}} output=${{2:-output/imagenet}} gpus=${{GPUS:-8}}
train() {{
    name=$1 last=$output/$1/last.pth.tar
    shift
    if [ -f "$last" ]; then set -- "$@" --resume "$last"; fi
    torchrun --nproc-per-node "$gpus" -m timm_lc train -c rsb_a2 -b $((2048 / gpus)) \\
        --data-dir "$data" --output "$output" --experiment "$name" "$@"
}}
{commands}
timm-lc reproduce {id} --train-dirs "$output" --output "$(dirname "$0")/.."
"""

# Weights of timm whose names have none of these parts have seen ImageNet-1k only
PRETRAINED = (
    'in21k', 'in22k', 'in12k', 'jft', 'laion', 'openai', 'clip', 'mim', 'dino', 'wsl', 'ssl', 'ns_', 'seer', 'fcmae',
    'ig1b', 'swag', 'mae', 'beit', 'merged', 'dfn', 'webli', 'datacomp', 'metaclip', 'sam', 'yfcc', 'miil', 'goog',
    'distilled', 'dist_', 'untrained', 'pt1b', 'siglip',
)  # fmt: skip


def write_commands(experiment: Experiment, path: Path) -> None:
    """Write a shell script that trains every network of the experiment with timm's stock script."""
    commands = [f'train {_name(variant)} {_arguments(variant)}' for variant in experiment.variants]
    write_text(path, SCRIPT.format(path=path, id=experiment.id, title=experiment.title, commands='\n'.join(commands)))


def collect_runs(experiment: Experiment, folders: Sequence[Path]) -> list[Line]:
    """Return a line for each run of train.py below `folders` that trained a network of the experiment.

    Raises:
        ValueError: If a folder has no `summary.csv` below it, none is of the experiment's networks, or two are of the
            same network and training seed.
    """
    lines = []
    origins: dict[Any, Path] = {}
    for folder in folders:
        summaries = sorted(folder.rglob('summary.csv'))
        if not summaries:
            raise ValueError(f'`--train-dirs` {folder}: no summary.csv of train.py below it')
        for path in summaries:
            for line in _read_run(experiment, path):
                first = origins.setdefault((line.point, line.seed), path.parent)
                if first != path.parent:
                    what = f'{line.point.series} {line.run["model"]}, seed {line.seed}'
                    raise ValueError(f'`--train-dirs`: {first} and {path.parent} are both of {what}: give one of them')
                lines.append(line)
    if folders and not lines:
        names = ', '.join(dict.fromkeys(variant.model for variant in experiment.variants))
        raise ValueError(f'`--train-dirs`: no run below {", ".join(map(str, folders))} is of {names}')
    return lines


def stock_results() -> list[tuple[float, float]]:
    """Return (parameters in millions, top-1 in percent) of timm's networks that were trained on ImageNet-1k alone.

    They are read from results/results-imagenet.csv of the checkout of timm in $TIMM_SCRIPTS; [] without one.
    """
    path = Path(os.environ.get('TIMM_SCRIPTS') or '/nowhere', 'results', 'results-imagenet.csv')
    if not path.is_file():
        return []
    with path.open(encoding='utf-8', newline='') as file:
        rows = [row for row in csv.DictReader(file) if not any(part in row['model'] for part in PRETRAINED)]
    return [(float(row['param_count'].replace(',', '')), float(row['top1'])) for row in rows]


def _name(variant: Variant) -> str:
    expansion = f'-x{variant.model_kwargs["expansion"]}' if 'expansion' in variant.model_kwargs else ''
    return f'{variant.model}{expansion}-{"frozen" if variant.model_kwargs.get("freeze_spatial", True) else "learnable"}'


def _arguments(variant: Variant) -> str:
    kwargs = [f'{key}={value}' for key, value in variant.model_kwargs.items()]
    return shlex.join(['--model', variant.model, *(['--model-kwargs', *kwargs] if kwargs else [])])


def _read_run(experiment: Experiment, path: Path) -> Iterable[Line]:
    """Yield the lines of one run, none if it is of another network."""
    args = train_arguments(path, {})
    variants = [variant for variant in experiment.variants if _is_of(args, variant)]
    if not variants:
        return
    epochs = args.get('epochs') or 1
    summary = read_summary(path)
    if len(summary) < epochs:
        print(f'{path}: left out, {len(summary)} of {epochs} epochs are finished')
        return
    last = summary[max(summary)]
    if missing := {'eval_top1', 'eval_top5'} - last.keys():
        raise ValueError(f'{path} does not tell {", ".join(sorted(missing))} of the last epoch')
    values = {name: last[f'eval_{name}'] for name in ('top1', 'top5')}
    for variant in variants:
        yield Line.of(variant, _describe(args, len(summary)), {}, values)


def _is_of(args: dict[str, Any], variant: Variant) -> bool:
    """Return whether a run trained the network of a variant, whatever the seed of its filters."""
    given, wanted = (
        LCOptions(**{name: value for name, value in kwargs.items() if name in LC_ARGUMENTS and name != 'seed'})
        for kwargs in (args.get('model_kwargs') or {}, variant.model_kwargs)
    )
    return args.get('model') == variant.model and given == wanted


def _describe(args: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Return what a line says of a run; batch size and learning rate depend on the number of processes."""
    data = Path(args.get('data_dir') or args.get('data') or '').name
    recipe = {'epochs': epochs, 'l1': 0.0}
    kwargs = args.get('model_kwargs') or {}
    about = {'model': args.get('model'), 'model_kwargs': kwargs, 'seed': args.get('seed', 0), 'recipe': recipe}
    return {**about, 'data': data, 'limit': None}
