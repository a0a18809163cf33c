"""Which device a run uses, and in which mode; and what the device cannot do."""

import contextlib
import importlib.util
import logging
import shutil

import mindspore as ms

from mindblip2.config.schema import ConfigError, warn_ignored

logger = logging.getLogger("mindblip2")
HALF = ("float16", "bfloat16")
_pretended = None


def use(context):
    """Set MindSpore's mode and device from a ``ContextConfig``; an empty ``device_target`` means what the
    host has.  Raises ConfigError where the device is not there."""
    ms.set_context(mode=ms.GRAPH_MODE if context.mode == 0 else ms.PYNATIVE_MODE)
    if context.device_target:
        try:
            ms.set_device(context.device_target, context.device_id)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"context.device_target = {context.device_target!r}, device_id {context.device_id}: "
                "MindSpore "
                f"{ms.__version__} cannot use it here ({reason}); leave --device_target out for what the "
                "host has, or see "
                "docs/ascend.md"
            ) from None
    elif context.device_id and target() != "CPU":
        ms.set_device(target(), context.device_id)
    if context.max_device_memory and target() != "CPU":
        ms.set_context(max_device_memory=context.max_device_memory)
    if target() == "CPU":
        warn_ignored(
            [
                f"context.{key} (a CPU has none)"
                for key in ("device_id", "max_device_memory")
                if getattr(context, key)
            ]
        )
    if context.enable_graph_kernel:
        _fuse(context)
    if context.save_graphs:
        ms.set_context(save_graphs=True, save_graphs_path=context.save_graphs_path)


def target():
    """ "CPU", "GPU" or "Ascend"."""
    return _pretended or ms.get_context("device_target")


@contextlib.contextmanager
def simulate_device(name):
    """Cells that are made here are those of another device.  They can be exported: MindSpore infers shapes
    and dtypes for any device, and computes for the own only."""
    global _pretended
    before, _pretended = _pretended, name
    try:
        yield
    finally:
        _pretended = before


def ascend():
    """Are there the kernels of ``cells.ascend``?  Cells ask when they are made."""
    return target() == "Ascend"


def flash(dtype):
    """Is attention of this dtype one kernel?  It knows half precision only."""
    return ascend() and dtype in HALF


def fuses():
    """Are elementwise steps fused into one pass?  Cells ask when they are made, and then use the forms that
    fuse well."""
    return (
        target() == "CPU"
        and ms.get_context("mode") == ms.GRAPH_MODE
        and bool(ms.get_context("enable_graph_kernel"))
    )


def _fuse(context):
    """Turn MindSpore's graph kernels on.  On a CPU they are compiled by g++ on the first run; without it, or
    without the Python package decorator, which MindSpore uses undeclared, the run would hang."""
    if target() == "CPU":
        missing = [
            name
            for name, there in (
                ("g++", shutil.which("g++")),
                ("the Python package decorator", importlib.util.find_spec("decorator")),
            )
            if not there
        ]
        if missing or context.mode != 0:
            raise ConfigError(
                "context.enable_graph_kernel on a CPU needs "
                + (" and ".join(missing) or "context.mode 0 (graph)")
                + ": install it (pip install decorator), or leave the key out"
            )
        # Their Exp, Tanh and the like are accurate to 1e-4 only, so those stay with the ordinary kernels.
        ms.set_context(
            graph_kernel_flags="--enable_cluster_ops_only=Add,Sub,Mul,RealDiv,Minimum,Maximum,Rsqrt,ReduceSum"
        )
    ms.set_context(enable_graph_kernel=True)


@contextlib.contextmanager
def no_init():
    """Context in which constructors neither draw random values nor load what the configuration names, for a
    model that is loaded at once.  It may be entered within itself; MindSpore's own ends the outer one too."""
    before = draws_values()
    try:
        with ms.nn.utils.no_init_parameters():
            yield
    finally:
        ms.Parameter.init_param = before


def draws_values():
    """Whether parameters that are made now get their initial values: not within ``no_init``."""
    return getattr(ms.Parameter, "init_param", True)


def runnable(config):
    """The model's configuration as this device can compute it: on CPU half precision is slower than float32
    or missing, so the products are float32 there whatever the weights are stored in."""
    if target() == "CPU":
        # in PyNative its asynchronous launches spin: without this ten times the time of both cores
        ms.runtime.launch_blocking()
    if target() == "CPU" and config.compute_dtype != "float32":
        logger.warning(
            "compute_dtype %s: computing in float32, since the device is a CPU", config.compute_dtype
        )
        return config.replace(compute_dtype="float32")
    return config
