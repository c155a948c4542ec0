"""CNNs whose spatial filters are random and never learn, in timm (Gavrikov and Keuper, 2023).

Importing it registers the `lc_` models and `l1` optimizers with timm, and changes nothing else.
"""

from . import models as models
from . import optim as optim
from .checkpoint import save_pretrained as save_pretrained
from .convert import add_linear_combinations as add_linear_combinations
from .counting import count_parameters as count_parameters
from .folding import fold as fold
from .freeze import freeze_spatial as freeze_spatial
from .hub import push_to_hub as push_to_hub
from .layers import LCConv2d as LCConv2d
from .pruning import prune_pointwise as prune_pointwise
from .sharing import share_weights as share_weights
