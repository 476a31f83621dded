"""Services: functions that take a Session and values, and return values.

They never commit, roll back, sleep, start threads or call user code.
"""
