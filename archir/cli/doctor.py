"""``archir doctor``: what is installed, and what that allows."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from archir import __version__
from archir.cli import options
from archir.cli.common import Report
from archir.cli.common import command as make
from archir.diag import CHECK_FAILED, ArchirError

CORE = ("click", "lark", "networkx", "numpy", "rich", "safetensors", "threadpoolctl")
EXTRAS = {
    "torch": ("torch",),
    "onnx": ("onnx", "onnxruntime-gpu|onnxruntime"),
    "data": ("scikit-learn", "torchvision"),
    "proof": ("egglog",),
    "draw": ("graphlay",),
    "tensorboard": ("tensorboard",),
    "search": ("jinja2", "matplotlib", "pymoo", "scipy"),
    "cluster": ("ray",),
}


def _installed(names: str) -> tuple[str, str | None]:
    """The first of several alternatives that is installed, with its version."""
    for name in names.split("|"):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return names.partition("|")[0], None


def _packages() -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for extra, names in {"core": CORE, **EXTRAS}.items():
        for alternatives in names:
            name, found = _installed(alternatives)
            rows.append({"package": name, "version": found, "part": extra})
            if found is None and extra == "core":
                problems.append(f"{name} is missing: pip install {name}")
    both = [_installed(n)[1] for n in ("onnxruntime", "onnxruntime-gpu")]
    if None not in both:
        problems.append("onnxruntime and onnxruntime-gpu are both installed: remove one of them")
    return rows, problems


def _machine() -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "gpus": [],
        "onnxruntime_providers": [],
    }
    try:
        torch = importlib.import_module("torch")
        count = torch.cuda.device_count()
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(count)]
    except ImportError:
        pass
    try:
        runtime = importlib.import_module("onnxruntime")
        found["onnxruntime_providers"] = runtime.get_available_providers()
    except ImportError:
        pass
    return found


def _content() -> tuple[dict[str, Any], list[str]]:
    """Operators, rules and backends, by the doors that everyone uses."""
    from archir.ops import installed_ops
    from archir.rewrite.library import installed
    from archir.target import backends

    problems: list[str] = []
    found: dict[str, Any] = {"ops": [], "rules": [], "backends": {}}
    try:
        ops = installed_ops()
        found["ops"] = list(ops)
        found["rules"] = list(installed(ops))
        for name in backends():
            try:
                backend = backends()[name]
                found["backends"][name] = "ok"
                missing = [op for op in ops if op not in backend.LOWER and op != "input"]
                if missing:
                    found["backends"][name] = f"ok, without {', '.join(missing)}"
            except ArchirError as failure:
                diagnostic = failure.diagnostics[0]
                found["backends"][name] = f"{diagnostic.message} ({diagnostic.hint})"
    except ArchirError as failure:
        problems += [d.message for d in failure.diagnostics]
    return found, problems


def doctor() -> Report:
    """Report what is installed and what is wrong with it."""
    packages, problems = _packages()
    machine = _machine()
    content, more = _content()
    problems += more
    rows = [(p["package"], p["version"] or "not installed", p["part"]) for p in packages]
    lines = [
        (
            f"archir {__version__}, Python {machine['python']}, {machine['system']}, "
            f"{machine['cores']} cores"
        ),
        f"GPUs: {', '.join(machine['gpus']) or 'none that torch sees'}",
        f"ONNX Runtime: {', '.join(machine['onnxruntime_providers']) or 'not installed'}",
        f"{len(content['ops'])} operators",
        f"{len(content['rules'])} rules: {', '.join(content['rules'])}",
        *(f"backend {name}: {state}" for name, state in content["backends"].items()),
        options.table(("package", "version", "for"), rows),
        *(f"problem: {p}" for p in problems),
        "all is well" if not problems else f"{len(problems)} problems",
    ]
    data = {"archir": __version__, "executable": sys.executable, "packages": packages, **machine}
    data |= {**content, "problems": problems}
    return Report(data, "\n".join(lines), CHECK_FAILED if problems else 0)


command = make("doctor", example="archir doctor")(doctor)
