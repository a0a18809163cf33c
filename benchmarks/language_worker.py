"""One side of the paired benchmark of language models (decode.py): a process that holds a few layers of full
width.

    MINDBLIP2_BENCH_LLM="llama 4" python benchmarks/language_worker.py torch|mindspore

Reads a case per line from standard input and answers with one JSON line.  Cases, of one text of TOKENS
places, queries and prompt:

prefill TOKENS         seconds until the logits of the first new token are there
generate TOKENS NEW    seconds of each new token but the first, in the order of writing
graphs TOKENS          ours: graphs compiled for a first picture, for ten more with prompts as long and up to
7 tokens shorter, for a longer read                   GB/s at which two threads read an array of 1 GB
weights                bytes that are read for a token
memory                 the process's peak

MINDBLIP2_BENCH_SMALL=1 makes the model narrow, to try the script.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where the tests load this file by its path

from worker import SMALL, seconds, serve  # noqa: E402  sets the number of threads, so it comes before NumPy

import numpy as np  # noqa: E402  isort: skip

QUERIES = 32
NARROW = {"hidden_size": 64, "num_heads": 4, "intermediate_size": 176, "vocab_size": 320}
ARRAY_BYTES = 1 << (20 if SMALL else 30)


def section(named, small=SMALL):
    """The configuration of "llama 4": the published width, so many layers."""
    from mindblip2.config import LlamaConfig, OPTConfig

    name, layers = named.split()
    sizes = {"num_layers": int(layers), **(NARROW if small else {})}
    return LlamaConfig(**sizes, seq_length=2048) if name == "llama" else OPTConfig(**sizes, eos_token_id=2)


def text(config, tokens):
    """What the language model reads, (1, T, D)."""
    return np.random.default_rng(0).standard_normal((1, tokens, config.hidden_size), dtype=np.float32) * 0.02


class Clock:
    """When it was told of a token; a streamer of transformers."""

    def __init__(self):
        self.times = []

    def put(self, _):
        self.times.append(time.perf_counter())

    def end(self):
        pass

    def between(self, tokens):
        """Seconds from one token to the next, of the last ``tokens`` that came."""
        return np.diff(self.times[-tokens:]).tolist()


class Torch:
    """transformers' model with the attention it takes by default, and its ``generate``."""

    def __init__(self, config):
        import torch
        import transformers

        from mindblip2.parity.reference.language_model import llama_config, opt_config

        torch.set_num_threads(2)
        torch.set_grad_enabled(False)
        self.torch, self.config = torch, config
        theirs = (llama_config if config.type == "LlamaConfig" else opt_config)(config)
        self.model = transformers.AutoModelForCausalLM.from_config(theirs, attn_implementation="sdpa").eval()

    def prefill(self, tokens):
        x_1TD, mask_1T = self._inputs(tokens)

        def run():
            return self.model(
                inputs_embeds=x_1TD, attention_mask=mask_1T, use_cache=True, logits_to_keep=1
            ).logits

        run()
        return seconds(run)

    def generate(self, tokens, new):
        x_1TD, mask_1T = self._inputs(tokens)
        clock = Clock()
        self.model.generate(
            inputs_embeds=x_1TD,
            attention_mask=mask_1T,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            streamer=clock,
        )
        return clock.between(new)

    def _inputs(self, tokens):
        return self.torch.from_numpy(text(self.config, tokens)), self.torch.ones(
            1, tokens, dtype=self.torch.long
        )


class MindSpore:
    """Our model of stage 2 with a ViT and a Q-Former that take no time, and its ``generate``."""

    def __init__(self, config):
        import mindspore as ms

        from mindblip2 import Blip2Config, Blip2ImageToTextGeneration, device
        from mindblip2.config import ContextConfig

        device.use(ContextConfig(mode=0))
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        self.ms = ms
        self.model = Blip2ImageToTextGeneration(
            Blip2Config(
                vision_config={**sizes, "image_size": 28},
                qformer_config={**sizes, "encoder_width": 32, "query_length": QUERIES},
                text_config=config,
            )
        ).set_train(False)
        self.llm = self.model.llm

    def prefill(self, tokens):
        x_1TD = self.ms.Tensor(text(self.model.config.text_config, tokens))
        mask_1T = self.ms.ops.ones((1, tokens), self.ms.float32)

        def run():
            return self.llm.prefill(x_1TD, mask_1T, QUERIES)[0].asnumpy()

        run()
        return seconds(run)

    def generate(self, tokens, new, seed=0):
        rng, clock = np.random.default_rng(seed), Clock()
        image = self.ms.Tensor(rng.standard_normal((1, 3, 28, 28), dtype=np.float32))
        prompt = rng.integers(3, self.model.config.text_config.vocab_size, tokens - QUERIES).tolist()
        self.model.generate(image, [prompt], clock.put, max_new_tokens=new, min_new_tokens=new, num_beams=1)
        return clock.between(new)

    def graphs(self, tokens):
        counts = [compiled()]
        for lengths in ([tokens], [tokens] * 3 + [tokens - i for i in range(1, 8)], [tokens + 1]):
            for length in lengths:
                self.generate(length, 3, seed=sum(counts) + length)
            counts.append(compiled())
        return np.diff(counts).tolist()

    def read(self):
        """NumPy's dot product of an array with itself, which reads it once: each thread takes half.  The best
        of ten."""
        halves, times = np.ones((2, ARRAY_BYTES // 8), np.float32), []
        with ThreadPoolExecutor(2) as pool:
            for _ in range(10):
                start = time.perf_counter()
                list(pool.map(lambda half: half.dot(half), halves))
                times.append(time.perf_counter() - start)
        return halves.nbytes / min(times) / 1e9

    def weights(self):
        return sum(w.nbytes for w in self._matrices())

    def _matrices(self):
        return [w for w in self.llm.layers.get_parameters() if w.ndim == 2] + [self.llm.head_weight()]


def compiled():
    """How many graphs there are in this process, by MindSpore's own list of each cell's."""
    from mindspore.graph.api import cells_compile_cache

    return sum(map(len, cells_compile_cache.values()))


def main():
    side = {"torch": Torch, "mindspore": MindSpore}[sys.argv[1]](section(os.environ["MINDBLIP2_BENCH_LLM"]))
    serve(lambda name, *sizes: getattr(side, name)(*sizes))


if __name__ == "__main__":
    main()
