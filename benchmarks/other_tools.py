"""Apply tools of other packages to frozen networks and to their folded form; print docs/other_tools.md's table.

    python benchmarks/other_tools.py

A tool that is not installed is left out of the table.
"""

import argparse
import copy
import tempfile
import warnings
from importlib.util import find_spec

import timm
import torch
from torch import nn
from torch.nn.utils import prune

import timm_lc

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ONE = IMAGES[:1]
FORMS = {
    'frozen': {'expansion': None},
    'shared': {'expansion': None, 'share_weights': True},
    'LC-Blocks': {'expansion': 4},
    'recycled LC-Blocks': {'expansion': 4, 'share_weights': True, 'recycle': 4},
}


def build(**kwargs):
    return timm.create_model('lc_resnet_cifar', depth=8, width=8, **kwargs).eval()


def difference(actual, model):
    expected = model(IMAGES)
    return f'{((actual - expected).norm() / expected.norm()).item():.0e}'


def convolutions(model, *, is_spatial):
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return {name: module for name, module in found if (max(module.kernel_size) > 1) == is_spatial}


def pointwise(model):
    found = convolutions(model, is_spatial=False).items()
    return {name: module for name, module in found if isinstance(module.weight, nn.Parameter)}


def flop_counter(model):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(ONE)
    return f'{counter.get_total_flops() / 2e6:.2f} M'


def fvcore(model):
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, ONE).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return f'{analysis.total() / 1e6:.2f} M'


def thop(model):
    from thop import profile

    return f'{profile(copy.deepcopy(model), (ONE,), verbose=False)[0] / 1e6:.2f} M'


def ptflops(model):
    from ptflops import get_model_complexity_info

    quiet = {'as_strings': False, 'print_per_layer_stat': False, 'verbose': False, 'backend': 'pytorch'}
    return f'{get_model_complexity_info(copy.deepcopy(model), (3, 32, 32), **quiet)[0] / 1e6:.2f} M'


def torchinfo(model):
    from torchinfo import summary

    return f'{summary(model, input_data=ONE, verbose=0).total_mult_adds / 1e6:.2f} M'


def captum(model):
    from captum.attr import LayerGradCam

    return 'works' if LayerGradCam(model, model.layer3).attribute(IMAGES, target=0).isfinite().all() else 'not finite'


def pytorch_grad_cam(model):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with GradCAM(model, [model.layer3[-1]]) as cam:
        return 'works' if cam(IMAGES, [ClassifierOutputTarget(0)] * 2).shape == (2, 32, 32) else 'another shape'


def torch_export(model):
    return difference(torch.export.export(model, (IMAGES,)).module()(IMAGES), model)


def pt2e(model):
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (IMAGES,)).module(), quantizer)
    prepared(IMAGES)
    return difference(convert_pt2e(prepared)(IMAGES), model)


def qat(model):
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

    prepared = prepare_qat_fx(copy.deepcopy(model).train(), get_default_qat_qconfig_mapping('x86'), (IMAGES,))
    prepared(IMAGES).sum().backward()
    converted = convert_fx(prepared.eval())
    kinds = [type(module).__module__ for module in converted.modules()]
    return f'{sum("quantized" in kind and "conv" in kind for kind in kinds)} quantised convolutions'


def fsdp2(model):
    from torch.distributed.fsdp import fully_shard

    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    sharded, twin = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    for module in list(pointwise(sharded).values()):
        fully_shard(module)
    fully_shard(sharded)
    for each in (sharded, twin):
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        each(IMAGES).square().sum().backward()
        optimizer.step()
    return difference(sharded(IMAGES), twin)


def peft(model):
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(target_modules=list(pointwise(model)), r=2, init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(model), config).eval()
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        reloaded = difference(PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()(IMAGES), adapted)
    return f'reloaded {reloaded}, merged {difference(copy.deepcopy(adapted).merge_and_unload()(IMAGES), adapted)}'


def peft_spatial(model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=list(convolutions(model, is_spatial=True)), r=2, init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(model), config).eval()
    merged = copy.deepcopy(adapted).merge_and_unload()
    twin = copy.deepcopy(model)
    twin.load_state_dict(merged.state_dict())
    return f'merged {difference(merged(IMAGES), adapted)}, reloaded {difference(twin(IMAGES), adapted)}'


def accelerate(model):
    from accelerate import cpu_offload

    return difference(cpu_offload(copy.deepcopy(model), execution_device='cpu')(IMAGES), model)


def torch_prune(model):
    pruned, twin = copy.deepcopy(model), copy.deepcopy(model)
    for each in (pruned, twin):
        for module in pointwise(each).values():
            prune.l1_unstructured(module, 'weight', amount=0.5 if each is pruned else 0.1)
    twin.load_state_dict(pruned.state_dict())
    return f'reloaded {difference(twin(IMAGES), pruned)}'


TOOLS = {
    "torch's FlopCounterMode": flop_counter,
    'fvcore': fvcore,
    'thop': thop,
    'ptflops': ptflops,
    'torchinfo': torchinfo,
    'captum': captum,
    'pytorch_grad_cam': pytorch_grad_cam,
    'torch.export': torch_export,
    'PT2E quantisation (torchao)': pt2e,
    'FX quantisation-aware training': qat,
    'FSDP2, each 1x1 layer': fsdp2,
    'peft, LoRA on 1x1 layers': peft,
    'peft, LoRA on k x k layers': peft_spatial,
    'accelerate, cpu_offload': accelerate,
    'torch.nn.utils.prune': torch_prune,
}
NEEDS = {
    'PT2E quantisation (torchao)': 'torchao',
    'peft, LoRA on 1x1 layers': 'peft',
    'peft, LoRA on k x k layers': 'peft',
    'accelerate, cpu_offload': 'accelerate',
}


def outcome(tool, model):
    """Return what a tool says, or the kind of its error."""
    try:
        return tool(model)
    except Exception as error:  # whatever a tool raises is its outcome
        return type(error).__name__


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.simplefilter('ignore')
    print(f'| tool | {" | ".join(FORMS)} | folded |\n|{"---|" * (len(FORMS) + 2)}')
    for name, tool in TOOLS.items():
        package = NEEDS.get(name, tool.__name__)
        if find_spec(package) or name.startswith(("torch's", 'torch.', 'FX', 'FSDP2')):
            networks = [*(build(**kwargs) for kwargs in FORMS.values()), timm_lc.fold(build(**FORMS['frozen']))]
            print(f'| {name} | {" | ".join(outcome(tool, model) for model in networks)} |', flush=True)


if __name__ == '__main__':
    main()
