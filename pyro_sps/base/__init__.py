"""What the process and the file system are like.

- `files`: files that are written whole or not at all, and read without trust
- `process`: what belongs to the whole process, one thread at a time
- `plain`: torch without the modes and defaults that a caller has set
- `terminal`: lines for a terminal that may be closed, full or of another encoding
- `checks`: checks of single arguments
- `text`: text for a reader
- `lazy`: names that are imported when they are used
"""
