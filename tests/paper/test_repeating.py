"""The commands above tables: planned by the command line itself, they train what the table shows and nothing else."""

import dataclasses
import json
import random
import re
import shlex
from pathlib import Path

import pytest

from timm_lc.cli import main
from timm_lc.paper.catalogue import EXPERIMENTS
from timm_lc.paper.repeating import how_to_repeat
from timm_lc.paper.results import Line, Results
from timm_lc.paper.runs import describe_run
from timm_lc.paper.sections import sections_of
from timm_lc.training.recipe import Recipe

RESULTS = Path(__file__).parents[2] / 'results'
TRAINED = [name for name, experiment in EXPERIMENTS.items() if experiment.measures]
WHERE = {'device': 'a processor', 'threads': 1}


def made(variant, seed=0, *, amp=False, **recipe):
    """Return the line of a variant's run as it is made now, with a recipe of another learning rate or the like."""
    run = json.loads(json.dumps(describe_run(variant.run(seed, Recipe(**recipe)), 'cifar10', None)))
    return Line.of(variant, run, {**WHERE, 'amp': amp}, {'accuracy': 50.0})


def measured(variant):
    return Line.of(variant, None, WHERE, {'learnable': 1})


def of(name, pattern):
    return [variant for variant in EXPERIMENTS[name].variants if re.search(pattern, variant.name)]


def is_old(line, experiment):
    (now,) = (variant for variant in experiment.variants if variant.point == line.point)
    forms = [kwargs.get('implicit', False) for kwargs in (line.run['model_kwargs'], now.model_kwargs)]
    return line.run['recipe'].get('drop_last', True) or forms[0] != forms[1]


