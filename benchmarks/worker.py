"""One side of a paired benchmark: a process that holds its models and times a case whenever it is asked.

    python benchmarks/worker.py torch|mindspore

Reads a case per line from standard input and answers with one JSON line: seconds per call, or the process's
peak memory. Cases: gemm · vit BATCH · see BATCH · match BATCH · classify LABELS · rerank PICTURES TEXTS
TOKENS · step BATCH · memory.
MINDBLIP2_BENCH_SMALL=1 makes the Q-Former of rerank and step small, to try the script.
"""

import json
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("GLOG_v", "3")

import numpy as np  # noqa: E402

ROWS, WIDTH, CHAIN = 1028, 2048, 10
TEXT_LENGTH = 35  # LAVIS pads every text of an evaluation to it
SMALL = os.environ.get("MINDBLIP2_BENCH_SMALL") == "1"
SMALL_TWIN = {"layers": 2, "width": 64, "heads": 4, "ffn": 128}
SMALL_QFORMER = (
    {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    if SMALL
    else {}
)
SECONDS = 1.0  # a case is repeated for about this long per request


def rerank_inputs(pictures, texts, tokens):
    """Image embeddings (P, 257, 1408) and texts (T, 35); all of ``tokens`` tokens, or with 0 of 8 to 20, as
    captions are."""
    rng = np.random.default_rng(0)
    image_BPD = rng.standard_normal((pictures, 257, 1408), dtype=np.float32)
    ids = rng.integers(1000, 20000, (texts, TEXT_LENGTH)).astype(np.int32)
    lengths = np.full(texts, tokens) if tokens else rng.integers(8, 21, texts)
    ids[np.arange(TEXT_LENGTH) >= lengths[:, None]] = 0
    return image_BPD, ids


def step_inputs(batch):
    """Output of the ViT (B, 257, 1408) and captions of 8 to 20 tokens, padded to 32."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (batch, 32)).astype(np.int32)
    ids[np.arange(32) >= rng.integers(8, 21, batch)[:, None]] = 0
    return rng.standard_normal((batch, 257, 1408), dtype=np.float32), ids


class Torch:
    """The ViT of stock transformers, and the Q-Former of the PyTorch reference model."""

    def __init__(self):
        import torch

        torch.set_num_threads(2)
        torch.set_grad_enabled(False)
        self.torch = torch

    def gemm(self):
        torch = self.torch
        weights = [torch.randn(WIDTH, WIDTH) * 0.02 for _ in range(CHAIN)]
        start = torch.randn(ROWS, WIDTH)

        def run():
            x = start
            for weight in weights:
                x = torch.nn.functional.linear(x, weight)
            return x

        return run

    def vit(self, batch):
        model, image = self._vision(), self.torch.randn(batch, 3, 224, 224)
        return lambda: model(image).last_hidden_state

    def see(self, batch):
        twin, memory = self._twin(), self.torch.randn(batch, 257, 1408)
        return lambda: twin.see(memory)

    def match(self, batch):
        twin, memory = self._twin(), self.torch.randn(batch, 257, 1408)
        ids = self.torch.randint(1000, 20000, (batch, 32))
        return lambda: twin.match(ids, memory)

    def classify(self, labels):
        twin, vision, image = self._twin(), self._vision(), self.torch.randn(1, 3, 224, 224)
        label_LE = twin.text_feats(twin.read(self.torch.randint(1000, 20000, (labels, 32)))[:, 0])

        def run():
            query, _ = twin.see(twin.ln_vision(vision(image).last_hidden_state))
            similarity = (twin.image_feats(query) @ label_LE.T).amax(1)
            return (similarity / twin.temp).softmax(-1)

        return run

    def rerank(self, pictures, texts, tokens):
        """What LAVIS does: a picture's embeddings are repeated for its texts, and every pair makes its keys
        and values."""
        from mindblip2.parity.reference.config import ReferenceConfig
        from mindblip2.parity.reference.model import ReferenceModel

        twin = ReferenceModel(ReferenceConfig(vit_depth=0, **(SMALL_TWIN if SMALL else {}))).eval()
        image_BPD, ids = map(self.torch.from_numpy, rerank_inputs(pictures, texts, tokens))
        ids = ids.long()
        return lambda: [twin.itm_logits(ids, one.repeat(texts, 1, 1))[:, 1] for one in image_BPD]

    def step(self, batch):
        """A training step of the Q-Former as LAVIS computes it: texts of 32 tokens, keys and values made in
        every pass."""
        from mindblip2.parity.reference.config import ReferenceConfig
        from mindblip2.parity.reference.model import ReferenceModel, decay_groups

        twin = ReferenceModel(ReferenceConfig(vit_depth=0, **(SMALL_TWIN if SMALL else {})))
        optimizer = self.torch.optim.AdamW(decay_groups(twin), lr=1e-4)
        image_BPW, ids = map(self.torch.from_numpy, step_inputs(batch))
        twin.vit = lambda image: image
        ids = ids.long()

        def run():
            with self.torch.enable_grad():
                optimizer.zero_grad()
                twin(image_BPW, ids).loss.backward()
                optimizer.step()

        return run

    def _vision(self):
        if not hasattr(self, "vision"):
            from transformers import Blip2VisionConfig, Blip2VisionModel

            self.vision = Blip2VisionModel(Blip2VisionConfig()).eval()
        return self.vision

    def _twin(self):
        if not hasattr(self, "twin"):
            from mindblip2.parity.reference.config import ReferenceConfig
            from mindblip2.parity.reference.model import ReferenceModel

            self.twin = ReferenceModel(ReferenceConfig(vit_depth=0)).eval()
        return self.twin


class MindSpore:
    """Our cells in graph mode; ``MINDBLIP2_GRAPH_KERNEL=1`` fuses what lies between the products."""

    def __init__(self):
        import mindspore as ms

        from mindblip2 import device
        from mindblip2.config import ContextConfig

        device.use(ContextConfig(mode=0, enable_graph_kernel=os.environ.get("MINDBLIP2_GRAPH_KERNEL") == "1"))
        self.ms = ms

    def gemm(self):
        from mindspore import nn

        chain = nn.SequentialCell(*[nn.Dense(WIDTH, WIDTH, has_bias=False) for _ in range(CHAIN)])
        start = self._normal(ROWS, WIDTH)
        return lambda: chain(start).asnumpy()

    def vit(self, batch):
        model, image = self._model(), self._normal(batch, 3, 224, 224)
        return lambda: model.vit(image).asnumpy()

    def see(self, batch):
        model, image_BPD = self._model(), self._normal(batch, 257, 1408)
        return lambda: model.qformer.see(self.ms.mutable(model.qformer.memory(image_BPD)))[0].asnumpy()

    def match(self, batch):
        model, image_BPD = self._model(), self._normal(batch, 257, 1408)
        ids = self.ms.Tensor(np.random.randint(1000, 20000, (batch, 32)), self.ms.int32)
        return lambda: model.qformer.match(ids, self.ms.mutable(model.qformer.memory(image_BPD)))[0].asnumpy()

    def classify(self, labels):
        model, image = self._model(), self._normal(1, 3, 224, 224)
        label_LE = model.label_features(
            self.ms.Tensor(np.random.randint(1000, 20000, (labels, 32)), self.ms.int32)
        )

        def run():
            features = model.extract_features({"image": image}, "image").image_embeds_proj
            return model.probabilities(features, label_LE).asnumpy()

        return run

    def rerank(self, pictures, texts, tokens):
        """The evaluator's own loop, from the embeddings of the pictures."""
        from mindblip2 import Blip2Config, Blip2Qformer
        from mindblip2.evaluation.retrieval import Match, match

        model = Blip2Qformer(
            Blip2Config(vision_config={"num_hidden_layers": 1}, qformer_config=SMALL_QFORMER)
        ).set_train(False)
        image_BPD, ids = rerank_inputs(pictures, texts, tokens)
        net, kept, wanted = (
            Match(model),
            _Embeddings(self.ms, model, image_BPD),
            np.ones((pictures, texts), bool),
        )
        return lambda: match(net, kept, wanted, ids, (ids != 0).sum(1))

    def step(self, batch):
        """The training loop's own step, from the output of the frozen ViT; texts are cut to a quarter, half …
        of 32 tokens."""
        from mindblip2 import Blip2Config, Blip2Qformer
        from mindblip2.config import OptimizerConfig
        from mindblip2.trainer.train_step import TrainStep

        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = Blip2Qformer(
            Blip2Config(
                vision_config={"num_hidden_layers": 1}, qformer_config={**SMALL_QFORMER, **no_dropout}
            )
        )
        image_BPW, ids = step_inputs(batch)
        model.set_train()
        model.vit.by_blocks = lambda image: image
        step = TrainStep(model, OptimizerConfig())
        length = -(-int((ids != 0).sum(1).max()) // 8) * 8
        return lambda: step([{"image": image_BPW, "input_ids": ids[:, :length]}], 1e-4)

    def _model(self):
        if not hasattr(self, "model"):
            from mindblip2 import Blip2Classifier

            self.model = Blip2Classifier().set_train(False)
        return self.model

    def _normal(self, *shape):
        return self.ms.Tensor(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


class _Embeddings:
    """The pictures' memories, each made of given embeddings when it is asked for
    (``mindblip2.evaluation.retrieval.Kept``)."""

    def __init__(self, ms, model, image_BPD):
        self.ms, self.model, self.image_BPD = ms, model, image_BPD

    def __getitem__(self, i):
        return self.ms.mutable(self.model.qformer.memory(self.ms.Tensor(self.image_BPD[i : i + 1])))


def seconds(run):
    """Seconds per call: the median of calls that fill about SECONDS."""
    times = []
    while sum(times) < SECONDS or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def serve(answer):
    """Answer the cases on standard input, one JSON line each; ``answer`` is called with a case's name and
    sizes."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print, those in C too, does not disturb the answers
    for line in sys.stdin:
        name, *sizes = line.split()
        found = peak_memory() if name == "memory" else answer(name, *map(int, sizes))
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def peak_memory():
    """Bytes that this process has held at most."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(row.split()[1]) * 1024 for row in status if row.startswith("VmHWM"))


def main():
    side, cases = {"torch": Torch, "mindspore": MindSpore}[sys.argv[1]](), {}

    def answer(*case):
        if case not in cases:
            cases[case] = getattr(side, case[0])(*case[1:])
            cases[case]()  # compiles, warms up
            cases[case]()
        return seconds(cases[case])

    serve(answer)


if __name__ == "__main__":
    main()
