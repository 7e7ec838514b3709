"""Models of the Hugging Face hub: fetched into its cache at one commit, weights and tables and nothing that could run.

The hub's own library does the work, and so its settings count: HF_HUB_OFFLINE, HF_HOME, HF_TOKEN. What was fetched once
is there without a network. It does not know what a model is.
"""

import re
from pathlib import Path
from typing import Any

from unmask.base.errors import BadInput, Unsupported
from unmask.models.files import INDEX, PICKLED, PICKLED_INDEX, WEIGHTS, read_object

ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
"""owner/name, and behind an @ a branch, a tag or a commit."""
TABLES = ["*.json", "*.jinja", "merges.txt"]
"""What stands beside the weights. Never *.py."""


def fetch(repo: str, revision: str | None = None, *, pickles: bool = False) -> Path:
    """The folder of a model, fetched unless it is there; it is called as its commit is.

    Args:
        repo: owner/name.
        revision: a branch, a tag or a commit; None is the newest commit of the main branch.
        pickles: whether to fetch pickled weights, in the place of safetensors.
    Raises:
        BadInput: there is no such model, or no such revision. Unsupported: it can't be had (no network, no access, no
            weights that can be read).
    """
    folder = _snapshot(repo, revision, TABLES)
    index, whole = (PICKLED_INDEX, PICKLED) if pickles else (INDEX, WEIGHTS)
    shards = read_object(folder / index).get("weight_map") if (folder / index).exists() else None
    names = sorted({str(x) for x in shards.values()}) if isinstance(shards, dict) else [whole]
    _snapshot(repo, folder.name, names)
    if not any((folder / name).exists() for name in names):
        how = f"unmask models convert-format {repo}@{folder.name} FOLDER --allow-pickle"
        raise Unsupported(
            f"{repo} has no {whole} at {folder.name[:12]}"
            + ("" if pickles else f"; if its weights are pickled, and where you trust them: {how}")
        )
    return folder


def _snapshot(repo: str, revision: str | None, names: list[str]) -> Path:
    """Files of the top folder of a commit, by patterns of their names."""
    import huggingface_hub  # slow to import, and seldom asked for
    from huggingface_hub import errors

    at = f"{repo}@{revision}" if revision else repo
    asked: dict[str, Any] = {"revision": revision, "allow_patterns": names, "ignore_patterns": ["*/*", "*.py"]}
    try:
        return Path(huggingface_hub.snapshot_download(repo, **asked))
    except errors.GatedRepoError as error:
        raise Unsupported(
            f"{repo} is gated: accept its terms at https://huggingface.co/{repo}, then log in "
            "(hf auth login, or HF_TOKEN)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput(
            f"there is no folder {repo}, and no model of that name on the hub (a private one needs hf auth login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(f"{repo} has no branch, tag or commit {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        part = getattr(error, "snapshot_path", None)
        if part is not None:  # it lacks something that may not be needed; whoever reads it will say
            return Path(part)
        why = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else "the hub can't be reached"
        raise Unsupported(f"{at} is neither a folder nor in the hub's cache, and {why}") from error
    except errors.HFValidationError as error:
        raise BadInput(f"{repo!r} is neither a folder nor a hub id like owner/name") from error
    except Exception as error:  # what its HTTP library raises
        raise Unsupported(f"{at} can't be fetched from the hub: {error}") from error
