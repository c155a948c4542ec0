"""Verdicts and findings of results written by hand, and the first screen that they make."""

import dataclasses
import json

import pytest

from timm_lc.cli import main
from timm_lc.paper.catalogue import EXPERIMENTS
from timm_lc.paper.experiment import Point
from timm_lc.paper.results import Line, collect
from timm_lc.paper.sections import make_section, sections_of

RECIPE = {'epochs': 75, 'batch_size': 256, 'lr': 0.01, 'momentum': 0.9, 'weight_decay': 0.01, 'smoothing': 0.1,
          'padding': 4, 'l1': 0.0, 'drop_last': False}  # fmt: skip


def line(
    series, x, accuracy, *, epochs=75, facet='', limit=None, key='accuracy', seconds=3600.0, data='cifar10', **recipe
):
    model = 'lc_lowres_resnet20' if series == 'plain' else 'lc_resnet20_16x8'
    about = {'model': model, 'model_kwargs': {'x': x, 'series': series}, 'seed': 0, 'data': data, 'limit': limit}
    run = {**about, 'recipe': {**RECIPE, 'epochs': epochs, **recipe}}
    where = {'device': 'a processor', 'threads': 1, 'seconds': seconds}
    return Line(Point(facet, series, x), 0.0, run, where, {key: accuracy})


def section(name, *lines):
    return make_section(EXPERIMENTS[name], lines, lines[0].setting if lines else '')


HEADLINE = [line('plain', 128, 91.3), line('learnable', 128, 91.0), line('frozen random', 128, 91.9)]


def test_numbers_within_two_deviations_agree():
    near = [line('plain', 128, 91.3), line('learnable', 128, 91.0), line('frozen random', 128, 91.8)]
    word, reason = section('v2-fig4a', *near).verdict
    assert word == 'agrees'
    assert reason == (
        '4 numbers within two of its deviations, or 0.5 points or 5 % where it prints none; '
        'what it says in words is not judged'
    )  # the gap of 0.8 too, which has none: half a point
    assert section('v2-table1', *(line(each.point.series, 'CIFAR-10', 91.6) for each in near)).verdict.word == 'differs'


def test_the_number_farthest_off_is_named():
    far = [HEADLINE[0], line('learnable', 128, 88.0), line('frozen random', 128, 91.9)]
    word, reason = section('v2-fig4a', *far).verdict
    assert word == 'differs'
    assert reason == '2 of 4 numbers; the most gap 128: +3.90, paper +0.50'


def test_a_level_line_is_one_number():
    found = section('v2-fig4a', *(line('plain', x, 91.5) for x in (1, 2, 4, 8)))
    assert found.verdict.reason.startswith('1 number within')


@pytest.mark.parametrize(
    ('change', 'reason'), [({'epochs': 5}, '5 of 75 epochs'), ({'limit': 5000}, 'on 5,000 images')]
)
def test_short_runs_decide_nothing(change, reason):
    found = section('v2-fig4a', line('plain', 128, 91.6, **change))
    assert found.verdict == ('too short to tell', reason)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'lr': 0.3, 'batch_size': 32}, '75 epochs at batch size 32, learning rate 0.3'),
        ({'weight_decay': 0.0}, '75 epochs at weight decay 0.0'),
        ({'epochs': 300, 'padding': 0}, '300 epochs at padding 0'),
    ],
)
def test_another_recipe_is_not_judged(change, reason):
    lines = [line(name, 128, value, **change) for name, value in (('plain', 91.3), ('frozen random', 91.9))]
    found = section('v2-fig4a', *lines)
    assert found.verdict == ('no number to compare', f"not the paper's recipe: {reason}")
    assert 'deviation' not in found.rows[0]
    assert any(remark.startswith(f'Ours after {reason}: ') for remark in found.remarks)
    short = section('v2-fig4a', line('plain', 128, 91.6, **{**change, 'epochs': 5}))
    assert short.verdict == ('too short to tell', f'5 of 75 epochs at {reason.partition(" at ")[2]}')


