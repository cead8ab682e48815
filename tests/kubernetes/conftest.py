"""A real S3 server (moto's) on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """Its client; there is a bucket `corpora`."""
    moto_server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    client.create_bucket(Bucket="corpora")
    yield client
    server.stop()
