"""Code that loads a network and classifies a picture, with and without this package, for a model card."""

import dataclasses

from torch import nn

from timm_lc.inputs import data_config, input_size
from timm_lc.naming import architecture_of, class_names, has_lc_name, is_stock

__all__ = ['PlainForm', 'usage']

INSTALL = 'It needs timm and `timm_lc`, which `pip install PATH` installs from its wheel or a clone of its repository'


@dataclasses.dataclass(frozen=True)
class PlainForm:
    """The form of a network that needs no `timm_lc`, as a card knows of it.

    Args:
        repo_id: Its repository; that of the card itself means its folder plain/, None that there is none.
        of: Repository of the network, if the card is that of this form itself.
        is_program: Whether the card's network is this form as a `torch.export` program.
        has_onnx: Whether it has `model.onnx` beside the program.
    """

    repo_id: str | None = None
    of: str | None = None
    is_program: bool = False
    has_onnx: bool = False


def usage(model: nn.Module, repo_id: str | None, plain: PlainForm) -> str:
    """Return what a card says of the use of `model`; the arguments are those of `model_card`."""
    if plain.is_program:
        return _program_usage(model, repo_id, '', plain.has_onnx)
    if plain.of and repo_id:
        return f'{_plain_usage(model, repo_id, "", plain.has_onnx)}\n\n{_classify(model)}'
    is_lc = has_lc_name(model)
    package = ['import timm_lc  # registers the lc_ models'] if is_lc else []
    source = f'hf-hub:{repo_id}' if repo_id else 'local-dir:PATH_OF_THIS_FOLDER'
    code = _python('import timm', *package, '', f"model = timm.create_model('{source}', pretrained=True).eval()")
    text = f'{INSTALL if is_lc else "It needs timm alone"}:\n\n{code}\n\n{_classify(model)}'
    if not plain.repo_id:
        return text
    written_out = _plain_usage(model, plain.repo_id, 'plain/' if plain.repo_id == repo_id else '', plain.has_onnx)
    return f'{text}\n\nThe same function without `timm_lc`, every filter written out:\n\n{written_out}'


def _classify(model: nn.Module) -> str:
    """Return code that applies the network `model` to a picture."""
    mode = {1: 'L', 3: 'RGB'}.get(input_size(model)[0])
    if mode is None or not model.num_classes:
        return 'It takes images as `timm.data.resolve_model_data_config(model)` says.'
    code = _python(
        'import torch',
        'from PIL import Image',
        '',
        'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))',
        f"image = transform(Image.open('picture.jpg').convert('{mode}'))",
        'with torch.inference_mode():',
        '    probabilities = model(image[None]).softmax(dim=1)',
        *(["name = model.pretrained_cfg['label_names'][probabilities.argmax()]"] if class_names(model) else []),
    )
    numbers = '' if class_names(model) else ' (class numbers are those of the training set)'
    return f'To classify a picture{numbers}:\n\n{code}'


def _plain_usage(model: nn.Module, repo_id: str, folder: str, has_onnx: bool) -> str:
    """Return code that builds the plain form: timm's, or a program where stock timm has no such network."""
    if not is_stock(architecture_of(model)):
        return _program_usage(model, repo_id, folder, has_onnx)
    if not folder:
        return _python('import timm', '', f"model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()")
    return _python(
        'import timm',
        'from huggingface_hub import snapshot_download',
        '',
        f"folder = snapshot_download('{repo_id}', allow_patterns='{folder}*')",
        f"model = timm.create_model(f'local-dir:{{folder}}/{folder.rstrip('/')}', pretrained=True).eval()",
    )


def _program_usage(model: nn.Module, repo_id: str | None, folder: str, has_onnx: bool) -> str:
    file = f"hf_hub_download('{repo_id}', '{folder}model.pt2')" if repo_id else "'model.pt2'"
    download = ['from huggingface_hub import hf_hub_download'] if repo_id else []
    code = _python('import torch', *download, '', f'model = torch.export.load({file}).module()')
    config = data_config(model)
    shape, mean, std = (', '.join(map(str, config[key])) for key in ('input_size', 'mean', 'std'))
    text = f'It takes images (N, {shape}) in [0, 1], less mean ({mean}), over standard deviation ({std}).'
    if has_onnx:
        text += f' `{folder}model.onnx` is the same for ONNX runtimes: input `images`, output `logits`.'
    return f'{code}\n\n{text}'


def _python(*lines: str) -> str:
    return '\n'.join(['```python', *lines, '```'])
