"""Networks as files for use elsewhere, each compared with its source: `timm-lc export`."""

import tempfile
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from timm_lc.analysis.evaluation import folder_loader
from timm_lc.checkpoints.card import model_card
from timm_lc.checkpoints.checkpoint import CARD, WEIGHTS, is_foreign_card, load_model, save_pretrained
from timm_lc.checkpoints.facts import Facts
from timm_lc.checkpoints.usage import PlainForm
from timm_lc.inputs import input_size
from timm_lc.naming import architecture_of, has_lc_name
from timm_lc.transforms.fold import fold

__all__ = ['FORMS', 'Comparison', 'Export', 'compare', 'export']

FORMS = ('plain', 'folded', 'onnx', 'safetensors')
PROGRAM, ONNX = 'model.pt2', 'model.onnx'
ONNX_LIMIT = 2_000_000_000  # bytes of weights in one ONNX file: protobuf ends at 2 GiB

# Largest difference of logits, as a share of the largest logit. Saving a network as it is changes nothing; folding
# rounds weights once, and runtimes sum in another order.
EXACT, REORDERED = 0.0, 1e-4
ROUNDED: dict[torch.dtype | None, float] = {torch.float16: 0.01, torch.bfloat16: 0.1}

Network = Callable[[Tensor], Tensor]


class Comparison(NamedTuple):
    """An exported file against its source.

    Attributes:
        file: Name of the file.
        images: What both were given.
        number: How many.
        difference: Largest absolute difference of logits.
        relative: The same as a share of the source's largest absolute logit.
        agreement: Share of predictions that are the same, in [0, 1].
    """

    file: str
    images: str
    number: int
    difference: float
    relative: float
    agreement: float


class Export(NamedTuple):
    """The files of an export, their comparisons with the source, and what else a user should know."""

    files: list[Path]
    comparisons: list[Comparison]
    notes: list[str]


def export(
    model: nn.Module,
    form: str,
    directory: str | Path,
    *,
    sparse: bool = False,
    dtype: torch.dtype | None = None,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    tolerance: float | None = None,
    facts: Facts | None = None,
) -> Export:
    """Write `model` in another form. The files appear only when whole, and if they give the outputs of `model`.

    Args:
        model: A network from `timm.create_model`, on the CPU and in eval mode.
        form: 'plain' loads without this package: a stock timm architecture with every filter written out or, where
            timm has none, a `torch.export` program and ONNX. 'folded' is a plain network for timm with this package,
            'onnx' one for other runtimes, 'safetensors' the network as it is.
        directory: Folder to write to; made if need be.
        sparse: As in `save_pretrained`, for 'safetensors'.
        dtype: As in `save_pretrained`, for 'safetensors'.
        data_dir: ImageFolder tree whose validation images are compared, besides random ones.
        limit: Images of it to take; None takes all.
        tolerance: Largest difference of logits, as a share of the largest logit; None is that of the form.
        facts: What the model card says of the training.

    Raises:
        ValueError: If an argument is wrong, or logits differ by more than `tolerance`.
        ModuleNotFoundError: If 'onnx' needs packages that are not installed.

    Example:
        >>> import tempfile, timm, timm_lc
        >>> model = timm.create_model('lc_resnet20_16x1').eval()
        >>> [path.name for path in export(model, 'folded', tempfile.mkdtemp()).files]
        ['README.md', 'config.json', 'model.safetensors']
    """
    _check(form, sparse=sparse, dtype=dtype, has_data=data_dir is not None, limit=limit)
    if model.training:
        raise ValueError('`model` must be in eval mode, in which it is compared: call `model.eval()` first')
    sets: dict[str, Iterable[Any]] = {'random images': _random_images(model)}
    if data_dir is not None:
        sets[str(data_dir)] = folder_loader(model, data_dir, batch_size=32, limit=limit)
    if tolerance is None:
        tolerance = REORDERED if form != 'safetensors' else ROUNDED.get(dtype, EXACT)
    directory = Path(directory).absolute()
    with tempfile.TemporaryDirectory(dir=_existing(directory), prefix='.exporting-') as staged:
        written, notes = _write(model, form, Path(staged), sparse=sparse, dtype=dtype, facts=facts)
        comparisons = [
            _within(tolerance, compare(model, network, batches)._replace(file=file, images=name))
            for file, network in written.items()
            for name, batches in sets.items()
        ]
        return Export(_publish(Path(staged), directory), comparisons, notes)


@torch.inference_mode()
def compare(source: Network, exported: Network, batches: Iterable[Any]) -> Comparison:
    """Compare the logits of two networks for all batches, (images (N, C_in, H, W), ...)."""
    pairs = [(source(images), exported(images)) for images, *_ in batches]
    expected, actual = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    difference = (actual - expected).abs().max().item()
    largest = max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)
    agreement = (actual.argmax(1) == expected.argmax(1)).double().mean().item()
    return Comparison('', '', len(expected), difference, difference / largest, agreement)


