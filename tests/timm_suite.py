"""Run timm's own tests/test_models.py, unmodified, on `lc_` networks and on the networks they are made from.

The file comes from timm's source distribution of the installed version: pip downloads it, or TIMM_SDIST names a folder
that holds it extracted. Tests of pretrained weights, which need the network, are left out. timm offers some tests by
file of origin (`forward_intermediates`), which lc_ names lack: counted as not offered. It spares some networks a test
or a check by name (`densenet*` TorchScript), which lc_ names escape: failures there are noted.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import timm

ROOT = Path(__file__).resolve().parents[1]
PAPER = (
    'lc_resnet18', 'lc_resnet34', 'lc_resnet50', 'lc_resnet101', 'lc_resnet50d', 'lc_resnext50_32x4d',
    'lc_wide_resnet50_2', 'lc_mobilenetv2_100', 'lc_mobilenetv3_large_100',
    'lc_resnet_cifar', 'lc_resnet20_16x8', 'lc_resnet56_16x1',
    'lc_lowres_resnet14', 'lc_lowres_resnet18', 'lc_lowres_resnet20', 'lc_lowres_resnet34', 'lc_lowres_resnet50',
    'lc_lowres_resnet101', 'lc_lowres_wide_resnet50_2', 'lc_lowres_mobilenetv2_100',
)  # fmt: skip
# the smallest network of each of timm's convolutional files, by parameters
FAMILIES = (
    'lc_mobileone_s1', 'lc_convmixer_768_32', 'lc_convnext_zepto_rms', 'lc_cs3darknet_focus_s', 'lc_cspnext_tiny',
    'lc_densenet121', 'lc_dla46x_c', 'lc_dpn48b', 'lc_mobilenetv2_035', 'lc_fasternet_t0', 'lc_ghostnet_050',
    'lc_hardcorenas_b', 'lc_hgnetv2_b0', 'lc_hrnet_w18_small', 'lc_inception_next_atto',
    'lc_inception_resnet_v2', 'lc_inception_v3', 'lc_inception_v4', 'lc_lcnetv2_small',
    'lc_mambaout_femto', 'lc_mobilenetv3_small_050', 'lc_mobilenetv5_base', 'lc_nasnetalarge', 'lc_nf_regnet_b0',
    'lc_pnasnet5large', 'lc_rdnet_tiny', 'lc_regnetx_002', 'lc_repghostnet_050', 'lc_repvit_m1', 'lc_res2next50',
    'lc_resnest14d', 'lc_resnet10t', 'lc_resnetv2_18', 'lc_rexnet_100', 'lc_selecsls42', 'lc_legacy_seresnet18',
    'lc_skresnet18', 'lc_starnet_s050', 'lc_tresnet_m', 'lc_vgg11', 'lc_ese_vovnet19b_slim_dw', 'lc_legacy_xception',
    'lc_xception41p',
)  # fmt: skip
# tests that spare a network one of their checks by the start of its name: unpadded ones have smaller features
SPARED = {'test_model_forward_features': ('inception_v3', 'inception_v4', 'inception_resnet_v2')}
OUTCOMES = ('passed', 'failed', 'skipped')


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Run timm's own model tests on lc_ networks.",
        epilog='Example: python tests/timm_suite.py --models lc_resnet18 lc_mobilenetv2_100',
    )
    parser.add_argument('--models', nargs='+', metavar='NAME', help='lc_ names (default: those of the paper)')
    parser.add_argument(
        '--families', action='store_true', help='one small network of each convolutional family of timm'
    )
    parser.add_argument('--tests', default='', metavar='K', help='only tests that match this expression of pytest -k')
    args = parser.parse_args(argv)
    names = args.models or (FAMILIES if args.families else PAPER)
    unknown = unregistered(names)
    if unknown:
        parser.error(f'not registered: {", ".join(unknown)}')
    bases = {name: base for name in names if timm.is_model(base := name.removeprefix('lc_')) and base != name}
    with tempfile.TemporaryDirectory() as folder:
        fetch_tests(Path(folder))
        outcomes = run_tests(Path(folder), [*names, *bases.values()], args.tests)
    return report(names, bases, outcomes)


def unregistered(names):
    """Return those of `names` that timm does not know once timm_lc is imported."""
    sys.path.insert(0, str(ROOT))
    import timm_lc  # noqa: F401

    return [name for name in names if not timm.is_model(name)]


def fetch_tests(folder):
    """Copy timm's test file to `folder`, away from timm's source, so that it imports the installed timm."""
    sdist = os.environ.get('TIMM_SDIST')
    if sdist is None:
        print(f'downloading the source distribution of timm {timm.__version__}', flush=True)
        download = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', ':all:']
        subprocess.run([*download, '--dest', folder, f'timm=={timm.__version__}'], check=True)
        with tarfile.open(next(folder.glob('timm-*.tar.gz'))) as archive:
            archive.extractall(folder, filter='data')
        sdist = folder / f'timm-{timm.__version__}'
    shutil.copy(Path(sdist, 'tests', 'test_models.py'), folder)


def run_tests(folder, names, tests):
    """Return {(name, test function): outcome}."""
    selected = {listed: name for name in names for listed in (name, tagged(name))}
    expression = ' or '.join(f'{separator}{listed}]' for listed in selected for separator in ('-', '['))
    expression = f'({expression}) and not pretrained and not test_model_inference' + (
        f' and ({tests})' if tests else ''
    )
    command = [
        sys.executable,
        '-m',
        'pytest',
        'test_models.py',
        '-p',
        'timm_lc',
        '-k',
        expression,
        '--junit-xml=junit.xml',
    ]
    command += ['-p', 'no:cacheprovider', '-W', 'ignore', '--tb=short', '-q', '-rf']  # its marks need no plugin
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    subprocess.run(command, cwd=folder, env=environment, check=False)
    outcomes = {}
    for case in ElementTree.parse(folder / 'junit.xml').iter('testcase'):
        function, _, parameters = case.get('name').rstrip(']').partition('[')
        name = next(name for key, name in selected.items() if f'-{parameters}'.endswith(f'-{key}'))
        outcomes[name, function] = outcome(case)
    return outcomes


def tagged(name):
    """Return the name under which timm lists the model's default weights."""
    config = timm.get_pretrained_cfg(name)
    return f'{name}.{config.tag}' if config and config.tag else name


