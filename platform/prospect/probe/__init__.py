"""A look at a deployment that runs, over HTTP and WebSocket: `prospect status` and `prospect test`."""
