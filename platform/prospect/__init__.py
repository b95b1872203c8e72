"""Prospect: train and serve a proactive streaming video assistant with dialogue state tracking."""

import logging

# Whatever imports peft imports bitsandbytes, which tells every CPU process of a kernel that it could not download.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
