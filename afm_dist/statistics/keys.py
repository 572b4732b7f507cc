"""Names of statistics: of a whole module, or of one field of a table (``module[field]``)."""

from __future__ import annotations

import re


def module_key(module: str) -> str:
    """Name the statistics of a whole module: its own name, ``[`` written ``\\[``."""
    return re.sub(r"[\\[]", r"\\\g<0>", module)


def field_key(module: str, field: str) -> str:
    """Name the statistics of one field of a table: ``module[field]``."""
    return f"{module_key(module)}[{field}]"


def module_name(key: str) -> str:
    """Find the module that some statistics belong to: the inverse of ``module_key`` and ``field_key``."""
    module = re.match(r"(?:[^\\[]|\\.)*", key, re.DOTALL)
    assert module is not None
    return re.sub(r"\\(.)", r"\1", module[0], flags=re.DOTALL)


def field_name(key: str) -> str | None:
    """Find the field that some statistics belong to: the inverse of ``field_key``; None: a whole module."""
    module = module_key(module_name(key))
    return None if key == module else key[len(module) + 1 : -1]
