"""The process between a search and Ray: it starts Ray or reaches it, and hands on evaluations.

It ends with the search, however that ends, and takes with it a Ray that it started. What Ray has
to say goes to a file. Importing this module needs neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import pickle
import queue
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any

from archir.diag import ArchirError, error
from archir.search.executors import stop
from archir.search.parcels import perform_parcel
from archir.train.data import Dataset

LOG = "broker.log"
"""What Ray says, in the folder of the terms."""

TRIES = 3
"""How many workers an evaluation may end before it has failed."""

PATIENCE = 30.0
"""Seconds that it takes at most to take Ray down."""

_ENDS = 10.0
"""Seconds in which the processes of a Ray end that are told to."""
_REACHES = 10.0
"""Seconds in which a machine answers."""
_LOOKS = 30.0
"""Seconds between two looks at whether machines are left, while nothing happens."""
_STORE = 256 << 20
"""Bytes of memory for objects of a Ray of one's own, beside the data; what is more goes to disk."""


@dataclass(frozen=True)
class Terms:
    """What a broker is told at first."""

    address: str | None
    """Of the Ray that is there; without it one is started."""
    most: int | None
    """Evaluations at a time; without it as many as there is room for."""
    cores: int
    """CPUs of a Ray that is started."""
    threads: int
    gpus: float
    paths: tuple[str, ...]
    versions: Mapping[str, str]
    folder: str
    """For all its files; removed at the end."""


@dataclass
class _Order:
    """An evaluation that was asked for."""

    parcel: bytes
    begun: float
    ref: Any = None
    tries: int = 0


def serve(pipe: Connection, terms: Terms) -> None:
    """Be the broker, in a process of its own.

    It is sent the data (or None) in a tuple, then pairs of a number and a parcel. It sends how many
    evaluations there is room for; for each order its number, the answer (None where all workers
    were lost), the seconds it took and the room; or an error, and ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this decides
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    try:
        _prepare(terms)
        Thread(target=_listen, args=(pipe, events), daemon=True).start()
        data = events.get()
        if data is None:
            return
        with contextlib.suppress(ConnectionError):  # the search has ended
            try:
                _Broker(pipe, terms, events, *data).serve()
            except ArchirError as failure:
                pipe.send_bytes(pickle.dumps(failure))
    finally:
        importlib.import_module("ray").shutdown()
        remove(Path(terms.folder))


def _listen(pipe: Connection, events: queue.SimpleQueue[Any]) -> None:
    """Take what is sent; None where the search is gone, and then the end, however Ray hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    with contextlib.suppress(EOFError, OSError):
        while pipe in wait([pipe, parent.sentinel]):
            events.put(pickle.loads(pipe.recv_bytes()))
    events.put(None)
    time.sleep(PATIENCE)
    os._exit(1)


def remove(folder: Path) -> None:
    """Remove a folder in which processes that are told to end may still write."""
    until = time.monotonic() + _ENDS
    while folder.exists() and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)


