"""Clients of object stores, and tools that copy: whole files, into memory."""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from job import MIB, memory

REGION = "us-east-1"


def boto3(job):
    """One stream per file, one after the other."""
    import boto3 as library
    from botocore.config import Config

    style = Config(s3={"addressing_style": "path"})
    client = library.client("s3", endpoint_url=job.endpoint, config=style)
    job.begin()
    files = {}
    for name in job.names:
        buffer = bytearray(job.sizes[name])
        place, at = memoryview(buffer), 0
        body = client.get_object(Bucket=job.bucket, Key=job.keys[name])["Body"]
        for piece in body.iter_chunks(MIB):
            place[at : at + len(piece)] = piece
            at += len(piece)
        files[name] = buffer
        job.first()
    return files


def boto3_awscrt(job):
    """s3transfer over the CRT client, to files in memory. Not by boto3's own setting for it, which
    speaks TLS only."""
    import botocore.session
    from awscrt.auth import AwsCredentialsProvider
    from s3transfer.crt import (
        BotocoreCRTRequestSerializer,
        CRTTransferManager,
        create_s3_crt_client,
    )

    keys = (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    provider = AwsCredentialsProvider.new_static(*keys)
    client = create_s3_crt_client(REGION, crt_credentials_provider=provider, use_ssl=False)
    session = botocore.session.Session()
    place = {"endpoint_url": job.endpoint, "region_name": REGION}
    manager = CRTTransferManager(
        client, BotocoreCRTRequestSerializer(session, client_kwargs=place)
    )
    into = job.memory_dir()
    job.begin()
    for future in [
        manager.download(job.bucket, job.keys[name], os.path.join(into, name), {}, [])
        for name in job.names
    ]:
        future.result()
        job.first()
    # A result may come before the file has its name.
    manager.shutdown()
    return {}


def s3_store(job):
    from obstore.store import S3Store

    return S3Store(
        job.bucket,
        endpoint=job.endpoint,
        region=REGION,
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def obstore_get(job):
    """A get per file, four at a time."""
    import obstore

    store = s3_store(job)

    def get(name):
        content = obstore.get(store, job.keys[name]).bytes()
        job.first()
        return name, content

    job.begin()
    with ThreadPoolExecutor(4) as threads:
        return {name: memoryview(content) for name, content in threads.map(get, job.names)}


def obstore_ranges(job):
    """Ranges of 8 MiB, eight at a time, each copied into its place."""
    import obstore

    store = s3_store(job)
    part = 8 * MIB
    files = {name: memory(job.sizes[name]) for name in job.names}
    missing = {name: -(-job.sizes[name] // part) for name in job.names}
    lock = Lock()

    def get(at):
        name, first = at
        end = min(first + part, job.sizes[name])
        content = obstore.get_range(store, job.keys[name], start=first, end=end)
        files[name][first:end] = memoryview(content)
        with lock:
            missing[name] -= 1
            if missing[name] == 0:
                job.first()

    parts = [(name, at) for name in job.names for at in range(0, job.sizes[name], part)]
    job.begin()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(get, parts))
    return files


def tool(name):
    """A program beside this Python, or on the path."""
    beside = os.path.dirname(sys.executable)
    found = shutil.which(name, path=beside) or shutil.which(name)
    if not found:
        raise FileNotFoundError(f"there is no {name}")
    return found


def s5cmd(job):
    program, into = tool("s5cmd"), job.memory_dir()
    pattern = f"s3://{job.bucket}/{job.prefix}*.safetensors"
    job.begin()
    job.command(
        [program, "--endpoint-url", job.endpoint, "cp", "--concurrency", "8", pattern, into + "/"]
    )
    return {}


def rclone(job):
    program, into = tool("rclone"), job.memory_dir()
    job.begin()
    job.command(
        [program, "copy", "--config", "/dev/null", "--include", "*.safetensors"]
        + ["--multi-thread-streams", "4", "--s3-provider", "Other", "--s3-env-auth"]
        + ["--s3-endpoint", job.endpoint, "--s3-region", REGION]
        + [f":s3:{job.bucket}/{job.prefix.rstrip('/')}", into]
    )
    return {}
