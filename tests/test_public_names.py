"""What every public function says of what is no network."""

import pytest

import timm_lc

CALLS = {
    'add_adapters': (), 'add_linear_combinations': (2,), 'count_parameters': (), 'describe': (), 'fold': (),
    'freeze_spatial': (), 'load_adapter': ('file',), 'prune_pointwise': (0.5,), 'push_to_hub': ('user/name',),
    'remove_adapters': (), 'save_adapter': ('file',), 'save_pretrained': ('folder',), 'share_weights': (),
    'to_explicit': (), 'to_implicit': (), 'verify': (),
}  # fmt: skip


@pytest.mark.parametrize('name', CALLS)
def test_a_name_is_no_network(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=r"`model` must be an nn\.Module, got 'resnet18'"):
        getattr(timm_lc, name)('resnet18', *CALLS[name])
    assert not list(tmp_path.iterdir())


def test_these_are_all_public_functions():
    assert {name for name in timm_lc.__all__ if name[0].islower()} == set(CALLS)
