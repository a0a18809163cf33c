"""The task of stage 2: train the bridge, write about pictures, and measure captions and answers."""

from pathlib import Path

from mindblip2.data.datasets.captioned_images import check_readable, pictures_and_captions
from mindblip2.data.datasets.questions import asks, question
from mindblip2.data.images.decoded import DecodedPictures
from mindblip2.data.images.load import load_image
from mindblip2.data.text.cleaning import BlipQuestion
from mindblip2.demo import scenes
from mindblip2.distributed import comm
from mindblip2.evaluation.captioning import pairs
from mindblip2.evaluation.visualize import text_sheet
from mindblip2.evaluation.vqa import PROMPT, vqa_accuracy
from mindblip2.file_io import atomic_file, write_json
from mindblip2.generation.generation_config import merged
from mindblip2.models.blip2_llm import PROMPT_STEP, Blip2ImageToTextGeneration
from mindblip2.trainer import export
from mindblip2.trainer.caption_evaluator import ask, asking_prompt, options_of, score, write, writer_of
from mindblip2.trainer.data_sources import captioned_pictures, questions
from mindblip2.trainer.tasks.inputs import load, pictures_of
from mindblip2.trainer.tasks.pretrain import Pretrain

SHEET_LIMIT = 24  # pictures on one page of results


