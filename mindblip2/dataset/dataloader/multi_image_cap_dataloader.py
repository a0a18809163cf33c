"""``mindformers.dataset.dataloader.multi_image_cap_dataloader``, with ours in its place."""
from mindblip2.data.pairs import MultiImgCapDataLoader as MultiImgCapDataLoader