def test_batches_left_out_are_no_other_recipe():
    old = [line(name, 128, 91.3, drop_last=True) for name in ('plain', 'learnable')]
    assert section('v2-fig4a', *old).verdict.word == 'agrees'


def test_a_recipe_that_is_not_told_is_not_judged(tmp_path):
    plain = line('plain', 128, 91.3)
    del plain.run['recipe']['lr'], plain.run['recipe']['batch_size']
    write(tmp_path, 'v2-fig4a', [plain])
    assert main(['report', str(tmp_path)]) == 0
    reason = "not the paper's recipe: 75 epochs at batch size not told, learning rate not told"
    assert reason in (tmp_path / 'report.md').read_text()


def test_a_point_with_a_rate_of_its_own_is_of_the_recipe():
    lines = [line('plain', x, 80.0, facet='E = 8', lr=lr) for x, lr in (('recipe', 0.01), ('lr 0.1', 0.1))]
    assert section('theory3', *lines).verdict == ('no number to compare', 'an experiment of ours')
    lines[1].run['recipe']['lr'] = 0.3
    found = section('theory3', *lines)
    assert (list(found.lines), found.hidden) == (lines[:1], 1)


def test_rates_of_more_runs_do_not_hide_those_of_the_recipe():
    tuned = [line('plain', 'lr 0.1', 80.0 + seed, facet='E = 8', lr=0.1) for seed in range(4)]
    for seed, each in enumerate(tuned):
        each.run['seed'] = seed
    shown = sections_of(EXPERIMENTS['theory3'], [line('plain', 'recipe', 70.0, facet='E = 8'), *tuned])
    assert [(len(each.lines), each.hidden) for each in shown] == [(5, 0)]


def test_counts_alone_do_not_agree_for_a_table_of_accuracies():
    counts = Line(Point('', '', '+ Freezing'), 0.0, {'model': 'lc_resnet20_16x128', 'model_kwargs': {}, 'seed': None},
                  {'device': 'a processor', 'threads': 1}, {'nonzero': 38_431_402, 'learnable': 4_166_314})  # fmt: skip
    trained = line('', '+ Freezing', 50.0, data='cifar10-jpeg')
    for lines in ([counts], [trained, counts]):
        word, reason = section('table1', *lines).verdict
        assert word == 'no number to compare'
        assert reason == "no accuracy in print is measured on the paper's images; 2 counts within 5 %"
    wrong = dataclasses.replace(counts, values={'nonzero': 1, 'learnable': 4_166_314})
    assert section('table1', wrong).verdict.word == 'differs'
    assert section('table1', line('', '+ Freezing', 50.0), counts).verdict.word == 'differs'


def test_a_point_of_one_run_beside_one_of_several_is_told():
    lines = [
        line(series, x, accuracy) for x in (1, 8) for series, accuracy in (('frozen random', 60.0), ('plain', 62.0))
    ]
    more = [line('frozen random', 1, 61.0), line('plain', 1, 62.0)]
    for each in more:
        each.run['seed'] = 1
    found = section('v2-fig4a', *lines, *more).findings
    assert found == ['frozen random less plain is -1.50 at E = 1 (2 runs), -2.00 at E = 8 (1 run)']


def test_a_figure_of_unknown_places_alone_has_no_finding():
    assert section('fig18', line('', '0.5', 80.0)).findings == []


def test_what_was_not_run_and_what_cannot_be_compared():
    assert section('fig3').verdict == ('not run', 'no run of ours')
    word, reason = section('v2-fig4a', line('frozen random', 2, 85.0)).verdict
    assert (word, reason) == ('no number to compare', 'none of the points with a number in print is measured')


