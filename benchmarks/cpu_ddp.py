"""Let timm's train.py run several processes on a CPU: `--device-modules timm_lc cpu_ddp`.

train.py passes `device_ids=[device]` to DistributedDataParallel, which refuses them for a network on the CPU. With this
module they are dropped there, so that everything behind that line can be tried without GPUs. For measurements only.
"""

import functools

from torch.nn.parallel import DistributedDataParallel


def without_device_ids(init):
    @functools.wraps(init)
    def wrapper(self, module, device_ids=None, **kwargs):
        on_cpu = all(parameter.device.type == 'cpu' for parameter in module.parameters())
        init(self, module, device_ids=None if on_cpu else device_ids, **kwargs)

    return wrapper


DistributedDataParallel.__init__ = without_device_ids(DistributedDataParallel.__init__)
