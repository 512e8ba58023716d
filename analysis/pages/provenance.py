"""Sections of a scan's summary on where suspects come from, and which pictures are there several times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.markdown import markdown_table, shortened

_SHOWN = 10


def sections(metadata: Mapping[str, Any]) -> list[str]:
    """Lines of summary.md; none of what the scan does not know."""
    lines: list[str] = []
    if metadata.get("captions") is False:
        lines += [
            "",
            "The data have no captions: groups show near-identical pictures, and none is called alarming.",
        ]
    if domains := metadata.get("domains"):
        lines += ["", "## Domains of the suspects", "", *_domain_lines(domains)]
    if duplicates := metadata.get("duplicates"):
        lines += ["", "## Near-duplicates", "", *_duplicate_lines(duplicates)]
    if changed := metadata.get("sha256"):
        lines += ["", "## Pictures that have changed", "", _changed_line(changed)]
    return lines


def _domain_lines(found: Mapping[str, Any]) -> list[str]:
    about = (
        f"{found['samples']:,} samples have an address, in {found['domains']:,} domains; "
        f"{found['suspects']:,} of them are suspects. Lift: how many times the usual share of suspects."
    )
    if not found["rows"]:
        return [about, "", "No domain has clearly more suspects than expected."]
    rows = [
        [
            shortened(row["domain"]),
            f"{row['suspects']:,} of {row['samples']:,}",
            f"{row['share']:.1%}",
            f"{row['lift']:.1f}",
            shortened("; ".join(row["examples"])),
        ]
        for row in found["rows"][:_SHOWN]
    ]
    return [about, "", *markdown_table(["domain", "suspects", "share", "lift", "examples"], rows)]


def _duplicate_lines(found: Mapping[str, Any]) -> list[str]:
    if "skipped" in found:
        return [found["skipped"]]
    about = (
        f"{found['samples']:,} samples are near-duplicates of others (cosine from {found['cosine']:g}), in "
        f"{found['groups']:,} groups."
    )
    if not found["rows"]:
        return [about]
    if found["rows"][0]["size"] > found["of"] / 5:
        about += " The largest group is a crowd: this model embeds different pictures alike. "
        about += "A higher task.duplicate_cosine separates them."
    rows = [
        [f"{row['size']:,}", f"{row['captions']:,}", shortened("; ".join(row["leading"])), f"{row['rank']:,}"]
        for row in found["rows"][:_SHOWN]
    ]
    return [about, "", *markdown_table(["pictures", "captions", "most frequent", "best rank"], rows)]


def _changed_line(found: Mapping[str, Any]) -> str:
    text = f"{found['changed']:,} of {found['compared']:,} pictures differ from the SHA-256 noted beside them"
    if found["without"]:
        text += f"; {found['without']:,} have none"
    if 2 * found["changed"] > found["compared"]:
        text += (
            ". img2dataset notes the hash of the file as it was downloaded, so pictures that it resized or encoded "
            "again all differ"
        )
    return text + (f". Such as {', '.join(map(shortened, found['examples']))}." if found["examples"] else ".")
