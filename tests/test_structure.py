"""The package's structure: imports run one way, public names are frozen, files say nothing of a machine."""

import ast
import subprocess
import sys
from pathlib import Path

import timm_lc

PACKAGE = Path(timm_lc.__file__).parent
# The layout: a folder imports only from those above it, a file only from files above it in its folder
LAYOUT = {
    '': ['_timm', 'arguments', 'naming', 'generator', 'orthogonal', 'filters', 'spatial', 'inputs'],
    'layers': [
        'bound', 'recorded', 'shared', 'sliced', 'changes', 'frozen', 'verify', 'packing', 'gram', 'implicit', 'ranks',
        'lc_conv', 'lc_pair', 'held', 'adapter', 'norm_packing',
    ],
    'optim': [],
    'transforms': ['freeze', 'share', 'combine', 'fingerprint', 'adapt', 'convert', 'prune', 'options', 'fold'],
    'analysis': [
        'metrics', 'conditioning', 'robustness', 'intervals', 'counting', 'description', 'evaluation', 'timing',
        'memory', 'floors',
    ],
    'models': ['lc_shipped', '_adapted', '_build', 'lc_zoo', 'lc_resnet_cifar', 'lc_lowres'],
    'checkpoints': [
        'usage', 'facts', 'origin', 'card', 'reading', 'checkpoint', 'adapters', 'train_run', 'exporting', 'hub',
    ],
    'training': ['files', 'parallel', 'digits', 'data', 'adapting', 'recipe', 'account', 'trainer', 'demo'],
    'paper': [
        'experiment', 'selection', 'timing', 'measures', 'printed', 'printed_second', 'variants', 'second_version',
        'theory', 'catalogue', 'runs', 'check_line', 'results', 'imagenet', 'tables', 'verdicts', 'plots',
        'adapt_bench', 'adapt_page', 'figures', 'estimate', 'planning', 'repeating', 'sections', 'reproduce',
        'overview', 'report', 'sizes', 'sweep', 'bench_cases', 'bench', 'bench_page',
    ],
    'commands': [
        '_scripts', '_recipes', '_arguments', '_queue', 'demo', 'list', 'info', 'recipes', 'train', 'run', 'cifar',
        'reproduce', 'report', 'bench', 'adapt_bench', 'prune', 'export', 'push',
    ],
    'cli': [],
    '__main__': [],
    '__init__': [],
}  # fmt: skip
ORDER = [
    name
    for folder, files in LAYOUT.items()
    for name in ([f'{folder}.{file}' if folder else file for file in files] + ([folder] if folder else []))
]


def modules():
    for path in PACKAGE.rglob('*.py'):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        name = '.'.join(parts[:-1] if parts[-1] == '__init__' and len(parts) > 1 else parts)
        yield name, path, ast.parse(path.read_text())


def imported(name, node):
    """Return the package's own modules that an import statement of module `name` reaches."""
    if isinstance(node, ast.Import):
        whole = [alias.name.partition('.') for alias in node.names]
        return [module or '__init__' for root, _, module in whole if root == 'timm_lc']
    if not isinstance(node, ast.ImportFrom):
        return []
    if not node.level:
        root, _, module = (node.module or '').partition('.')
        own = [alias.name if alias.name in ORDER else '__init__' for alias in node.names] if not module else [module]
        return own if root == 'timm_lc' else []
    package = [name] if LAYOUT.get(name) else []  # only an `__init__` imports from beside itself
    base = [*package, *(node.module.split('.') if node.module else [])]
    return ['.'.join(base)] if node.module else ['.'.join([*base, alias.name]) for alias in node.names]


def test_every_file_has_its_place():
    assert {name for name, _, _ in modules()} == set(ORDER)


def test_imports_run_one_way():
    for name, path, tree in modules():
        for node in ast.walk(tree):
            for target in imported(name, node):
                later = target == '__init__' and name.split('.')[0] in ('commands', 'cli')  # use it as a user does
                assert later or ORDER.index(target) < ORDER.index(name), f'{path.name} imports {target}'


def test_only_one_file_touches_names_that_timm_does_not_publish():
    for name, _, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom) or name == '_timm':
                continue
            module = getattr(node, 'module', None)
            for alias in node.names:
                root, *parts = f'{module}.{alias.name}'.split('.') if module else alias.name.split('.')
                assert root != 'timm' or not any(part.startswith('_') for part in parts), f'{name}: {parts}'


def test_public_names_are_these():
    public = {name for name in vars(timm_lc) if not name.startswith('_')}
    functions = {
        'add_linear_combinations', 'count_parameters', 'fold', 'freeze_spatial', 'share_weights', 'LCConv2d',
        'describe', 'add_adapters', 'remove_adapters', 'load_adapter', 'save_adapter', 'prune_pointwise',
        'save_pretrained', 'push_to_hub',
        'to_implicit', 'to_explicit', 'verify',
    }  # fmt: skip
    submodules = {name.split('.')[0] for name in ORDER if not name.startswith('_')}
    assert functions | {'models'} <= public <= functions | submodules
    assert set(timm_lc.__all__) == functions
    assert timm_lc.__all__ == sorted(timm_lc.__all__)


def test_files_are_short():
    for name, path, _ in modules():
        assert len(path.read_text().splitlines()) <= 350, name


def test_bodies_of_functions_are_short():
    for name, _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                has_docstring = ast.get_docstring(node) is not None
                body = node.body[has_docstring:]
                assert not body or body[-1].end_lineno - body[0].lineno < 30, f'{name}: {node.name}'


def test_importing_the_package_needs_no_command_figure_or_training():
    code = 'import sys, timm_lc; print(*sys.modules)'
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    for folder in ('commands', 'paper', 'training'):
        assert not [name for name in loaded if name.startswith(f'timm_lc.{folder}')]
    assert 'matplotlib' not in loaded


def test_training_and_the_paper_know_no_command_line():
    for name, _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and name.split('.')[0] in ('training', 'paper'):
                assert 'argparse' not in [alias.name for alias in node.names], name
