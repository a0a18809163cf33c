"""The import path of MindFormers' users."""

from mindblip2.data.images.load import load_image as load_image