def outcome(case):
    tags = {child.tag for child in case}
    if tags & {'failure', 'error'}:
        return 'failed'
    return 'skipped' if 'skipped' in tags else 'passed'


def report(names, bases, outcomes):
    """Print the table; return 1 if a test failed, was skipped where the base was not, or none ran."""
    problems, notes = [], []
    print(f'\n{"name":34}passed failed skipped   {"base":28}passed failed skipped  not offered')
    for name in names:
        base = bases.get(name)
        mine, theirs = ({f: o for (n, f), o in outcomes.items() if n == which} for which in (name, base))
        not_offered = len(theirs.keys() - mine.keys()) if base else '-'
        print(f'{name:34}{row(mine)}   {base or "-":28}{row(theirs)}  {not_offered}')
        if not mine:
            problems.append(f'{name}: no test was collected')
        if base and not theirs:
            problems.append(f'{base}: no test was collected')
        for function, result in mine.items():
            if result == 'failed' or (result == 'skipped' and theirs.get(function) != 'skipped'):
                spared = base and (function not in theirs or base.startswith(SPARED.get(function, ())))
                (notes if spared else problems).append(f'{name}: {function} {result}, base {theirs.get(function, "-")}')
    print('\n'.join(['', *(f'{note}: timm spares the base this by its name' for note in notes), *problems]))
    print('no failure and no new skip' if not problems else f'{len(problems)} problems')
    return bool(problems)


def row(results):
    counts = Counter(results.values())
    return ' '.join(f'{counts[outcome]:{width}}' for outcome, width in zip(OUTCOMES, (6, 6, 7), strict=True))


if __name__ == '__main__':
    sys.exit(main())
