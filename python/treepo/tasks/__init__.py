"""Tasks that come with treepo: problems with a known answer, and the default model."""
