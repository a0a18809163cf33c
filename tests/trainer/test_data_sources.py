"""From a configuration to training batches: MindFormers' file as it is, our own keys, raw loaders, Python
data sets."""

import json

import numpy as np
import pytest
from PIL import Image

from mindblip2 import MultiImgCapDataLoader, Trainer
from mindblip2.config import LoaderConfig, load_config
from mindblip2.data.images.augmentation import recipe
from mindblip2.data.processor import Blip2Processor
from mindblip2.trainer.data_sources import captioned, labelled_sets, training_feed, training_samples

STAGE_1 = """
train_dataset:
  data_loader:
    type: MultiImgCapDataLoader
    dataset_dir: "/data"
    annotation_files: ["vg/annotations/vg_caption.json", "coco2014/coco/annotations/coco_karpathy_train.json"]
    image_dirs: ["vg/images", "coco2014/coco/images"]
    stage: "train"
    column_names: ["image", "text"]
  transforms:
    - {type: RandomResizedCrop, size: 224, scale: [0.5, 1.0], interpolation: "bicubic"}
    - {type: RandomHorizontalFlip}
    - {type: ToTensor}
    - {type: Normalize, mean: [0.48145466, 0.4578275, 0.40821073], std: [0.26862954, 0.26130258, 0.27577711], is_hwc: False}
  text_transforms:
    {type: CaptionTransform, prompt: "", max_words: 50, max_length: 32, padding: 'max_length', random_seed: 2022, truncation: True}
  tokenizer: {type: BertTokenizer, pad_token: '[PAD]', bos_token: '[DEC]', padding: 'max_length', truncation: True, max_length: 32}
  num_parallel_workers: 8
  python_multiprocessing: False
  drop_remainder: True
  batch_size: 1
  repeat: 1
  numa_enable: False
  prefetch_size: 30
  seed: 2022
  return_attention_mask: True
runner_config: {batch_size: 2}
"""  # the data part of MindFormers' run_blip2_stage1_vit_g_qformer_pretrain.yaml


@pytest.fixture
def data(tmp_path):
    """A small Visual Genome and COCO under one folder, as MindFormers' file expects them."""
    (tmp_path / "vg" / "annotations").mkdir(parents=True)
    (tmp_path / "coco2014/coco/annotations").mkdir(parents=True)
    for images in ("vg/images", "coco2014/coco/images/val2014"):
        (tmp_path / images).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (60, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / images / f"{i}.png")
    vg = [{"image": f"{i % 3}.png", "caption": f"region {i}"} for i in range(6)]
    coco = [
        {"image": f"val2014/{i}.png", "caption": f"A red {word}.", "image_id": f"coco_{i}"}
        for i, word in enumerate(("one", "two", "six"))
    ]
    (tmp_path / "vg/annotations/vg_caption.json").write_text(json.dumps(vg))
    (tmp_path / "coco2014/coco/annotations/coco_karpathy_train.json").write_text(json.dumps(coco))
    return tmp_path


@pytest.fixture
def mindformers(data, tmp_path):
    """mindformers(**{"a.b": value}) → RunConfig of MindFormers' file with another folder."""
    (tmp_path / "run.yaml").write_text(STAGE_1)
    return lambda **keys: load_config(
        tmp_path / "run.yaml", {"train_dataset.data_loader.dataset_dir": str(data), **keys}
    )


def test_mindformers_stage_1_file_is_read_as_it_is(mindformers, data):
    feed = training_feed(mindformers(), Blip2Processor())
    assert (len(feed), feed.sizes) == (4, (6, 3)) and feed.transforms == (
        recipe("blip2_image_train", 224),
    ) * 2
    batches = list(feed.epoch(0))
    assert [batch["image"].shape for batch in batches] == [(2, 3, 224, 224)] * 4
    assert {int(i) for batch in batches for i in batch["image_id"]} <= set(range(6)) and not feed.processes
    texts = [text for batch in batches for text in feed.processor.tokenizer.batch_decode(batch["input_ids"])]
    assert (
        set(texts) <= {*(f"region {i}" for i in range(6)), "a red one", "a red two", "a red six"}
        and len(set(texts)) == 8
    )


def test_transforms_default_to_lavis_recipe_for_each_set(mindformers):
    feed = training_feed(mindformers(**{"train_dataset.transforms": []}), Blip2Processor())
    assert feed.transforms == (recipe("blip_image_train", 224), recipe("blip2_image_train", 224))
    both = training_feed(mindformers(**{"train_dataset.transforms": ["blip_image_eval"]}), Blip2Processor())
    assert both.transforms == (recipe("blip_image_eval", 224),) * 2


