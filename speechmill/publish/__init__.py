"""The last stage: the accepted clips and every score as a data set that others load.

`shards` plans and writes the Parquet files, `card` the README.md, `folder` puts both in place and verifies them.
"""
