"""Stage 2 through its doors: run_blip2.py, Trainer and pipeline write the same; every argument arrives;
figures of captions and answers."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from PIL import Image

import run_blip2
from mindblip2 import Blip2ImageToTextGeneration, Trainer, load_config, pipeline
from mindblip2.checkpoint.ckpt import Checkpoint
from mindblip2.data.processor import Blip2Processor
from mindblip2.data.text.prompting import prompt_ids
from mindblip2.evaluation.captioning import ImageTextGenerator
from tests import stage2_small

PROMPT = "a photo of"
SHORT = {"max_new_tokens": 5, "num_beams": 2}

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def piped(small):
    return pipeline("image_to_text_generation", model=small.yaml, checkpoint=small.ckpt)


@pytest.fixture
def files(small):
    return list(small.pictures.values())[:3]


# ------------------------------------------------------------------------------------------------ doors
def test_three_doors_one_answer(small, piped, files, capsys):
    texts = piped(files, hypothesis_template=PROMPT, **SHORT)
    trained = Trainer(args=load_config(small.yaml, {"context.mode": 1})).predict(
        files, small.ckpt, hypothesis_template=PROMPT, **SHORT
    )
    ran = run_blip2.run(
        [
            "--config",
            small.yaml,
            "--run_mode",
            "predict",
            "--mode",
            "1",
            "--load_checkpoint",
            small.ckpt,
            "--predict_data",
            *files,
            "--hypothesis_template",
            PROMPT,
            "--generation.max_new_tokens",
            "5",
            "--generation.num_beams",
            "2",
        ]
    )
    assert texts == trained == ran and len(texts) == 3 and all(text.startswith(PROMPT) for text in texts)
    assert texts != piped(files, hypothesis_template="a green", **SHORT)  # control
    assert ran != [text.replace(PROMPT, "") for text in texts]
    answers = run_blip2.run(
        [
            "--config",
            small.yaml,
            "--run_mode",
            "predict",
            "--mode",
            "1",
            "--load_checkpoint",
            small.ckpt,
            "--predict_data",
            *files,
            "--hypothesis_template",
            PROMPT,
            "--answer_only",
            "--options",
            "generation.max_new_tokens=5",
            "generation.num_beams=2",
        ]
    )
    assert answers == [text.removeprefix(PROMPT).strip() for text in texts]


def test_predict_prints_the_lines_of_the_card_and_writes_its_file(small, capsys):
    result = Trainer(task="image_to_text_generation", model=small.yaml).predict(
        input_data=small.pictures["red"],
        predict_checkpoint=small.ckpt,
        hypothesis_template="###问题：什么颜色？###答案：",
        **SHORT,
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        f"output result is: {result}",
        "output result is saved at: image_to_text_generation_result.txt",
        ".........Predict Over!.............",
    ]
    assert Path("image_to_text_generation_result.txt").read_text(encoding="utf-8").strip() == str(result)
    assert (
        isinstance(result, list) and len(result) == 1 and result[0].startswith("###问题：什么颜色？###答案：")
    )


def test_a_model_object_brings_its_own_tokenizer(small, piped, files):
    """MindFormers took Llama's for every model object."""
    model = Blip2ImageToTextGeneration.from_pretrained(small.yaml, small.ckpt)
    assert pipeline("image_to_text_generation", model=model)(files, **SHORT) == piped(files, **SHORT)
    assert Trainer(task="image_to_text_generation", model=model).predict(files, **SHORT) == piped(
        files, **SHORT
    )
    config = load_config(small.yaml).model.model_config
    bare = Blip2ImageToTextGeneration(type(config)(**config.to_dict())).load_checkpoint(small.ckpt)
    with pytest.raises(ValueError, match="nothing says which tokenizer belongs to it: pass processor="):
        pipeline("image_to_text_generation", model=bare)
    given = pipeline(
        "image_to_text_generation", model=bare, processor=Blip2Processor.from_pretrained(small.yaml)
    )
    assert given(files, **SHORT) == piped(files, **SHORT)


