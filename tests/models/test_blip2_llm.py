"""Stage 2 gives what LAVIS's Blip2OPT, and a Llama behind the same queries, computed: loss, logits,
gradients, ids.

In PyNative but for the last tests.  Loading is in test_blip2_llm_loading.py."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

pytest.importorskip("torch")

from mindblip2.convert.name_maps.blip2 import source_name  # noqa: E402
from mindblip2.convert.name_maps.language_models import LAVIS_LLM, LAVIS_OPT  # noqa: E402
from mindblip2.models.blip2_llm import Blip2Llm  # noqa: E402
from tests.models import stage2  # noqa: E402

CASES = ("opt", "llama")
PROMPT = {"opt": 11, "llama": 5}  # tokens, bos included
NEW = 20


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stage2")


@pytest.fixture(scope="module")
def models(folder):
    return {case: stage2.model(case, folder) for case in CASES}


@pytest.fixture(scope="module")
def runs():
    return {case: stage2.reference(case) for case in CASES}


def inputs(run, prefix, prompt):
    """The arguments of a call: image, input_ids, prompt_length, length."""
    text = run[prefix]
    length = text.text_attention_mask.sum(1)
    numbers = text.input_ids, np.full(len(length), prompt if prefix == "prompt" else 0), length
    return Tensor(run["image"]), *(Tensor(one.astype(np.int32)) for one in numbers)


def prompts(case, text, beams=1):
    """The rows of ids that the run was asked with, without their padding."""
    if case == "opt":
        return getattr(text, f"generate_beam{beams}_prompt_ids").tolist()
    return [
        ids[mask == 1].tolist()
        for ids, mask in zip(text.generate_prompt_ids, text.generate_prompt_attention_mask)
    ]


# ------------------------------------------------------------------------------------------------ training
@pytest.mark.parametrize("prefix", ["noprompt", "prompt"])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_that_of_the_reference(models, runs, case, prefix):
    model, run = models[case], runs[case]
    image, ids, prompt, length = inputs(run, prefix, PROMPT[case])
    assert float(model(image, ids, prompt, length)) == pytest.approx(float(run[prefix].loss), abs=1e-5)
    # the padding tells the length
    assert float(model(image, ids, prompt)) == pytest.approx(float(run[prefix].loss), abs=1e-5)
    assert abs(float(model(image, ids, prompt + 1, length)) - run[prefix].loss) > 1e-3  # controls
    assert abs(float(model(image, ids, prompt, length - 1)) - run[prefix].loss) > 1e-3


@pytest.mark.parametrize("prefix", ["noprompt", "prompt"])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_labels_are_those_of_the_reference(models, runs, case, prefix):
    model, run = models[case], runs[case]
    image, ids, prompt, length = inputs(run, prefix, PROMPT[case])
    read_BT, learnt_BT = model._masks(ids, prompt, length)
    labels = np.where(learnt_BT.asnumpy() == 1, ids.asnumpy(), -100)
    assert (run[prefix].labels[:, :8] == -100).all() and (run[prefix].labels[:, 8:] == labels).all()
    logits = model.llm.head(model.read(model.queries_of(image), ids, read_BT)).asnumpy()
    real = run[prefix].attention_mask == 1
    assert np.abs(logits - run[prefix].logits)[real].max() < 1e-4
    swapped = model.llm.head(model.read(model.queries_of(image)[::-1], ids, read_BT)).asnumpy()
    assert np.abs(swapped - run[prefix].logits)[real].max() > 0.1  # control: each picture its text


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_the_queries_and_nothing_that_is_frozen(models, runs, folder, case):
    model, run = models[case], runs[case]
    trained = model.trainable_params()
    assert {p.name.split(".")[0] for p in trained} == {"ln_vision", "qformer", "llm_proj"}
    arguments = inputs(run, "noprompt", PROMPT[case])
    gradients = ms.value_and_grad(lambda *given: model(*given), None, ms.ParameterTuple(trained))(*arguments)[
        1
    ]
    source = LAVIS_OPT if case == "opt" else LAVIS_LLM
    ours = {
        "grad_" + source_name(source, p.name).replace(".", "_"): gradient.asnumpy()
        for p, gradient in zip(trained, gradients)
    }
    theirs = {name: value for name, value in vars(run["noprompt"]).items() if name.startswith("grad_")}
    assert len(theirs) == (len(trained) if case == "opt" else 2) and set(theirs) <= set(ours)
    far = [
        name
        for name, wanted in theirs.items()
        if np.abs(ours[name] - wanted).max() > 2e-5 + 1e-4 * np.abs(wanted).max()
    ]
    assert far == []
    # they are no zeros
    assert all(np.abs(theirs[name]).max() > 1e-4 for name in theirs if "key_bias" not in name)


def test_the_prompt_of_the_configuration_counts_where_none_is_given(models, runs):
    image, ids, prompt, length = inputs(runs["opt"], "prompt", PROMPT["opt"])
    counted = Blip2Llm(stage2.config("opt", prompt=True, prompt_length=PROMPT["opt"]))
    plain = Blip2Llm(stage2.config("opt", prompt=False, prompt_length=PROMPT["opt"]))
    for model in (counted, plain):
        for name, parameter in model.parameters_dict().items():
            parameter.set_data(models["opt"].parameters_dict()[name])
        model.set_train(False)
    assert float(counted(image, ids)) == pytest.approx(float(runs["opt"]["prompt"].loss), abs=1e-5)
    assert abs(float(plain(image, ids)) - runs["opt"]["prompt"].loss) > 1e-3


def test_set_train_leaves_what_is_frozen_in_evaluation_mode(models):
    model = models["opt"]
    model.set_train()
    assert model.qformer.training and not model.vit.training and not model.llm.training
    model.set_train(False)


# ------------------------------------------------------------------------------------------------ generation
@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize(
    "case, prefix",
    [
        ("opt", "noprompt"),
        ("opt", "prompt"),
        ("llama", "noprompt"),
        ("llama", "prompt"),
        ("llama", "leftpad"),
    ],
)
def test_the_ids_are_those_of_the_reference(models, runs, case, prefix, beams):
    """In the last case prompts of unequal length in one batch; LAVIS's scorer counts the prompt of OPT in a
    hypothesis's length.

    Its min_length of 1 counts given ids too, so that it forbids no end token: a caption may be empty."""
    run = runs[case]
    rows = prompts(case, run[prefix], beams)
    ids = models[case].generate(
        Tensor(run["image"]), rows, num_beams=beams, max_new_tokens=NEW, min_new_tokens=0, scorer="lavis"
    )
    expected = getattr(run[prefix], f"generate_beam{beams}_ids")
    # transformers puts a placeholder before a Llama's
    expected = expected[:, len(rows[0]) if case == "opt" else 1 :]
    assert ids.tolist() == expected.tolist()


def test_other_prompts_and_pictures_give_other_ids(models, runs):
    """Controls of the test above."""
    model, run = models["llama"], runs["llama"]
    image, rows = Tensor(run["image"]), prompts("llama", run["leftpad"])
    how = {"num_beams": 1, "max_new_tokens": 8}
    ids = model.generate(image, rows, **how).tolist()
    assert model.generate(image, rows[::-1], **how).tolist() != ids
    assert model.generate(Tensor(run["image"][::-1].copy()), rows, **how).tolist() != ids


def test_a_batch_of_different_prompts_is_the_same_prompts_one_by_one(models, runs):
    model, run = models["llama"], runs["llama"]
    rows = prompts("llama", run["leftpad"])[:2] + [[], list(range(5, 18))]
    together = model.generate(Tensor(run["image"]), rows, num_beams=2, max_new_tokens=6)
    for i, row in enumerate(rows):
        alone = model.generate(Tensor(run["image"][i : i + 1]), [row], num_beams=2, max_new_tokens=6)[
            0
        ].tolist()
        assert together[i].tolist() == alone + [0] * (together.shape[1] - len(alone))
    # one picture for all prompts
    shared = model.generate(Tensor(run["image"][:1]), rows, num_beams=1, max_new_tokens=4)
    assert (
        shared[0].tolist()[:2]
        == model.generate(Tensor(run["image"][:1]), rows[0], num_beams=1, max_new_tokens=4)[0].tolist()[:2]
    )


def test_mindformers_door_puts_the_prompts_before_the_ids(models, runs):
    model, image = models["llama"], Tensor(runs["llama"]["image"][:2])
    new = model.generate(image, [[1, 7, 8], [1]], num_beams=1, max_new_tokens=4)
    both = model.generate_text_for_image(image, [[1, 7, 8], [1]], num_beams=1, max_new_tokens=4)
    assert both[:, 3:].tolist() == new.tolist() and both[:, :3].tolist() == [[1, 7, 8], [0, 0, 1]]


def test_an_array_of_prompts_may_be_padded_on_either_side(models):
    rows = models["llama"]._prompts(np.array([[0, 0, 1, 7], [1, 0, 8, 0]]), 2)
    assert rows == [[1, 7], [1, 0, 8]]
    assert (
        models["llama"]._prompts(None, 3) == [[1]] * 3
        and models["opt"]._prompts(Tensor([2, 5]), 2) == [[2, 5]] * 2
    )


def test_generation_starts_from_what_the_configuration_says(models):
    model = models["llama"]
    assert (
        model.decoding({}).num_beams,
        model.decoding({}).beams,
        model.decoding({}).repetition_penalty,
    ) == (None, 5, 1.0)
    own = model.config
    try:
        model.config = stage2.config(
            "llama", text_config={"repetition_penalty": 1.5, "do_sample": True, "top_k": 3, "top_p": 0.8}
        )
        how = model.decoding({"top_k": 7})
        assert (how.repetition_penalty, how.do_sample, how.top_k, how.top_p, how.eos_token_id) == (
            1.5,
            True,
            7,
            0.8,
            2,
        )
    finally:
        model.config = own


@pytest.mark.parametrize(
    "prompt, how, error, words",
    [
        ([[1, 320]], {}, ValueError, "prompt id 320 lies outside the language model's vocabulary of 320"),
        ([[1], [2], [3]], {}, ValueError, "2 pictures and 3 prompts"),
        (
            [5] * 490,
            {},
            ValueError,
            "8 queries and a prompt of 490 tokens leave room for 14 new tokens of the language model's 512 "
            "positions",
        ),
        ([1], {"num_beam": 3}, TypeError, "no argument 'num_beam'; did you mean 'num_beams'"),
        ([1], {"eos_token_id": 400}, ValueError, "400"),
    ],
)
def test_what_cannot_be_generated_is_said(models, runs, prompt, how, error, words):
    with pytest.raises(error, match=words):
        models["llama"].generate(Tensor(runs["llama"]["image"][:2]), prompt, **how)


def test_a_batch_that_does_not_fit_is_an_error(models, runs):
    image = Tensor(runs["opt"]["image"])
    with pytest.raises(ValueError, match="one text for each picture"):
        models["opt"](image, Tensor(np.ones((3, 5), np.int32)))
    with pytest.raises(
        ValueError, match="8 queries and texts of 121 tokens, but the language model has 128 positions"
    ):
        models["opt"](image, Tensor(np.ones((4, 121), np.int32)))


def test_graph_mode_gives_the_same_loss_and_ids(runs, folder, models):
    run = runs["llama"]
    rows = prompts("llama", run["leftpad"])
    wanted = models["llama"].generate(Tensor(run["image"]), rows, num_beams=2, max_new_tokens=5).tolist()
    ms.set_context(mode=ms.GRAPH_MODE)
    model = stage2.model("llama", folder)
    assert model.generate(Tensor(run["image"]), rows, num_beams=2, max_new_tokens=5).tolist() == wanted
    assert float(model(*inputs(run, "prompt", PROMPT["llama"]))) == pytest.approx(
        float(run["prompt"].loss), abs=1e-5
    )


def test_other_pictures_and_other_prompts_up_to_the_next_step_compile_nothing(runs, folder):
    from mindspore.graph.api import cells_compile_cache

    ms.set_context(mode=ms.GRAPH_MODE)
    model, counts = stage2.model("llama", folder), []
    for i, length in enumerate((5, 5, 1, 7, 8, 9)):
        model.generate(
            Tensor(runs["llama"]["image"][i % 2 : i % 2 + 1]),
            list(range(5, 5 + length)),
            num_beams=2,
            max_new_tokens=3,
        )
        counts.append(sum(map(len, cells_compile_cache.values())))
    assert counts[0] == counts[4] < counts[5]  # the last is the control: it begins another step
