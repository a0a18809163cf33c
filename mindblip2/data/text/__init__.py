"""Texts: tokenizers, caption cleaning, prompts, checks."""
