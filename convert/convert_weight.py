"""``python convert/convert_weight.py``: weights of other projects to a mindblip2 .ckpt, and back; see
mindblip2/convert."""

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the checkout is the import root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindblip2.convert.convert_weight import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
