"""``mindblip2.lock``: calls from several threads take turns, and nobody waits for ever."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mindblip2.lock import DATA_THREAD, LOCK, ProcessLock, exclusive, unlocked

# Two pipelines, four threads; the answers of one thread first. Prints "wrong: <number>", and "streamed" after
# a callback that waits for
# another thread.
PROGRAM = """
import sys, threading
import numpy as np, mindspore as ms
ms.set_context(mode=ms.PYNATIVE_MODE)
from mindblip2 import Blip2Classifier, lock, pipeline
if "unlocked" in sys.argv:
    lock.ProcessLock.__enter__ = lambda self: self
    lock.ProcessLock.__exit__ = lambda self, *error: None
classify = pipeline("zero_shot_image_classification", model="blip2_digits", candidate_labels=["three", "seven", "one"])
write = pipeline("image_to_text_generation", model="itt_blip2_digits", max_new_tokens=2, num_beams=1)
rng = np.random.default_rng(0)
pictures = [rng.integers(0, 255, (28, 28, 3), dtype=np.uint8) for _ in range(3)]
TURNS = int(sys.argv[1])
calls = [classify, write, lambda picture: Blip2Classifier.from_pretrained("blip2_digits").config.preset]
wanted = [[call(picture) for picture in pictures] for call in calls]
wrong = []

def work(number):
    for turn in range(TURNS):
        call, picture = (number + turn) % 2 if turn or number else 2, (3 * number + turn) % 3
        try:
            answer = calls[call](pictures[picture])
        except Exception as error:
            answer = error
        if answer != wanted[call][picture]:
            wrong.append((call, picture, answer))

threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("wrong:", len(wrong), wrong[:1])

def ask(texts):
    other = threading.Thread(target=classify, args=(pictures[0],), daemon=True)
    other.start()
    other.join(60)
    assert not other.is_alive()
write(pictures[0], on_text=ask)
print("streamed")
"""


def run(*arguments):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.parametrize("turns", ["3", pytest.param("12", marks=pytest.mark.slow)])
def test_b1_threads_of_several_pipelines_get_the_answers_of_one(turns):
    ended = run(turns)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "wrong: 0 []" in ended.stdout and "streamed" in ended.stdout


@pytest.mark.slow
def test_b1_control_without_the_lock_the_same_program_fails():
    """Whether threads meet is chance: three runs."""
    ended = [run("12", "unlocked") for _ in range(3)]
    assert any(one.returncode != 0 or "wrong: 0 []" not in one.stdout for one in ended)


def in_thread(function, name=None, seconds=10):
    """What the function returns or raises in a thread of its own; "still waiting" after so many seconds."""
    said = []

    def work():
        try:
            said.append(function())
        except Exception as error:  # noqa: BLE001  looked at by the test
            said.append(error)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    return said[0] if said else "still waiting"


def test_b1_the_lock_is_re_entrant_and_others_wait():
    @exclusive
    def inner():
        return "inner"

    @exclusive
    def outer():
        return inner(), in_thread(inner, seconds=0.2)

    assert outer() == ("inner", "still waiting")
    assert in_thread(inner) == "inner"


def test_b1_a_callback_may_wait_for_another_thread():
    @exclusive
    def call():
        return "other"

    @exclusive
    def nested(callback):
        return callback()

    @exclusive
    def stream(callback):
        before, answer = LOCK._depth, nested(callback)
        assert LOCK._depth == before  # taken again, as often as before
        return answer

    assert stream(unlocked(lambda: in_thread(call))) == "other"
    assert stream(lambda: in_thread(call, seconds=0.2)) == "still waiting"  # control
    assert unlocked(None) is None
    assert unlocked(lambda: in_thread(call))() == "other"  # without a lock to give up


def test_b1_a_data_set_that_calls_a_model_is_told_instead_of_waiting_for_ever():
    @exclusive
    def call():
        return "fine"

    with LOCK:
        assert "compute what the data set needs before the training" in str(in_thread(call, name=DATA_THREAD))
    assert in_thread(call, name=DATA_THREAD) == "fine"


def test_b1_batches_are_made_in_threads_of_the_name_that_the_lock_knows():
    from mindblip2.data.prefetch import ahead

    assert list(ahead(threading.current_thread().name for _ in range(1))) == [DATA_THREAD]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("holder", ["this thread", "another", "nobody"])
def test_b1_a_worker_process_is_not_stopped_by_a_lock_of_its_parent(holder):
    lock, taken, done = ProcessLock(), threading.Event(), threading.Event()

    def hold():
        with lock:
            taken.set()
            done.wait(20)

    if holder == "this thread":
        lock.acquire()
    if holder == "another":
        threading.Thread(target=hold, daemon=True).start()
        taken.wait(5)
    child = os.fork()
    if child == 0:
        lock.after_fork()
        with lock:  # would wait for ever where the parent's other thread seemed to hold it
            os._exit(0 if lock._depth == 1 + (holder == "this thread") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    done.set()


def test_b1_models_and_pipelines_take_the_lock_in_every_public_method():
    from mindblip2 import (
        Blip2Classifier,
        Blip2ImageToTextGeneration,
        Blip2Qformer,
        ImageToTextGenerationPipeline,
        Trainer,
    )
    from mindblip2.checkpoint.pretrained import Pretrained

    calls = [
        Pretrained.__call__,
        Pretrained.__init__,
        Pretrained.from_pretrained,
        Pretrained.load_checkpoint,
        Blip2Qformer.__init__,
        Blip2Qformer.generate,
        Blip2Qformer.extract_features,
        Blip2Qformer.itm_logits,
        Blip2Qformer.text_features,
        Blip2Classifier.match_probabilities,
        Blip2ImageToTextGeneration.generate,
        Trainer.__init__,
        Trainer.train,
        Trainer.predict,
        Trainer.evaluate,
        Trainer.export,
        ImageToTextGenerationPipeline.__call__,
        ImageToTextGenerationPipeline.predict_answers,
    ]
    assert [call.__qualname__ for call in calls if not hasattr(call, "__wrapped__")] == []

    class Own(Blip2Qformer):
        def answer(self):
            return "own"

        def _private(self):
            return "private"

    # control: what is private has none
    assert hasattr(Own.answer, "__wrapped__") and not hasattr(Own._private, "__wrapped__")
