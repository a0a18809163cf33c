"""Install: ``pip install .``, or ``make install`` for a checkout that runs in place."""

import re
from pathlib import Path

from setuptools import find_packages, setup

FRONT = Path(__file__).with_name("mindblip2") / "__init__.py"
DEMO = ["scikit-learn", "matplotlib"]

setup(
    name="mindblip2",
    version=re.search(r'__version__ = "(.+?)"', FRONT.read_text(encoding="utf-8"))[1],
    description="BLIP-2 in MindSpore: a reference implementation with parity to LAVIS that its users can run",
    license="Apache-2.0",
    license_files=["LICENSE", "mindblip2/assets/NOTICE"],
    python_requires=">=3.10",
    install_requires=[
        "mindspore>=2.10,<2.11",  # 2.10.0 has wheels for Python 3.10 to 3.12
        # MindSpore's metadata allows 2.x, but its first reshape then raises SystemError
        "numpy<2",
        "decorator",  # MindSpore's graph kernels on CPU import it without declaring it
        "pillow",
        "pyyaml",
        "tokenizers",
        "tqdm",
    ],
    extras_require={
        "demo": DEMO,
        "llm": ["sentencepiece"],  # tokenizers of Llama, Vicuna and Baichuan that come as a .model file
        "metrics": ["pycocoevalcap"],  # METEOR and SPICE of captions; both need Java
        # Pinned: the numbers of parity/ and of the converter are measured against exactly these.
        "parity": ["torch==2.13.0", "transformers==5.23.0", "safetensors"],
        "dev": [
            "pytest",
            "pytest-xdist",
            "ruff",
            "mypy",
            "import-linter",
            "types-PyYAML",
            "hypothesis",
            "sentencepiece",
            *DEMO,
        ],
    },
    # configs/ lies at the top of a checkout and inside mindblip2/ in a wheel; mindblip2.config looks in both
    # places.
    package_dir={"mindblip2.configs": "configs"},
    # The top-level folders convert/ and parity/ are for checkouts only: a wheel has mindblip2.convert and
    # mindblip2.parity.
    packages=[*find_packages(include=["mindblip2", "mindblip2.*"]), "mindblip2.configs"],
    package_data={"mindblip2.configs": ["*.yaml"], "mindblip2": ["assets/*", "py.typed"]},
)
