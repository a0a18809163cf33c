"""Which device a run uses, and in which mode; and what the device cannot do."""
import logging

import mindspore as ms

logger = logging.getLogger("mindblip2")


def use(context):
    """Set MindSpore's mode and device from a ``ContextConfig``; an empty ``device_target`` means what the host has."""
    ms.set_context(mode=ms.GRAPH_MODE if context.mode == 0 else ms.PYNATIVE_MODE)
    if context.device_target:
        ms.set_device(context.device_target, context.device_id)
    if context.max_device_memory and target() != "CPU":
        ms.set_context(max_device_memory=context.max_device_memory)
    if context.save_graphs:
        ms.set_context(save_graphs=True, save_graphs_path=context.save_graphs_path)


def target():
    """"CPU", "GPU" or "Ascend"."""
    return ms.get_context("device_target")


def runnable(config):
    """The model's configuration as this device can compute it: on CPU half precision is slower than float32 or missing, so
    the products are float32 there whatever the weights are stored in."""
    if target() == "CPU" and config.compute_dtype != "float32":
        logger.warning("compute_dtype %s: computing in float32, since the device is a CPU", config.compute_dtype)
        return config.replace(compute_dtype="float32")
    return config
