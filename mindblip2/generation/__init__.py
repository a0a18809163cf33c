"""Token generation: greedy, beam search, sampling; the generation configuration; streaming."""
