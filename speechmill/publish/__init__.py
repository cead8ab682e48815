"""The last stage: the accepted clips and every score as a data set that others load.

`shards` plans and writes the Parquet files, `card` the README.md, `figure` its picture. `folder` puts all in place and
verifies it; `hub` does the same in a repository of the Hub, as `repository` knows it, and `ahead` is what is sent
before all batches are there.
"""
