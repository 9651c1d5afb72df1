"""Text of a model's tokens without its weights, and without torch where the model has a tokenizer file."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opdscope.models.packaged import cached_model

Decode = Callable[[Sequence[int]], str]


def tokenizer_hash(token_to_id: Mapping[str, int], special_ids: Iterable[int]) -> str:
    """Hex SHA-256 over the sorted token-to-id map and the special token ids; of a Hugging Face tokenizer, `get_vocab()` and `all_special_ids`."""
    content = sorted(token_to_id.items()), sorted(special_ids)
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()


def read_vocabulary(name_or_path: str, revision: str | None = None) -> Decode | None:
    """What turns token ids of a model into text, special tokens shown by name; None if that cannot be had on this machine.

    Nothing is downloaded. Reads `tokenizer.json` of a directory or of the hub's cache, or the vocabulary of a GGUF file (which needs
    `opdscope[local]`).

    Args:
        name_or_path: The model as a configuration names it.
        revision: Hub revision.
    """
    name = cached_model(name_or_path)
    if name is None:
        return None
    path = Path(name).expanduser()
    if not path.exists():
        return _from_hub_cache(name, revision)
    if path.is_dir() and (path / "tokenizer.json").is_file():
        return _from_file(path / "tokenizer.json")
    files = [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf"))
    return _from_gguf(files[0]) if len(files) == 1 else None


def _from_file(path: Path) -> Decode | None:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    try:
        tokenizer: Any = Tokenizer.from_file(str(path))
    except Exception:  # the reader raises bare exceptions for torn or foreign files; the report then shows numbers and says so
        return None
    return lambda token_ids: tokenizer.decode(list(token_ids), skip_special_tokens=False)


def _from_hub_cache(name: str, revision: str | None) -> Decode | None:
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(name, "tokenizer.json", revision=revision)
    except HFValidationError:
        return None
    return _from_file(Path(found)) if isinstance(found, str) else None


def _from_gguf(path: Path) -> Decode | None:
    try:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception:  # as above: missing packages, and whatever the reader raises for foreign files
        return None
    return lambda token_ids: tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
