"""Ray is left in order wherever a job stops."""

import os
import subprocess
import sys

import pytest

JOB = """
import sys, threading, time
import ray
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from prospect.cluster.runtime import connect, disconnect

step, stopped = StreamingExecutor._scheduling_loop_step, threading.Event()

def late(executor, topology):
    goes_on = step(executor, topology)
    if stopped.is_set():
        time.sleep(4)  # a machine that has much to do; Ray Data's own shutdown waits for two seconds
        ray.wait([ray.put(0)])
    return goes_on

def shutdown(*args):
    print(sum(isinstance(thread, StreamingExecutor) for thread in threading.enumerate()), "executors at the shutdown")
    leave(*args)

def slow(row):
    time.sleep(0.05)
    yield row

def stop_amid_the_rows():
    rows = ray.data.from_items([{"row": row} for row in range(400)], override_num_blocks=400).flat_map(slow).iter_rows()
    for count, row in enumerate(rows):
        if count == 3:
            stopped.set()
            raise KeyboardInterrupt

StreamingExecutor._scheduling_loop_step = late
leave, ray.shutdown = ray.shutdown, shutdown
connect(num_cpus=1)
try:
    try:
        stop_amid_the_rows()
    finally:
        AT_THE_END
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.e2e
@pytest.mark.parametrize("at_the_end", ["disconnect()", "pass"])
def test_an_interrupt_amid_rows_leaves_no_thread_that_uses_ray(at_the_end):
    job = subprocess.run(
        [sys.executable, "-c", JOB.replace("AT_THE_END", at_the_end)],
        env={**os.environ, "RAY_BACKEND_LOG_LEVEL": "fatal"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert job.returncode == 130, job.stdout
    lines = {line for line in job.stdout.splitlines() if "Set ray log level" not in line}
    assert lines == {"0 executors at the shutdown"}
