"""From a corpus's name to manifests: download, unpack, read its folders, write lhotse cuts."""
