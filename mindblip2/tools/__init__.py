"""MindFormers' name for the place of ``image_tools``; the code lives in ``mindblip2.data``."""
