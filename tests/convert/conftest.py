"""Small files of every kind that can be converted, made once."""

import pytest

torch = pytest.importorskip("torch")

from mindblip2.checkpoint.ckpt import Checkpoint  # noqa: E402
from mindblip2.convert.convert_weight import main  # noqa: E402
from mindblip2.parity.reference.config import ReferenceConfig  # noqa: E402
from mindblip2.parity.reference.model import seeded_state_dict  # noqa: E402
from mindblip2.parity.seeded_weights import TIED  # noqa: E402

SMALL = ReferenceConfig(
    image_size=56,
    patch=14,
    vit_width=32,
    vit_depth=2,
    vit_heads=2,
    vit_hidden=48,
    width=24,
    layers=4,
    heads=2,
    ffn=40,
    vocab=120,
    positions=16,
    queries=4,
    embed=16,
)
VIT = "visual_encoder."


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def small():
    """The dimensions of all files here."""
    return SMALL


@pytest.fixture(scope="package")
def lavis():
    """A whole stage-1 state dict under LAVIS's names, tied tensors shared."""
    state = seeded_state_dict(SMALL)
    state.update({name: state[owner] for name, owner in TIED.items()})
    return state


@pytest.fixture(scope="package")
def lavis_without_vit(lavis):
    """As blip2_pretrained.pth: what is frozen is not saved."""
    return {name: value for name, value in lavis.items() if not name.startswith(VIT)}


@pytest.fixture(scope="package")
def eva(lavis):
    """As eva_vit_g.pth: the ViT with one block more, a final norm and a classifier."""
    state = {name.removeprefix(VIT): value for name, value in lavis.items() if name.startswith(VIT)}
    last = {
        name.replace("blocks.1.", "blocks.2."): value + 1
        for name, value in state.items()
        if name.startswith("blocks.1.")
    }
    return (
        state
        | last
        | {
            "head.weight": torch.ones(7, 32),
            "head.bias": torch.ones(7),
            "fc_norm.weight": torch.ones(32),
            "norm.weight": torch.ones(32),
            "norm.bias": torch.ones(32),
        }
    )


@pytest.fixture
def convert(tmp_path, capsys):
    """convert(state dict or path, "--flag", …) → what the command wrote as {name: array}, and the text it
    printed."""

    def run(source, *flags, expect=0):
        path = source
        if isinstance(source, dict):
            path = tmp_path / "source.pth"
            torch.save(source, path)
        out = tmp_path / "out.ckpt"
        out.unlink(missing_ok=True)
        capsys.readouterr()
        code = main(["--torch_path", str(path), "--mindspore_path", str(out), *map(str, flags)])
        text = capsys.readouterr()
        assert code == expect, text.err
        if code:
            assert not list(tmp_path.glob("out.ckpt*")), "something was written"
            return text.err
        return Checkpoint(out), text.out

    return run
