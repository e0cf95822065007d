"""ONNX Runtime: sessions that say where they run, and nothing on stderr."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from archir.diag import BAD_INPUT, ArchirError, error
from archir.ops.arithmetic import Array

Device = Literal["cpu", "cuda", "auto"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
NVIDIA = (CUDA, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
_FATAL = 4
_WARNING = 2


def session(model: bytes | str | os.PathLike[str], device: Device = "cpu") -> Any:
    """A session for a model, given as bytes or as a path.

    Args:
        model: The serialised model, or the path of its file.
        device: ``auto`` takes a GPU where one works.

    Raises:
        ArchirError: A507 (ONNX Runtime refuses the model), A508 (no such device here).
    """
    made = _opened(model, CUDA if device != "cpu" and _usable(CUDA) else CPU)
    if device == "cuda" and provider_of(made) != CUDA:
        raise error("A508", "ONNX Runtime has no working CUDA device here", hint="--device auto")
    return made


def _opened(
    model: bytes | str | os.PathLike[str],
    provider: str,
    *,
    profile: Path | None = None,
    optimised: bool = True,
    folder: Path | None = None,
) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    if folder is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(folder))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # TF32 keeps 10 bits of a factor, too few to compare by.
    wanted: list[Any] = [(CUDA, {"use_tf32": 0})] if provider == CUDA else [provider]
    source = model if isinstance(model, bytes) else os.fspath(model)
    onnxruntime.set_default_logger_severity(_FATAL)  # of providers that cannot be loaded
    try:
        return onnxruntime.InferenceSession(
            source,
            options,
            providers=wanted if provider == CPU else [*wanted, CPU],
            enable_fallback=0,  # it would print what it does
        )
    except Exception as reason:
        # ONNX Runtime raises a class of its own for each status; they share no base class.
        raise error("A507", f"ONNX Runtime refuses the model: {_short(reason)}") from reason
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def provider_of(made: Any) -> str:
    """The execution provider that a session prefers, and so runs on."""
    return str(made.get_providers()[0])


def run(made: Any, feeds: Mapping[str, Array]) -> list[Array]:
    """Run a session on arrays, by input name.

    Raises:
        ArchirError: A507, ONNX Runtime fails.
    """
    try:
        found: Sequence[Array] = made.run(None, dict(feeds))
    except Exception as reason:
        raise error("A507", f"ONNX Runtime cannot run the model: {_short(reason)}") from reason
    return [np.asarray(value) for value in found]


def accepts(model: bytes) -> bool:
    """Whether ONNX Runtime loads a model."""
    try:
        _opened(model, CPU)
    except ArchirError:
        return False
    return True


# --- providers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placement:
    """Where a file was to run, and where it ran."""

    asked: str
    """The provider that was asked for, by its short name; ``auto`` takes a GPU where one works."""
    available: tuple[str, ...]
    """The providers that this ONNX Runtime was built with."""
    providers: tuple[str, ...]
    """Those of the session, in the order in which it prefers them."""
    nodes: Mapping[str, int] | None = None
    """How many nodes ran on each, after ONNX Runtime's fusions; None where there is only one."""
    elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Nodes that ran elsewhere than on the first provider, by their operators."""
    why: str = ""
    """Why the file does not run where it was to run."""

    @property
    def fell_back(self) -> bool:
        """Whether something ran elsewhere than where it was to run."""
        return bool(self.why or self.elsewhere)

    def text(self) -> str:
        """Where nodes fell back to, in words."""
        if self.why:
            return self.why
        where = ", ".join(short(name) for name in self.nodes or {} if name != self.providers[0])
        ops = ", ".join(f"{len(names)} {op}" for op, names in self.elsewhere.items())
        return f"some nodes ran on {where} and not on {short(self.providers[0])}: {ops}"


def short(provider: str) -> str:
    """A provider's name as it is given to ``--provider``: ``cuda``."""
    return provider.removesuffix("ExecutionProvider").lower()


def named(name: str) -> str:
    """The provider that a name means, short or in full; ``auto`` takes a GPU where one works.

    Raises:
        ArchirError: A545, ONNX Runtime knows none of that name.
    """
    if name == "auto":
        return CUDA if _usable(CUDA) else CPU
    known = {short(p): str(p) for p in onnxruntime.get_all_providers()}
    found = known.get(short(name))
    if found is None:
        message = f"ONNX Runtime knows no execution provider `{name}`"
        hint = f"auto, {', '.join(sorted(known))}"
        raise error("A545", message, hint=hint, status=BAD_INPUT)
    return found


