"""What a model's file or folder says before its weights are read: its tokenizer, how far it was trained, whether it decodes."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from typing import Optional, Union

from . import _llama, _sequence

TEXT = 256  # bytes of a value in a file's metadata


def of(model: str) -> Union[GGUF, Transformers]:
    """Of a GGUF file or a transformers folder.

    Raises ImportError, OSError, and ValueError for a model without a tokenizer and for one that generates no text.
    """
    return Transformers(model) if os.path.isdir(model) else GGUF(model)


class GGUF:
    """Through llama-cpp-python."""

    def __init__(self, model: str) -> None:
        self.path = _llama.model_file(model)
        _llama.host()
        _llama.quiet()
        from llama_cpp import llama_cpp as c

        self._c = c
        c.llama_backend_init()
        params = c.llama_model_default_params()
        params.vocab_only = True
        self._model = c.llama_model_load_from_file(self.path.encode(), params)
        if not self._model:
            raise ValueError(f"the host cannot load {model}")
        architecture = self._says("general.architecture") or "unknown"
        decodes = c.llama_model_has_decoder(self._model) and not c.llama_model_has_encoder(self._model)
        if not decodes or self._says(f"{architecture}.attention.causal") == "false":
            raise ValueError(f"{model} is no decoder ({architecture}): the library serves models that generate text, token by token")
        self._vocabulary = c.llama_model_get_vocab(self._model)
        if c.llama_vocab_type(self._vocabulary) == c.LLAMA_VOCAB_TYPE_NONE:
            raise ValueError(f"{model} has no tokenizer")
        self.trained: Optional[int] = int(self._says(f"{architecture}.context_length") or 0) or None

    def _says(self, key: str) -> Optional[str]:
        text = ctypes.create_string_buffer(TEXT)
        found = self._c.llama_model_meta_val_str(self._model, key.encode(), text, TEXT)
        return text.value.decode("utf-8", "replace") if found >= 0 else None

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """The tokens of a text; begin: with the one that texts begin with, if the model has one."""
        data = text.encode()
        out = (self._c.llama_token * (len(data) + 2))()
        count = self._c.llama_tokenize(self._vocabulary, data, len(data), out, len(out), begin, True)
        if count < 0:
            raise ValueError("the host cannot tokenize this text")
        return list(out[:count])

    def decode(self, tokens: list[int]) -> str:
        """Their text."""
        return b"".join(map(self._piece, tokens)).decode("utf-8", "replace")

    def _piece(self, token: int) -> bytes:
        text = ctypes.create_string_buffer(TEXT)
        count = self._c.llama_token_to_piece(self._vocabulary, token, text, TEXT, 0, False)
        return text.raw[: max(count, 0)]


class Transformers:
    """Through transformers."""

    def __init__(self, model: str) -> None:
        transformers = _sequence.transformers()
        config = transformers.AutoConfig.from_pretrained(model).get_text_config()
        self.trained: Optional[int] = getattr(config, "max_position_embeddings", None)
        self.path = model
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        except Exception as e:  # of a kind and a length that depend on the model's
            raise ValueError(f"{model} has no tokenizer: {str(e).splitlines()[0]}") from None
        if not set(self._tokenizer.get_vocab()) - set(self._tokenizer.all_special_tokens):  # made of nothing
            raise ValueError(f"{model} has no tokenizer")

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """See GGUF.encode()."""
        return list(self._tokenizer(text, add_special_tokens=begin, verbose=False)["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        """See GGUF.decode()."""
        text: str = self._tokenizer.decode(tokens)
        return text


def host(model: str) -> str:
    """What reads a model, and its version."""
    package = "transformers" if os.path.isdir(model) else "llama-cpp-python"
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package
