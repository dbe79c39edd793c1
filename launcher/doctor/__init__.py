"""`doctor`: what this machine can do, looked at from many sides, each under a time limit."""
