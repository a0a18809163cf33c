"""MindFormers' import path of its data loaders; the code lives in ``mindblip2.data``."""
