"""Sections of the configuration that describe data: loader, data set, transforms, tokenizer, processor."""

from dataclasses import field

from mindblip2.config.schema import (
    ConfigError,
    Count,
    Fraction,
    Natural,
    NonNegative,
    Pixels,
    Positive,
    Section,
    one_of,
    section,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@section
class LoaderConfig(Section):
    type: str = "MultiImgCapDataLoader"
    dataset_dir: str = ""
    annotation_files: tuple[str, ...] = ()
    image_dirs: tuple[str, ...] = ()
    # train, eval (CIFAR-100, Flickr8k: also test, dev); "": what the data set is used for
    stage: str = ""
    column_names: tuple[str, ...] = ("image", "text")
    repeat_images: bool | None = None  # one sample per caption; None: in training, not in evaluation
    shuffle: bool | None = None  # None: in training
    # how often to draw from each annotation file; (): every sample once per epoch
    ratios: tuple[NonNegative, ...] = ()
    fine_label: bool = True
    hypothesis_template: str = ""
    scenes: Natural = 0  # DigitScenes: scenes per epoch
    # DigitScenes: the first epochs' captions name the digit or the colour, not both
    property_epochs: Natural = 0
    candidate_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ratios and not sum(self.ratios):
            raise ConfigError(
                f"data_loader.ratios = {list(self.ratios)}: expected at least one above 0, else nothing is "
                "drawn"
            )


@section
class TextTransformConfig(Section):
    type: str = "CaptionTransform"
    prompt: str = ""  # put before the cleaned caption, as LAVIS
    max_words: Count = 50
    # tokens; captions are never longer than the tokenizer's max_length either
    max_length: Count = 32

    def __post_init__(self) -> None:
        one_of(self, "type", ("CaptionTransform",))


@section
class TokenizerConfig(Section):
    # of a language model: LlamaTokenizer, BaichuanTokenizer, GPT2Tokenizer (OPT), …
    type: str = "BertTokenizer"
    max_length: Count = 32
    # "": the packaged bert-base-uncased vocabulary; a language model's is always named
    vocab_file: str = ""
    pad_token: str = ""  # "": what the files of the language model say; BERT's four are fixed
    bos_token: str = ""
    eos_token: str = ""
    unk_token: str = ""
    # appended to a language model's vocabulary, as LAVIS appends "[PAD]" to Vicuna's
    added_tokens: tuple[str, ...] = ()
    add_special_tokens: bool = True
    add_bos_token: bool | None = None  # None: as the language model's own tokenizer does
    add_eos_token: bool | None = None
    padding: bool | str = "max_length"
    # where vocab_file is "": the tokenizer's file or folder, or its name in the cache
    checkpoint_name_or_path: str = ""


@section
class DataTokenizerConfig(Section):
    type: str = ""
    vocab_file: str = ""


@section
class DatasetConfig(Section):
    data_loader: LoaderConfig = field(default_factory=LoaderConfig)
    # steps of MindFormers, or names of LAVIS's, one for all annotation files or one for each
    transforms: tuple[dict | str, ...] = ()
    text_transforms: TextTransformConfig = field(default_factory=TextTransformConfig)
    # MindFormers writes it here too; processor.tokenizer decides, and must be the same
    tokenizer: DataTokenizerConfig | None = None
    num_parallel_workers: Natural = 8  # at most the host's processors; 0: in a thread beside the training
    python_multiprocessing: bool = True  # workers are processes, else threads
    max_unreadable: Fraction = 0.01  # share of the pictures that training may skip
    # pictures per call in evaluation; runner_config.batch_size is that of training
    batch_size: Natural = 1
    repeat: Count = 1
    use_image_id: bool = True  # captions of the same picture are not each other's negatives
    k_test: Count = 128  # candidates that the ITM head ranks again
    # score of a candidate: ITM logit + cosine as LAVIS, "itm", or "none" for the cosine alone
    rerank: str = "itm+itc"
    add_extra_itm_score: bool = True  # MindFormers; false is rerank "none"
    # zero-shot classification: divides the similarities; None: the learnt one, 1: transformers
    temperature: Positive | None = None
    # GB kept of the pictures in retrieval, see mindblip2.evaluation.retrieval.Kept
    memory_budget: NonNegative = 8.0


@section
class ImageProcessorConfig(Section):
    type: str = "Blip2ImageProcessor"
    image_size: Pixels | tuple[Pixels, ...] = 224
    mean: tuple[Fraction, Fraction, Fraction] = CLIP_MEAN  # of values in [0, 1], per channel
    std: tuple[Positive, Positive, Positive] = CLIP_STD
    interpolation: str = "bicubic"
    # transparency: "drop" as LAVIS (the colours under it show), "white" (background) as transformers
    alpha: str = "drop"

    def __post_init__(self) -> None:
        one_of(self, "type", ("Blip2ImageProcessor",))
        size = self.image_size
        if isinstance(size, tuple):  # MindFormers writes [224, 224]
            if len(set(size)) != 1:
                raise ConfigError(
                    f"processor.image_processor.image_size = {list(size)}: BLIP-2 pictures are square"
                )
            object.__setattr__(self, "image_size", int(size[0]))
        one_of(self, "interpolation", ("bicubic",))
        one_of(self, "alpha", ("drop", "white"))


@section
class ProcessorConfig(Section):
    type: str = "Blip2Processor"
    image_processor: ImageProcessorConfig = field(default_factory=ImageProcessorConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    # texts as LAVIS cleans captions; None: with BERT's tokenizer, not with a language model's
    clean: bool | None = None

    def __post_init__(self) -> None:
        one_of(self, "type", ("Blip2Processor",))
