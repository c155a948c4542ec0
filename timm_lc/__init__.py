"""CNNs whose spatial filters are random and never learn, in timm (Gavrikov and Keuper, 2023).

Importing it registers the `lc_` models and `l1` optimizers with timm, and changes nothing else.
"""

from . import models as models
from . import optim as optim
from .analysis.counting import count_parameters as count_parameters
from .analysis.description import describe as describe
from .checkpoints.adapters import load_adapter as load_adapter
from .checkpoints.adapters import save_adapter as save_adapter
from .checkpoints.checkpoint import save_pretrained as save_pretrained
from .checkpoints.hub import push_to_hub as push_to_hub
from .layers.lc_conv import LCConv2d as LCConv2d
from .layers.verify import verify as verify
from .transforms.adapt import add_adapters as add_adapters
from .transforms.adapt import remove_adapters as remove_adapters
from .transforms.combine import add_linear_combinations as add_linear_combinations
from .transforms.convert import to_explicit as to_explicit
from .transforms.convert import to_implicit as to_implicit
from .transforms.fold import fold as fold
from .transforms.freeze import freeze_spatial as freeze_spatial
from .transforms.prune import prune_pointwise as prune_pointwise
from .transforms.share import share_weights as share_weights

__version__ = '0.1.0'

__all__ = [
    'LCConv2d', 'add_adapters', 'add_linear_combinations', 'count_parameters', 'describe', 'fold', 'freeze_spatial',
    'load_adapter', 'prune_pointwise', 'push_to_hub', 'remove_adapters', 'save_adapter', 'save_pretrained',
    'share_weights', 'to_explicit', 'to_implicit', 'verify',
]  # fmt: skip
