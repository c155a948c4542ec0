"""Files that safetensors must not trust, and thousands of damaged ones: an error that names the file, or the same."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import timm_lc
from timm_lc.checkpoints.checkpoint import load_model
from timm_lc.checkpoints.reading import read_checkpoint
from timm_lc.cli import main

FIXTURE = Path(__file__).parents[1] / 'fixtures' / 'frozen'
FUZZED, SEED = 2000, 0


def file_of(header, data=b'', *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + data


def tensor(begin, end, shape=(2,), dtype='F32'):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]}


HOSTILE = {
    'header over 100 MB': file_of({'a': tensor(0, 8)}, bytes(8), length=100_000_001),
    'header beyond the file': file_of({'a': tensor(0, 8)}, bytes(8), length=4096),
    'header of 2^64 - 1': file_of({'a': tensor(0, 8)}, bytes(8), length=2**64 - 1),
    'no header': struct.pack('<Q', 0),
    'shorter than a length': b'\0\0\0',
    'overlapping offsets': file_of({'a': tensor(0, 8), 'b': tensor(4, 12)}, bytes(12)),
    'a hole between tensors': file_of({'a': tensor(0, 8), 'b': tensor(12, 20)}, bytes(20)),
    'a hole before the first': file_of({'a': tensor(4, 12)}, bytes(12)),
    'offsets backwards': file_of({'a': tensor(8, 0)}, bytes(8)),
    'trailing bytes': file_of({'a': tensor(0, 8)}, bytes(9)),
    'two bytes short': file_of({'a': tensor(0, 8)}, bytes(6)),
    'a shape of two bytes less': file_of({'a': tensor(0, 6)}, bytes(6)),
    'a shape that overflows': file_of({'a': tensor(0, 8, (2**63, 2**63))}, bytes(8)),
    'a shape whose bytes overflow': file_of({'a': tensor(0, 8, (2**62,))}, bytes(8)),
    'a negative shape': file_of({'a': tensor(0, 8, (-2,))}, bytes(8)),
    'an unknown type': file_of({'a': tensor(0, 8, dtype='F31')}, bytes(8)),
    'not UTF-8': file_of(b'{"\xff": {}}'),
    'not JSON': file_of(b'{"a": '),
    'no object': file_of(b'[]'),
    'metadata that is no text': file_of({'__metadata__': {'crc32': 3}, 'a': tensor(0, 8)}, bytes(8)),
    'checksums that are no JSON': file_of({'__metadata__': {'crc32': '{'}, 'a': tensor(0, 8)}, bytes(8)),
    'checksums that are no object': file_of({'__metadata__': {'crc32': '[1]'}, 'a': tensor(0, 8)}, bytes(8)),
}


@pytest.mark.parametrize('content', HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_an_error_that_names_it(content, tmp_path):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(content)
    for load in (read_checkpoint, lambda path: load_model(path, 'lc_test_resnet')):
        with pytest.raises(ValueError, match=f'{path} is not a readable checkpoint: '):
            load(path)


@pytest.mark.parametrize('form', ['no header', 'two bytes short', 'not JSON', 'shorter than a length'])
@pytest.mark.parametrize(
    'command',
    ['export {} --to plain --output {}/out', 'prune {} --amount 0.5 --output {}/out', 'push {} user/name --dry-run'],
)
def test_commands_refuse_a_damaged_file_in_one_line(command, form, tmp_path, capsys):
    path = tmp_path / 'broken.safetensors'
    path.write_bytes(HOSTILE[form])
    with pytest.raises(SystemExit) as exit_info:
        main(command.format(path, tmp_path).split())
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert f'{path} is not a readable checkpoint: ' in error
    assert error.count('\n') == 1


def damage(data, generator):
    """Return bytes with one change: a flipped bit, another byte, bytes cut out, put in or lost at the end."""
    place = int(generator.integers(len(data)))
    # headers are short: half of all changes are there
    place = place if generator.random() < 0.5 else int(generator.integers(8 + int.from_bytes(data[:8], 'little')))
    kind, byte = generator.integers(5), bytes([int(generator.integers(256))])
    if kind == 0:
        return data[:place] + bytes([data[place] ^ 1 << int(generator.integers(8))]) + data[place + 1 :]
    if kind == 1:
        return data[:place] + byte + data[place + 1 :]
    if kind == 2:
        return data[:place] + data[place + 1 + int(generator.integers(8)) :]
    return data[:place] + byte + data[place:] if kind == 3 else data[:place]


def test_damaged_files_are_errors_that_name_them_or_the_same_network(tmp_path):
    path, whole = tmp_path / 'model.safetensors', (FIXTURE / 'model.safetensors').read_bytes()
    model, generator, refused = load_model(FIXTURE), np.random.default_rng(SEED), []
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    for _ in range(FUZZED):
        path.write_bytes(damage(whole, generator))
        try:
            model.load_state_dict(read_checkpoint(path))
        except (ValueError, RuntimeError) as error:  # the latter without checksums: then a name can be another
            refused.append(error)
        else:
            assert torch.equal(model(images), expected)
    assert all(str(path) in str(error) for error in refused if isinstance(error, ValueError))
    assert 0.9 * FUZZED < len(refused) < FUZZED


def test_learned_values_that_are_not_finite_load_and_are_told_once(tmp_path):
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    path = tmp_path / 'model.safetensors'
    tensors = load_file(path)
    tensors['fc.weight'][0, 0] = float('nan')
    tensors['fc.bias'][0] = float('inf')
    save_file(tensors, path)
    with pytest.warns(
        UserWarning, match=r"model.safetensors: 'fc.bias' and 1 more tensors hold values that are not"
    ) as w:
        model = load_model(tmp_path)
    assert len(w) == 1
    assert model.fc.weight[0, 0].isnan()


def test_a_file_of_the_fixtures_is_whole():
    model = timm.create_model(f'local-dir:{FIXTURE}', pretrained=True).eval()
    assert set(timm_lc.verify(model).values()) == {'drawn'}
