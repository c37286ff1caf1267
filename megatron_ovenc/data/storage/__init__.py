"""Stored samples, whatever the format and wherever they are. `megatron_ovenc.data.shards` puts the parts together.

base       what a shard and a raw sample are
files      access to local and remote files
local      positioned reads
cache      copies of remote files on a local disk
tar        WebDataset tar files with an index
recordio   MXNet .rec files with their .idx
lists      text files that name image or video files
labels     label arrays beside shards
"""
