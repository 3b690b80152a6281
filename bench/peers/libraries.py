"""Libraries that load tensors: from local files, and some of them from S3."""

import os


def safetensors(job, clone=False, **how):
    import torch  # noqa: F401: what the tensors are made with
    from safetensors import safe_open

    job.begin()
    tensors = {}
    for path in job.paths:
        with safe_open(path, framework="pt", device="cpu", **how) as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                if clone:
                    tensor = tensor.clone()
                job.first()
                if not clone:
                    # One read of every page: a mapping is no load before.
                    tensor.view(-1)[::2048].sum()
                tensors[name] = tensor
    return tensors


def safetensors_clone(job):
    return safetensors(job, clone=True)


def safetensors_pread(job):
    return safetensors(job, backend="pread")


def runai(job):
    from runai_model_streamer import SafetensorsStreamer

    job.begin()
    tensors = {}
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(job.uris if job.source == "s3" else job.paths, device="cpu")
        for name, tensor in streamer.get_tensors():
            tensors[name] = tensor
            job.first()
    return tensors


def runai_4(job):
    os.environ["RUNAI_STREAMER_CONCURRENCY"] = "4"
    return runai(job)


def fastsafetensors(job):
    import torch  # noqa: F401: what the tensors are made with
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    job.begin()
    loader = SafeTensorsFileLoader(SingleGroup(), device="cpu", nogds=True)
    loader.add_filenames({0: job.paths})
    files = loader.copy_files_to_device()
    tensors = {}
    for name in files.key_to_rank_lidx:
        tensors[name] = files.get_tensor(name)
        job.first()
    # The tensors lie in buffers of these.
    job.keep += [loader, files]
    return tensors


def tensorizer(job):
    """From its own format, which `convert.py` made of the same tensors."""
    from tensorizer import TensorDeserializer, stream_io

    job.begin()
    source = f"{job.dir.rstrip('/')}.tensors"
    if job.source == "s3":
        source = stream_io.open_stream(
            f"s3://{job.bucket}/{job.prefix.rstrip('/')}.tensors",
            s3_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            s3_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            s3_endpoint=job.endpoint,
            force_http=True,
        )
    stored = TensorDeserializer(source, device="cpu", lazy_load=True)
    tensors = {}
    for name in stored.keys():
        tensors[name] = stored[name]
        job.first()
    job.keep.append(stored)
    return tensors
