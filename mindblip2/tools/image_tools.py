"""The import path of MindFormers' users."""
from mindblip2.data.image import load_image as load_image
