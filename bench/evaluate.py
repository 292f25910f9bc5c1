"""From embeddings to a cell's result: normalise, rank exactly, keep the evidence, score it."""
