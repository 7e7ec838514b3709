"""Which replica a request should go to: requests that begin alike meet where their beginning has been read already.

Rendezvous hashing with bounded load: each beginning has its own order of all replicas, the first that is not overloaded
takes the request, and when replicas come or go only the requests of those move. It knows neither HTTP nor who calls.
Source: Thaler and Ravishankar 1998 (rendezvous); Mirrokni, Thorup, Zadimoghaddam 2018 (bounded load).
"""

import hashlib
import json
import math
from collections.abc import Mapping

CHARACTERS = 256
"""Of a beginning: fewer mix what has little in common, more part what shares a system prompt."""
SLACK = 1.25
"""How far above the mean a replica's load may be before it counts as overloaded."""
FIELDS = ("messages", "prompt", "segments", "text")
"""Where the text of a request stands, in all routes."""


def beginning(owner: str, body: bytes) -> str:
    """What requests that begin alike have in common; "" for a body without a text.

    Args:
        owner: who asks; what was read for one is not shared with another.
        body: of the request, as it came.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):  # it is told so where it is read in earnest
        return ""
    field = next((name for name in FIELDS if isinstance(asked, dict) and asked.get(name)), None)
    if field is None:
        return ""
    text = json.dumps(asked[field], sort_keys=True)[:CHARACTERS]
    return hashlib.sha256(f"{owner}\n{text}".encode()).hexdigest()


def order(key: str, loads: Mapping[str, int], places: int, attempt: int = 0) -> list[str]:
    """All replicas, the one that should take a request first.

    Args:
        key: of `beginning`; without one the least busy comes first.
        loads: requests that run at each.
        places: requests that each can run at the same time; with one free it is never overloaded.
        attempt: how often the request was tried before; each time another one comes first.
    """
    if not key:
        found = sorted(loads, key=lambda name: (loads[name], name))
    else:
        found = sorted(loads, key=lambda name: hashlib.sha256(f"{key} {name}".encode()).digest())
        most = max(places, math.ceil(SLACK * (sum(loads.values()) + 1) / max(1, len(loads))))
        found.sort(key=lambda name: loads[name] if loads[name] >= most else 0)  # stable: who is free keeps its place
    turn = attempt % max(1, len(found))
    return found[turn:] + found[:turn]
