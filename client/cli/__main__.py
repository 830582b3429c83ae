"""`python -m dnc_serve.client.cli` is `dnc`."""

import sys

from dnc_serve.client.cli.main import main

sys.exit(main())