# ------------------------------------------------------------------------------------------------ pictures, p
def test_the_text_holds_the_prompt_unless_it_is_not_wanted(piped, files):
    full = piped(files, hypothesis_template=PROMPT, **SHORT)
    alone = piped(files, hypothesis_template=PROMPT, return_full_text=False, **SHORT)
    assert [text.removeprefix(PROMPT).strip() for text in full] == alone and full != alone


def test_pictures_come_in_every_form(piped, files):
    one = piped(files[0], **SHORT)
    picture = Image.open(files[0])
    assert (
        one
        == piped(picture, **SHORT)
        == piped(np.asarray(picture), **SHORT)
        == piped({"image": files[0]}, **SHORT)
        == piped(ms.Tensor(np.asarray(picture)), **SHORT)
    )
    with pytest.raises(ValueError, match="'image' and 'prompt', this one has"):
        piped({"image": files[0], "promt": "a"})
    with pytest.raises(ValueError, match="the list is empty"):
        piped([])


def test_every_picture_may_have_its_own_prompt(piped, files):
    prompts = [PROMPT, "a red", ""]
    together = piped(files, hypothesis_template=prompts, **SHORT)
    assert together == [
        piped(file, hypothesis_template=prompt, **SHORT)[0] for file, prompt in zip(files, prompts)
    ]
    assert together == piped(
        [{"image": file, "prompt": prompt} for file, prompt in zip(files, prompts)], **SHORT
    )
    # a last batch that is not full
    assert together == piped(files, hypothesis_template=prompts, batch_size=2, **SHORT)
    # one picture, several prompts
    assert len(piped(files[0], hypothesis_template=prompts, **SHORT)) == 3
    with pytest.raises(ValueError, match="3 pictures and 2 prompts"):
        piped(files, hypothesis_template=prompts[:2])


def test_questions_are_put_as_lavis_does(piped, files, monkeypatch):
    asked = []
    real = piped.model.generate
    monkeypatch.setattr(
        type(piped.model),
        "generate",
        lambda self, image, rows, *more, **how: asked.append((rows, how)) or real(image, rows, *more, **how),
    )
    answer = piped.predict_answers(files[0], "what colour is it?", num_beams=2)
    assert isinstance(answer, list) and len(answer) == 1 and "Question" not in answer[0]
    rows, how = asked[0]
    assert piped.processor.tokenizer.decode(rows[0]) == "Question: what colour is it? Short answer:"
    assert how == {"max_new_tokens": 10, "length_penalty": 0.0, "num_beams": 2}
    assert len(piped.predict_answers(files[0], ["what?", "which colour?"], max_new_tokens=2)) == 2
    piped.predict_answers(files[0], "what?", max_length=2)  # another name of it
    assert asked[-1][1] == {"max_length": 2, "length_penalty": 0.0}
    with pytest.raises(ValueError, match="expected {} where the question goes"):
        piped.predict_answers(files[0], "what?", prompt="Question:")


# ------------------------------------------------------------------------------------------------ every argum
@pytest.mark.parametrize(
    "how",
    [
        {"max_new_tokens": 2},
        {"min_new_tokens": 3},
        {"num_beams": 1},
        {"do_sample": True},
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "top_p": 0.05},
        {"do_sample": True, "temperature": 9.0},
        {"do_sample": True, "seed": 3},
        {"repetition_penalty": 9.0},
        {"no_repeat_ngram_size": 1},
        {"length_penalty": -9.0},
        {"max_length": 2},
        {"use_nucleus_sampling": True},
    ],
    ids=str,
)
def test_every_argument_reaches_the_decoder(piped, small, how, monkeypatch):
    """It does what the decoder does when it is called with it; that each has an effect there is shown in
    tests/models."""
    seen = []
    from mindblip2.models import blip2_llm

    real = blip2_llm.complete
    monkeypatch.setattr(
        blip2_llm,
        "complete",
        lambda step, logits, given, *more: seen.append(given) or real(step, logits, given, *more),
    )
    piped(
        small.pictures["red"],
        **{"max_new_tokens": 4, "num_beams": None, **how} if "max_length" not in how else how,
    )
    wanted = piped.model.decoding({"max_new_tokens": 4, **how} if "max_length" not in how else how)
    assert seen == [wanted] and wanted != piped.model.decoding({"max_new_tokens": 4})


