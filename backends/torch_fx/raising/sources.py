"""Where modules come from: torchvision, timm, a Python file, an exported program."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import warnings
import zipfile
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.export import ExportedProgram

from archir.diag import BAD_INPUT, ArchirError, error
from archir.lang.state import suggest
from archir.target import ImportOptions

from .archive import read_program
from .bring import BATCHES, Source, evaluating

IMAGE = (3, 224, 224)
SIZES: dict[str, tuple[int, ...]] = {"inception_v3": (3, 299, 299)}
"""The input sizes of networks that were trained on other images."""


def torchvision_source(text: str, options: ImportOptions) -> Source:
    """`NAME` or `NAME@WEIGHTS` of torchvision's registry.

    Raises:
        ArchirError: A520, there is no such model; A503, torchvision is not installed.
    """
    try:
        from torchvision import models  # noqa: PLC0415
    except ImportError as reason:
        raise _missing("torchvision") from reason
    name, _, wanted = text.partition("@")
    known = models.list_models()
    if name not in known:
        raise _unknown("torchvision", name, known)
    weights = None
    if wanted:
        entries = models.get_model_weights(name)
        if wanted not in entries.__members__:
            raise _unknown(f"torchvision:{name}@", wanted, list(entries.__members__))
        weights = entries[wanted]
    torch.manual_seed(options.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchvision, about its own future
            stated = inspect.signature(models.get_model_builder(name)).parameters
            # Without weights of its own a network has none of its backbone's either.
            bare = {"weights_backbone": None} if "weights_backbone" in stated else {}
            module = models.get_model(name, weights=weights, **bare)
    except OSError as reason:
        raise _not_fetched(f"torchvision:{text}", reason) from reason
    size = options.size or _crop(weights) or SIZES.get(name, IMAGE)
    facts: dict[str, Any] = {"source": f"torchvision:{text}", "torchvision": version("torchvision")}
    if weights is None:
        facts["seed"] = options.seed
    preprocess = _transforms(weights)
    return Source(
        f"torchvision:{text}",
        name,
        module,
        (torch.zeros(2, *size),),
        facts,
        _about(weights, options),
        preprocess,
    )


def timm_source(text: str, options: ImportOptions) -> Source:
    """`NAME` or `NAME@TAG` of timm's registry (`@pretrained`: its default weights).

    Raises:
        ArchirError: A520, there is no such model; A503, timm is not installed.
    """
    try:
        import timm  # noqa: PLC0415
        from timm.data.config import resolve_data_config  # noqa: PLC0415
    except ImportError as reason:
        raise _missing("timm") from reason
    name, _, tag = text.partition("@")
    if not timm.is_model(name.partition(".")[0]):
        raise _unknown("timm", name, timm.list_models())
    full = name if tag in ("", "pretrained") else f"{name}.{tag}"
    torch.manual_seed(options.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = timm.create_model(full, pretrained=bool(tag))
    except (OSError, RuntimeError) as reason:
        raise _not_fetched(f"timm:{text}", reason) from reason
    config = resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]
    size = options.size or tuple(config["input_size"])
    facts: dict[str, Any] = {"source": f"timm:{text}", "timm": version("timm")}
    preprocess: tuple[tuple[str, Any], ...] = ()
    if tag:
        preprocess = (
            ("mean", tuple(config["mean"])),
            ("std", tuple(config["std"])),
            ("size", int(size[-1])),
        )
    else:
        facts["seed"] = options.seed
    title = "".join(c if c.isalnum() else "_" for c in name.partition(".")[0])
    return Source(
        f"timm:{text}",
        title,
        module,
        (torch.zeros(2, *size),),
        facts,
        _about(tag or None, options),
        preprocess,
    )


def file_source(text: str, options: ImportOptions) -> Source:
    """`path/to/file.py:factory`: runs the user's code.

    The factory takes no argument and returns a module, or a module and an example input (or a
    tuple of them).

    Raises:
        ArchirError: A601 (no such file), A525 (its code fails, or returns no module).
    """
    path, _, factory = text.rpartition(":")
    if not path or not factory.isidentifier():
        raise error(
            "A520", f"`{text}` names no function", hint="path/to/file.py:factory", status=BAD_INPUT
        )
    file = Path(path)
    code = _read(file)
    torch.manual_seed(options.seed)
    made = _called(file, factory)
    module, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        what = type(module).__name__
        raise error(
            "A525",
            f"`{factory}` of {file} returns no torch.nn.Module but a {what}",
            status=BAD_INPUT,
        )
    notes = [f"ran the code of {file}"]
    given: tuple[torch.Tensor, ...]
    if options.size is not None:
        given = (torch.zeros(2, *options.size),)
    elif isinstance(examples, torch.Tensor):
        given = (_two(examples),)
    elif isinstance(examples, list | tuple):
        given = tuple(_two(example) for example in examples)
    else:
        size, dtype = _guess(module, file)
        given = (torch.zeros(2, *size, dtype=dtype),)
        shown = "x".join(map(str, size))
        notes.append(f"took an input of {shown}, which the module accepts; --size states another")
    title = "".join(c if c.isalnum() else "_" for c in factory)
    facts = {"source": f"{file.name}:{factory}", "sha256": sha256(code).hexdigest()}
    return Source(f"{file}:{factory}", title, module, given, facts, tuple(notes))


def program_source(text: str, options: ImportOptions) -> Source:
    """`net.pt2`: a program that ``torch.export.save`` wrote.

    Raises:
        ArchirError: A601 (no such file), A526 (it is no such program).
    """
    file = Path(text)
    data = _read(file)
    if not zipfile.is_zipfile(file):
        kind = "a pickle" if data[:1] == b"\x80" else "no zip archive"
        raise error("A526", f"{file} is no exported program: it is {kind}", status=BAD_INPUT)
    program = read_program(file)
    if _trains(program):
        raise error(
            "A526",
            f"{file} was captured in training mode: what it computes in eval mode is open",
            hint="call `module.eval()` before `torch.export.export`",
            status=BAD_INPUT,
        )
    module = program.module(check_guards=False)
    args, kwargs = program.example_inputs or ((), {})
    given = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    facts = {"source": file.name, "sha256": sha256(data).hexdigest()}
    title = "".join(c if c.isalnum() else "_" for c in file.stem)
    fixed = {a.shape[0] for a in given if a.dim()} if not program.range_constraints else set()
    batches = tuple(sorted(fixed)) if fixed else BATCHES
    return Source(str(file), title, module, tuple(given), facts, program=program, batches=batches)


# --- helpers ------------------------------------------------------------------------------


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as reason:
        raise error("A601", f"cannot read {file}: {reason.strerror or reason}") from reason


def _trains(program: ExportedProgram) -> bool:
    """Whether a program normalises by its batch, or drops entries."""
    for node in program.graph.nodes:
        name = str(node.target)
        if name == "aten.batch_norm.default" and node.args[5] and node.args[3] is not None:
            return True
        if name.startswith("aten.dropout") and len(node.args) > 2 and node.args[2]:
            return True
    return False


def _called(file: Path, factory: str) -> Any:
    """Run a file as a module of its own and call a function of it."""
    spec = importlib.util.spec_from_file_location(f"archir_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise error("A525", f"{file} is no Python file", status=BAD_INPUT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
        return _function(module, file, factory)()
    except ArchirError:
        raise
    except Exception as reason:  # the user's code
        text = " ".join(str(reason).split())[:200]
        raise error(
            "A525", f"the code of {file} fails: {type(reason).__name__}: {text}", status=BAD_INPUT
        ) from reason
    finally:
        sys.path.remove(str(file.parent.resolve()))


def _function(module: ModuleType, file: Path, factory: str) -> Any:
    function = getattr(module, factory, None)
    if function is None:
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise _unknown(f"{file}:", factory, names)
    return function


def _two(example: torch.Tensor) -> torch.Tensor:
    """An example with a batch of 2."""
    if not example.dim():
        return example
    return torch.cat([example[:1], example[:1]])


def _guess(module: torch.nn.Module, file: Path) -> tuple[tuple[int, ...], torch.dtype]:
    """The first likely input that a module takes."""
    for size, dtype in _likely(module):
        try:
            with evaluating(module), torch.no_grad():
                module(torch.zeros(2, *size, dtype=dtype))
        except Exception:
            continue  # whatever it raises, the next size is tried
        return size, dtype
    raise error(
        "A525",
        f"what {file} takes as its input is not known",
        hint="--size 3,224,224, or let the factory return the module and an example",
        status=BAD_INPUT,
    )


def _likely(module: torch.nn.Module) -> list[tuple[tuple[int, ...], torch.dtype]]:
    whole, real = torch.int64, torch.float32
    for each in module.modules():
        if isinstance(each, torch.nn.Conv2d):
            return [((each.in_channels, s, s), real) for s in (224, 32, 28, 64, 8, 299, 384)]
        if isinstance(each, torch.nn.Conv1d):
            return [((each.in_channels, s), real) for s in (128, 64, 1000, 16000)]
        if isinstance(each, torch.nn.Conv3d):
            return [((each.in_channels, s, s, s), real) for s in (32, 16, 64)]
        if isinstance(each, torch.nn.Linear):
            f = each.in_features
            square = round(f**0.5)
            images = [(1, square, square)] if square * square == f else []
            return [((f,), real), *((i, real) for i in images), ((16, f), real)]
        if isinstance(each, torch.nn.Embedding):
            return [((16,), whole)]
    return []


def _crop(weights: Any) -> tuple[int, ...] | None:
    if weights is None:
        return None
    size = getattr(weights.transforms(), "crop_size", None)
    return (3, *([size[0]] * 2)) if size else None


def _transforms(weights: Any) -> tuple[tuple[str, Any], ...]:
    if weights is None:
        return ()
    transforms = weights.transforms()
    return (
        ("mean", tuple(transforms.mean)),
        ("std", tuple(transforms.std)),
        ("size", int(transforms.crop_size[0])),
        ("classes", tuple(weights.meta["categories"])),
    )


def _about(weights: object, options: ImportOptions) -> tuple[str, ...]:
    if weights is not None:
        return ()
    return (f"initial weights, seed {options.seed}: no trained ones were asked for",)


def _missing(package: str) -> ArchirError:
    return error("A503", f"{package} is not installed", hint=f"pip install {package}")


def _unknown(where: str, name: str, known: Sequence[str]) -> ArchirError:
    return error(
        "A520", f"{where} has no `{name}`", hint=suggest(name, list(known), ""), status=BAD_INPUT
    )


def _not_fetched(source: str, reason: Exception) -> ArchirError:
    text = " ".join(str(reason).split())[:200]
    return error("A527", f"the weights of {source} cannot be fetched: {text}")
