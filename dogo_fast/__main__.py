"""``python -m dogo_fast`` is ``dogo-fast``."""

import sys

from dogo_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
