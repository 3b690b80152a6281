"""What every adapter shares: which files to load from where, the clock, and what is told at the end.

An adapter imports its library, calls `begin()`, loads every tensor of every file into memory, calls
`first()` as soon as one is usable, and returns them by name. With `gate`, `begin()` says that it is
ready and waits for a line on standard input: whoever measures then makes the machine ready, and no
import counts.
"""

import ctypes
import json
import mmap
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib

MIB = 1 << 20
ANSWERS = None


def take_stdout():
    """Keeps standard output for answers: what libraries print goes to standard error."""
    global ANSWERS
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)


def say(value):
    print(json.dumps(value), file=ANSWERS, flush=True)


def live_children():
    """Ids of children that have not been waited for."""
    found = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                found += file.read().split()
        except OSError:
            pass
    return found


def cpu_seconds():
    """User and system time so far, of this process and of its children, ended or not."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(one.ru_utime + one.ru_stime for one in used)
    for child in live_children():
        try:
            with open(f"/proc/{child}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        seconds += sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return seconds


def disk_bytes():
    """Bytes that a disk had to bring for this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_inblock for one in used) * 512


def resident_peak():
    """The most memory that this process had. Not `ru_maxrss`, which begins with its parent's."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


class Job:
    def __init__(self, args):
        self.source, self.dir, self.gate = args.source, args.dir, args.gate
        self.endpoint, self.bucket, self.prefix = args.endpoint, args.bucket, args.prefix
        self.names = sorted(name for name in os.listdir(args.dir) if name.endswith(".safetensors"))
        self.paths = [os.path.join(args.dir, name) for name in self.names]
        self.sizes = {name: os.path.getsize(os.path.join(args.dir, name)) for name in self.names}
        self.keys = {name: f"{args.prefix}{name}" for name in self.names}
        self.uris = [f"s3://{args.bucket}/{self.keys[name]}" for name in self.names]
        self.began = self.cpu = self.disk = None
        self.first_seconds = self.copies = None
        self.keep = []

    # What adapters call.

    def begin(self):
        if self.gate:
            say({"ready": True})
            if not sys.stdin.readline():
                raise EOFError("nobody said go")
        self.disk, self.cpu = disk_bytes(), cpu_seconds()
        self.began = time.monotonic()

    def first(self):
        if self.first_seconds is None:
            self.first_seconds = time.monotonic() - self.began

    def memory_dir(self):
        """A directory in memory, for tools that write files."""
        self.copies = tempfile.mkdtemp(prefix="forebay-peer-", dir="/dev/shm")
        return self.copies

    def command(self, argv):
        """Runs a tool to its end."""
        ran = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if ran.returncode:
            raise RuntimeError(f"it ended with {ran.returncode}: {ran.stderr.strip()[-300:]}")

    # What becomes of it.

    def run(self, load, verify):
        """Loads, and tells what that came to."""
        try:
            loaded = load(self)
            wall = time.monotonic() - self.began
            self.first()
            told = {
                "wall": wall,
                "cpu": cpu_seconds() - self.cpu,
                "first": self.first_seconds,
                "bytes": sum(self.sizes.values()),
                "peak_bytes": self.peak(),
                "disk_bytes": disk_bytes() - self.disk,
            }
            if verify:
                told["crc32"] = self.checksums(loaded)
            return told
        finally:
            if self.copies:
                shutil.rmtree(self.copies, ignore_errors=True)

    def peak(self):
        """Files in memory are memory. Where a tool made them, this process is none of the tool."""
        if not self.copies:
            return resident_peak()
        copies = sum(entry.stat().st_size for entry in os.scandir(self.copies))
        tools = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
        return copies + (tools or resident_peak())

    def checksums(self, loaded):
        if not self.copies:
            return {name: zlib.crc32(bytes_of(value)) for name, value in loaded.items()}
        sums = {}
        for name in os.listdir(self.copies):
            with open(os.path.join(self.copies, name), "rb") as file:
                sums[name] = zlib.crc32(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return sums


def bytes_of(value):
    """The bytes of a tensor or buffer, where they are."""
    if not hasattr(value, "data_ptr"):
        return memoryview(value).cast("B")
    tensor = value.contiguous()
    length = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * length).from_address(tensor.data_ptr())).cast("B")


def memory(length):
    """Private memory that nobody has touched."""
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
