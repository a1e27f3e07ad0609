"""One call over a folder of scans: what to do, what was done, and the masks."""
