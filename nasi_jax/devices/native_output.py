"""Shows what native code says in a process that has others, and makes one line of its last words.

Run by its path, without imports of the package: `hosts` pipes both outputs of its process here.
"""

import re
import sys

RECORD = re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ (\w+)\.(?:cc|h):\d+\] ")
"""How a record of a log begins, of more lines or one: its level, and the file it comes from."""

OF_CONNECTIONS = {
    "add_port",
    "client",
    "coordination_service",
    "coordination_service_agent",
    "preemption_sync_manager",
}
"""Files of JAX's runtime that tell of the other processes."""

ERROR = "nasi: error: "
LOST = "another process of this run was lost, see what it says; with --resume the run goes on"
LATE = "not all processes of this run came in time"


def main() -> None:
    """Copies lines to stderr until an error has been told."""
    shown = True
    for line in sys.stdin:
        record = RECORD.match(line)
        if record:
            shown = record[2] not in OF_CONNECTIONS
        elif line.startswith("nasi: "):
            shown = True
        elif line.startswith("[Gloo]"):
            continue
        if record and record[1] == "F" and not shown:
            line, shown = f"{ERROR}{LATE if 'DEADLINE' in line else LOST}\n", True
        if shown:
            print(line, end="", file=sys.stderr, flush=True)
        if line.startswith(ERROR):
            break
    for _ in sys.stdin:  # or the other side would be ended for writing
        pass


if __name__ == "__main__":
    main()
