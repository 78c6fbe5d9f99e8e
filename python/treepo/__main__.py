"""`python -m treepo` is the command `treepo`."""

import sys

from treepo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