def test_of_other_images_only_differences_are_compared():
    plain = line('plain', 128, 87.5, data='cifar10-jpeg')
    word, reason = section('v2-fig4a', plain).verdict
    assert word == 'no number to compare'
    assert reason == "cifar10-jpeg is not the paper's images, and no pair that it prints is measured"

    def verdict(frozen, learnable):
        both = [line('frozen random', 128, frozen, data='cifar10-jpeg')]
        both += [line('learnable', 128, learnable, data='cifar10-jpeg')]
        return section('v2-fig4a', plain, *both)

    found = verdict(88.1, 87.4)  # 0.6 above plain, where the paper has 0.29
    assert found.verdict.word == 'agrees'
    assert found.verdict.reason.startswith('3 numbers within two of its deviations')
    header = found.rows[0]
    assert header.count('deviation') == 1
    assert header[header.index('deviation') - 1] == 'paper: difference'
    assert section('v2-fig4a', *HEADLINE).rows[0].count('deviation') == 4
    assert verdict(86.0, 87.4).verdict == (
        'differs', '2 of 3 numbers; the most frozen random less plain at 128: -1.50, paper +0.29'
    )  # fmt: skip


def test_a_difference_that_may_be_none_tells_nothing():
    lines = [
        line(name, 128, value, data='cifar10-jpeg') for name, value in (('plain', 87.52), ('frozen random', 87.96))
    ]
    assert section('v2-fig4a', *lines).verdict == (
        'too few runs to tell',
        'frozen random less plain at 128: +0.44, paper +0.29, which may be none: two deviations are 0.50',
    )
    repeated = [dataclasses.replace(each, run={**each.run, 'seed': seed}) for each in lines for seed in range(4)]
    assert section('v2-fig4a', *repeated).verdict.word == 'agrees'


def test_what_the_paper_does_not_print_has_no_verdict():
    lines = [line('frozen random', 8, 0.8, key='entropy', data='cifar10-jpeg')]
    assert section('fig15', *lines).verdict == ('no number to compare', 'the paper prints no number of it')


def test_short_tables_show_no_deviation():
    pair = [line(name, 'ResNet-14', value, epochs=5) for name, value in (('frozen random', 40.0), ('learnable', 66.0))]
    header = section('fig3', *pair).rows[0]
    assert 'paper: difference' in header
    assert 'deviation' not in header


def test_findings_say_where_ours_crosses():
    def findings(frozen, seeds):
        lines = [line('frozen random', x, value) for x, value in frozen] + [
            line('learnable', x, 85.0) for x, _ in frozen
        ]
        runs = [dataclasses.replace(each, run={**each.run, 'seed': seed}) for each in lines for seed in range(seeds)]
        for index, each in enumerate(runs):  # so that a deviation is there
            each.values['accuracy'] = each.values['accuracy'] + 0.01 * (index % seeds) * (
                each.point.series != 'learnable'
            )
        return list(section('fig1', *runs).findings)

    ahead = ((4, 80.0), (8, 86.0), (16, 88.0))
    assert findings(ahead, 2) == ['frozen random is ahead of learnable from E = 8 on (95 % intervals)']
    assert findings(((4, 80.0), (8, 80.0)), 2) == [
        'frozen random is ahead of learnable nowhere up to E = 8 (95 % intervals)'
    ]
    assert findings(ahead, 1) == [
        'frozen random less learnable is -5.00 at E = 4, +1.00 at E = 8, +3.00 at E = 16 (one run each)'
    ]


def test_each_two_series_are_compared():
    lines = [line('frozen random', 8, 86.0), line('learnable', 8, 85.0), line('plain', 8, 87.5)]
    assert list(section('v2-fig4a', *lines).findings) == [
        'frozen random less learnable is +1.00 at E = 8 (one run each)',
        'frozen random less plain is -1.50 at E = 8 (one run each)',
        'learnable less plain is -2.50 at E = 8 (one run each)',
    ]


