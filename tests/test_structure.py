"""The package's structure: imports run one way, public names are frozen, files say nothing of a machine."""

import ast
from pathlib import Path

import timm_lc

PACKAGE = Path(timm_lc.__file__).parent
# DESIGN's layout, top to bottom: a file imports only from those above it
ORDER = [
    '_timm',
    'filters', 'spatial', 'frozen', 'packing', 'layers',
    'freeze', 'sharing', 'convert', 'folding', 'pruning', 'counting',
    'analysis.metrics', 'analysis.robustness', 'analysis.statistics', 'analysis.plots', 'analysis',
    'optim',
    'models._build', 'models.lc_zoo', 'models.lc_resnet_cifar', 'models.lc_lowres', 'models',
    'inputs', 'usage', 'card', 'checkpoint',
    'info', 'evaluation', 'exporting', 'hub', 'demo',
    'experiments.files', 'experiments.parallel',
    'experiments.data', 'experiments.trainer', 'experiments.experiment', 'experiments.timing',
    'experiments.measures', 'experiments.printed', 'experiments.catalogue', 'experiments.runs', 'experiments.results',
    'experiments.imagenet', 'experiments.tables', 'experiments.figures', 'experiments.estimate', 'experiments.planning',
    'experiments.sections', 'experiments.reproduce', 'experiments.report', 'experiments.commands', 'experiments',
    'steps', 'sweep', 'scripts', 'commands', 'prune_command', 'cli', '__main__', '__init__',
]  # fmt: skip


def modules():
    for path in PACKAGE.rglob('*.py'):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        name = '.'.join(parts[:-1] if parts[-1] == '__init__' and len(parts) > 1 else parts)
        yield name, path, ast.parse(path.read_text())


def imported(name, node):
    """Return the package's own modules that an import statement of module `name` reaches."""
    if not isinstance(node, ast.ImportFrom):
        return []
    if not node.level:
        root, _, module = (node.module or '').partition('.')
        return [module] if root == 'timm_lc' and module else []
    package = ['models'] if name == 'models' else name.split('.')[:-1]
    base = package[: len(package) - node.level + 1] + (node.module.split('.') if node.module else [])
    return ['.'.join(base)] if node.module else ['.'.join([*base, alias.name]) for alias in node.names]


def test_every_file_has_its_place():
    assert {name for name, _, _ in modules()} == set(ORDER)


def test_imports_run_one_way():
    for name, path, tree in modules():
        for node in ast.walk(tree):
            for target in imported(name, node):
                assert ORDER.index(target) < ORDER.index(name), f'{path.name} imports {target}'


def test_only_one_file_touches_names_that_timm_does_not_publish():
    for name, _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('timm.') and name != '_timm':
                parts = [*node.module.split('.'), *(alias.name for alias in node.names)]
                assert not any(part.startswith('_') for part in parts), f'{name}: {parts}'


def test_public_names_are_these():
    public = {name for name in vars(timm_lc) if not name.startswith('_')}
    functions = {
        'add_linear_combinations', 'count_parameters', 'fold', 'freeze_spatial', 'share_weights', 'LCConv2d',
        'prune_pointwise', 'save_pretrained', 'push_to_hub',
    }  # fmt: skip
    submodules = {name.split('.')[0] for name in ORDER if not name.startswith('_')}
    assert functions | {'models'} <= public <= functions | submodules


def test_files_are_short():
    for name, path, _ in modules():
        assert len(path.read_text().splitlines()) <= 350, name
