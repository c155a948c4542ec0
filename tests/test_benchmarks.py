"""benchmarks/: each script starts, and tells what it is for."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / 'benchmarks'
SCRIPTS = [path for path in sorted(FOLDER.glob('*.py')) if "if __name__ == '__main__'" in path.read_text()]


@pytest.mark.parametrize('script', SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_script_tells_its_arguments(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(script), '--help'])
    monkeypatch.setattr(sys, 'path', [str(FOLDER), *sys.path])  # as python SCRIPT does
    with pytest.raises(SystemExit, match='0'):
        runpy.run_path(str(script), run_name='__main__')
    assert f'usage: {script.name}' in capsys.readouterr().out
