"""Scores that train nothing: cost, and what an untrained network tells from one batch.

As in Abdelfattah, Mehrotra, Dudziak, Lane 2021, "Zero-Cost Proxies for Lightweight NAS" (the
numbers of their code are from memory). All weights are drawn anew, by torch's defaults, from the
seed of the evaluation, and so are the images. A score is no accuracy: larger is meant to be better,
no more. Importing this module needs no torch; all but :class:`Params` and :class:`Macs` do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from archir.api import Network
from archir.search.parts import Evaluated
from archir.search.untrained import draw_weights, stream
from archir.train.data import Dataset, check_fits
from archir.train.entries import check_entries

if TYPE_CHECKING:
    from archir.search.features import Place

IMAGES, WEIGHTS = range(2)
"""What random numbers are drawn for: the second entry of the key they come from."""


@dataclass(frozen=True)
class _Proxy:
    """What all of them share. The device is no part of :meth:`record`."""

    kind: ClassVar[str]

    @property
    def inherits(self) -> bool:
        """No: the weights that a network comes with are not looked at."""
        return False

    def record(self) -> Mapping[str, Any]:
        """All entries but the device."""
        return {"kind": self.kind, **{k: v for k, v in asdict(self).items() if k != "device"}}


@dataclass(frozen=True)
class Params(_Proxy):
    """The number of trained parameters."""

    kind: ClassVar[str] = "params"

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        return Evaluated({"score": float(network.cost().params)})


@dataclass(frozen=True)
class Macs(_Proxy):
    """The number of multiply-accumulates for one image."""

    kind: ClassVar[str] = "macs"

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        return Evaluated({"score": float(network.cost().macs)})


@dataclass(frozen=True)
class _Run(_Proxy, ABC):
    """A proxy that runs the network."""

    device: str = "auto"

    def evaluate(self, network: Network, dataset: Dataset, seed: int, folder: Path) -> Evaluated:
        """Score a network.

        Raises:
            ArchirError: A734, the score is not finite; A735, it has nothing that the score looks
                at; A623 or A625, network and data do not fit; A622, torch is missing; those of
                :mod:`archir.train.device`.
        """
        from archir.search import features  # noqa: PLC0415 - it needs torch

        check_fits(network.graph, dataset)
        with features.placed(network.graph, dataset, self.device) as place:
            weights = draw_weights(network, "torch", (seed, WEIGHTS))
            module = place.module(network.graph, weights)
            return Evaluated({"score": self._score(module, place, seed)})

    @abstractmethod
    def _score(self, module: Any, place: Place, seed: int) -> float:
        """The score of a lowered network."""


@dataclass(frozen=True)
class SynFlow(_Run):
    """The logarithm of the synaptic flow: Tanaka, Kunin, Yamins, Ganguli 2020.

    The sum of ``weight * gradient`` over convolutions and linear layers, of a network with the
    absolute values of its weights, for an image of ones, in float64; batch norms have their first
    statistics. Of a network that its input does not reach it is that of the least float, -744.4.
    """

    kind: ClassVar[str] = "synflow"

    def _score(self, module: Any, place: Place, seed: int) -> float:
        from archir.search import zero_cost  # noqa: PLC0415 - it needs torch

        return zero_cost.synflow(module, place)


@dataclass(frozen=True)
class _Batch(_Run):
    """A proxy that looks at a batch of training images, in training mode."""

    batch: int = 64
    """Images (Abdelfattah et al. 2021)."""

    RANGES: ClassVar[Mapping[str, tuple[float, float]]] = {"batch": (2, 10**5)}

    def __post_init__(self) -> None:
        """Refuse what is no batch.

        Raises:
            ArchirError: A733.
        """
        check_entries("A733", self, self.RANGES)

    def _score(self, module: Any, place: Place, seed: int) -> float:
        from archir.search import zero_cost  # noqa: PLC0415 - it needs torch

        images = place.some("train", self.batch, stream(seed, IMAGES))
        return zero_cost.BY_BATCH[self.kind](module, place, images)


@dataclass(frozen=True)
class Nwot(_Batch):
    """How far rectifiers tell images apart: Mellor, Turner, Storkey, Crowley 2021.

    The log determinant of the matrix that counts, for each two images, the units which are on for
    both or off for both. Eigenvalues count as at least 1e-12 of the largest.
    """

    kind: ClassVar[str] = "nwot"
    batch: int = 128
    """Images (Mellor et al. 2021)."""


@dataclass(frozen=True)
class GradNorm(_Batch):
    """The norms of the gradients of convolutions and linear layers, summed."""

    kind: ClassVar[str] = "grad_norm"


@dataclass(frozen=True)
class Snip(_Batch):
    """The sum of ``|weight * gradient|``: Lee, Ajanthan, Torr 2019."""

    kind: ClassVar[str] = "snip"


@dataclass(frozen=True)
class Jacov(_Batch):
    """How little the gradients by the input correlate over images: Mellor et al. 2020 (v1).

    Minus the sum of ``log(v + k) + 1 / (v + k)`` over the eigenvalues v of the correlation matrix
    of the images' gradients of the summed outputs; k is 1e-5.
    """

    kind: ClassVar[str] = "jacov"
