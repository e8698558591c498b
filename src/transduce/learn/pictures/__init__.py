"""The pictures of the notebooks: functions that draw what they are given and return a matplotlib figure."""