class Generation:
    """Stage 2: pictures into words.  Options of ``predict`` and ``evaluate`` are those of
    :class:`mindblip2.evaluation.captioning.ImageTextGenerator`, over ``generation`` of the configuration."""

    train = staticmethod(Pretrain.train)

    @staticmethod
    def predict(trainer, input_data, checkpoint, options):
        """The texts of pictures, a list; each begins with its prompt unless ``return_full_text=False``."""
        options = {**options}
        prompt = _prompt(trainer, options)
        pictures = pictures_of(input_data)
        images, prompts = pairs(pictures, prompt)
        decoded = DecodedPictures(images, trainer.processor().image_processor)
        texts = _writer(trainer, checkpoint)(decoded, prompts, **merged(trainer.config.generation, options))
        for picture, text in zip(pictures, texts):
            if isinstance(picture, (str, Path)):
                print(f"{picture}: {text}")
        return texts

    @staticmethod
    def evaluate(trainer, checkpoint, options):
        """Scores of captions (BLEU, ROUGE-L, CIDEr), or the accuracy of answers where the data are
        questions."""
        samples, loader = trainer.eval_dataset, trainer.config.eval_dataset.data_loader
        if samples is None and loader.type == "DigitScenes":
            return _demo(trainer, checkpoint, options)
        if samples is None:
            samples = questions(loader, trainer.config.processor.image_processor.image_size)
        if samples is None:
            samples = captioned_pictures(loader, trainer.config.processor.image_processor.image_size)
        options = merged(options_of(trainer.config), options)
        prompt, samples = _prompt(trainer, options), samples if hasattr(samples, "__len__") else list(samples)
        if asks(samples):
            asked = [question(one, f"sample {i}") for i, one in enumerate(samples)]
            return _answers(trainer, checkpoint, asked, prompt or PROMPT, options)
        return _captions(trainer, checkpoint, samples, prompt, options)

    @staticmethod
    def export(trainer, checkpoint, options):
        """Parts, and what else ``mindir.json`` says.  The prompt is the configuration's, its length rounded
        up."""
        options = merged(trainer.config.generation, options)
        prompt, batch = _prompt(trainer, options), options.pop("batch_size")
        ids = _writer(trainer, checkpoint).prompt_ids(prompt)
        model = trainer.model
        length = max(-(-len(ids) // PROMPT_STEP), 1) * PROMPT_STEP
        how = model.decoding(options)
        return export.language(model, batch, length, model.room(length, how.max_new_tokens)), {
            "prompt": prompt,
            "prompt_ids": ids,
            "eos_token_id": how.eos_token_id,
            "pad_token_id": how.pad_token_id,
        }


def _demo(trainer, checkpoint, options):
    """Captions of the demo's scenes, and answers to questions about them."""
    size, options = (
        trainer.config.processor.image_processor.image_size,
        merged(options_of(trainer.config), options),
    )
    figures = _captions(trainer, checkpoint, scenes.captioned(size, "told"), "", {**options})
    return {
        "captions": figures,
        "answers": _answers(trainer, None, scenes.questions(size), PROMPT, {**options}),
    }


def _captions(trainer, checkpoint, samples, prompt, options):
    pictures, captions = pictures_and_captions(samples)
    check_readable(pictures)
    weights = load(trainer, Blip2ImageToTextGeneration, checkpoint)
    texts = write(_writer(trainer, None), pictures, prompt, options)
    _write(
        trainer,
        "captions",
        [
            {"image": _name(picture, i), "caption": text}
            for i, (picture, text) in enumerate(zip(pictures, texts))
        ],
    )
    figures = score(texts, captions)  # when the texts are safe: Java programs may take long
    print(f"{len(texts)} captions: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    _draw(
        trainer,
        "captions",
        pictures,
        [[(text, text in own)] for text, own in zip(texts, captions)],
        f"{len(texts)} captions, {figures['exact']:.1%} word for word one of the picture's own",
    )
    return {**figures, "pictures": len(texts), "weights": weights, "prompt": prompt}


def _answers(trainer, checkpoint, questions, prompt, options):
    check_readable([one.image for one in questions])
    rule = options.pop("rule", "official")
    weights, clean = load(trainer, Blip2ImageToTextGeneration, checkpoint), BlipQuestion()
    answers = ask(
        _writer(trainer, None),
        [one.image for one in questions],
        [clean(one.question) for one in questions],
        prompt,
        options,
    )
    _write(
        trainer,
        "answers",
        [
            {
                "question_id": one.question_id,
                "image": _name(one.image, i),
                "question": one.question,
                "answer": answer,
            }
            for i, (one, answer) in enumerate(zip(questions, answers))
        ],
    )
    truths = [one.answers for one in questions]
    if not all(truths):  # a test set, whose answers are kept secret
        print(f"{len(answers)} answers; no accuracy, since not all questions come with people's answers")
        return {"questions": len(answers), "weights": weights, "prompt": prompt}
    accuracy = vqa_accuracy(answers, truths, rule)
    figures = {
        "accuracy": sum(accuracy) / len(accuracy),
        "questions": len(answers),
        "rule": rule,
        "weights": weights,
        "prompt": prompt,
    }
    line = "{questions} answers: VQA accuracy {accuracy:.2%} ({rule} rule)".format(**figures)
    print(line)
    _draw(
        trainer,
        "answers",
        [one.image for one in questions],
        [
            [(one.question, None), (answer, right > 0.5)]
            for one, answer, right in zip(questions, answers, accuracy)
        ],
        line,
    )
    return figures


def _writer(trainer, checkpoint):
    if checkpoint or trainer.model is None:
        load(trainer, Blip2ImageToTextGeneration, checkpoint)
    return writer_of(trainer.model, trainer.processor())


def _prompt(trainer, options):
    """The prompt: of the call, else of the Trainer, else of the evaluation's data, else that of training."""
    said = [options.pop(name, None) for name in ("hypothesis_template", "prompt")]
    return next((one for one in (*said, trainer.hypothesis_template) if one), "") or asking_prompt(
        trainer.config
    )


def _write(trainer, what, rows):
    path = Path(trainer.config.output_dir) / f"{trainer.task}_{what}.json"
    if not comm.is_main_process():
        return
    write_json(path, rows)
    print(f"texts are saved at: {path}")


def _draw(trainer, what, pictures, texts, title):
    """The first pictures with their ``texts``, [(text, is right or None), …] each."""
    path = Path(trainer.config.output_dir) / f"{trainer.task}_{what}.png"
    if not comm.is_main_process():
        return
    page = text_sheet([load_image(picture) for picture in pictures[:SHEET_LIMIT]], texts[:SHEET_LIMIT], title)
    with atomic_file(path, "wb") as file:
        page.save(file, "PNG")
    print(f"picture is saved at: {path}")


def _name(picture, i):
    return str(picture) if isinstance(picture, (str, Path)) else f"picture {i}"
