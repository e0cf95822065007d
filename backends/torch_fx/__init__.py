"""The torch backend: a network as a ``torch.fx`` module."""

from .checkpoint import read_checkpoint as read_checkpoint
from .checkpoint import resample as resample
from .lowering import LOWER as LOWER
from .lowering import UNSUPPORTED as UNSUPPORTED
from .module import forward as forward
from .module import lower as lower
from .module import runner as runner
from .module import weights_of as weights_of
from .standalone import write_source as write_source
from .timing import timed as timed
