"""Who may use the server: API keys, what each may use, and which hosts and origins are answered."""