@contextmanager
def running(model: str | os.PathLike[str], provider: str) -> Iterator[Runner]:
    """A file in a session on a provider, or on the CPU where that does not work.

    Raises:
        ArchirError: A507 (ONNX Runtime refuses the model), A545 (no such provider).
    """
    wanted = named(provider)
    usable = _usable(wanted)
    with tempfile.TemporaryDirectory(prefix="archir-") as folder:
        # What runs on the CPU alone needs no profile to tell where it ran.
        profile = Path(folder, "run") if usable and wanted != CPU else None
        try:
            made = _opened(model, wanted if usable else CPU, profile=profile)
        except ArchirError:
            if profile is None:
                raise
            made, profile = _opened(model, CPU), None
        found = Runner(provider, wanted, made, profiled=profile is not None)
        try:
            yield found
        finally:
            found.close()


class Runner:
    """A file in a session, and what is known of where it runs."""

    def __init__(self, asked: str, wanted: str, made: Any, *, profiled: bool) -> None:
        self.asked, self.wanted, self.session = asked, wanted, made
        self._profiled = profiled
        self._nodes: dict[str, int] | None = None
        self._elsewhere: dict[str, tuple[str, ...]] = {}

    def close(self) -> None:
        """End the profile, if it has not been read."""
        if self._profiled:
            self._profiled = False
            self.session.end_profiling()

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Run the file; the first run shows which node runs where."""
        found = run(self.session, feeds)
        if self._profiled:
            self._read_profile()
        return found

    def _read_profile(self) -> None:
        self._profiled = False
        path = Path(self.session.end_profiling())
        ran = placed(json.loads(path.read_text(encoding="utf-8")))
        main = provider_of(self.session)
        self._nodes = {}
        elsewhere: dict[str, list[str]] = {}
        for name, (op, provider) in ran.items():
            self._nodes[provider] = self._nodes.get(provider, 0) + 1
            if provider != main:
                elsewhere.setdefault(op, []).append(name)
        self._elsewhere = {op: tuple(names) for op, names in sorted(elsewhere.items())}

    @property
    def placement(self) -> Placement:
        """Where the file was to run, and where it ran."""
        why = ""
        if provider_of(self.session) != self.wanted:
            built = self.wanted in onnxruntime.get_available_providers()
            reason = "does not work on this machine" if built else "is not in this ONNX Runtime"
            why = f"{short(self.wanted)} {reason}; the file ran on cpu"
        return Placement(
            self.asked,
            tuple(onnxruntime.get_available_providers()),
            tuple(self.session.get_providers()),
            self._nodes,
            self._elsewhere,
            why,
        )


def placed(events: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """The operator and the provider of each node that a profile of ONNX Runtime names."""
    found: dict[str, tuple[str, str]] = {}
    for event in events:
        given = event.get("args", {})
        if event.get("cat") == "Node" and given.get("provider"):
            name = str(event["name"]).removesuffix("_kernel_time")
            found[name] = str(given.get("op_name", "")), str(given["provider"])
    return found


def unoptimised(model: str | os.PathLike[str]) -> Any:
    """A session on the CPU that runs the nodes as they stand in the file.

    Raises:
        ArchirError: A507, ONNX Runtime refuses the model.
    """
    return _opened(model, CPU, optimised=False)


def in_memory(model: bytes, folder: Path) -> Any:
    """A session on the CPU for a serialised model whose weights may lie in a folder.

    Raises:
        ArchirError: A507, ONNX Runtime refuses the model.
    """
    return _opened(model, CPU, folder=folder)


def _usable(provider: str) -> bool:
    # Asking ONNX Runtime for CUDA where there is none makes it complain on stderr.
    return provider in onnxruntime.get_available_providers() and (
        provider not in NVIDIA or _has_gpu()
    )


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or os.name == "nt"


def _short(reason: Exception) -> str:
    text = " ".join(str(reason).split())
    return text if len(text) <= 300 else text[:297] + "..."
