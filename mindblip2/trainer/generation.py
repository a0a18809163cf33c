"""The task of stage 2: train the bridge, write about pictures, and measure captions and answers."""
from pathlib import Path

from mindblip2.cells.blip2_llm import Blip2ImageToTextGeneration
from mindblip2.data.captioned import check_readable, pictures_and_captions
from mindblip2.data.captions import BlipQuestion
from mindblip2.data.labelled import PICTURE_SUFFIXES
from mindblip2.data.loaders import captioned
from mindblip2.data.questions import read_questions, vqa_accuracy
from mindblip2.image_to_text import QUESTION, Writer
from mindblip2.trainer.inputs import load, pictures_of
from mindblip2.trainer.loaders import captioned_pictures, prompt_of
from mindblip2.trainer.pretrain import Pretrain
