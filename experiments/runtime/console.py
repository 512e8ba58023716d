"""The terminal: what it cannot show is replaced, and never ends a run."""

from __future__ import annotations

import sys


def replace_unprintable() -> None:
    """Print `?` for letters that the console's encoding lacks, as with LC_ALL=C; `rich` then draws boxes in ASCII.

    For the start of each command. stderr spells such letters out in any case.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # else something has taken stdout's place
        reconfigure(errors="replace")
