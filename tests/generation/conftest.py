"""Tokenizers of language models, as tests/data makes them."""

from tests.data.conftest import folder, llama, opt  # noqa: F401