def _check(form: str, *, sparse: bool, dtype: torch.dtype | None, has_data: bool, limit: int | None) -> None:
    if form not in FORMS:
        raise ValueError(f'`form` must be one of {", ".join(FORMS)}, got {form!r}')
    if (sparse or dtype) and form != 'safetensors':
        raise ValueError(f'`sparse` and `dtype` are for safetensors: {form} holds every weight in float32')
    if limit is not None and not has_data:
        raise ValueError('`limit` needs `data_dir`: it counts its images')
    if form == 'onnx':
        _require_onnx()


def _require_onnx() -> None:
    missing = [name for name in ('onnx', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"ONNX needs {' and '.join(missing)}: pip install 'timm_lc[onnx]'")


def _random_images(model: nn.Module) -> list[tuple[Tensor]]:
    """Return 16 images of the network's size, one of them a batch of its own, the same every time."""
    images = torch.randn(16, *input_size(model), generator=torch.Generator().manual_seed(0))
    return [(images[:1],), (images[1:],)]


def _existing(directory: Path) -> Path:
    """Return the nearest folder that exists, on whose file system `directory` is or will be."""
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f'`directory` must be a folder, got the file {nearest}')
    return nearest


def _write(
    model: nn.Module, form: str, folder: Path, *, sparse: bool, dtype: torch.dtype | None, facts: Facts | None
) -> tuple[dict[str, Network], list[str]]:
    """Write the files of a form; return the networks read back from them, by file, and notes for the user."""
    if form == 'safetensors':
        return {WEIGHTS: _save(model, folder, facts=facts, sparse=sparse, dtype=dtype)}, []
    folded = fold(model)
    if form == 'onnx':
        return {ONNX: _save_onnx(folded, folder / ONNX)}, []
    if form == 'folded' or not has_lc_name(folded):
        card = model_card(folded, facts=facts, trained=model)
        return {WEIGHTS: _save(folded, folder, facts=facts, card=card)}, []
    return _write_program(model, folded, folder, facts)


def _write_program(
    model: nn.Module, folded: nn.Module, folder: Path, facts: Facts | None
) -> tuple[dict[str, Network], list[str]]:
    """Write the form for where timm has no such network, with ONNX if its packages are there; return as `_write`."""
    note = f'stock timm has no {architecture_of(model)}: {PROGRAM} is it folded, for torch.export.load without timm'
    written, notes = {PROGRAM: _save_program(folded, folder / PROGRAM)}, [f'{note}, and {ONNX} for other runtimes']
    try:
        written[ONNX] = _save_onnx(folded, folder / ONNX)
    except ModuleNotFoundError as error:
        notes = [note, f'{ONNX} was left out: {error}']
    form = PlainForm(is_program=True, has_onnx=ONNX in written)
    card = model_card(folded, plain=form, facts=facts, trained=model)
    (folder / CARD).write_text(card, encoding='utf-8')
    return written, notes


def _save(model: nn.Module, folder: Path, **options: Any) -> Network:
    """Write a folder of `save_pretrained`, whose options these are, and return the network read back from it."""
    return load_model(save_pretrained(model, folder, **options))


def _program(model: nn.Module) -> torch.export.ExportedProgram:
    """Return the network for batches of any size, without the paths of source files that torch notes."""
    images = torch.zeros(2, *input_size(model))
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)
    return program


def _save_program(model: nn.Module, path: Path) -> Network:
    torch.export.save(_program(model), path)
    return torch.export.load(path).module()


def _save_onnx(model: nn.Module, path: Path) -> Network:
    """Write ONNX with input `images`, output `logits`, by torch's newer exporter if onnxscript is there."""
    _require_onnx()
    import onnx
    import onnxruntime

    named: dict[str, Any] = {'input_names': ['images'], 'output_names': ['logits']}
    named['external_data'] = sum(weight.nbytes for weight in model.state_dict().values()) > ONNX_LIMIT
    if find_spec('onnxscript'):
        batch = ({0: 'batch'},)
        torch.onnx.export(_program(model), (), path, dynamo=True, dynamic_shapes=batch, verbose=False, **named)
    else:
        images = torch.zeros(2, *input_size(model))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of its deprecation, and of what tracing fixes: batches are compared
            torch.onnx.export(model, (images,), path, dynamo=False, dynamic_axes={'images': {0: 'batch'}}, **named)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


def _within(tolerance: float, comparison: Comparison) -> Comparison:
    """Return the comparison if it is within the tolerance; a difference that is no number is not."""
    if comparison.relative <= tolerance:
        return comparison
    raise ValueError(
        f'{comparison.file} is not the network: on {comparison.images} logits differ by up to '
        f'{comparison.difference:.2g}, {comparison.relative:.2g} of the largest, and `tolerance` is {tolerance:g}; '
        'nothing was written'
    )


def _publish(staged: Path, directory: Path) -> list[Path]:
    """Move all files into `directory`, but no model card over one that somebody else wrote."""
    directory.mkdir(parents=True, exist_ok=True)
    moved = [path for path in sorted(staged.iterdir()) if path.name != CARD or not is_foreign_card(directory / CARD)]
    return [path.replace(directory / path.name) for path in moved]
