"""Loads a causal language model from a local directory, a GGUF file or the hub, and refuses what it could not compute rightly."""

import functools
import importlib
import importlib.util
import json
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging

from opdscope.errors import ModelError
from opdscope.models.transformers.attention import ATTENTION_NAME
from opdscope.models.transformers.language_model import DTYPES, LanguageModel
from opdscope.models.transformers.packing import pack_linears
from opdscope.models.transformers.selfcheck import require_exact_attention

_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


@dataclass(frozen=True)
class _Source:
    """Where a model's files lie on this machine."""

    directory: Path
    gguf_file: str | None
    revision: str | None


def load_language_model(
    name_or_path: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    trainable: bool = False,
) -> LanguageModel:
    """Load a causal language model and its tokenizer for sampling and scoring.

    Args:
        name_or_path: A directory in the Hugging Face layout, a directory with one .gguf file, a .gguf file, or a name on the hub.
        dtype: "float32" (exact scoring), "bfloat16" or "float16". GGUF weights are expanded to it.
        device: "auto" (CUDA if there is one, else CPU) or a torch device such as "cpu" or "cuda:1".
        revision: Branch, tag or commit on the hub; ignored for local models.
        trust_remote_code: Whether the model may bring its own Python code, which then runs with your rights.
        gguf_file: Which .gguf file of the directory or hub repository to load.
        trainable: Leave gradients on and all weights among the parameters; sampling and scoring are then slower.

    Returns:
        The model in evaluation mode, with gradients switched off unless they are asked for.

    Raises:
        ModelError: If the model is not found, is not a causal language model, has no safetensors or GGUF weights (pickled weights are not
            read), needs a package that is missing, or attends in a way that the shared-prefix attention does not compute.
    """
    if dtype not in DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r} for {name_or_path!r}; choose one of {', '.join(DTYPES)}.")
    source = _locate(name_or_path, revision, gguf_file)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    if source.gguf_file is not None:
        _require_gguf_packages(name_or_path)
        options["gguf_file"] = source.gguf_file
    with _parsed_once() if source.gguf_file is not None else nullcontext():
        model, tokenizer = _read(name_or_path, source.directory, DTYPES[dtype], options)
    model = model.to(_resolve_device(device, name_or_path)).eval().requires_grad_(trainable)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if not trainable:
        pack_linears(model.base_model)
    language_model = LanguageModel(
        model=model,
        tokenizer=tokenizer,
        vocab_size=len(tokenizer),
        name=name_or_path,
        dtype=dtype,
        eos_token_ids=_eos_token_ids(model, tokenizer),
        num_parameters=num_parameters,
        files=_files(source),
        revision=source.revision,
    )
    _require_output_rows(language_model)
    require_exact_attention(language_model)
    return language_model


def _locate(name_or_path: str, revision: str | None, gguf_file: str | None) -> _Source:
    path = Path(name_or_path).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{name_or_path!r} is a file but not a .gguf file; give a model directory, a .gguf file or a hub name.")
        return _Source(path.parent, path.name, None)
    if path.is_dir():
        return _Source(path, gguf_file or _only_gguf(path), None)
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1 or path.suffix == ".gguf":
        raise ModelError(f"No model at {name_or_path!r}: there is no such file or directory. Check the path, or give a name on the hub.")
    return _download(name_or_path, revision, gguf_file)


def _only_gguf(directory: Path) -> str | None:
    if not (directory / "config.json").exists():
        names = sorted(path.name for path in directory.glob("*.gguf"))
        if len(names) == 1:
            return names[0]
        found = f"{len(names)} .gguf files ({', '.join(names)}): name one by gguf_file" if names else "neither config.json nor a .gguf file"
        raise ModelError(f"No model in the directory {str(directory)!r}: it holds {found}.")
    if not any(directory.glob("*.safetensors")):
        raise ModelError(
            f"The directory {str(directory)!r} holds no .safetensors weights. Pickled weights (.bin, .pt) are not read because they can "
            "run code; convert them with `AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)` in a place you trust."
        )
    return None


