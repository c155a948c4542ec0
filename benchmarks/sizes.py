"""Parameters and bytes of LCResNet-20-16x128 at each step of section 4.3, beside the paper's tables 1 and 3.

Writes results/sizes.md. The paper's checkpoint holds the filters, ours their seed. Its megabytes are 2^20 bytes: 38.4 M
float32 values are 146.6 of these. Weights are not trained, which changes no size. The figures of weight sharing are
illegible in table 1.
"""

import argparse
import functools
import sys
import tempfile
from pathlib import Path

import timm
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import timm_lc  # noqa: E402

NAME, AMOUNT = 'lc_resnet20_16x128', 0.7
RECYCLED = {'share_weights': True, 'recycle': 16}


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model(NAME, **kwargs)


def pruned():
    return timm_lc.prune_pointwise(create(**RECYCLED), AMOUNT)


HALF = {'sparse': True, 'dtype': torch.float16}
# step, network, form of the file, and of the paper: total and learnable parameters in millions, checkpoint in MiB
STEPS = [
    ('learnable baseline', functools.partial(create, freeze_spatial=False), {}, (38.4, 38.4, 146.66)),
    ('+ frozen', create, {}, (38.4, 4.2, 146.66)),
    ('+ shared', functools.partial(create, share_weights=True), {}, (None, None, 33.84)),
    ('+ recycled 1/16', functools.partial(create, **RECYCLED), {}, (4.6, 4.2, 17.74)),
    ('+ 70 % pruned', pruned, {'sparse': True}, (1.7, 4.2, 17.74)),
    ('+ float16 values', pruned, HALF, (None, None, None)),
    ('the recycled one folded', lambda: timm_lc.fold(create(**RECYCLED)), {}, (None, None, None)),
]
HEADER = (
    'step', 'total', 'nonzero', 'paper, M', 'deviation', 'learnable', 'paper, M', 'deviation',
    'bytes', 'MiB', 'paper, MiB', 'deviation',
)  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, epilog='Example: python benchmarks/sizes.py')
    parser.add_argument('--output', type=Path, default=ROOT / 'results', help='folder to write to (default: results)')
    args = parser.parse_args(argv)
    text = document([measure(*step) for step in STEPS])
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / 'sizes.md').write_text(text)
    print(text)


def measure(step, build, form, paper):
    """Return a row of the table."""
    model = build()
    counts = timm_lc.count_parameters(model)
    with tempfile.TemporaryDirectory() as folder:
        size = (timm_lc.save_pretrained(model, folder, **form) / 'model.safetensors').stat().st_size
    total, learnable, mebibytes = paper
    return [
        step, f'{counts.total:,}', f'{counts.nonzero:,}', *beside(counts.nonzero / 1e6, total, 1),
        f'{counts.learnable:,}', *beside(counts.learnable / 1e6, learnable, 1),
        f'{size:,}', f'{size / 2**20:.2f}', *beside(size / 2**20, mebibytes, 2),
    ]  # fmt: skip


def beside(ours, paper, digits):
    return ('', '') if paper is None else (f'{paper:.{digits}f}', f'{100 * (ours / paper - 1):+.1f} %')


def document(rows):
    lines = [HEADER, ['---'] + ['---:'] * (len(HEADER) - 1), *rows]
    table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    return f"""# Parameters and bytes of LCResNet-20-16x128

`python benchmarks/sizes.py`: timm {timm.__version__}, torch {torch.__version__.partition('+')[0]}.
Nothing is trained, which changes no size.

Bytes are those of `model.safetensors` as `save_pretrained` writes it: the learned weights, statistics of norms, a
record of 352 bits for each layer's filters, a checksum for each tensor. The paper (tables 1 and 3) stores the filters
too, and a pruned network as a whole one. Its total of the pruned network is what is not zero, so `nonzero` stands
beside it; its counts of the shared network are illegible. A vector a sixteenth as long, as the paper defines it, makes
4.46 M and not the 4.6 M printed.

{table}
"""


if __name__ == '__main__':
    main()