def test_the_plain_network_makes_no_row_where_another_tells_it():
    everywhere = [line('plain', x, 87.5) for x in (1, 2, 4, 8, 128)]
    rows = section('v2-fig4a', *everywhere, line('frozen random', 8, 86.0)).rows
    assert [row[0] for row in rows[1:]] == ['8', '128']  # the paper's numbers are of 128
    assert [row[rows[0].index('plain')] for row in rows[1:]] == ['87.50', '87.50']
    alone = section('fig6', *(line('plain', x, 0.8, key='entropy_normalized') for x in (1, 2)))
    assert [row[0] for row in alone.rows[1:]] == ['1', '2']


def test_findings_are_of_the_measured_numbers():
    lines = [line('', name, value) for name, value in (('0', 74.0), ('5e-05', 76.5), ('0.001', 47.0))]
    assert list(section('fig18', *lines).findings) == ['against 0: +2.50 at 5e-05, -27.00 at 0.001']
    pair = [line(f'lambda = {name}', x, value) for name, x, value in (('5e-5', 0.0, 76.0), ('0', 0.0, 74.0))]
    pair += [line(f'lambda = {name}', 0.8, value) for name, value in (('5e-5', 50.0), ('0', 41.0))]
    assert list(section('fig19', *pair).findings) == [
        'lambda = 5e-5 less lambda = 0: +2.00 points at 0.0, +9.00 at 0.8'
    ]
    square = [[1.0] * 3, [1.0, 4.0, 1.0], [1.0] * 3]
    border = section('fig13', line('learnable', 1, square, facet='k = 3', key='positions'))
    assert list(border.findings) == ['k = 3: variance at the border over that inside: learnable 0.25']
    level = [line('plain', x, 0.8, key='entropy_normalized') for x in (1, 2, 4)]
    trend = [line('frozen random', x, value, key='entropy_normalized') for x, value in ((1, 0.9), (2, 1.1), (4, 0.7))]
    assert list(section('fig6', *trend, *level).findings) == [
        'frozen random goes from 0.900 to 0.700, within 0.700 and 1.100',
        'plain is 0.800',
    ]


def write(folder, name, lines):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / 'runs.jsonl').write_text(''.join(json.dumps(each.to_json()) + '\n' for each in lines))


def test_first_screen_answers_and_short_runs_stand_below(tmp_path):
    write(tmp_path, 'v2-fig4a', [*HEADLINE, line('frozen random', 64, 91.0)])
    write(tmp_path, 'fig1', [line('frozen random', x, 70.0, epochs=5) for x in (4, 8)])
    assert main(['report', str(tmp_path)]) == 0
    page = (tmp_path / 'report.md').read_text()
    top = page[: page.index('\n## ')]
    assert 'left out' not in page.partition('- recipe: ')[2].partition('\n')[0]  # as the authors' trainer
    assert 'Ours, cifar10: plain 91.30 (one run), learnable 91.00 (one run), frozen random 91.90 (one run) %.' in top
    count = sum(not name.startswith('theory') for name in EXPERIMENTS)
    assert f'Of {count} figures and tables of both versions: 1 agrees, 1 too short to tell' in top
    assert f'{count - 2} not run.' in top
    assert '![v2-fig4a: Accuracy of LCResNet-20-16x{E} and of the plain network](v2-fig4a/v2-fig4a.png)' in top
    assert '| fig3 | Accuracy of off-the-shelf networks | not run |' in top
    assert page.index('## v2-fig4a') < page.index('# Short runs, which decide nothing') < page.index('## fig1')
    assert '| CIFAR-10, baselines | 183.0 | 1.00 |' in page  # plain: 3,600 seconds
    assert '| CIFAR-10, LC-Blocks | 787.3 | 5.00 |' in page
    assert (tmp_path / 'report.html').stat().st_size < 1_000_000


def test_without_a_run_at_full_length_the_question_is_open(tmp_path):
    write(tmp_path, 'fig1', [line('frozen random', x, 70.0, epochs=5) for x in (4, 8)])
    assert main(['report', str(tmp_path)]) == 0
    top = (tmp_path / 'report.md').read_text().partition('\n## ')[0]
    assert "Ours: no run of the paper's whole recipe is finished, so whether this reproduces is open." in top


