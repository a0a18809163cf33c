"""``python -m parity``: is mindblip2 equal to PyTorch on this machine, with these weights?"""

import sys

from mindblip2.parity.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
