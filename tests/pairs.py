"""Which windows and policies go together, said once more for the tests."""

REVISES = {"remask", "edit", "renoise", "wino"}


def goes(window, chain):
    """Whether a window and these policies go together."""
    names = set(chain.split(" + "))
    if window == "draft" or names == {"verify"}:
        return window == "draft" and names == {"verify"}
    return (window in ("whole", "block") or "wino" not in names) and (window != "many" or not names & REVISES)