def test_several_captions_make_a_list_for_each_picture(piped, files):
    texts = piped(files[:2], num_captions=2, **SHORT)
    assert len(texts) == 2 and all(len(own) == 2 and own[0] != own[1] for own in texts)
    assert [own[0] for own in texts] == piped(files[:2], **SHORT)


def test_text_can_be_watched_as_it_grows(piped, files):
    pieces = []
    text = piped(files[0], return_full_text=False, max_new_tokens=8, num_beams=1, on_text=pieces.append)[0]
    assert 2 < len(pieces) <= 9 and "".join(piece[0] for piece in pieces).strip() == text
    with pytest.raises(ValueError, match="no streaming with num_beams = 2"):
        piped(files[0], num_beams=2, on_text=pieces.append)


def test_rows_behind_the_vocabulary_are_no_text(small, files, monkeypatch):
    """OPT-2.7B has 50272 rows for 50265 words."""
    raw = stage2_small.sections(small.words, vocab_size=small.words.size + 20)
    model = Blip2ImageToTextGeneration(raw["model"]["model_config"])
    padded = pipeline(
        "image_to_text_generation", model=model, processor=Blip2Processor.from_pretrained(small.yaml)
    )
    red = padded.processor.tokenizer.encode(" red square", add_special_tokens=False)
    written, pieces = [red[0], small.words.size, *red[1:], small.words.size + 19], []

    def generate(self, image, rows, on_token=None, **how):
        for one in written if on_token else ():
            on_token([one])
        return np.array([written], np.int32)

    monkeypatch.setattr(Blip2ImageToTextGeneration, "generate", generate)
    assert padded(
        files[0], hypothesis_template="a", num_beams=1, on_text=lambda new: pieces.append(new[0])
    ) == ["a red square"]
    assert "".join(pieces).strip() == "red square"
    # the control: the tokenizer itself is strict
    with pytest.raises(ValueError, match="lies outside the vocabulary"):
        padded.processor.tokenizer.decode(written)


def test_a5_a_text_ends_where_this_call_ends_it(piped, small, files, monkeypatch):
    """Not at the configured end token where the call has another one, and not at padding that the model wrote
    itself."""
    encode = lambda text: piped.processor.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    text_config = piped.model.config.text_config
    red, square, end = encode(" red"), encode(" square"), encode(" green")[0]
    written = [*red, text_config.pad_token_id, *square, text_config.eos_token_id, *red, end, *square]

    def generate(self, image, rows, on_token=None, **how):
        for one in written if on_token else ():
            on_token([one])
        return np.array([written], np.int32)

    monkeypatch.setattr(Blip2ImageToTextGeneration, "generate", generate)
    how = {"return_full_text": False, "num_beams": 1}
    assert piped(files[0], **how) == ["red square"]  # at the configured end, over the padding
    shown = []
    longer = piped(
        files[0], **how, eos_token_id=[end, encode(" blue")[0]], on_text=lambda new: shown.append(new[0])
    )
    assert longer == [
        piped.processor.tokenizer.decode([*red, *square, text_config.eos_token_id, *red]).strip()
    ]
    assert longer != ["red square"] and "".join(shown).strip() == longer[0]
    assert piped.predict_answers(files[0], "what?", num_beams=1, eos_token_id=square[0]) == ["red"]
    trainer = Trainer(task="image_to_text_generation", model=piped.model)
    assert trainer.predict(files[0], eos_token_id=end, **how) == longer


