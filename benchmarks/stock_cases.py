"""The table of results/stock_scripts.md as data: networks, variants, and the commands that are tried on them.

A command is text with placeholders. `{python}`, `{torchrun}` (two processes) and `{run}` (`python -m timm_lc run`)
start it; `{model}` is the options that build the cell's network and `{name}` its name alone; `{data}` is the images,
`{checkpoint}` what a first training of the cell saved, `{runs}` its folder, `{exported}` the same as a folder for
timm's `local-dir:`, and `{teacher}` such a folder of a stock ResNet-18.
"""

import re
from dataclasses import dataclass

# Each network with the one of timm's that a failure is compared to; CIFAR ResNets are not in timm.
STOCK = {
    'lc_resnet18': 'resnet18',
    'lc_resnet50': 'resnet50',
    'lc_mobilenetv2_100': 'mobilenetv2_100',
    'lc_resnet20_16x8': 'resnet18',
}
VARIANTS = {
    'plain': {},
    'shared': {'share_weights': True},
    'recycled': {'share_weights': True, 'recycle': 4},
    'expanded': {'expansion': 2},  # lc_resnet20_16x8 has its expansion in its name
}


@dataclass(frozen=True)
class Cell:
    """A network in a variant of VARIANTS, or the stock network that it is compared to."""

    model: str
    variant: str

    @property
    def is_stock(self):
        return self.variant == 'stock'

    @property
    def name(self):
        return STOCK[self.model] if self.is_stock else self.model

    @property
    def kwargs(self):
        return {} if self.is_stock else VARIANTS[self.variant]

    def __str__(self):
        return f'{self.model} {self.variant}'


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        script: The script that it is about.
        flags: What is tried, with the placeholders of commands.
        command: The command line, run in a folder of its own.
        check: The function of stock_checks.py that judges what it left behind.
        note: What else the table says of it.
        seed: Seed of the filters that the network is built with, before it loads anything.
        modules: `--device-modules` beside timm_lc and the probe.
        only: Pattern of the cells it is for.
        expect: Pattern of the error that is wanted.
        has_stock: Whether a stock network can be asked the same.
        needs_gpu: Whether it can pass on a GPU alone.
    """

    script: str
    flags: str
    command: str
    check: str
    note: str = ''
    seed: int = 0
    modules: tuple[str, ...] = ()
    only: str = ''
    expect: str = ''
    has_stock: bool = True
    needs_gpu: bool = False

    @property
    def label(self):
        return f'{self.flags} ({self.note})' if self.note else self.flags

    @property
    def title(self):
        return f'{self.script} {self.label}'

    def is_for(self, cell):
        return re.search(self.only, str(cell)) is not None


def cells(full):
    """Return all pairs of network and variant, or each network plain and ResNet-18 in every variant."""
    pairs = [Cell(model, variant) for model in STOCK for variant in VARIANTS]
    pairs = [cell for cell in pairs if str(cell) != 'lc_resnet20_16x8 expanded']
    return [cell for cell in pairs if full or cell.variant == 'plain' or cell.model == 'lc_resnet18']


SMALL = '--device cpu --num-classes 4 --img-size 32'
LOADER = '--data-dir {data} -b 16 -j 0'
TRAIN = (
    f'train.py {{modules}} {SMALL} {LOADER} --epochs 1 --warmup-epochs 0 --lr 0.002 --log-interval 1 '
    '--output . --experiment run {model}'
)
VALIDATE = f'{SMALL} {LOADER} --use-train-size {{model}}'
BENCHMARK = '--device cpu --img-size 32 -b 4 --num-warm-iter 1 --num-bench-iter 10 --no-retry'
PENALTY = '--opt-kwargs l1=5e-5'


def train(flags, start='{python}', **kwargs):
    return Case(
        **{'script': 'train.py', 'flags': flags, 'check': 'trained', **kwargs}, command=f'{start} {TRAIN} {flags}'
    )


def processes(flags='', start='{torchrun}', modules=('cpu_ddp',), **kwargs):
    """Return a training in two processes; on the CPU cpu_ddp.py makes that possible."""
    case = train(flags, start, modules=modules, **kwargs)
    shown = start.format(torchrun='torchrun --nproc-per-node 2')
    notes = [*(['device_ids dropped'] if modules else []), *filter(None, [case.note])]
    return Case(**{**vars(case), 'flags': f'{shown} train.py {flags}'.strip(), 'note': ', '.join(notes)})


def refused(flags, expect, **kwargs):
    return train(flags, check='refused', expect=expect, only='lc_resnet18 plain', has_stock=False, **kwargs)


def tool(script, flags, options, check, **kwargs):
    return Case(script, flags, f'{{run}} {script} {options} {flags}'.strip(), check, **kwargs)


def validate(flags, **kwargs):
    return tool('validate.py', f'--checkpoint {{checkpoint}} {flags}'.strip(), VALIDATE, 'validated', **kwargs)


def export(flags, options='', **kwargs):
    return tool('onnx_export.py', flags, f'net.onnx --img-size 32 {options}', 'exported', **kwargs)


def rewrite(script, flags, **kwargs):
    output = '--output net.safetensors' if '--safetensors' in flags else '--output net.pth'
    return tool(script, flags, output, 'rewritten', **kwargs)


# Sharing is in the checkpoint, an expansion is not, and onnx_export.py has no --model-kwargs.
ONNX = {'options': '--num-classes 4 --model {name}', 'only': 'plain|shared|recycled|stock'}

FIRST = train('--epochs 2 --model-ema --model-ema-decay 0.5')  # leaves `{checkpoint}`

CASES = [
    train('', note='--model-kwargs seed=3', seed=3),
    train('--amp --amp-dtype bfloat16'),
    train('--model-ema --model-ema-decay 0.5'),
    train('--model-ema --model-ema-warmup'),
    train('--resume {checkpoint} --epochs 3'),
    train('--resume {checkpoint} --epochs 3 --model-ema', note='built with another seed', seed=3),
    train('--initial-checkpoint {checkpoint}', note='built with another seed', seed=3),
    train('--channels-last'),
    train('--split-bn --aug-splits 3'),
    train('--aug-splits 3 --jsd-loss'),
    train('--split-bn --aug-splits 3 --jsd-loss --aa rand-m7-mstd0.5-inc1'),
    train('--grad-checkpointing'),
    train('--torchcompile eager'),
    train('--torchcompile aot_eager'),
    train('--torchcompile inductor'),
    train('--torchscript'),
    train('--grad-accum-steps 2'),
    train('--clip-grad 1.0 --clip-mode norm'),
    train('--clip-grad 1.0 --clip-mode value'),
    train('--clip-grad 0.01 --clip-mode agc'),
    train('--mixup 0.2 --cutmix 1.0 --bce-loss'),
    train('--drop-path 0.1'),
    train('--head-init-scale 0.1'),
    train('--kd-model-name local-dir:{teacher}'),
    train('--kd-model-name local-dir:{teacher} --kd-distill-type feature'),
    train(f'--opt l1sgd {PENALTY}', has_stock=False),
    train(f'--opt l1sgd {PENALTY} l1_mode=proximal', has_stock=False),
    train(f'--opt lookahead_l1sgd {PENALTY}', has_stock=False),
    train(f'--opt l1lamb {PENALTY}', has_stock=False),
    processes(modules=()),
    processes('--no-ddp-bb', modules=()),
    processes(),
    processes('--no-ddp-bb'),
    processes('--no-ddp-bb', '{torchrun} -m timm_lc run'),
    processes('--no-ddp-bb --model-ema --model-ema-decay 0.5 --grad-accum-steps 2'),
    processes('--sync-bn', needs_gpu=True),
    refused('--model lc_resnet51', r'Unknown model \(lc_resnet51\)'),
    refused('--opt l1_sgd --opt-kwargs l1=5e-5', "unexpected keyword argument 'l1'"),
    refused('--opt l1sgd --opt-kwargs l1=-1', '`l1` must be finite and at least 0, got -1'),
    refused('--opt l1sgd', '`l1` must be given'),
    refused(f'--opt l1sgd {PENALTY} --model vit_tiny_patch16_224', 'penalises pointwise .* none of .* is one'),
    validate(''),
    validate('--use-ema'),
    validate('--reparam'),
    validate('--torchscript'),
    validate('--channels-last'),
    validate('--model {name} --model-kwargs', note='built as plain', only='shared|recycled'),
    tool('benchmark.py', '--bench inference', f'{BENCHMARK} {{model}}', 'benchmarked'),
    tool('benchmark.py', '--bench inference --reparam', f'{BENCHMARK} {{model}}', 'benchmarked'),
    tool('benchmark.py', '--bench train', f'{BENCHMARK} {{model}}', 'benchmarked'),
    tool(
        'inference.py',
        '--checkpoint {checkpoint}',
        f'{SMALL} --data-dir {{data}}/validation -b 16 -j 0 --results-dir . --results-file predicted {{model}}',
        'inferred',
    ),
    export('--checkpoint {checkpoint}', **ONNX),
    export('--checkpoint {checkpoint} --reparam', **ONNX),
    export('--checkpoint {checkpoint} --dynamo', **ONNX),
    export('--model local-dir:{exported}'),
    export('--model local-dir:{exported} --reparam'),
    rewrite('avg_checkpoints.py', "--input {runs} --filter 'checkpoint-*.pth.tar'"),
    rewrite('avg_checkpoints.py', "--input {runs} --filter 'checkpoint-*.pth.tar' --no-use-ema --safetensors"),
    rewrite('clean_checkpoint.py', '--checkpoint {checkpoint} --no-hash'),
    rewrite('clean_checkpoint.py', '--checkpoint {checkpoint} --no-hash --no-use-ema --safetensors'),
    tool(
        'bulk_runner.py',
        f"--module 1 --model-list 'lc_resnet20_16x[12]' timm_lc run benchmark.py --bench inference {BENCHMARK}",
        '--results-file bulk.csv --sort-key infer_samples_per_sec',
        'ran_in_bulk',
        only='lc_resnet20_16x8 plain',
        has_stock=False,
    ),
]
