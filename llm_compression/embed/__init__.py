"""Sources of images in, a data set of embeddings out: shard by shard, each resumed where its file is missing."""
