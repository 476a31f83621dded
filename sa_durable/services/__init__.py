"""Services: a Session and values in, values out. They never commit, roll back, sleep, start threads or call user code."""
