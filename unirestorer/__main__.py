import sys

from unirestorer.cli import main

sys.exit(main())
