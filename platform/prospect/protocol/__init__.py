"""The session protocol: the messages between client and server, and their parsing (docs/protocol.md)."""