def test_a5_an_end_token_of_the_call_ends_the_decoding_too(piped, files):
    how = {"return_full_text": False, "num_beams": 1, "min_new_tokens": 0, "max_new_tokens": 8}
    image = piped.processor.image_processor(files[0])
    ids = piped.model.generate(image, [[2]], num_beams=1, min_new_tokens=0, max_new_tokens=8)[0].tolist()
    third = next(i for i in range(2, 8) if ids[i] not in ids[:i])
    assert piped(files[0], **how, eos_token_id=[ids[third]]) == [
        piped.processor.tokenizer.decode(ids[:third]).strip()
    ]
    # control: without it the text goes on
    assert piped(files[0], **how) == [piped.processor.tokenizer.decode(ids).strip()]


def test_a13_image_tokens_in_a_prompt_are_no_text(piped, files):
    plain = piped(files[:2], hypothesis_template=PROMPT, **SHORT)
    assert piped(files[:2], hypothesis_template="<image>" * 4 + PROMPT, **SHORT) == plain
    assert piped([{"image": file, "prompt": f"<image>{PROMPT}"} for file in files[:2]], **SHORT) == plain
    assert (
        Trainer(task="image_to_text_generation", model=piped.model).predict(
            files[:2], hypothesis_template="<image>" + PROMPT, **SHORT
        )
        == plain
    )
    # control: another prompt
    assert piped(files[:2], hypothesis_template="image" + PROMPT, **SHORT) != plain


def test_a13_the_id_of_the_image_token_is_taken_out_of_prompt_ids(piped, files, small):
    model, image = piped.model, piped.processor.image_processor(files[0])
    own, token = model.config, small.words.size - 1
    # control: here it is a token as any other
    assert model._prompts([[token, token, 2, 7]], 1) == [[token, token, 2, 7]]
    try:
        model.config = own.replace(text_config={"image_token_id": token})
        assert model._prompts([[token, token, 2, 7]], 1) == [[2, 7]]
        assert (
            model.generate(image, [[token, 2, 7]], **SHORT).tolist()
            == model.generate(image, [[2, 7]], **SHORT).tolist()
        )
    finally:
        model.config = own


# ------------------------------------------------------------------------------------------------ what a user
def test_b13_generate_takes_texts_arrays_and_samples(piped, files):
    """All that means the same gives the same ids."""
    torch = pytest.importorskip("torch")
    model, processor = piped.model, piped.processor
    image, rows = (
        processor.image_processor(files[:2]),
        [prompt_ids(model.config, processor.tokenizer, PROMPT)] * 2,
    )
    wanted = model.generate(image, rows, **SHORT).tolist()
    array, ids = image.asnumpy(), np.array(rows)
    for given in (
        (array, ids),
        (array.astype(np.float64), rows[0]),
        (torch.from_numpy(array), torch.tensor(rows)),
        (image, PROMPT),
        (files[:2], [PROMPT, PROMPT]),
        ([np.asarray(Image.open(file)) for file in files[:2]], ms.Tensor(ids)),
        ({"image": array, "prompt": PROMPT},),
        ({"image": files[:2], "prompt": [PROMPT] * 2},),
        (processor(files[:2], [PROMPT] * 2),),
        (processor(files[:2], [PROMPT] * 2, return_tensors="np"),),
    ):
        assert model.generate(*given, **SHORT).tolist() == wanted, given
    assert model.generate(image, "a red", **SHORT).tolist() != wanted  # control
    assert model.generate({"image": image}, **SHORT).tolist() == model.generate(image, **SHORT).tolist()
    ids = model.generate_text_for_image(array, PROMPT, **SHORT)
    assert ids.tolist() == [row + new for row, new in zip(rows, wanted)]


