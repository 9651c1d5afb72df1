"""What loads, what is refused and in which words, and what a loaded model says about itself."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from transformers import BertConfig, GenerationConfig, MistralConfig, MistralForCausalLM

from fixtures.tiny_models import CHAT_TEMPLATE, character_tokenizer, save_tiny_model
from opdscope.errors import ModelError
from opdscope.models.base import require_same_vocabulary
from opdscope.models.packaged import resolve_model
from opdscope.models.transformers import LanguageModel, load_language_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def plain(directory: Path) -> LanguageModel:
    return load_language_model(str(directory))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language_model(str(save_tiny_model(tmp_path_factory.mktemp("chat"), "qwen2", chat_template=CHAT_TEMPLATE)))


def test_importing_the_protocols_does_not_import_torch() -> None:
    code = "import sys, opdscope.models.base; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_loaded_model_describes_itself(plain: LanguageModel, directory: Path) -> None:
    assert (plain.vocab_size, plain.eos_token_ids, plain.name, plain.dtype, plain.revision) == (28, (1,), str(directory), "float32", None)
    assert plain.num_parameters == 35 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32) + 32
    assert not plain.model.training
    assert not any(parameter.requires_grad for parameter in plain.model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_dtype_asked_for(directory: Path, dtype: str) -> None:
    assert {parameter.dtype for parameter in load_language_model(str(directory), dtype=dtype).model.parameters()} == {getattr(torch, dtype)}


def test_end_tokens_are_those_of_the_generation_config_and_the_tokenizer(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    GenerationConfig(eos_token_id=[7, 5]).save_pretrained(tmp_path)
    assert load_language_model(str(tmp_path)).eos_token_ids == (1, 5, 7)


def test_fingerprint_follows_the_weights_and_tokenizer_hash_the_tokens(plain: LanguageModel, directory: Path, tmp_path: Path) -> None:
    again = load_language_model(str(directory))
    other = load_language_model(str(save_tiny_model(tmp_path, "llama", seed=1)))
    assert again.fingerprint == plain.fingerprint != other.fingerprint
    assert other.tokenizer_hash == plain.tokenizer_hash
    character_tokenizer("0123456789+-*=;> abcdefgH").save_pretrained(tmp_path)
    assert load_language_model(str(tmp_path)).tokenizer_hash != plain.tokenizer_hash


def test_a_generic_tokenizer_is_not_replaced_by_the_model_types_own(chat: LanguageModel) -> None:
    assert type(chat.tokenizer).__name__ != "Qwen2Tokenizer"
    assert chat.vocab_size == 28


def test_prompt_follows_the_chat_template_and_its_ids_spell_it(chat: LanguageModel) -> None:
    text, token_ids = chat.render_prompt("1+2", "be")
    assert text == "<bos>6>be;<bos>4>1+2;<bos>a>"
    assert chat.tokenizer.decode(token_ids) == text
    assert chat.render_prompt("1+2", None)[0] == "<bos>4>1+2;<bos>a>"


def test_prompt_without_template_is_plain_text(plain: LanguageModel) -> None:
    text, token_ids = plain.render_prompt("1+2", None)
    assert text == "1+2" == plain.decode(token_ids)
    assert plain.render_prompt("1+2", "be")[0] == "be\n\n1+2"
    with pytest.raises(ModelError, match="no tokens"):
        plain.render_prompt("", None)


def test_decoding_skips_special_tokens_and_token_text_shows_them(plain: LanguageModel) -> None:
    assert plain.decode((4, 13, 5, 1)) == "1+2"
    assert [plain.token_text(token) for token in (4, 19, 1)] == ["1", " ", "<eos>"]


def test_a_refusing_chat_template_is_named(tmp_path: Path) -> None:
    model = load_language_model(str(save_tiny_model(tmp_path, "llama", chat_template="{{ raise_exception('no system') }}")))
    with pytest.raises(ModelError, match=r"chat template .* refuses the prompt \(no system\)"):
        model.render_prompt("1", "be")


def test_equal_vocabularies_are_accepted_and_different_ones_refused(plain: LanguageModel, chat: LanguageModel, tmp_path: Path) -> None:
    require_same_vocabulary(plain, chat)
    save_tiny_model(tmp_path, "llama")
    character_tokenizer("0123456789+-*=;> abcdefgH").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"2 tokens differ, for example 'h'.*Choose a teacher of the student's own family"):
        require_same_vocabulary(plain, load_language_model(str(tmp_path)))


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "nowhere/model.gguf", "a/b/c"])
def test_a_missing_path_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="there is no such file or directory"):
        load_language_model(name)


def test_a_name_that_the_hub_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"No model 'nobody/nothing': .*Check the name and the connection"):
        load_language_model("nobody/nothing")


def test_directories_without_readable_weights_are_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither config.json nor a \.gguf file"):
        load_language_model(str(tmp_path))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"2 \.gguf files \(a\.gguf, b\.gguf\): name one by gguf_file"):
        load_language_model(str(tmp_path))
    shutil.copy(directory / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="Pickled weights"):
        load_language_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        load_language_model(str(tmp_path / "pytorch_model.bin"))


def test_gguf_without_its_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package gguf and accelerate"):
        load_language_model(str(tmp_path))


def test_a_torn_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF torn")
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load_language_model(str(tmp_path / "a.gguf"))
    assert isinstance(gguf.GGUFReader, type), "the reader that parses each file once is taken out again"


def test_a_prompt_that_the_tokenizer_has_no_token_for_is_refused_with_a_remedy() -> None:
    model = load_language_model(str(resolve_model("embedded:chain-student-weak")))
    with pytest.raises(ModelError, match=r"cannot encode the prompt 'What is 2\+2\?' .*into the configuration's section prompt"):
        model.render_prompt("What is 2+2?")


def test_models_that_are_not_causal_are_refused(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no causal language model: its architecture is BertForMaskedLM"):
        load_language_model(str(tmp_path))


def save_mistral(directory: Path, sliding_window: int | None) -> str:
    config = MistralConfig(
        vocab_size=28,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=sliding_window,
        max_position_embeddings=256,
    )
    MistralForCausalLM(config).save_pretrained(directory)
    character_tokenizer().save_pretrained(directory)
    return str(directory)


def test_a_sliding_window_in_use_is_refused_and_an_unused_one_accepted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="attends with a sliding window of 16 tokens"):
        load_language_model(save_mistral(tmp_path / "windowed", 16))
    for sliding_window in (None, 256):
        assert load_language_model(save_mistral(tmp_path / str(sliding_window), sliding_window)).vocab_size == 28


def test_fewer_output_rows_than_tokens_are_refused(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    character_tokenizer("".join(map(chr, range(48, 123)))).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has 35 output rows for 78 tokens"):
        load_language_model(str(tmp_path))


def test_an_unknown_dtype_or_device_is_refused(directory: Path) -> None:
    with pytest.raises(ModelError, match="Unknown dtype 'int8'"):
        load_language_model(str(directory), dtype="int8")
    with pytest.raises(ModelError, match="Unknown device 'gpu'"):
        load_language_model(str(directory), device="gpu")
    with pytest.raises(ModelError, match="does not exist"):
        load_language_model(str(directory), device="cuda:99")


def test_a_model_whose_logits_the_shared_path_misses_is_refused(directory: Path, tmp_path: Path) -> None:
    """A configuration that asks for a logit scale which the model class does not apply stands for any unknown architecture."""
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"logits_scaling": 8.0}))
    with pytest.raises(ModelError, match="is not supported: its logits differ by"):
        load_language_model(str(tmp_path))
