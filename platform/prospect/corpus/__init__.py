"""The sample corpus that the project draws itself: task videos that can be followed only by watching."""
