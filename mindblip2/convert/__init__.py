"""Foreign weights enter the house here and nowhere else: LAVIS, EVA, BERT and transformers files to .ckpt,
and back."""
