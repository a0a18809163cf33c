"""The small tokenizers of the data tests."""

from tests.data.conftest import folder, llama, opt  # noqa: F401
