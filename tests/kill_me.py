"""A program for test_kill.py: small runs in child processes that it kills with SIGKILL at random moments.

    python kill_me.py IMAGES RUNS EPOCHS KILLS

Everything is imported once; each child is a fork that resumes the run in RUNS/0 and trains on the pictures in IMAGES.
A run that finishes before there were KILLS kills is followed by another, RUNS/1, ...; the last finishes in peace. One
line of JSON says what happened.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from dogo_fast.training import PretrainConfig, pretrain

LONGEST = 3.5
"""Until a kill, in times of what a run takes to its first checkpoint: 0.2 s, more where the machine is busy."""


def config(images: Path, folder: Path, epochs: int) -> PretrainConfig:
    return PretrainConfig(
        data="folder",
        data_dir=images,
        view_size=8,
        workers=0,
        epochs=epochs,
        batch_size=8,
        device="cpu",
        evaluate=False,
        save_every=50,
        learning_rate="0.002,0.001",
        optimiser="adam,lars",
        out=folder,
        resume="auto",
    )


def start(images: Path, folder: Path, epochs: int) -> int:
    """A child that resumes the run; exits with 0 when it is finished, 3 when something went wrong."""
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        pretrain(config(images, folder, epochs))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def seconds_to_first_checkpoint(images: Path, folder: Path, epochs: int) -> float:
    begun = time.perf_counter()
    child = start(images, folder, epochs)
    while not any((folder / "checkpoints").glob("[!.]*")) and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.002)
    taken = time.perf_counter() - begun
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return taken


def main() -> None:
    images, runs = map(Path, sys.argv[1:3])
    epochs, kills = map(int, sys.argv[3:])
    torch.set_num_threads(1)
    delays = random.Random(0)
    longest = LONGEST * seconds_to_first_checkpoint(images, runs / "first", epochs) if kills else 0.0
    killed = run = status = 0
    while killed < kills and status == 0:
        child = start(images, runs / str(run), epochs)
        time.sleep(delays.uniform(0.0, longest))
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            run += 1
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
    if status == 0:
        _, status = os.waitpid(start(images, runs / str(run), epochs), 0)
    print(json.dumps({"killed": killed, "runs": run + 1, "status": os.waitstatus_to_exitcode(status)}))


if __name__ == "__main__":
    main()
