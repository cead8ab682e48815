"""Files on disk, objects in S3, files of the Hub, and the folder of a run. Does not interpret their content."""
