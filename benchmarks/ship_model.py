"""Put a finished run of `timm-lc cifar` into the package, in float16, and measure it: results/models.csv.

    python benchmarks/ship_model.py output/cifar/lc_resnet20_16x8/seed0 cifar10-jpeg

A run in the implicit form ships in the explicit one, which the bare name builds. The second argument is an ImageFolder
tree, on whose validation images accuracy is measured as validate.py does. What is printed goes into
timm_lc/models/lc_shipped.py, by hand: importing the package reads no file.
"""

import argparse
import csv
import shutil
import tempfile
from pathlib import Path

import torch

import timm_lc
from timm_lc.analysis.evaluation import accuracy, folder_loader, predict
from timm_lc.checkpoints.checkpoint import load_model
from timm_lc.models.lc_shipped import WEIGHTS
from timm_lc.training.files import read_json, read_lines

RESULTS = Path(__file__).resolve().parents[1] / 'results/models.csv'
COLUMNS = (
    'model', 'tag', 'accuracy', 'accuracy_float32', 'data', 'validation_images', 'epochs', 'seed', 'bytes',
    'learnable', 'total', 'training_seconds', 'device', 'threads', 'amp', 'torch', 'timm',
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('run', type=Path, help='folder of the run')
    parser.add_argument('data', type=Path, help='ImageFolder tree with validation/')
    parser.add_argument('--tag', default='cifar10_jpeg', help='what it was trained on (default: %(default)s)')
    args = parser.parse_args()
    facts, lines = read_json(args.run / 'run.json'), read_lines(args.run / 'metrics.jsonl')
    model, run, where = load_model(args.run), facts['run'], facts['where']
    if run['model_kwargs'].get('implicit'):
        model = timm_lc.to_explicit(model)
    with tempfile.TemporaryDirectory() as folder:
        timm_lc.save_pretrained(model, folder, dtype=torch.float16, card='')
        half = load_model(folder)
        target = WEIGHTS / f'{run["model"]}.safetensors'
        WEIGHTS.mkdir(exist_ok=True)
        shutil.copyfile(Path(folder, 'model.safetensors'), target)
    counts = timm_lc.count_parameters(model)
    row = {
        'model': run['model'], 'tag': args.tag, 'accuracy': measure(half, args.data),
        'accuracy_float32': measure(model, args.data), 'data': run['data'], 'validation_images': run['images'][1],
        'epochs': run['recipe']['epochs'], 'seed': run['seed'], 'bytes': target.stat().st_size,
        'learnable': counts.learnable, 'total': counts.total,
        'training_seconds': round(sum(line['seconds'] for line in lines)), **{k: where[k] for k in COLUMNS[12:]},
    }  # fmt: skip
    write(row)
    print('\n'.join(f'{key}: {value}' for key, value in row.items()))
    print({key: tuple(round(value, 5) for value in model.pretrained_cfg[key]) for key in ('mean', 'std')})


def measure(model, data):
    return round(accuracy(*predict(model, folder_loader(model, data), torch.device('cpu'))), 2)


def write(row):
    """Replace the row of the model, or append it."""
    rows = list(csv.DictReader(RESULTS.read_text(encoding='utf-8').splitlines())) if RESULTS.is_file() else []
    rows = [known for known in rows if known['model'] != row['model']] + [row]
    with RESULTS.open('w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    main()
