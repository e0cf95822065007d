"""The ONNX backend: a network as an ONNX file, and ONNX Runtime to run it."""

from .deliver import Report as Report
from .deliver import export as export
from .execute import forward as forward
from .lowering import LOWER as LOWER
from .lowering import UNSUPPORTED as UNSUPPORTED
from .model import build as build
from .timing import timed as timed
from .versions import DEFAULT as DEFAULT
from .versions import OLDEST as OLDEST
from .versions import newest as newest
from .wire import serialise as serialise