def _download(name: str, revision: str | None, gguf_file: str | None) -> _Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = _HUB_PATTERNS if gguf_file is None else [gguf_file, "*.json"]
    try:
        directory = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"No model {name!r}: it is not a local directory or .gguf file, and the hub did not give it ({reason}). Check the name and the "
            "connection, log in with `hf auth login` if it is private, or give a local path."
        ) from error
    return _Source(directory, gguf_file or _only_gguf(directory), directory.name)


def _require_gguf_packages(name: str) -> None:
    missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
    if missing:
        raise ModelError(f"{name!r} is a GGUF model and needs the package {' and '.join(missing)}: pip install 'opdscope[local]'.")


def _read(name: str, directory: Path, dtype: torch.dtype, options: dict[str, Any]) -> tuple[Any, Any]:
    try:
        config = AutoConfig.from_pretrained(directory, **options)
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(f"{name!r} is an encoder-decoder model ({config.model_type}); a causal language model is needed.")
        architectures = getattr(config, "architectures", None) or []
        if architectures and not any(each.endswith(("ForCausalLM", "LMHeadModel")) for each in architectures):
            raise ModelError(f"{name!r} is no causal language model: its architecture is {', '.join(architectures)}.")
        tokenizer = _read_tokenizer(directory, options)
        weights = _expand_gguf() if "gguf_file" in options else {"use_safetensors": True}
        with _without_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(
                directory, config=config, dtype=dtype, attn_implementation=ATTENTION_NAME, **weights, **options
            )
    except ModelError:
        raise
    except Exception as error:  # torn or foreign files make the readers raise anything, from struct.error to SafetensorError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"The model {name!r} cannot be loaded as a causal language model: {reason}") from error
    return model, tokenizer


@contextmanager
def _without_progress_bars() -> Generator[None]:
    """Keep `transformers` from drawing its own bars into the caller's screen."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    # the conversion of GGUF files draws a bar that obeys no setting
    reader: Any = modeling_gguf_pytorch_utils
    conversion_bar = reader.tqdm
    reader.tqdm = functools.partial(conversion_bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = conversion_bar
        if enabled:
            logging.enable_progress_bar()


@contextmanager
def _parsed_once() -> Generator[None]:
    """Let `transformers` parse a GGUF file once: it asks for it three times, and for the names of its tensors once for every module."""
    gguf: Any = importlib.import_module("gguf")
    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def _expand_gguf() -> dict[str, Any]:
    """The option that expands GGUF weights to plain ones; where `transformers` does not know it yet, it always expands.

    Weights left packed would be multiplied by approximate kernels, where the machine has them: results would depend on the machine.
    """
    config_class = getattr(transformers, "GgufConfig", None)
    return {} if config_class is None else {"quantization_config": config_class(dequantize=True)}


def _read_tokenizer(directory: Path, options: dict[str, Any]) -> Any:
    """The tokenizer as it was saved.

    `AutoTokenizer` replaces a generic tokenizer by the class of the model type (Qwen2Tokenizer for every "qwen2" model, say), which splits
    text differently and adds tokens; a model with a tokenizer of its own would then read other ids than it was trained on.
    """
    settings = directory / "tokenizer_config.json"
    saved_as = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") if settings.exists() else None
    generic = "gguf_file" not in options and saved_as in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(directory, **options)


def _resolve_device(device: str, name: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"Unknown device {device!r} for {name!r}; use auto, cpu, cuda or cuda:<number>.") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"The device {device!r} for {name!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices. Use auto."
        )
    return resolved


def _eos_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    generation_config: GenerationConfig | None = model.generation_config
    declared = generation_config.eos_token_id if generation_config is not None else None
    ids = set(declared if isinstance(declared, list) else [declared]) | {tokenizer.eos_token_id}
    return tuple(sorted(each for each in ids if each is not None))


def _files(source: _Source) -> tuple[Path, ...]:
    if source.gguf_file is not None:
        return (source.directory / source.gguf_file,)
    return (source.directory / "config.json", *sorted(source.directory.glob("*.safetensors")))


def _require_output_rows(language_model: LanguageModel) -> None:
    rows = language_model.model.get_output_embeddings().weight.shape[0]
    if rows < language_model.vocab_size:
        raise ModelError(
            f"{language_model.name!r} has {rows} output rows for {language_model.vocab_size} tokens of its tokenizer; tokenizer and "
            "weights do not belong together. Resize the embeddings when you save the model, or use its own tokenizer."
        )
