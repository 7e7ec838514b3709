"""The script of a child process that lets outlines-core turn regexes into tables, within bounds.

A regex can take hours and all memory, and native code listens to nobody; a process can be ended. It reads JSON from
standard input and writes a line of JSON and then the tables. It imports nothing of this package, to start fast.
"""

import json
import sys
import time
from array import array
from typing import Any


def compiled(pattern: str, most: int) -> dict[str, Any]:
    """The automaton of a regex over single bytes: states in rising order, ways as three columns.

    Raises:
        ValueError: outlines-core refuses the regex.
        MemoryError: more than `most` states.
    """
    from outlines_core import Index, Vocabulary

    bytes_only = Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
    index = Index(pattern, bytes_only)
    transitions = index.get_transitions()
    if len(transitions) > most:
        raise MemoryError
    source, byte, target = array("i"), array("i"), array("i")
    for state, row in transitions.items():
        source.extend([state] * len(row))
        byte.extend(row.keys())
        target.extend(row.values())
    return {
        "start": index.get_initial_state(),
        "finals": sorted(index.get_final_states()),
        "columns": (source, byte, target),
    }


def bound(cpu_s: int, num_bytes: int) -> None:
    """Bound this process, where its system can."""
    try:
        import resource
    except ImportError:  # the time on the clock still bounds it
        return
    for what, most in ((resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, num_bytes), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(what, (most, most))
        except (OSError, ValueError):  # a system that has no such bound
            continue


def main() -> None:
    """Answer the one request."""
    asked = json.load(sys.stdin)
    bound(asked["cpu_s"], asked["num_bytes"])
    out = sys.stdout.buffer
    for pattern in asked["patterns"]:
        try:
            found = compiled(pattern, asked["states"])
        except ValueError as error:
            out.write(json.dumps({"refused": " ".join(str(error).split())[:300]}).encode() + b"\n")
            return
        except MemoryError:
            out.write(json.dumps({"over": "states"}).encode() + b"\n")
            return
        columns = found.pop("columns")
        out.write(json.dumps(found | {"ways": len(columns[0]), "cpu_s": time.process_time()}).encode() + b"\n")
        for column in columns:
            out.write(column.tobytes())


if __name__ == "__main__":
    main()
