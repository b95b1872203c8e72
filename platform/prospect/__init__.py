"""Prospect: train and serve a proactive streaming video assistant with dialogue state tracking."""
