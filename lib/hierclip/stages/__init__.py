"""What a stage of the pipeline does with the project's folder, in this process or in several."""

BASE, MODELS, TREES = "data/models/base", "data/models", "data/trees"
