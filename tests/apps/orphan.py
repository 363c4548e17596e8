"""Leaves a child without its parent, and says what became of it: its state, or gone."""

import os
import time
from pathlib import Path

read_end, write_end = os.pipe()
if os.fork() == 0:
    if (orphan := os.fork()) > 0:
        os.write(write_end, b"%d" % orphan)
        os._exit(0)
    time.sleep(0.2)
    os._exit(0)
os.wait()
stat = Path(f"/proc/{os.read(read_end, 20).decode()}/stat")
state = "S"
for _ in range(100):
    time.sleep(0.1)
    try:
        state = stat.read_text().rpartition(")")[2].split()[0]
    except OSError:
        state = "gone"
        break
print(state)
