"""Edits within lines: e-mail addresses, public IP addresses and citation marks. Each returns (text, marks changed).

The patterns for addresses are those of datatrove's PIIFormatter (FineWeb, Penedo et al. 2024), the one for citations
is C4's (Raffel et al. 2020, section 2.2), so what is found is the same. What is written instead never belongs to
anyone: example.com (RFC 2606) and 192.0.2.1 (RFC 5737). Documents without the sign of a match are not searched.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import Iterator

EMAIL = "email@example.com"
IP = "192.0.2.1"
MAX_LOCAL, MAX_DOMAIN = 320, 320        # characters searched on each side of an "@": what bounds the time

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
_LOCAL = re.compile(rf"\b{_ATOM}(?:\.{_ATOM})*@")
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+{_LABEL}|\[(?:{_BYTE}\.){{3}}(?:{_BYTE}|[A-Za-z0-9-]*[A-Za-z0-9]:)]")
_IP = re.compile(rf"(?:{_BYTE}\.){{3}}{_BYTE}")
_IP_SIGN = re.compile(r"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")       # begins with a plain character: fast to seek
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")


def mask_emails(text: str) -> tuple[str, int]:
    """Replace e-mail addresses by ``EMAIL``; those that are it already count for nothing."""
    pieces = []
    done = 0
    for start, end in _find_emails(text):
        if text[start:end] != EMAIL:
            pieces += [text[done:start], EMAIL]
            done = end
    return ("".join(pieces) + text[done:], len(pieces) // 2) if pieces else (text, 0)


def _find_emails(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each address. Looks around each "@": one pattern for all takes quadratic time on a/a/a/a ..."""
    done = 0                                    # an address begins neither in the last one nor before an earlier "@"
    at = text.find("@")
    while at >= 0:
        local = _LOCAL.search(text, max(done, at - MAX_LOCAL), at + 1)
        domain = local and _DOMAIN.match(text, at + 1, at + 1 + MAX_DOMAIN)
        if domain:
            yield local.start(), domain.end()
        done = domain.end() if domain else at + 1
        at = text.find("@", done)


def mask_ips(text: str) -> tuple[str, int]:
    """Replace IPv4 addresses of the public internet by ``IP``; private, reserved and malformed ones stay."""
    if not _IP_SIGN.search(text):
        return text, 0
    marks = 0

    def replace(match: re.Match) -> str:
        nonlocal marks
        public = _is_public(match[0])
        marks += public
        return IP if public else match[0]

    masked = _IP.sub(replace, text)
    return (masked, marks) if marks else (text, 0)


@functools.lru_cache(maxsize=4096)
def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:                  # leading zeros, as in the version 1.02.3.4
        return False


def remove_citations(text: str) -> tuple[str, int]:
    """Remove [1], [], [edit] and [citation needed], and blank space that this leaves around the document."""
    if "[" not in text:
        return text, 0
    without, marks = _CITATION.subn("", text)
    return (without.strip(), marks) if marks else (text, 0)
