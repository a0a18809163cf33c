"""The paper as MindSpore cells: pure maths; no files, no tokenizers, no YAML."""
