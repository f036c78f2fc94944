"""What a run keeps on disk: its folder, its checkpoints, who may write there, what is whole."""
