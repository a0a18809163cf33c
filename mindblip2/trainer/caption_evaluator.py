"""Captions and answers that a model of stage 2 writes, and their scores: in an evaluation, and on the way in
training."""

from mindblip2.config.schema import ConfigError
from mindblip2.data.datasets.captioned_images import check_readable, pictures_and_captions
from mindblip2.data.datasets.questions import question
from mindblip2.data.text.cleaning import BlipQuestion
from mindblip2.distributed import comm
from mindblip2.evaluation.captioning import ANSWER, ImageTextGenerator
from mindblip2.evaluation.metrics.captions import NAMES, caption_scores, why_no_cider
from mindblip2.evaluation.metrics.java import NAMES as JAVA
from mindblip2.evaluation.metrics.java import java_scores
from mindblip2.evaluation.vqa import PROMPT, vqa_accuracy
from mindblip2.generation.generation_config import merged
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration
from mindblip2.trainer.data_sources import prompt_of

SCORES = (*NAMES, "agg_metrics", "exact", *JAVA)
NEED_CIDER = ("CIDEr", "agg_metrics")


class CaptionEvaluator:
    """The scores of the captions that are written about held-out pictures, as the evaluation of ``config``
    would write them."""

    metrics = SCORES

    def __init__(self, model, processor, config, samples, prompt=""):
        self.pictures, self.captions = pictures_and_captions(samples)
        check_readable(self.pictures)
        why = why_no_cider(self.captions) if config.metric.type in NEED_CIDER else ""
        if why:
            raise ConfigError(
                f"metric.type = {config.metric.type!r} cannot choose a checkpoint here: {why}, or name "
                "another "
                "metric, such as Bleu_4"
            )
        self.writer, self.prompt, self.options = (
            writer_of(model, processor),
            prompt or asking_prompt(config),
            options_of(config),
        )
        decoding = {name: value for name, value in self.options.items() if name != "batch_size"}
        # slow ones only where they decide
        self.java = [name for name in JAVA if name == config.metric.type]
        if len(java_scores({0: "a cat"}, {0: ["a cat"]}, self.java)) < len(self.java):
            raise ConfigError(
                f"metric.type = {config.metric.type!r} cannot be computed here, see above: name "
                f"{' or '.join(NAMES)}"
            )
        # an error after an epoch is late
        model.room(len(self.writer.prompt_ids(self.prompt)), model.decoding(decoding).max_new_tokens)

    def __str__(self):
        return f"captions of {len(self.pictures)} pictures" + (
            f", each after {self.prompt!r}" if self.prompt else ""
        )

    def figures(self):
        return score(write(self.writer, self.pictures, self.prompt, self.options), self.captions, self.java)


class AnswerEvaluator:
    """The VQA accuracy of the answers to held-out questions, as the evaluation of ``config`` would ask them.
    Raises ConfigError where nobody's answers are known, or the prompt has no place for a question."""

    metrics = ("accuracy",)

    def __init__(self, model, processor, config, samples, prompt=""):
        questions = [question(one, f"sample {i}") for i, one in enumerate(samples)]
        self.pictures, self.truths = [one.image for one in questions], [one.answers for one in questions]
        if not all(self.truths):
            raise ConfigError(
                "do_eval with questions needs people's answers: name the file of annotations beside that of "
                "questions in "
                "eval_dataset.data_loader.annotation_files"
            )
        check_readable(self.pictures)
        self.questions = [BlipQuestion()(one.question) for one in questions]
        self.writer, self.prompt, self.options = (
            writer_of(model, processor),
            prompt or asking_prompt(config) or PROMPT,
            options_of(config),
        )
        self.rule = self.options.pop("rule", "official")
        if "{}" not in self.prompt:
            raise ConfigError(
                f"the prompt of held-out questions is {self.prompt!r}, without {{}} for the question: set "
                f"eval_dataset.data_loader.hypothesis_template, e.g. to {PROMPT!r}"
            )
        longest = max(len(self.writer.prompt_ids(self.prompt.replace("{}", one))) for one in self.questions)
        decoding = {name: value for name, value in self.options.items() if name != "batch_size"}
        model.room(longest, model.decoding(merged(ANSWER, decoding)).max_new_tokens)

    def __str__(self):
        return f"answers to {len(self.questions)} questions, each as {self.prompt!r}"

    def figures(self):
        answers = ask(self.writer, self.pictures, self.questions, self.prompt, self.options)
        right = vqa_accuracy(answers, self.truths, self.rule)
        return {"accuracy": sum(right) / len(right)}


def writer_of(model, processor):
    """The :class:`Writer` of a model that can write.  Raises ConfigError for another."""
    if not isinstance(model, Blip2ImageToTextGeneration):
        raise ConfigError(
            f"a {type(model).__name__} writes nothing: make a Blip2ImageToTextGeneration, which has the same "
            "parameters"
        )
    model.set_train(False)
    return ImageTextGenerator(model, processor)


def write(writer, pictures, prompt, options):
    """One caption for each picture, without the prompt; of several the best."""
    own = comm.data_shard(pictures)
    texts = writer(own, prompt, return_full_text=False, **options) if len(own) else []
    return comm.gather_data_shards([one if isinstance(one, str) else one[0] for one in texts])


def ask(writer, pictures, questions, prompt, options):
    """One answer for each question about its picture."""
    own = comm.data_shard(pictures)
    return comm.gather_data_shards(
        writer.answers(own, comm.data_shard(questions), prompt, **options) if len(own) else []
    )


def score(texts, captions, java=JAVA):
    """Scores of ``texts`` against the lists of people's ``captions``: BLEU, ROUGE-L, CIDEr, LAVIS's sum of
    BLEU-4 and CIDEr by which it chooses a checkpoint, the share of texts that somebody wrote just so, and
    those of METEOR and SPICE that are named and to be had.

    What cannot be computed is not among them, and a line says why: CIDEr, and the sum with it, of one
    picture."""
    both = dict(enumerate(texts)), dict(enumerate(captions))
    figures = caption_scores(*both)
    exact = sum(text in own for text, own in zip(texts, captions)) / len(texts)
    summed = {"agg_metrics": figures["CIDEr"] + figures["Bleu_4"]} if "CIDEr" in figures else {}
    return {**figures, **summed, "exact": exact, **java_scores(*both, java)}


def options_of(config):
    """How an evaluation writes: arguments of :class:`Writer`'s call."""
    return {"batch_size": max(config.eval_dataset.batch_size, 1), **config.generation}


def asking_prompt(config):
    """What stands before the texts that are written: the prompt of the evaluation's data, else that of
    training.

    A prompt that is put before captions ends with a space, but to a language model that space is the begin of
    the caption's first word: asked with it, it would have to go on as no text in training did."""
    data = config.eval_dataset
    return data.data_loader.hypothesis_template or (data.text_transforms.prompt or prompt_of(config)).rstrip()
