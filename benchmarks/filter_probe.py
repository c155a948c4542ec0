"""Watch a training script from within: at exit, write what filters each rank ended with.

Given to timm's train.py as a second module: `--device-modules timm_lc filter_probe`, with the folder FILTER_PROBE in
the environment. It looks at the networks after the first step of an optimizer and again at exit, the averaged (EMA) one
too, and writes `rank<n>.json`: {'first' | 'last': {'model' | 'ema': {buffer: CRC-32}}}.
"""

import atexit
import gc
import json
import os
import re
import zlib
from pathlib import Path

from timm.task import TrainingTask
from torch.optim.optimizer import register_optimizer_step_post_hook

WRAPPERS = re.compile(r'^((module|_orig_mod)\.)+')


def frozen_buffers(model):
    """Return {name: CRC-32} of the frozen filters of a network, which are its buffers named so, and their records."""
    return {
        WRAPPERS.sub('', name): zlib.crc32(buffer.detach().cpu().contiguous().numpy().tobytes())
        for name, buffer in model.named_buffers()
        if name.rpartition('.')[2] in ('weight', 'vector', 'record', 'lc_record')
    }


def look(task):
    models = {'model': task.get_eval_model(), 'ema': task.get_eval_model(ema=True)}
    return {name: frozen_buffers(model) for name, model in models.items() if model is not None}


def watch(folder):
    """Look at the task that trains after the first step, and at exit, when the script has let it go."""
    seen = {}

    def after_step(optimizer, args, kwargs):
        if not seen:
            seen['task'] = next(o for o in gc.get_objects() if issubclass(type(o), TrainingTask))
            seen['first'] = look(seen['task'])

    def at_exit():
        if seen:
            found = {'first': seen['first'], 'last': look(seen['task'])}
            Path(folder, f'rank{os.environ.get("RANK", 0)}.json').write_text(json.dumps(found))

    register_optimizer_step_post_hook(after_step)
    atexit.register(at_exit)


if 'FILTER_PROBE' in os.environ:
    watch(os.environ['FILTER_PROBE'])
