"""Servers that speak S3's and Google Cloud Storage's protocols, on this machine."""

import contextlib
import socket

import pytest

KINDS = ("s3", "gs")


@contextlib.contextmanager
def bucket(kind: str):
    """(the address of an empty bucket, variables of the environment by which it is found)."""
    with _s3() if kind == "s3" else _gs() as found:
        yield found


@contextlib.contextmanager
def _s3():
    moto = pytest.importorskip("moto.server", reason="needs moto[server] (the test extra)")
    pytest.importorskip("s3fs", reason="needs s3fs (the bucket extra)")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        env = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test",
               "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        import boto3

        boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"], aws_access_key_id="test",
                     aws_secret_access_key="test", region_name="us-east-1"
                     ).create_bucket(Bucket="runs")
        yield "s3://runs", env
    finally:
        server.stop()


@contextlib.contextmanager
def _gs():
    emulator = pytest.importorskip(
        "gcp_storage_emulator.server", reason="needs gcp-storage-emulator (the test extra)"
    )
    pytest.importorskip("gcsfs", reason="needs gcsfs (the bucket extra)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="runs")
    server.start()
    try:
        # Without it gcsfs asks Google what kind of bucket this is.
        yield "gs://runs", {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
                            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    finally:
        server.stop()
