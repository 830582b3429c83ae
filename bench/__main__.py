"""The programs that write docs/performance.md, one after the other: `python -m bench --docs docs [--quick] …`."""

import subprocess
import sys

PROGRAMS = ("serving", "compare", "durability", "neighbours", "sessions", "breakdown", "soak")

commands = {name: [sys.executable, "-m", f"bench.{name}", *sys.argv[1:]] for name in PROGRAMS}
failed = [name for name, command in commands.items() if subprocess.run(command, check=False).returncode]
sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