@pytest.mark.parametrize(
    "given, complaint",
    [
        (({"picture": 1},), "samples has the keys 'picture': expected 'image', 'prompt', 'prompt_ids'"),
        (
            ({"image": 1, "prompt": "a", "input_ids": [2]},),
            "'prompt' and 'input_ids', which are the same argument",
        ),
        (
            ({"image": np.zeros((1, 3, 16, 16), np.float32), "prompt": "a"}, "b"),
            "a prompt is in samples and another is an argument",
        ),
        (
            (np.zeros((3, 16, 16), np.float32),),
            r"image is float32 \(3, 16, 16\): expected float32 \(B, 3, S, S\), normalised, as Blip2Processor",
        ),
        ((np.zeros((1, 3, 16, 16), np.float32), [[1.5]]), r"prompt_ids is \[\[1.5\]\]: expected token ids"),
        ((np.zeros((1, 3, 16, 16), np.float32), 7), "prompt_ids is 7: expected token ids"),
        ((None,), r"image is None: expected float32 \(B, 3, S, S\)"),
    ],
    ids=str,
)
def test_b13_what_generate_cannot_take_is_one_line(piped, given, complaint):
    with pytest.raises(ValueError, match=complaint):
        piped.model.generate(*given, **SHORT)


def test_b13_without_a_known_processor_texts_are_an_error_and_arrays_are_not(small, piped, files):
    config = piped.model.config
    bare = Blip2ImageToTextGeneration(type(config)(**config.to_dict())).load_checkpoint(small.ckpt)
    image, row = (
        piped.processor.image_processor(files[:1]),
        prompt_ids(config, piped.processor.tokenizer, PROMPT),
    )
    for given in ((image, PROMPT), (files[:1], [row])):
        with pytest.raises(
            ValueError,
            match=r"were given, but this model's configuration was made in Python, .*: give image as float32",
        ):
            bare.generate(*given, **SHORT)
    assert (
        bare.generate(image, [row], **SHORT).tolist() == piped.model.generate(image, PROMPT, **SHORT).tolist()
    )
    with pytest.raises(ValueError, match="input_ids is text: expected token ids"):
        piped.model(image, PROMPT)


def test_b13_lists_of_prompts_and_numbers_are_checked(piped, files):
    with pytest.raises(ValueError, match="the list of prompts is empty: give one prompt for all pictures"):
        piped(files[:1], [])
    with pytest.raises(ValueError, match="a prompt is 5: expected a string"):
        piped(files[:1], [5])
    with pytest.raises(ValueError, match="^max_new_tokens = '5': expected a whole number of at least 1"):
        piped("nowhere.png", max_new_tokens="5")
    with pytest.raises(ValueError, match="^length_penalty = nan: expected a finite number"):
        piped("nowhere.png", length_penalty=float("nan"))
    with pytest.raises(ValueError, match="^batch_size = '8': expected a whole number of at least 1"):
        piped("nowhere.png", batch_size="8")
    torch = pytest.importorskip("torch")
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    assert piped(torch.from_numpy(pixels), **SHORT) == piped(files, **SHORT)  # a batch of pictures


def test_b13_another_name_of_an_argument_goes_over_the_presets(small, piped, files):
    """--generation.max_length 30 over a preset's max_new_tokens; so do calls over their pipeline's
    defaults."""
    config = load_config(small.yaml, {"generation.max_new_tokens": 5, "generation.num_beams": 2})
    with_preset = Path("preset.yaml")
    raw = yaml.safe_load(Path(small.yaml).read_text(encoding="utf-8"))
    with_preset.write_text(yaml.safe_dump({**raw, "generation": dict(config.generation)}), encoding="utf-8")
    assert load_config(with_preset, {"generation.max_length": 3}).generation == {
        "num_beams": 2,
        "max_length": 3,
    }
    # control: two on one command line contradict each other
    with pytest.raises(ValueError, match="are the same argument"):
        piped.model.decoding(
            load_config(with_preset, {"generation.max_length": 3, "generation.max_new_tokens": 4}).generation
        )
    wanted = piped(files[0], max_new_tokens=3, num_beams=2)
    ran = run_blip2.run(
        [
            "--config",
            str(with_preset),
            "--run_mode",
            "predict",
            "--mode",
            "1",
            "--load_checkpoint",
            small.ckpt,
            "--predict_data",
            files[0],
            "--generation.max_length",
            "3",
        ]
    )
    own = pipeline("image_to_text_generation", model=piped.model, max_new_tokens=5, num_beams=2)
    assert ran == wanted == own(files[0], max_length=3) != own(files[0])
    assert (
        Trainer(args=load_config(with_preset, {"context.mode": 1})).predict(
            files[0], small.ckpt, max_length=3
        )
        == wanted
    )


