"""Pickled weights to safetensors, tensor by tensor under the names that they have.

A pickle can run code when it is opened. Here it is read by torch's reader that makes nothing but tensors, in a process
of its own, and only for a caller who says so. It knows neither families nor models.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import unmask
from unmask.base.errors import BadCheckpoint
from unmask.models.files import INDEX, PICKLED, PICKLED_INDEX, PICKLES, WEIGHTS, read_object


def unpickle(source: Path, folder: Path) -> list[str]:
    """Write the pickled weights of one folder into another one as safetensors; one file for each, and an index.

    Returns:
        The names of the tensors.
    Raises:
        BadCheckpoint: no pickles, several of which none is the model, or one that holds more than tensors by name.
    """
    files = pickles(source)
    folder.mkdir(parents=True, exist_ok=True)
    one, places, written = len(files) == 1, dict[str, str](), list[Path]()
    try:
        for number, file in enumerate(files, 1):
            name = WEIGHTS if one else f"model-{number:05}-of-{len(files):05}.safetensors"
            written.append(folder / name)
            for key in _convert(file, folder / name):
                if key in places:
                    raise BadCheckpoint(f"{source}: {key} is in {places[key]} and in {name}")
                places[key] = name
    except BadCheckpoint:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    if not one:
        index = {"metadata": {"total_size": sum(x.stat().st_size for x in written)}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return list(places)


def pickles(folder: Path) -> list[Path]:
    """The pickled files of a folder that are its model."""
    if (folder / PICKLED_INDEX).exists():
        shards = read_object(folder / PICKLED_INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(x, str) and Path(x).name == x for x in shards.values()):
            raise BadCheckpoint(f"{folder / PICKLED_INDEX} must have a weight_map from tensors to files of this folder")
        found = [folder / name for name in sorted(set(shards.values()))]
        if missing := [path.name for path in found if not path.is_file()]:
            raise BadCheckpoint(f"{folder} lacks {', '.join(missing)}")
        return found
    if (folder / PICKLED).exists():
        return [folder / PICKLED]
    found = sorted(path for pattern in PICKLES for path in folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        said = f"{names}, and it can't be told which of them is the model" if found else "no pickled weights"
        raise BadCheckpoint(f"{folder} has {said}; leave one file, or call it {PICKLED}")
    return found


def _convert(source: Path, target: Path) -> list[str]:
    """One file in a process of its own; the names of its tensors."""
    paths = [str(Path(unmask.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        # -P: nothing is imported from the folder that one stands in, which may be that of the model
        [sys.executable, "-P", "-m", "unmask.models.unpickle", str(source), str(target)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        told = json.loads(done.stdout.splitlines()[-1])
        names, error = told.get("names"), told.get("error")
    except (IndexError, ValueError, AttributeError):
        names, error = None, f"its reader ended with {done.returncode}"
    if not isinstance(names, list):
        raise BadCheckpoint(f"{source} is not converted: {error}")
    return [str(name) for name in names]
