"""The static search: what the compiler makes of tiles for several GPUs, without one.

    python -m dogo_fast.tuning [--targets sm_90 ...] [--dtypes bfloat16 ...] [--widths 128 ...] [--kernels gradient ...]

Lists candidates with registers and spilled bytes a thread and shared memory in bytes a program, from --from on down to
the first that fits every target and spills in no loss; prints that one. A kernel takes from five seconds to minutes to
compile, exact float32 the longest.
"""

import argparse
import os
import sys

from dogo_fast.kernels.configurations import DTYPES
from dogo_fast.tuning.compiling import HEADER, SHARED_LIMITS, STATIC_TARGETS, static_search
from dogo_fast.tuning.search import KERNELS, TunedSize, all_tiles


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dogo_fast.tuning", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--targets", nargs="+", default=list(STATIC_TARGETS), choices=tuple(SHARED_LIMITS))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=DTYPES)
    parser.add_argument("--widths", nargs="+", type=int, default=[128], metavar="D")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=KERNELS)
    parser.add_argument("--from", dest="most", type=int, default=4096, metavar="NUMBERS", help="largest tile tried")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        sys.exit("the kernels cannot be compiled while TRITON_INTERPRET=1 is set: unset it")
    print(HEADER, flush=True)
    for dtype in arguments.dtypes:
        for width in arguments.widths:
            for kernel in arguments.kernels:
                tiles = (tile for tile in all_tiles() if tile.rows * tile.keys <= arguments.most)
                size = TunedSize(dtype, width, 256)
                found = static_search(size, kernel, arguments.targets, lambda line: print(line, flush=True), tiles)
                print(f"{dtype} {width} {kernel}: {found or 'no tile fits'}", flush=True)


if __name__ == "__main__":
    main()
