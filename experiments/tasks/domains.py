"""From which web addresses suspects come more often than other samples do."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

SHARE, LEAST = 0.01, 50
"""Suspects are this share of the samples, those that rank highest, and at least so many."""
FEW = 3  # suspects that a domain must have
DEVIATIONS = 3.0  # standard deviations that it must have more than expected, were suspects drawn at random
SHOWN, _EXAMPLES = 20, 3


def domain_of(url: Any) -> str | None:
    """The host of an address, without `www.`; None for what is no address."""
    if not isinstance(url, str):
        return None
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return None
    return host.removeprefix("www.")[:100] if host and "//" in url else None


def domains_of(table: pd.DataFrame) -> dict[str, Any] | None:
    """Domains with clearly more suspects than expected, the largest excess first; None without addresses.

    table: a row per scored sample: url, rank, key, caption.
    Of each domain: `samples`; `suspects` among them; their `share`; `lift`, how many times the share of all samples
    with an address; `examples`, those that rank highest.
    """
    hosts = [domain_of(url) for url in table["url"]]
    known = np.array([host is not None for host in hosts], dtype=bool)
    if not known.any():
        return None
    rank = table["rank"].to_numpy()
    suspicious = known & (rank <= max(LEAST, round(SHARE * len(table))))
    samples = Counter(host for host in hosts if host is not None)
    suspects = Counter(
        host for host, odd in zip(hosts, suspicious.tolist(), strict=True) if odd and host is not None
    )
    overall = suspicious.sum() / known.sum()
    expected = {host: overall * samples[host] for host in suspects}
    unusual = [
        host
        for host, count in suspects.items()
        if count >= FEW and count - expected[host] >= DEVIATIONS * np.sqrt(expected[host] * (1 - overall))
    ]
    chosen = sorted(unusual, key=lambda host: (expected[host] - suspects[host], host))[:SHOWN]
    examples: dict[str, list[str]] = {host: [] for host in chosen}
    odd = np.flatnonzero(suspicious)
    for row in odd[np.argsort(rank[odd], kind="stable")].tolist():
        host = hosts[row]
        if host in examples and len(examples[host]) < _EXAMPLES:
            key, caption = table["key"].iloc[row], table["caption"].iloc[row]
            examples[host].append(f"{key}: {caption}" if key else str(caption))
    rows = [
        {
            "domain": host,
            "suspects": suspects[host],
            "samples": samples[host],
            "share": suspects[host] / samples[host],
            "lift": suspects[host] / samples[host] / overall,
            "examples": examples[host],
        }
        for host in chosen
    ]
    return {"suspects": int(suspicious.sum()), "samples": int(known.sum()), "domains": len(samples), "rows": rows}