def test_another_recipe_gives_way_to_the_papers(tmp_path):
    other = [line('plain', x, 11.11, epochs=76, lr=1.0) for x in (64, 128)]
    write(tmp_path, 'v2-fig4a', [*other, *HEADLINE])
    tuned = [line('frozen random', x, 22.22, lr=0.3) for x in (4, 8)]
    write(tmp_path, 'fig1', tuned)
    assert main(['report', str(tmp_path)]) == 0
    page = (tmp_path / 'report.md').read_text()
    assert '11.11' not in page
    assert '2 results are of other recipes, lengths or images, not shown here.' in page
    assert 'Ours, cifar10: plain 91.30 (one run), learnable 91.00 (one run), frozen random 91.90 (one run) %.' in page
    title = 'fig1: Accuracy of LCResNet-20-16x{E} over the expansion (75 epochs at learning rate 0.3)'
    assert page.partition(f'\n## {title}\n\n')[2].startswith(
        "**no number to compare**: not the paper's recipe: 75 epochs at learning rate 0.3\n"
    )
    assert '22.22' in page  # there is nothing else
    write(
        tmp_path, 'fig1', [*(line('frozen random', x, 22.22, lr=0.3) for x in (4, 8)), line('plain', 4, 70.0, epochs=5)]
    )
    assert main(['report', str(tmp_path)]) == 0
    page = (tmp_path / 'report.md').read_text()
    assert '22.22' not in page
    assert '70.00' in page


def test_another_recipe_is_no_answer(tmp_path):
    write(tmp_path, 'v2-fig4a', [line(name, 128, 91.3, lr=0.3) for name in ('plain', 'learnable', 'frozen random')])
    assert main(['report', str(tmp_path)]) == 0
    top = (tmp_path / 'report.md').read_text().partition('\n## ')[0]
    assert "Ours: no run of the paper's whole recipe is finished, so whether this reproduces is open." in top
    assert 'At full length' not in top


def test_cells_of_a_section_are_those_of_its_lines():
    assert collect(EXPERIMENTS['v2-fig4a'], HEADLINE)[Point('', 'plain', 128)] == {'accuracy': {0: 91.3}}


def test_hours_count_each_run_once_and_ours_apart(tmp_path):
    plain, limit = line('plain', 128, 91.0), line('expected', 128, 91.0)
    write(tmp_path, 'v2-fig4a', [plain])
    write(tmp_path, 'theory2', [plain, limit, dataclasses.replace(limit, where={'device': 'another', 'threads': 1})])
    write(
        tmp_path, 'theory4', [dataclasses.replace(line('frozen random', 8, 70.0), where={'device': 'b', 'threads': 1})]
    )
    assert main(['report', str(tmp_path)]) == 0
    page = (tmp_path / 'report.md').read_text()
    assert '| CIFAR-10, baselines | 183.0 | 1.00 |' in page
    assert '| experiments of ours |  | 1.00 |' in page
    assert '- Not counted: 1 runs whose time no result tells.' in page


def test_a_gap_that_is_not_measured_is_not_drawn():
    one = [line('frozen random', x, 80.0, facet='k = 3') for x in (8, 128)]
    assert section('v2-fig8', *one).figure is None
    assert section('v2-fig8', *one, line('learnable', 8, 81.0, facet='k = 3')).figure is not None


def test_pages_tell_the_version_of_the_papers_numbers():
    assert "The paper's numbers: version 1, table 1; version 1, table 1, by difference." in section('fig1').remarks
    numbers = "The paper's numbers: version 2, table 1; version 2, table 1, by difference."
    assert numbers in section('v2-table1').remarks
    printed = [printed for experiment in EXPERIMENTS.values() for printed in experiment.printed]
    assert {each.place.partition(',')[0] for each in printed} == {'version 1', 'version 2'}
