"""Paths on the command line that Hydra's grammar cannot read: with `=`, `~`, parentheses, brackets and the like."""

from __future__ import annotations

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

_COMMA = re.compile(r",(?![^{]*\})")  # not within braces


def quote_paths(argument: str) -> str:
    """`key=a(1)/b=2.tar` -> `key='a(1)/b=2.tar'`, alone, in lists and in sweeps; what Hydra can read stays."""
    key, sign, value = argument.partition("=")
    is_path = "/" in value or ".tar" in value or value.startswith("~")
    if argument.startswith(("-", "~")) or not sign or not is_path or _parses(argument):
        return argument
    listed = value.startswith("[") and value.endswith("]")
    parts = _COMMA.split(value[1:-1] if listed else value)
    text = ",".join(part if part.startswith("'") else _quoted(part.strip()) for part in parts)
    quoted = f"{key}=[{text}]" if listed else f"{key}={text}"
    return quoted if _parses(quoted) else argument


def _quoted(text: str) -> str:
    escaped = text.replace("\\'", "'").replace("'", "\\'")
    return f"'{escaped}'"


def _parses(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True