def _prepare(terms: Terms) -> None:
    """Set what Ray looks at when it is imported."""
    log = os.open(Path(terms.folder, LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # it would send the working folder along
    if terms.address is None:
        os.environ["TMPDIR"] = terms.folder  # of workers: nothing of theirs is left
        # nobody else on this machine may use it, and no token is left in the home folder
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


class _Broker:
    """Speaks with Ray."""

    def __init__(
        self,
        pipe: Connection,
        terms: Terms,
        events: queue.SimpleQueue[Any],
        dataset: Dataset | None,
    ) -> None:
        self._pipe, self._terms, self._events = pipe, terms, events
        self._ray: Any = importlib.import_module("ray")
        with told_of_ray(self._ray, self._terms):
            _reach(terms.address)
            self._ray.init(**self._settings(dataset))
            signal.signal(signal.SIGTERM, stop)  # Ray has put its own in place
            self._data = None if dataset is None else self._ray.put(dataset)
        needs = {"num_cpus": terms.threads, "num_gpus": terms.gpus, "max_retries": 0}
        self._perform = self._ray.remote(**needs)(perform_parcel)
        self._orders: dict[int, _Order] = {}

    def _settings(self, dataset: Dataset | None) -> dict[str, Any]:
        """What ``ray.init`` is told."""
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._terms.address is not None:
            return {"address": self._terms.address, **quiet}
        splits = () if dataset is None else (dataset.train, dataset.validation, dataset.test)
        return {
            "address": "local",
            "num_cpus": self._terms.cores,
            "num_gpus": None if self._terms.gpus else 0,  # None: those that are there
            "include_dashboard": False,
            "object_store_memory": _STORE + 2 * sum(split.x.nbytes for split in splits),
            "_temp_dir": self._terms.folder,
            **quiet,
        }

    def serve(self) -> None:
        """Hand on what comes, until nobody is there to send any."""
        room = self._room()
        if not room:
            raise self._no_room()
        self._send(room)
        while True:
            try:
                event = self._events.get(timeout=_LOOKS)
            except queue.Empty:
                if self._orders and not self._room():
                    raise self._no_room() from None
                continue
            if event is None:
                return
            with told_of_ray(self._ray, self._terms):
                if isinstance(event, int):
                    self._settle(event)
                else:
                    number, parcel = event
                    self._orders[number] = _Order(parcel, time.perf_counter())
                    self._begin(number)

    def _begin(self, number: int) -> None:
        order, terms = self._orders[number], self._terms
        order.ref = self._perform.remote(order.parcel, self._data, terms.paths, terms.versions)
        order.ref.future().add_done_callback(lambda _: self._events.put(number))

    def _settle(self, number: int) -> None:
        """Take what came of an order; begin it again where its worker was lost."""
        order, failures = self._orders[number], self._ray.exceptions
        lost = (
            failures.WorkerCrashedError,
            failures.NodeDiedError,
            failures.OutOfMemoryError,
            failures.ObjectLostError,
        )
        answer: bytes | None = None
        try:
            answer = self._ray.get(order.ref)
        except lost:
            order.tries += 1
            if order.tries < TRIES:
                self._begin(number)
                return
        del self._orders[number]
        self._send((number, answer, time.perf_counter() - order.begun, max(1, self._room())))

    def _send(self, what: object) -> None:
        self._pipe.send_bytes(pickle.dumps(what, protocol=5))

    def _room(self) -> int:
        """How many evaluations can run at a time."""
        cpus, gpus = self._terms.threads, self._terms.gpus
        found = 0
        for node in self._ray.nodes():
            if node["Alive"]:
                there = node["Resources"]
                fit = int(there.get("CPU", 0) / cpus)
                found += min(fit, int(there.get("GPU", 0) / gpus)) if gpus else fit
        return found if self._terms.most is None else min(found, self._terms.most)

    def _no_room(self) -> Exception:
        terms = self._terms
        what = f"{terms.threads} CPUs" + (f" and {terms.gpus:g} GPUs" if terms.gpus else "")
        hint = "`ray status` lists what there is; --threads and --gpus say what each needs"
        return error("A783", f"no machine of this Ray has {what} for an evaluation", hint=hint)


@contextlib.contextmanager
def told_of_ray(ray: Any, terms: Terms) -> Iterator[None]:
    """Say in the user's terms what Ray cannot do.

    Raises:
        ArchirError: A781, there is none, or it fails; A782, other versions there.
    """
    failures, where = ray.exceptions, terms.address or "this machine"
    token = error(
        "A781",
        f"the Ray at {where} wants another token",
        hint="export RAY_AUTH_MODE=token, and the same ~/.ray/auth_token on all machines",
    )
    same = "install the same versions of Python, ray and archir on all machines"
    try:
        yield
    except OSError as reason:
        if "AuthToken" in str(reason.__cause__):
            raise token from None
        hint = "`ray start --head` starts one; run this on a machine that is a part of it"
        raise error("A781", f"there is no Ray at {where}: {_line(reason)}", hint=hint) from None
    except failures.RayTaskError as reason:
        told = f"a worker cannot run archir: {_line(reason)}"
        raise error("A782", told, hint=same) from None
    except failures.AuthenticationError:
        raise token from None
    except (failures.RayError, RuntimeError, ValueError) as reason:
        if "ersion mismatch" in str(reason):
            told = f"the Ray at {where} is another one: {_line(reason)}"
            raise error("A782", told, hint=same) from None
        raise error("A781", f"Ray on {where} failed: {_line(reason)}") from None


def _reach(address: str | None) -> None:
    """Make sure that somebody listens at an address: Ray would try for very long.

    Raises:
        OSError: nobody does.
        ValueError: it has no port.
    """
    if address not in (None, "auto"):
        host, _, port = str(address).rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHES).close()


def _line(reason: Exception) -> str:
    """What an error says, in one line: of a remote one the last."""
    lines = [" ".join(line.split()) for line in str(reason).splitlines() if line.strip()]
    remote = len(lines) > 3
    return (lines[-1] if remote else " ".join(lines))[:300]
