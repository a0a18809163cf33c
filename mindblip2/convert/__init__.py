"""The only package that reads and writes weights of other projects: files of
LAVIS, EVA, BERT and transformers to .ckpt, and back."""