def test_keys_reach_the_feed(mindformers):
    feed = training_feed(
        mindformers(
            **{
                "train_dataset.data_loader.ratios": [1, 3],
                "train_dataset.data_loader.shuffle": False,
                "train_dataset.max_unreadable": 0.5,
                "train_dataset.text_transforms.prompt": "A photo of: ",
                "train_dataset.text_transforms.max_length": 9,
                "seed": 3,
                "train_dataset.text_transforms.max_words": 1,
                "train_dataset.num_parallel_workers": 0,
            }
        ),
        Blip2Processor(),
        rank=1,
        world=2,
    )
    assert (feed.ratios, feed.shuffle, feed.max_unreadable, feed.max_length, feed.seed) == (
        (1, 3),
        False,
        0.5,
        9,
        3,
    )
    assert (feed.clean("A red one"), feed.workers, feed.rank, feed.chunk) == ("A photo of: a", 0, 1, 4)


def test_captions_are_never_longer_than_the_tokenizer_allows():
    config = load_config(
        "blip2_digits", {"runner_config.batch_size": 4, "train_dataset.data_loader.scenes": 8}
    )
    feed = training_feed(config, Blip2Processor.from_config(config.processor))
    assert feed.max_length == 18 and next(feed.epoch(0))["image"].shape == (4, 3, 48, 48)


def test_a_raw_loader_gets_the_tasks_transforms_and_a_python_data_set_the_processors(data):
    config = load_config("blip2_digits", {"runner_config.batch_size": 2})
    processor = Blip2Processor.from_config(config.processor)
    loader = MultiImgCapDataLoader(data, ["vg/annotations/vg_caption.json"], ["vg/images"])
    assert training_feed(config, processor, loader).transforms == (recipe("blip_image_train", 48),)
    plain = training_feed(config, processor, list(loader))
    assert plain.transforms == () and next(plain.epoch(0))["image"].shape == (2, 3, 48, 48)
    asked = training_feed(
        config.replace(train_dataset={"transforms": ["blip2_image_train"]}), processor, list(loader)
    )
    assert asked.transforms == (recipe("blip2_image_train", 48),)


def test_what_cannot_train_is_an_error(mindformers, data):
    with pytest.raises(ValueError, match="set runner_config.epochs"):
        training_feed(mindformers(**{"train_dataset.repeat": 2}), Blip2Processor())
    with pytest.raises(ValueError, match="one caption per sample: make the loader with stage='train'"):
        training_feed(mindformers(**{"train_dataset.data_loader.stage": "eval"}), Blip2Processor())
    with pytest.raises(ValueError, match="data_loader.type = 'CocoLoader': .*'MultiImgCapDataLoader'"):
        training_samples(LoaderConfig(type="CocoLoader"), 0, 48, 4)
    with pytest.raises(
        ValueError, match="data_loader.type = 'CocoLoader': .*'Cifar100DataLoader', 'ImageFolder'"
    ):
        labelled_sets(LoaderConfig(type="CocoLoader"), 48)


def test_evaluation_takes_the_same_loaders(data):
    loader = LoaderConfig(
        dataset_dir=str(data), annotation_files=["vg/annotations/vg_caption.json"], image_dirs=["vg/images"]
    )
    assert [sample["caption"] for sample in captioned(loader, "eval")] == [
        [f"region {i}", f"region {i + 3}"] for i in range(3)
    ]
    (folders,) = labelled_sets(
        LoaderConfig(type="ImageFolder", dataset_dir=str(data / "vg"), hypothesis_template="a {}"), 48
    )
    assert folders.labels == ("images",) and folders.template == "a {}"


def test_a_raw_loader_trains(data, tmp_path, monkeypatch):
    """The card's example: MultiImgCapDataLoader straight into Trainer, on files."""
    monkeypatch.chdir(tmp_path)
    loader = MultiImgCapDataLoader(
        dataset_dir=data,
        annotation_files=["coco2014/coco/annotations/coco_karpathy_train.json"],
        image_dirs=["coco2014/coco/images"],
        stage="train",
    )
    config = load_config(
        "blip2_digits",
        {
            "runner_config.batch_size": 2,
            "runner_config.epochs": 2,
            "runner_config.log_every": 1,
            "context.mode": 1,
            "lr_schedule.warmup_steps": 1,
        },
    )
    log = Trainer(args=config, task="contrastive_language_image_pretrain", train_dataset=loader).train()
    assert len(log) == 2 and all(np.isfinite(entry["loss"]) for entry in log)
