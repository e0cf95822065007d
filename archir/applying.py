"""Rules as a command line or a schedule names them, made ready for :func:`archir.api.rewrite`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archir.api import Application, Network
from archir.ir.types import AttrValue
from archir.rewrite.library import split_site


def named_applications(
    network: Network,
    specs: Sequence[str],
    at: str | None,
    settings: Mapping[str, AttrValue],
) -> list[Application]:
    """The rules that words like ``RULE[@SITE]`` mean, with their share of common settings.

    A rule of a file is ``FILE.rule``, or ``FILE.rule:RULE`` where it holds several. A setting goes
    to the rules that have a parameter of that name, ``RULE.name`` to that rule, and one that no
    rule knows to all, so that it is refused where it is planned.

    Args:
        network: Whose library the rules are of.
        specs: The rules in order.
        at: The site of those that name none.
        settings: Values of their parameters.

    Raises:
        ArchirError: A604, there is no such rule; A607, a file cannot be read.
    """
    named = [split_site(spec) for spec in specs]
    chosen = {name: network.rule(name) for name, _ in named}
    taken = {name: {p.name for p in rule.parameters} for name, rule in chosen.items()}
    found = []
    for name, site in named:
        mine = {}
        for key, value in settings.items():
            owner, dot, parameter = key.rpartition(".")
            nobodys = not any(key in parameters for parameters in taken.values())
            if owner in (name, chosen[name].name) if dot else key in taken[name] or nobodys:
                mine[parameter if dot else key] = value
        found.append(Application(name, site or at, mine))
    return found


def use_text(rule: str, site: str, arguments: Mapping[str, AttrValue]) -> str:
    """A line of the script that ``archir rewrite --script`` applies a rule by."""
    return " ".join([f"{rule}@{site}", *(f"{k}={setting(v)}" for k, v in arguments.items())])


def setting(value: AttrValue | Sequence[AttrValue]) -> str:
    """A value as it is given to ``--set``."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(setting, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
