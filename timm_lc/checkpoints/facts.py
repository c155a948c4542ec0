"""What a model card and a config say of a network's training: arguments, metrics, the command."""

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ['DEFAULTS', 'RECIPE', 'Facts']

# What of train.py's arguments decides the outcome: no paths, and nothing of the machine
RECIPE = """
    model_kwargs pretrained num_classes in_chans img_size input_size crop_pct mean std interpolation epochs batch_size
    grad_accum_steps opt opt_kwargs opt_eps opt_betas momentum weight_decay clip_grad clip_mode layer_decay lr sched
    warmup_epochs warmup_lr warmup_prefix min_lr cooldown_epochs decay_epochs decay_milestones decay_rate no_aug
    train_crop_mode scale ratio hflip vflip color_jitter aa aug_repeats aug_splits jsd_loss reprob remode mixup cutmix
    mixup_off_epoch smoothing bce_loss bce_sum bce_target_thresh train_interpolation drop drop_path drop_block
    bn_momentum bn_eps sync_bn split_bn model_ema model_ema_decay model_ema_warmup amp amp_dtype model_dtype seed
""".split()  # noqa: SIM905  # a list of sixty quoted words reads worse
# of those, what is worth a line only where it is not train.py's default
DEFAULTS = {
    'clip_mode': 'norm', 'warmup_lr': 1e-5, 'min_lr': 0, 'cooldown_epochs': 0, 'decay_epochs': 90, 'decay_rate': 0.1,
    'decay_milestones': [90, 180, 270], 'aug_repeats': 0, 'aug_splits': 0, 'vflip': 0.0, 'remode': 'pixel', 'drop': 0.0,
    'mixup_off_epoch': 0, 'train_interpolation': 'random', 'model_ema_decay': 0.9998, 'amp_dtype': 'float16',
    'grad_accum_steps': 1,
}  # fmt: skip
# what a card shows beside the recipe
SHOWN = ('model', 'dataset', 'val_split', 'world_size')


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card says that the network itself does not tell.

    Args:
        arguments: train.py's arguments, by their names in args.yaml.
        metrics: The epoch's row of summary.csv: `eval_top1` and `eval_top5` in percent, `eval_loss`, `epoch`.
        dataset: Id of the dataset on the Hub; None for what train.py's `--dataset hfds/ID` says.
        license: Identifier of a licence as the Hub spells it; None claims none.
        command: What trained it, where that was not train.py.
    """

    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    dataset: str | None = None
    license: str | None = None
    command: str = ''

    @property
    def dataset_id(self) -> str | None:
        """Id of the dataset on the Hub, if known."""
        scheme, _, name = (self.arguments.get('dataset') or '').partition('/')
        return self.dataset or (name if scheme in ('hfds', 'hfids') else None)

    @property
    def began_elsewhere(self) -> bool:
        """Whether training began from the weights of another network."""
        return bool(self.arguments.get('initial_checkpoint') or (self._is_local and self.arguments.get('pretrained')))

    @property
    def _is_local(self) -> bool:
        """Whether the network to begin with was named by a path, of the machine that trained it."""
        model = self.arguments.get('model') or ''
        return model.startswith('local-dir:') or bool(self.arguments.get('pretrained_path'))

    def recipe(self) -> dict[str, Any]:
        """Return the arguments that decided the outcome, less those that were off or train.py's defaults."""
        known = {key: self.arguments[key] for key in RECIPE if key in self.arguments}
        left_out = ('pretrained',) if self._is_local else ()
        return {
            key: value
            for key, value in known.items()
            if not _is_off(value) and value != DEFAULTS.get(key) and key not in left_out
        }

    def public(self) -> dict[str, Any]:
        """Return what a config may hold, as the card no path and nothing of the machine; {} if nothing is known."""
        arguments = {key: self.arguments[key] for key in SHOWN if not _is_off(self.arguments.get(key))} | self.recipe()
        if (self.arguments.get('model') or '').startswith('local-dir:'):
            del arguments['model']
        if self.began_elsewhere:
            arguments['initial_checkpoint'] = 'another network'
        known = {**dataclasses.asdict(self), 'arguments': arguments, 'metrics': dict(self.metrics)}
        return {key: value for key, value in known.items() if value}


def _is_off(value: object) -> bool:
    return value is None or value is False or value in ('', [], {})
