#!/bin/sh
# What the Containerfile and the Apptainer recipe have in common: the jobs' environment, with the versions of
# constraints.txt. As root, in a Debian image of Python, with the repository's files in /opt/speechmill.
# Every model's weights are inside the packages: nothing is downloaded when a job runs.
#   install.sh [EXTRA,...]   extras of pyproject.toml, such as full,kubernetes
set -eu
# git: Snakemake asks it for a workflow's version; ffmpeg: libraries that torchcodec loads
apt-get update
apt-get install -y --no-install-recommends git ffmpeg
rm -rf /var/lib/apt/lists/*
pip install --no-cache-dir -c /opt/speechmill/constraints.txt "/opt/speechmill${1:+[$1]}"
python -c 'import speechmill, torch, snakemake; print(speechmill.__version__, torch.__version__)'
