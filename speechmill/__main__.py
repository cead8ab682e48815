"""`python -m speechmill`."""

import sys

from speechmill.cli.main import main

sys.exit(main())
