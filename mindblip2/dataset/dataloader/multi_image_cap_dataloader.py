"""``mindformers.dataset.dataloader.multi_image_cap_dataloader``, with ours in its place."""

from mindblip2.data.datasets.pairs import MultiImgCapDataLoader as MultiImgCapDataLoader
