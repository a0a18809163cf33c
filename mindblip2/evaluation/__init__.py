"""Zero-shot classification, captioning, retrieval, visual question answering, and their metrics."""