def shown(lines):
    return {(line.seed, ' '.join(str(part) for part in line.point if part != '')) for line in lines if line.is_trained}


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    """Return a function that dry-runs the commands of a page in an empty folder: (seed, name) of all they train."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'cifar10-jpeg').mkdir()

    def planned(experiment, paragraphs):
        found = []
        for command in re.findall('`(.*)`', '\n'.join(paragraphs)):
            words = shlex.split(command)
            assert words[:3] == ['timm-lc', 'reproduce', experiment.id]
            capsys.readouterr()
            assert main([*words[1:], '--dry-run', '--device', 'cpu']) == 0
            for line in capsys.readouterr().out.splitlines():
                if match := re.match(r'missing +\S+-seed(\d+)-\w+  (.*)', line):
                    names = match[2].split('; ')
                    found += [(int(match[1]), name.removeprefix(f'{experiment.id} ')) for name in names]
        assert len(found) == len(set(found))
        return set(found)

    return planned


@pytest.mark.parametrize('name', TRAINED)
def test_commands_plan_any_points_of_any_experiment_and_no_others(name, planned):
    experiment, draw = EXPERIMENTS[name], random.Random(name)
    for _ in range(3):
        some = draw.sample(experiment.variants, draw.randint(1, len(experiment.variants)))
        lines = [made(variant, seed, epochs=5) for variant in some for seed in (0, *((1, 2) * (not experiment.single)))]
        assert planned(experiment, how_to_repeat(experiment, lines)) == shown(lines)


@pytest.mark.parametrize('name', [name for name in TRAINED if (RESULTS / name / 'runs.jsonl').is_file()])
def test_commands_of_our_results_plan_what_their_pages_show(name, planned):
    experiment = EXPERIMENTS[name]
    for section in sections_of(experiment, Results(RESULTS / name).lines):
        paragraphs = how_to_repeat(experiment, section.lines)
        old = any(is_old(line, experiment) for line in section.lines if line.is_trained)
        assert planned(experiment, paragraphs) == (set() if old else shown(section.lines)), section.name
        assert paragraphs[0].startswith('Made by an earlier version, whose runs no command repeats: ') == old


def test_the_shortest_selection_is_written():
    fig1, fig9, fig11, fig19 = (EXPERIMENTS[name] for name in ('fig1', 'fig9', 'fig11', 'fig19'))
    for experiment, pattern, written in [
        (fig1, '', ''),
        (fig1, ' (2|8)$', ' --values 2,8'),
        (fig1, 'plain', ' --only plain'),
        (fig1, 'plain|frozen random 128', " --only 'plain|frozen random 128$'"),
        (fig1, 'plain (2|8)$', " --only 'plain (2|8)$'"),
        (fig11, 'k = 3', " --only 'k = 3'"),
        (fig11, 'k = [35] frozen random 1$', " --only 'k = 3 frozen random 1$|k = 5 frozen random 1$'"),
        (fig9, '^shared', " --only '^shared'"),
        (fig19, r'lambda = 0 0.[57]$', r" --only 'lambda = 0 (0\.5|0\.7)$'"),
    ]:
        lines = [made(variant) for variant in of(experiment.id, pattern)]
        start = f'timm-lc reproduce {experiment.id} --data cifar10 --epochs 75 --runs 1'
        assert how_to_repeat(experiment, lines) == [f'`{start}{written}`']


def test_learning_rate_is_of_points_without_their_own():
    lines = [made(variant) for variant in reversed(of('theory3', 'recipe|lr 0.1$'))]
    assert lines[0].run['recipe']['lr'] == 0.1
    start = 'timm-lc reproduce theory3 --data cifar10 --epochs 75 '
    assert how_to_repeat(EXPERIMENTS['theory3'], lines) == [f"`{start}--runs 1 --values 'recipe,lr 0.1'`"]
    lines = [made(variant, lr=0.02) for variant in reversed(of('theory3', 'recipe|lr 0.1$'))]
    assert how_to_repeat(EXPERIMENTS['theory3'], lines) == [f"`{start}--lr 0.02 --runs 1 --values 'recipe,lr 0.1'`"]


def test_seeds_of_other_points_have_commands_of_their_own():
    first, second = of('theory4', ' (8|16)$')[0], of('theory4', ' (8|16)$')[-1]
    lines = [made(first, seed) for seed in (0, 1, 2)] + [made(second, seed, amp=True) for seed in (0, 1)]
    assert how_to_repeat(EXPERIMENTS['theory4'], lines) == [
        f"`timm-lc reproduce theory4 --data cifar10 --epochs 75 --runs {runs} --only '{only}'{amp}`"
        for runs, only, amp in ((3, 'frozen random 8$', ''), (2, 'expected 16$', ' --amp'))
    ]
    (command,) = how_to_repeat(EXPERIMENTS['theory4'], [made(first, seed) for seed in (3, 4)])
    assert '--seed 3 --runs 2' in command


def test_more_than_three_commands_are_one_that_says_what_it_is(planned):
    some = of('fig1', 'frozen')[:4]
    lines = [made(variant, seed) for seed, variant in enumerate(some)]
    assert len(how_to_repeat(EXPERIMENTS['fig1'], lines[:3])) == 3
    (text,) = how_to_repeat(EXPERIMENTS['fig1'], lines)
    assert re.fullmatch('`timm-lc reproduce fig1 [^`]* --runs 4 [^`]*` trains more runs than are shown.', text)
    assert planned(EXPERIMENTS['fig1'], [text]) > shown(lines)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'recipe': {'drop_last': True}}, 'incomplete last batches were left out'),
        ({'model_kwargs': {}}, 'frozen networks were trained in the explicit form'),
        ({'model_kwargs': {'implicit': True, 'seed': 7}}, 'networks had other arguments'),
        ({'model': 'lc_resnet20_16x2'}, 'networks had other arguments'),
        ({'recipe': {'padding': 2, 'momentum': 0.5}}, 'the recipe had another momentum, padding'),
    ],
)
def test_runs_that_no_option_gives_are_told_in_words(change, reason):
    line = made(of('fig1', 'frozen random 4')[0])
    recipe = {**line.run['recipe'], **change.get('recipe', {})}
    old = dataclasses.replace(line, run={**line.run, **change, 'recipe': recipe})
    text = f'Made by an earlier version, whose runs no command repeats: {reason}.'
    assert how_to_repeat(EXPERIMENTS['fig1'], [old]) == [text]
    assert how_to_repeat(EXPERIMENTS['fig1'], [made(of('fig1', 'plain 4')[0]), old]) == [
        text.replace('Made', 'Made in part')
    ]


def test_what_was_never_told_was_left_out():
    line = made(of('fig1', 'plain 4')[0])
    del line.run['recipe']['drop_last']
    assert 'incomplete last batches were left out' in how_to_repeat(EXPERIMENTS['fig1'], [line])[0]


def test_points_without_training():
    table3, theory6, fig1 = (EXPERIMENTS[name] for name in ('table3', 'theory6', 'fig1'))
    assert how_to_repeat(table3, list(map(measured, table3.variants))) == ['`timm-lc reproduce table3`']
    (some,) = how_to_repeat(table3, list(map(measured, of('table3', 'one convolution'))))
    assert some == "`timm-lc reproduce table3 --only 'one convolution'`"
    every = list(map(measured, theory6.variants))
    assert how_to_repeat(theory6, every) == ['`timm-lc reproduce theory6` trains more runs than are shown.']
    text = how_to_repeat(theory6, [*every, *map(made, of('theory6', 'E = 8'))])
    assert "--only 'E = 8'" in text[0]
    assert text[1] == 'What needs no training was measured of further points.'
    assert how_to_repeat(fig1, []) == ['`timm-lc reproduce fig1`']