def test_a19_a_batch_is_what_its_pictures_give_one_by_one(piped, files):
    how = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 6, "hypothesis_template": PROMPT}
    for captions in (1, 2):
        batch = piped(files, num_return_sequences=captions, **how)
        assert batch == [piped(file, num_return_sequences=captions, **how)[0] for file in files]
        assert batch == piped(files, num_return_sequences=captions, batch_size=2, **how)
    assert piped(files, **how) != piped(files, seed=1, **how)  # control


def test_unknown_arguments_are_errors_before_a_picture_is_read(piped, small):
    with pytest.raises(TypeError, match="no argument 'num_beam'; did you mean 'num_beams'"):
        piped("nowhere.png", num_beam=3)
    # which run_blip2.py says in one line, without a traceback
    with pytest.raises(ValueError, match="no argument 'num_beam'"):
        run_blip2.run(
            [
                "--config",
                small.yaml,
                "--run_mode",
                "predict",
                "--mode",
                "1",
                "--load_checkpoint",
                small.ckpt,
                "--predict_data",
                small.pictures["red"],
                "--generation.num_beam",
                "3",
            ]
        )
    with pytest.raises(TypeError, match="no argument 'topk'"):
        pipeline("image_to_text_generation", model=piped.model, topk=3)


def test_a_tokenizer_of_another_model_is_an_error(piped):
    with pytest.raises(ValueError, match="set processor.tokenizer to the language model's own"):
        ImageTextGenerator(piped.model, Blip2Processor())
    with pytest.raises(ValueError, match="needs the tokenizer of the language model"):
        Blip2Processor.from_config(
            load_config(piped.model.config.preset, {"processor.tokenizer.vocab_file": ""}).processor
        )


def test_a_missing_tokenizer_names_the_place_where_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDBLIP2_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"no tokenizer file llama_7b/tokenizer.model: .*put it at {tmp_path}"
    ):
        Blip2Processor.from_pretrained("itt_blip2_stage2_vit_g_llama_7b")


