"""What only a GPU shows: synchronised batch norm, and float16's gradient scaler with an l1 optimizer.

On a CPU, which has neither, each takes the nearest step, so that a test can run it.
"""

import argparse
import sys

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import timm_lc  # noqa: F401  # registers the names

BATCH, STEPS, LR, L1 = 32, 20, 0.05, 1e-4


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, epilog='Example: python benchmarks/gpu_checks.py scaler')
    parser.add_argument('check', choices=CHECKS)
    parser.add_argument('--device', default='cuda')
    args = parser.parse_args(argv)
    CHECKS[args.check](torch.device(args.device))
    return 0


def check_sync_bn(device):
    """Train in DDP with synchronised batch norm, in a group of one, and without; the losses must be the same."""
    backend, alone = 'nccl' if device.type == 'cuda' else 'gloo', torch.distributed.HashStore()
    torch.distributed.init_process_group(backend, store=alone, rank=0, world_size=1)
    try:
        plain, synchronised = network(device), convert_sync_batchnorm(network(device))
        if device.type == 'cpu':  # where synchronised batch norm evaluates only
            compare(plain.eval()(images(device)), synchronised.eval()(images(device)))
            return
        losses = [train(DistributedDataParallel(model), device) for model in (plain, synchronised)]
        compare(*losses)
    finally:
        torch.distributed.destroy_process_group()


def check_scaler(device):
    """Train with l1 in float16 with a gradient scaler, and in float32; the losses must be close."""
    half = torch.float16 if device.type == 'cuda' else torch.bfloat16
    plain, scaled = network(device), network(device)
    whole = train(plain, device, opt='l1sgd', l1=L1)
    compare(whole, train(scaled, device, dtype=half, opt='l1sgd', l1=L1), 0.05)
    changes = [
        (after - before).abs().mean() for after, before in zip(scaled.parameters(), plain.parameters(), strict=True)
    ]
    print(f'mean difference of weights: {torch.stack(changes).mean().item():.2e}')


def network(device):
    """Return the same network each time."""
    torch.manual_seed(0)
    return timm.create_model('lc_resnet20_16x8').to(device)


def images(device):
    """Return the same images (N, 3, 32, 32) each time."""
    return torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)


def train(model, device, dtype=None, opt='sgd', **kwargs):
    """Return the losses of some steps, with a gradient scaler if `dtype` is a type of autocast."""
    optimizer = create_optimizer_v2(list(model.parameters()), opt=opt, lr=LR, momentum=0.9, **kwargs)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is not None)
    batch, labels, losses = images(device), torch.arange(BATCH, device=device) % 10, []
    for _ in range(STEPS):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = cross_entropy(model(batch).float(), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    return torch.stack(losses)


def compare(one, other, rtol=1e-3):
    """Print the largest difference, and refuse one that is not small."""
    print(f'largest difference: {(one - other).abs().max().item():.2e}; last: {one[-1].flatten()[0]:.4f}')
    torch.testing.assert_close(other, one, rtol=rtol, atol=rtol)


CHECKS = {'sync-bn': check_sync_bn, 'scaler': check_scaler}


if __name__ == '__main__':
    sys.exit(main())
