#!/usr/bin/env python3
"""Loads one checkpoint into host memory with one peer, in this process, and prints one JSON line.

    load.py PEER file --dir DIR
    load.py PEER s3   --dir DIR --endpoint URL --bucket BUCKET --prefix PREFIX/
    load.py --list

DIR has the same files in both cases: their names and sizes are taken from it. The line has `wall`,
`cpu` (user and system, with children), `first` (until the first tensor, or whole file, is usable),
`bytes`, `peak_bytes`, `disk_bytes`; with --verify `crc32` of every tensor or file, taken when the
time is over; or `error`. Credentials are those of the environment (AWS_ACCESS_KEY_ID and so on).
"""

import argparse
import os
import signal

import job
import libraries
import stores

# Whoever takes longer hangs, and is ended.
LIMIT_SECONDS = 300

# By name: how, and from where it can load.
PEERS = {
    "runai-model-streamer": (libraries.runai, ("s3", "file")),
    "runai-model-streamer-4": (libraries.runai_4, ("s3", "file")),
    "tensorizer": (libraries.tensorizer, ("s3", "file")),
    "fastsafetensors": (libraries.fastsafetensors, ("file",)),
    "safetensors-mmap": (libraries.safetensors, ("file",)),
    "safetensors-mmap-clone": (libraries.safetensors_clone, ("file",)),
    "safetensors-pread": (libraries.safetensors_pread, ("file",)),
    "obstore-get": (stores.obstore_get, ("s3",)),
    "obstore-ranges": (stores.obstore_ranges, ("s3",)),
    "boto3": (stores.boto3, ("s3",)),
    "boto3-awscrt": (stores.boto3_awscrt, ("s3",)),
    "s5cmd": (stores.s5cmd, ("s3",)),
    "rclone": (stores.rclone, ("s3",)),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the peers and end")
    parser.add_argument("peer", nargs="?", choices=list(PEERS))
    parser.add_argument("source", nargs="?", choices=["file", "s3"])
    parser.add_argument("--dir")
    parser.add_argument("--endpoint")
    parser.add_argument("--bucket")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--gate", action="store_true", help="say ready, and wait for a line")
    parser.add_argument("--verify", action="store_true", help="with checksums")
    args = parser.parse_args()
    if not args.list:
        if not (args.peer and args.source and args.dir):
            parser.error("PEER, SOURCE and --dir are needed")
        if args.source not in PEERS[args.peer][1]:
            parser.error(f"{args.peer} does not load from {args.source}")
        if args.source == "s3" and not (args.endpoint and args.bucket):
            parser.error("--endpoint and --bucket are needed to load from s3")
    return args


def main():
    args = arguments()
    job.take_stdout()
    if args.list:
        job.say({name: list(sources) for name, (_, sources) in PEERS.items()})
        return
    signal.alarm(LIMIT_SECONDS)
    told = {"peer": args.peer, "source": args.source}
    try:
        told |= job.Job(args).run(PEERS[args.peer][0], args.verify)
    except BaseException as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        told["error"] = text[:400]
    job.say(told)
    # No library takes itself down on our time, or hangs.
    os._exit(0 if "error" not in told else 1)


if __name__ == "__main__":
    main()
