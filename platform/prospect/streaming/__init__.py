"""The streaming engine: decides the frames of many live sessions in one forward pass a step."""