# ------------------------------------------------------------------------------------------------ evaluation
def write(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path.name


def evaluate(small, folder, file, **overrides):
    config = load_config(
        small.yaml,
        {
            "context.mode": 1,
            "output_dir": "out",
            "eval_dataset.data_loader.dataset_dir": str(folder),
            "eval_dataset.data_loader.annotation_files": [file],
            "eval_dataset.batch_size": 2,
            "eval_dataset.data_loader.image_dirs": ["."],
            "generation.max_new_tokens": 5,
            **overrides,
        },
    )
    return Trainer(args=config).evaluate(small.ckpt)


def test_captions_are_scored(small, piped, tmp_path, capsys):
    file = write(
        small.folder / "captions.json",
        [
            {"image": f"{colour}.png", "caption": [f"a {colour} thing", "another thing"]}
            for colour in small.pictures
        ],
    )
    figures = evaluate(small, small.folder, file)
    assert (
        set(figures) >= {"Bleu_4", "CIDEr", "ROUGE_L", "exact"}
        and figures["pictures"] == 4
        and figures["exact"] == 0
    )
    rows = json.loads(Path("out/image_to_text_generation_captions.json").read_text(encoding="utf-8"))
    own = [row["caption"] for row in rows]
    assert own == piped(list(small.pictures.values()), return_full_text=False, max_new_tokens=5)
    if all(own):
        file = write(
            small.folder / "own.json",
            [{"image": f"{colour}.png", "caption": [text]} for colour, text in zip(small.pictures, own)],
        )
        assert evaluate(small, small.folder, file)["exact"] == 1.0  # control: its own words are the best
    assert json.loads(Path("out/image_to_text_generation_evaluation.json").read_text())["pictures"] == 4


def test_answers_are_scored(small, piped, capsys):
    own = piped.predict_answers(list(small.pictures.values()), ["what colour?"] * 4, max_new_tokens=5)
    rows = [
        {
            "image": f"{colour}.png",
            "question": "What colour?",
            "question_id": i,
            "answer": [answer or "none"] * 10,
        }
        for i, (colour, answer) in enumerate(zip(small.pictures, own))
    ]
    right = evaluate(small, small.folder, write(small.folder / "right.json", rows))
    assert right["accuracy"] == pytest.approx(sum(map(bool, own)) / 4) and right["questions"] == 4
    wrong = evaluate(
        small,
        small.folder,
        write(small.folder / "wrong.json", [{**row, "answer": ["nobody says this"]} for row in rows]),
    )
    assert wrong["accuracy"] == 0
    secret = [{key: row[key] for key in ("image", "question", "question_id")} for row in rows]
    assert "accuracy" not in evaluate(small, small.folder, write(small.folder / "secret.json", secret))
    assert "no accuracy" in capsys.readouterr().out


def test_the_official_files_are_scored_as_lavis_s(small, piped, tmp_path):
    """VQA's two files and pictures named as COCO's give the figures of LAVIS's list."""
    own = piped.predict_answers(list(small.pictures.values()), ["what colour?"] * 4, max_new_tokens=5)
    for i, path in enumerate(small.pictures.values()):
        Image.open(path).save(tmp_path / f"COCO_val2014_{i:012d}.jpg", "PNG")
    questions = [{"image_id": i, "question": "What colour?", "question_id": 10 * i} for i in range(4)]
    answers = [
        {
            "question_id": 10 * i,
            "image_id": i,
            "answers": [{"answer": (own[i] or "none") if i < 2 else "nobody says this"}] * 10,
        }
        for i in range(4)
    ]
    names = [
        write(
            tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json",
            {"data_subtype": "val2014", "questions": questions},
        ),
        write(
            tmp_path / "v2_mscoco_val2014_annotations.json",
            {"data_subtype": "val2014", "annotations": answers[::-1]},
        ),
    ]
    figures = evaluate(small, tmp_path, names[0], **{"eval_dataset.data_loader.annotation_files": names})
    rows = [
        {
            "image": f"COCO_val2014_{i:012d}.jpg",
            "question": "What colour?",
            "question_id": 10 * i,
            "answer": [one["answer"] for one in answers[i]["answers"]],
        }
        for i in range(4)
    ]
    assert figures == evaluate(small, tmp_path, write(tmp_path / "vqa_val.json", rows))
    assert figures["accuracy"] == pytest.approx(sum(map(bool, own[:2])) / 4) and figures["questions"] == 4


def test_the_weights_count(small, tmp_path):
    """Control of all that is compared above: with other weights other texts are written."""
    from mindblip2.checkpoint.ckpt import write_checkpoint

    stored = Checkpoint(small.ckpt)
    write_checkpoint(
        tmp_path / "other.ckpt",
        ((name, "Float32", stored[name] * (3 if name == "llm_proj.weight" else 1)) for name in stored),
    )
    files = list(small.pictures.values())
    one, other = (
        pipeline("image_to_text_generation", model=small.yaml, checkpoint=path)(files, **SHORT)
        for path in (small.ckpt, tmp_path / "other.ckpt")
    )
    assert one != other
