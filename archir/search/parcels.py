"""Evaluations for machines that share no folder: a job goes with its files, and so do its results.

A parcel holds the evaluator with the user's own file that it stands in, the files of the network,
what of the lineage its certificate needs, and what an evaluation that was cut off had left. No
path of the machine that sends it is in it, but that of data which are not sent along.

Importing this module needs no torch; :func:`perform_parcel` uses it where it is installed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from archir.diag import ArchirError, error
from archir.files import cannot_write, writing_all
from archir.proof.certificate import read_certificate
from archir.proof.lineage import folder_of, needed
from archir.saving import certificate_path, weights_path
from archir.search.packing import pack, unpack
from archir.search.work import DONE, KEPT, RESULT, Job, perform
from archir.train.data import Dataset

Files = Mapping[str, bytes]
"""Contents by names below a folder."""

_PLACE, _LOCK = "archir-evaluation-", ".lock"
_ALIKE = ("archir", "torch", "numpy")
"""Packages whose versions results depend on."""


@dataclass(frozen=True)
class _Parcel:
    """What a machine needs to perform a job."""

    job: bytes
    network: Files
    work: Files
    """Of the evaluation's own folder."""
    lineage: Files
    shared: bool
    """Whether what is needed of the lineage stays where it was taken from."""


@dataclass(frozen=True)
class _Answer:
    """What comes of it."""

    work: Files
    lineage: Files
    failure: BaseException | None = None
    """What no network is to blame for; there is no result then."""


def wrap(job: Job, *, with_data: bool) -> bytes:
    """A job and its files.

    Args:
        job: What is to be done.
        with_data: Whether the data go another way, so that no worker loads them by their name.

    Raises:
        ArchirError: A712, its evaluator cannot be sent; A402, the network's certificate is damaged.
        OSError: a file cannot be read.
    """
    data = replace(job.data, name="") if with_data else job.data
    network = Path("network", job.network.name)
    there = replace(job, network=network, folder=Path(), lineage=None, data=data)
    lineage = job.lineage or folder_of(job.network)
    parcel = _Parcel(
        pack(there, carried=True),
        _read(job.network.parent, _files_of(job.network)),
        _read(job.folder, _below(job.folder, lambda name: name != RESULT)),
        _read(lineage, _needed(job.network, lineage)),
        shared=job.lineage is not None,
    )
    return pickle.dumps(parcel, protocol=5)


def perform_parcel(
    parcel: bytes, dataset: Dataset | None, paths: Sequence[str], versions: Mapping[str, str]
) -> bytes:
    """Do what a parcel asks for, on another machine: what :func:`take` takes.

    Args:
        parcel: Of :func:`wrap`.
        dataset: Its data, where they are sent.
        paths: Where the sender finds modules; those that are folders here are searched too.
        versions: The sender's :func:`versions_here`.
    """
    sys.path += [path for path in paths if path not in sys.path and Path(path).is_dir()]
    try:
        _check_versions(versions)
        with _place() as place:
            answer = _performed(pickle.loads(parcel), place, dataset)
    except (ArchirError, OSError) as failure:
        answer = _Answer({}, {}, _placed(failure))
    except Exception as failure:
        answer = _Answer({}, {}, RuntimeError(f"{type(failure).__name__}: {failure}"))
    return pickle.dumps(answer, protocol=5)


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """A folder for an evaluation; those that workers left which were killed are removed first.

    Whoever is alive holds the lock of its own, into which it writes once it does.
    """
    import fcntl  # noqa: PLC0415 - Windows has none

    for left in Path(tempfile.gettempdir()).glob(f"{_PLACE}*"):
        with contextlib.suppress(OSError), (left / _LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.read():
                shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=_PLACE, ignore_cleanup_errors=True) as name,
        Path(name, _LOCK).open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("held")
        lock.flush()
        yield Path(name)


def _performed(parcel: _Parcel, place: Path, dataset: Dataset | None) -> _Answer:
    folders = {name: place / name for name in ("network", "work", "lineage")}
    for name, folder in folders.items():
        folder.mkdir()
        _write(folder, getattr(parcel, name))
    job = unpack(parcel.job)
    work, lineage = folders["work"], folders["lineage"]
    job = replace(job, network=place / job.network, folder=work, lineage=lineage)
    perform(job, dataset)
    done = {path.name for path in _files_of(work / DONE)}
    kept = f"{KEPT}{os.sep}"
    found = _below(work, lambda name: name in {RESULT, *done} or name.startswith(kept))
    new = _below(lineage, lambda name: not parcel.shared or name not in parcel.lineage)
    return _Answer(_read(work, found), _read(lineage, new))


def take(job: Job, packed: bytes) -> None:
    """Put in place what came of a job: its result last.

    Raises:
        ArchirError: A602; what no network is to blame for, as of
            :func:`archir.search.work.perform`.
        OSError: the same.
    """
    answer: _Answer = pickle.loads(packed)
    if answer.failure is not None:
        raise answer.failure
    lineage = job.lineage or folder_of(job.folder / DONE)
    missing = [name for name in sorted(answer.lineage) if not (lineage / name).exists()]
    _put(lineage, {name: answer.lineage[name] for name in missing})
    _put(job.folder, {n: content for n, content in sorted(answer.work.items()) if n != RESULT})
    _put(job.folder, {RESULT: answer.work[RESULT]})


def _put(folder: Path, files: Files) -> None:
    """Write some files, all or none.

    Raises:
        ArchirError: A602.
    """
    targets = [folder / name for name in files]
    try:
        for parent in {target.parent for target in targets}:
            parent.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise cannot_write(folder, reason) from reason
    if targets:
        with writing_all(targets) as temporaries:
            for content, temporary in zip(files.values(), temporaries, strict=True):
                temporary.write_bytes(content)


@functools.cache
def versions_here() -> Mapping[str, str]:
    """The installed versions of what results depend on; builds of one version are alike."""
    found = {}
    for name in _ALIKE:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _check_versions(versions: Mapping[str, str]) -> None:
    here = versions_here()
    differing = [f"{n} is {here[n]}, it should be {v}" for n, v in versions.items() if here[n] != v]
    if differing:
        hint = "install the same versions on all machines: results depend on them"
        raise error("A782", ", ".join(differing), hint=hint)


def _placed(failure: ArchirError | OSError) -> Exception:
    """An error of a machine, with its name."""
    node = platform.node()
    if isinstance(failure, ArchirError):
        first, *others = failure.diagnostics
        named = replace(first, message=f"on {node}: {first.message}", span=None)
        return ArchirError(named, *others, status=failure.status)
    told = f"{failure.strerror or failure} on {node}"
    return OSError(failure.errno, told, failure.filename)


def _files_of(network: Path) -> list[Path]:
    names = (network, weights_path(network), certificate_path(network))
    return [path for path in names if path.is_file()]


def _needed(network: Path, lineage: Path) -> list[Path]:
    """The files of a lineage folder without which what a network becomes cannot be saved."""
    if not certificate_path(network).is_file():
        return []
    texts, tensors = needed(read_certificate(certificate_path(network)))
    names = [*(f"{d}.arch" for d in texts), *(f"{d}.safetensors" for d in tensors)]
    return [lineage / name for name in names if (lineage / name).is_file()]


def _below(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if wanted(str(path.relative_to(folder)))]


def _read(folder: Path, files: Iterable[Path]) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
