"""The crash-safe store. The only importer of lmdb."""
